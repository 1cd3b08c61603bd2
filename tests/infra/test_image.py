"""The image's tag: another one whenever what is inside may behave differently, and never otherwise."""

import re
import shutil
from pathlib import Path

import pytest

from infra import image
from infra.config import ROOT, Image

CONTENT = [path.relative_to(ROOT) for path in image.content()]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what goes into the image."""
    for path in CONTENT:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    return tmp_path


def test_the_same_content_has_the_same_tag_anywhere(checkout: Path) -> None:
    assert image.reference(Image(), checkout) == image.reference(Image())


@pytest.mark.parametrize(
    "path", ["Dockerfile", "requirements/cpu.txt", "app/vllm.json", "app/settings.py", "app/deployments/llm.py"]
)
def test_other_content_has_another_tag(checkout: Path, path: str) -> None:
    before = image.reference(Image(), checkout)
    with (checkout / path).open("a") as file:
        file.write("\n")
    assert image.reference(Image(), checkout) != before


def test_another_base_has_another_tag() -> None:
    pinned = Image(base=f"registry.example.com/debian@sha256:{'0' * 64}")
    assert image.reference(pinned) != image.reference(Image())


def test_a_new_module_has_another_tag(checkout: Path) -> None:
    before = image.reference(Image(), checkout)
    (checkout / "app" / "new.py").touch()
    assert image.reference(Image(), checkout) != before


def test_without_a_base_the_dockerfile_takes_the_configurations() -> None:
    (default,) = re.findall(r"^ARG BASE=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert default == Image().base


def test_what_runs_in_the_image_is_hashed() -> None:
    """The schema and the profiles are for editors and people."""
    copied = {path.relative_to(ROOT) for path in (ROOT / "app").rglob("*") if path.is_file()}
    known = {path for path in copied if path.suffix == ".pyc" or path.match("app/*.schema.json")}
    known |= {path for path in copied if path.match("app/profiles/*.yaml")}
    assert copied - known <= set(CONTENT)
