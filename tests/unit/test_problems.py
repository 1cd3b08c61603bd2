"""What a user can get wrong on the Kubernetes path: one sentence and its fix, and nothing half done."""

import os
import subprocess
from pathlib import Path

import pytest

from infra.config import ROOT, ExistingCluster
from scripts import engine, kubectl, packages, tools
from scripts.console import Problem


def test_missing_packages_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Problem, match="no-such-package") as raised:
        packages.ensure({"no-such-package": "no-such-command"})
    assert "apt-get install no-such-package" in raised.value.fix


def test_a_library_is_found_by_its_name() -> None:
    packages.ensure({"libc6": "libc.so.6"})


def test_tools_without_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Problem, match="Go") as raised:
        tools.ensure("pulumi")
    assert "PATH" in raised.value.fix


def test_a_tool_on_path_is_not_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = tmp_path / "pulumi"
    mine.write_text("#!/bin/sh\n")
    mine.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("BLUEPRINT_CACHE", str(tmp_path / "cache"))
    assert (tools.ensure("pulumi") / "pulumi").resolve() == mine


def test_unreadable_kubeconfig(tmp_path: Path) -> None:
    cluster = ExistingCluster(context="dev", kubeconfig=str(tmp_path / "none"))
    with pytest.raises(Problem, match="cannot read the kubeconfig"):
        kubectl.connect(cluster)


@pytest.mark.parametrize("content", ["not: a kubeconfig", "[", ""])
def test_a_file_that_is_no_kubeconfig(tmp_path: Path, content: str) -> None:
    (tmp_path / "kc").write_text(content)
    with pytest.raises(Problem, match="is not a kubeconfig"):
        kubectl.connect(ExistingCluster(context="dev", kubeconfig=str(tmp_path / "kc")))


def test_wrong_context_names_the_right_ones(tmp_path: Path) -> None:
    (tmp_path / "kc").write_text("contexts: [{name: kind-dev, context: {}}]\n")
    with pytest.raises(Problem, match="'dev'") as raised:
        kubectl.connect(ExistingCluster(context="dev", kubeconfig=str(tmp_path / "kc")))
    assert "kind-dev" in raised.value.fix


def test_missing_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PULUMI_CONFIG_PASSPHRASE", raising=False)
    monkeypatch.delenv("PULUMI_CONFIG_PASSPHRASE_FILE", raising=False)
    with pytest.raises(Problem, match="passphrase") as raised:
        engine.require_passphrase("local")
    assert "PULUMI_CONFIG_PASSPHRASE" in raised.value.fix


@pytest.mark.parametrize("command", ["up", "status", "down"])
def test_commands_answer_an_unknown_stack_without_a_traceback(command: str) -> None:
    done = subprocess.run(
        ["make", "--no-print-directory", command, "STACK=lokal"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "lokal" in done.stderr
    assert "local" in done.stderr
    assert "Traceback" not in done.stderr
