"""The image's tag: another one whenever what is inside may behave differently, and never otherwise."""

import re
import shutil
from pathlib import Path
from typing import get_args

import pytest

from infra import image
from infra.clusters import ExistingCluster
from infra.config import ROOT, Accelerator, Image, StackConfig, WorkerGroup, from_file
from tests.infra.made_up import FROM_S3, eks_stack, values

LOCAL = StackConfig()
GPUS = eks_stack()
ACCELERATORS: list[Accelerator] = list(get_args(Accelerator))


def content(accelerator: Accelerator) -> list[Path]:
    return [path.relative_to(ROOT) for path in image.content(accelerator)]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what goes into the images."""
    for path in {path for accelerator in ACCELERATORS for path in content(accelerator)}:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    return tmp_path


def append(file: Path) -> None:
    with file.open("a") as opened:
        opened.write("\n")


def test_the_same_content_has_the_same_tag_anywhere(checkout: Path) -> None:
    assert image.reference(LOCAL, checkout) == image.reference(LOCAL)


@pytest.mark.parametrize(
    "path", ["Dockerfile", "requirements/cpu.txt", "app/vllm.json", "app/settings.py", "app/deployments/llm.py"]
)
def test_other_content_has_another_tag(checkout: Path, path: str) -> None:
    before = image.reference(LOCAL, checkout)
    append(checkout / path)
    assert image.reference(LOCAL, checkout) != before


def test_another_base_has_another_tag() -> None:
    pinned = StackConfig(image=Image(base=f"registry.example.com/debian@sha256:{'0' * 64}"))
    assert image.reference(pinned) != image.reference(LOCAL)


def test_a_new_module_has_another_tag(checkout: Path) -> None:
    before = image.reference(LOCAL, checkout)
    (checkout / "app" / "new.py").touch()
    assert image.reference(LOCAL, checkout) != before


def test_each_lock_is_in_the_image_of_its_accelerator_and_in_no_other(checkout: Path) -> None:
    before = [image.reference(stack, checkout) for stack in (LOCAL, GPUS)]
    append(checkout / "requirements" / "gpu.txt")
    local, gpus = [image.reference(stack, checkout) for stack in (LOCAL, GPUS)]
    assert local == before[0]
    assert gpus != before[1]


@pytest.mark.parametrize("stack", ["dev", "staging", "prod"])
def test_the_stacks_on_aws_have_the_image_for_gpus(stack: str) -> None:
    assert from_file(stack).accelerator == "gpu"


def test_stacks_without_gpus_have_the_image_for_cpus() -> None:
    assert from_file("local").accelerator == "cpu"
    # Its pods would wait for a GPU: no container there gets one.
    assert StackConfig(workers=[WorkerGroup(gpus=1)]).accelerator == "cpu"


def test_a_cluster_of_somebody_elses_may_have_gpus() -> None:
    group = WorkerGroup(cpus=7, gpus=1)
    given = {**values(serving=FROM_S3), "cluster": ExistingCluster(kind="existing", contexts=["gpus"])}
    assert StackConfig.model_validate({**given, "workers": [group]}).accelerator == "gpu"


def test_without_arguments_the_dockerfile_takes_the_defaults() -> None:
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    assert arguments == {"BASE": Image().base, "ACCELERATOR": LOCAL.accelerator}


def test_what_runs_in_the_image_is_hashed() -> None:
    """The schema and the profiles are for editors and people."""
    copied = {path.relative_to(ROOT) for path in (ROOT / "app").rglob("*") if path.is_file()}
    known = {path for path in copied if path.suffix == ".pyc" or path.match("app/*.schema.json")}
    known |= {path for path in copied if path.match("app/profiles/*.yaml")}
    for accelerator in ACCELERATORS:
        assert copied - known <= set(content(accelerator))
