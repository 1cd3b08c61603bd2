"""How the image gets to its registry: fakes of AWS, Docker and buildah note what they are told."""

import base64
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.clusters import ExistingCluster
from infra.config import PROJECT, StackConfig, from_file
from infra.image import reference
from scripts import image
from scripts.console import Problem

PASSWORD = "a-password-for-twelve-hours"  # noqa: S105
TOKEN = base64.b64encode(f"AWS:{PASSWORD}".encode()).decode()
REGISTRY = "123456789012.dkr.ecr.us-east-1.amazonaws.com"
DIGEST = f"sha256:{'5' * 64}"
UNPINNED = from_file("dev")
DEV = UNPINNED.model_copy(update={"image": UNPINNED.image.model_copy(update={"base": f"debian@{DIGEST}"})})
ELSEWHERE = DEV.model_copy(update={"image": DEV.image.model_copy(update={"repository": "registry.example.com/team"})})

FAKE_DOCKER = """\
import json, os, pathlib, sys
log = pathlib.Path(os.environ["FAKE_DOCKER"])
stdin = sys.stdin.read() if "--password-stdin" in sys.argv else None
log.write_text(log.read_text() + json.dumps([sys.argv[1:], stdin]) + "\\n")
if sys.argv[1:3] == ["image", "inspect"]:
    print("debian@" + os.environ["FAKE_DIGEST"])
sys.exit(sys.argv[1] == os.environ.get("FAKE_DOCKER_FAILS"))
"""


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tags that the repository on AWS has."""
    tags: list[str] = []

    def aws(*arguments: str) -> Any:
        match arguments:
            case ("ecr", "list-images", "--region", "us-east-1", "--repository-name", name) if name == f"{PROJECT}-dev":
                return {"imageIds": [{"imageDigest": "sha256:0"}, *({"imageTag": tag} for tag in tags)]}
            case ("ecr", "get-authorization-token", "--region", "us-east-1"):
                return {"authorizationData": [{"authorizationToken": TOKEN}]}
        raise AssertionError(arguments)

    monkeypatch.setattr(image, "aws", aws)
    monkeypatch.setattr(image, "cluster_of", lambda _, stack: stack.cluster)
    return tags


class Docker:
    def __init__(self, log: Path) -> None:
        self._log = log

    @property
    def told(self) -> list[tuple[list[str], str | None]]:
        """Arguments and standard input of each command but those that ask something."""
        calls = [json.loads(line) for line in self._log.read_text().splitlines()]
        return [(arguments, stdin) for arguments, stdin in calls if arguments[0] not in ("info", "images")]


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Docker:
    fake, log = tmp_path / "docker", tmp_path / "log"
    fake.write_text(f"#!{sys.executable}\n{FAKE_DOCKER}")
    fake.chmod(0o755)
    log.touch()
    monkeypatch.setenv("FAKE_DOCKER", str(log))
    monkeypatch.setattr(image, "_write_bill", lambda _: None)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return Docker(log)


@pytest.fixture
def buildah(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What buildah is told where there is no Docker; of a file with credentials its content."""
    told: list[tuple[str, ...]] = []

    def run(*arguments: str) -> str:
        told.append(arguments)
        for argument in arguments:
            if argument.startswith("--authfile="):
                path = Path(argument.removeprefix("--authfile="))
                assert path.parent.stat().st_mode & 0o077 == 0
                told.append((path.read_text(),))
        return ""

    monkeypatch.setattr(image, "_docker_runs", lambda: False)
    monkeypatch.setattr(image, "buildah", run)
    monkeypatch.setattr(image, "build", lambda _: None)
    return told


@pytest.mark.usefixtures("there")
def test_the_image_for_gpus_is_built_and_pushed_with_a_password_from_aws(docker: Docker) -> None:
    image.push("dev", DEV)
    (build, _), (login, password), (push, _) = docker.told
    assert "--build-arg=ACCELERATOR=gpu" in build
    assert f"--tag={reference(DEV)}" in build
    assert login == ["login", "--username", "AWS", "--password-stdin", REGISTRY]
    assert password == PASSWORD
    assert push == ["push", reference(DEV)]


@pytest.mark.usefixtures("there")
def test_buildah_reads_the_password_from_a_file_of_its_own(buildah: list[tuple[str, ...]]) -> None:
    image.push("dev", DEV)
    (push, (auth,)) = buildah
    assert push[0] == "push" and push[-1] == reference(DEV)
    assert json.loads(auth) == {"auths": {REGISTRY: {"auth": TOKEN}}}
    assert not any(secret in argument for secret in (PASSWORD, TOKEN) for argument in push)


def test_what_is_there_is_neither_built_nor_pushed(
    docker: Docker, there: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    there.append(reference(DEV).rpartition(":")[2])
    image.push("dev", DEV)
    assert docker.told == []
    assert "is there already" in capsys.readouterr().out


def test_to_another_registry_it_goes_with_what_a_login_has_left(docker: Docker, buildah: list[tuple[str, ...]]) -> None:
    image.push("dev", ELSEWHERE)
    assert buildah == [("push", "--quiet", reference(ELSEWHERE))]
    assert docker.told == []


@pytest.mark.parametrize("command", ["build", "login", "push"])
@pytest.mark.usefixtures("there")
def test_a_step_that_fails_is_the_last(docker: Docker, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("FAKE_DOCKER_FAILS", command)
    with pytest.raises(Problem, match=f"docker {command} failed"):
        image.push("dev", DEV)
    assert docker.told[-1][0][0] == command


@pytest.mark.usefixtures("there")
def test_a_base_that_moves_is_refused_before_anything_is_built(docker: Docker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_DIGEST", DIGEST)
    with pytest.raises(Problem, match="is another Debian by and by") as raised:
        image.push("dev", UNPINNED)
    assert raised.value.fix == f"set it in Pulumi.dev.yaml to docker.io/library/debian@{DIGEST}"
    assert [arguments[0] for arguments, _ in docker.told] == ["pull", "image"]


@pytest.mark.usefixtures("there")
def test_and_so_by_buildah(buildah: list[tuple[str, ...]]) -> None:
    with pytest.raises(Problem, match="is another Debian by and by"):
        image.push("dev", UNPINNED)
    assert [told[0] for told in buildah] == ["pull", "images"]


def test_nothing_is_pushed_to_localhost(docker: Docker) -> None:
    local = StackConfig.model_construct(cluster=ExistingCluster(kind="existing", contexts=["kind"]))
    with pytest.raises(Problem, match=f"localhost/{PROJECT}' is no registry"):
        image.push("kind", local)
    assert docker.told == []
