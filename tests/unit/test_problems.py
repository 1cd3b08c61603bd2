"""What a user can get wrong on the Kubernetes path: one sentence and its fix, and nothing half done."""

import os
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest
from pulumi import automation

from app.keys import Key, digest
from infra import config
from infra.clusters import ExistingCluster
from infra.config import PROJECT, ROOT, StackConfig, from_file
from scripts import down, engine, kubectl, packages, stack_file, tools, up
from scripts.console import Problem


def test_missing_packages_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Problem, match="no-such-package") as raised:
        packages.ensure({"no-such-package": "no-such-command"})
    assert "apt-get install no-such-package" in raised.value.fix


def test_missing_packages_where_apt_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on another distribution: root alone does not help."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Problem, match="no-such-package") as raised:
        packages.ensure({"no-such-package": "no-such-command"})
    assert "your distribution's packages" in raised.value.fix


def test_a_package_that_apt_cannot_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a fake apt-get, which has no network."""
    apt = tmp_path / "apt-get"
    apt.write_text("#!/bin/sh\necho 'Reading package lists...'; echo 'E: Unable to locate package' >&2; exit 100\n")
    apt.chmod(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(packages, "_without_services", nullcontext)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(Problem, match=r"apt-get update failed: E: Unable to locate package\n") as raised:
        packages.ensure({"containerd": "no-such-command"})
    assert raised.value.fix.endswith("apt-get update && apt-get install containerd")


def test_a_library_is_found_by_its_name() -> None:
    packages.ensure({"libc6": "libc.so.6"})


def existing(kubeconfig: Path, *contexts: str) -> ExistingCluster:
    return ExistingCluster(contexts=list(contexts), kubeconfig=str(kubeconfig))


@pytest.mark.parametrize(("name", "reason"), [("none", "No such file or directory"), (".", "Is a directory")])
def test_unreadable_kubeconfig(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(Problem, match=f"cannot read the kubeconfig .*: {reason}") as raised:
        kubectl.connect(existing(tmp_path / name, "dev"))
    assert "KUBECONFIG" in raised.value.fix


@pytest.mark.parametrize("content", [b"not: a kubeconfig", b"[", b"", b"\xff\xfe\x00"])
def test_a_file_that_is_no_kubeconfig(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "kc").write_bytes(content)
    with pytest.raises(Problem, match="is not a kubeconfig"):
        kubectl.connect(existing(tmp_path / "kc", "dev"))


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    path = tmp_path / "kc"
    path.write_text("current-context: prod\ncontexts: [{name: prod}, {name: dev}]\n")
    return path


def test_a_typo_in_a_stack_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "Pulumi.dev.yaml").write_text(f"config: {{'{PROJECT}:servng': {{}}}}\n")
    monkeypatch.setattr(config, "from_file", partial(config.from_file, root=tmp_path))
    with pytest.raises(Problem, match=r"servng = .*did you mean serving\?") as raised:
        stack_file.read("dev")
    assert "nothing was created" in raised.value.fix


def test_a_context_that_is_not_there_names_those_that_are(kubeconfig: Path) -> None:
    with pytest.raises(Problem, match="'stage'") as raised:
        kubectl.connect(existing(kubeconfig, "stage"))
    assert "prod, dev" in raised.value.fix
    kubeconfig.write_text("contexts: []\n")
    with pytest.raises(Problem) as raised:
        kubectl.connect(existing(kubeconfig, "stage"))
    assert "it has none" in raised.value.fix


def test_the_current_context_must_be_one_of_the_stacks(kubeconfig: Path) -> None:
    with pytest.raises(Problem, match=r"\['dev', 'stage'\]: the current context of .* is 'prod'") as raised:
        kubectl.connect(existing(kubeconfig, "dev", "stage"))
    assert "kubectl config use-context" in raised.value.fix


def test_the_only_context_is_used_whatever_the_current_one_is(kubeconfig: Path) -> None:
    assert existing(kubeconfig, "dev").context == "dev"
    assert existing(kubeconfig, "dev", "prod").context == "prod"


def test_a_cluster_that_the_program_makes_is_known_by_its_arn(
    kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    cluster = from_file("dev").cluster
    with pytest.raises(Problem, match="kc does not know the cluster ") as raised:
        kubectl.connect(cluster)
    assert raised.value.fix.startswith("aws eks update-kubeconfig --region us-east-1 --name ")


def test_without_a_current_context_one_must_be_chosen(kubeconfig: Path) -> None:
    kubeconfig.write_text("contexts: [{name: prod}, {name: dev}]\n")
    assert existing(kubeconfig, "dev").context == "dev"
    with pytest.raises(Problem, match="is None, where this stack does not belong"):
        kubectl.connect(existing(kubeconfig, "dev", "prod"))


EXISTING = StackConfig(
    cluster=ExistingCluster(contexts=["dev"], models_path="/m"),
    keys=[Key(name="team", sha256=digest("sk-a-key-that-nobody-guesses"))],
)


@pytest.fixture
def pulumi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A user who has told Pulumi nothing."""
    for name in ("BACKEND_URL", "ACCESS_TOKEN", "CONFIG_PASSPHRASE", "CONFIG_PASSPHRASE_FILE"):
        monkeypatch.delenv(f"PULUMI_{name}", raising=False)
    monkeypatch.setenv("PULUMI_HOME", str(tmp_path))
    return monkeypatch


