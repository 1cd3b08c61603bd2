"""Which tools are the user's and which are built; the smallest build is a real one, without a network."""

import os
from pathlib import Path

import pytest

from infra import versions
from scripts import engine, tools
from scripts.console import Problem

PATH = os.environ["PATH"]


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """PATH has this directory only, and nothing of Pulumi's is at home."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PULUMI_HOME", str(tmp_path / "pulumi-home"))
    monkeypatch.setenv("BLUEPRINT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def fake(path: Path, name: str, says: str = "") -> Path:
    """A fake of a tool, which knows its version."""
    made = path / name
    made.write_text(f"#!/bin/sh\necho '{says}'\n")
    made.chmod(0o755)
    return made


def minor(by: int) -> str:
    """Kubernetes' version in the ledger, some minor versions on."""
    major, middle, patch = versions.KUBERNETES.split(".")
    return f"{major}.{int(middle) + by}.{patch}"


def test_without_go_the_way_out_is_named() -> None:
    with pytest.raises(Problem, match=r"pulumi is not here and Go, .*, is not installed") as raised:
        tools.ensure("pulumi")
    assert raised.value.fix == "install Go 1.26 or newer, or put pulumi on PATH"
    with pytest.raises(Problem, match="pulumi-resource-kubernetes is not here") as raised:
        tools.ensure("pulumi-kubernetes")
    assert f"pulumi plugin install resource kubernetes {versions.PULUMI_KUBERNETES}" in raised.value.fix
    with pytest.raises(Problem) as raised:
        tools.kubectl()
    assert "put kubectl on PATH" in raised.value.fix


def test_with_pulumi_and_kubectl_nothing_is_built(path: Path) -> None:
    """Nor could it be: there is no Go on PATH."""
    pulumi = fake(path, "pulumi", f"v{versions.PULUMI}")
    fake(path, "pulumi-language-python")
    kubectl = fake(path, "kubectl", f'{{"clientVersion": {{"gitVersion": "v{versions.KUBERNETES}"}}}}')
    assert engine.has_python_host()  # so the engine gets the provider by itself
    assert (tools.ensure("pulumi") / "pulumi").resolve() == pulumi
    assert tools.kubectl() == kubectl


def test_the_provider_is_found_where_pulumi_keeps_it(path: Path) -> None:
    plugin = path / "pulumi-home" / "plugins" / f"resource-kubernetes-v{versions.PULUMI_KUBERNETES}"
    plugin.mkdir(parents=True)
    provider = fake(plugin, "pulumi-resource-kubernetes")
    assert (tools.ensure("pulumi-kubernetes") / provider.name).resolve() == provider


@pytest.mark.parametrize("version", ["4.0.0", "3.258.9", "2.300.0", ""])
def test_a_pulumi_of_another_version_is_told(path: Path, version: str) -> None:
    fake(path, "pulumi", f"v{version}")
    with pytest.raises(Problem, match=f"{versions.PULUMI} or newer, but older than 4, is needed") as raised:
        tools.ensure("pulumi")
    assert version in raised.value.what
    assert "off PATH" in raised.value.fix


def test_a_newer_pulumi_will_do(path: Path) -> None:
    mine = fake(path, "pulumi", "v3.999.0")
    assert (tools.ensure("pulumi") / "pulumi").resolve() == mine


@pytest.mark.parametrize(("by", "fits"), [(-2, False), (-1, True), (0, True), (1, True), (2, False)])
def test_kubectl_is_at_most_one_minor_version_away(path: Path, by: int, fits: bool) -> None:
    mine = fake(path, "kubectl", f"v{minor(by)}-some-vendor")
    if fits:
        assert tools.kubectl() == mine
    else:
        with pytest.raises(Problem, match=f"{mine} is {minor(by)}"):
            tools.kubectl()


def test_where_go_is_a_tool_of_another_version_is_passed_over(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(path, "kubectl", "v1.2.3")
    fake(path, "go")
    monkeypatch.setattr(tools, "ensure", lambda *names: Path("/built", *names))
    assert tools.kubectl() == Path("/built/kubernetes/kubectl")
    assert "kubectl is 1.2.3" in capsys.readouterr().out


def test_a_build_needs_no_network_once_go_has_the_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause container's, which needs no module at all; the others differ in what Go must have."""
    monkeypatch.setenv("PATH", PATH)
    monkeypatch.setenv("GOPROXY", "off")
    assert not tools.built("pause")
    built = tools.ensure("pause") / "pause"
    assert tools.built("pause")
    assert not tools.built("pause", "coredns")
    assert built.resolve().parent.name.startswith("pause-")
    assert os.access(built, os.X_OK)
    monkeypatch.setattr(tools, "_build", None)
    assert tools.ensure("pause") / "pause" == built


def test_where_a_tool_would_come_from_is_told_without_building(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Problem, match="Go, which builds it, is not installed"):
        tools.whence("coredns")
    mine = fake(path, "kubectl", f"v{versions.KUBERNETES}")
    assert tools.whence("kubectl") == str(mine)
    fake(path, "go", "go1.26 amd64")
    assert tools.whence("coredns") == "will be built, once"
    built = tools._ours("coredns")
    built.parent.mkdir(parents=True)
    built.touch()
    assert tools.whence("coredns") == f"our own build, {built.parent}"