def test_no_place_for_the_state(pulumi: pytest.MonkeyPatch) -> None:
    with pytest.raises(Problem, match="where to keep the state of stack local") as raised:
        engine.require_state("local", EXISTING)
    assert "PULUMI_BACKEND_URL" in raised.value.fix


def test_missing_passphrase(pulumi: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "credentials.json").write_text('{"current": "s3://states"}')
    with pytest.raises(Problem, match="passphrase") as raised:
        engine.require_state("local", EXISTING)
    assert "PULUMI_CONFIG_PASSPHRASE" in raised.value.fix
    pulumi.setenv("PULUMI_CONFIG_PASSPHRASE", "")
    engine.require_state("local", EXISTING)


def test_pulumi_cloud_and_a_native_cluster_need_no_passphrase(pulumi: pytest.MonkeyPatch) -> None:
    engine.require_state("local", StackConfig())
    pulumi.setenv("PULUMI_ACCESS_TOKEN", "pul-0")
    engine.require_state("local", EXISTING)


@pytest.mark.parametrize("command", [up.up, down.down])
def test_without_a_passphrase_nothing_is_begun(pulumi: pytest.MonkeyPatch, command: Callable[[str], None]) -> None:
    def never(*_: object) -> NoReturn:
        raise AssertionError("something was begun")

    pulumi.setenv("PULUMI_BACKEND_URL", "file:///nowhere")
    pulumi.setattr(stack_file, "read", lambda _: EXISTING)
    pulumi.setattr(tools, "ensure", never)
    pulumi.setattr(kubectl, "connect", never)
    with pytest.raises(Problem, match="passphrase"):
        command("local")


def test_a_shared_state_in_use_names_by_whom() -> None:
    lock = "error: the stack is currently locked by 1 lock(s).\n  s3://b/x.json: created by eve@build (pid 7) at noon"
    error = automation.ConcurrentUpdateError(automation.CommandResult(stdout="", stderr=lock, code=255))
    problem = engine.in_use("dev", error)
    assert problem.what == "stack dev is in use by eve@build (pid 7) at noon"
    assert "pulumi cancel --stack dev" in problem.fix


@pytest.mark.parametrize("command", ["metrics", "up", "status", "logs", "forward", "down", "image"])
def test_commands_answer_an_unknown_stack_without_a_traceback(command: str) -> None:
    done = subprocess.run(
        ["make", "--no-print-directory", command, "STACK=lokal"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "lokal" in done.stderr
    assert "local" in done.stderr
    assert "Traceback" not in done.stderr
