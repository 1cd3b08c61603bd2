"""`make setup-docker`: what it refuses, and a real engine that leaves nothing behind."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from scripts import docker_engine
from scripts.console import Problem


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BLUEPRINT_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    return tmp_path / "state"


def test_an_engine_that_answers_is_enough(
    state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(docker_engine, "answers", lambda: True)
    docker_engine.setup()
    assert "answers already" in capsys.readouterr().out
    docker_engine.remove()
    assert not state.exists()


def test_an_address_where_none_answers(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{state}/none.sock")
    with pytest.raises(Problem, match=r"no Docker engine answers at DOCKER_HOST=.*none\.sock") as raised:
        docker_engine.setup()
    assert "unset DOCKER_HOST" in raised.value.fix


def test_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_engine, "answers", lambda: False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Problem, match="no Docker engine answers, and") as raised:
        docker_engine.setup()
    assert "DOCKER_HOST" in raised.value.fix


def _traces(state: Path) -> list[str]:
    """What an engine with this state directory has on the machine, and what Docker by default changes there."""
    processes = [path.read_bytes().decode(errors="replace") for path in Path("/proc").glob("[0-9]*/cmdline")]
    # Comes with docker.io; without it nothing here has made rules.
    rules = subprocess.run(
        ["sh", "-c", "! command -v iptables-save || iptables-save"],
        env={**os.environ, "PATH": docker_engine.PATH},
        capture_output=True,
        check=True,
    )
    return [
        *(process for process in processes if str(state) in process),
        *(line for line in Path("/proc/mounts").read_text().splitlines() if str(state) in line),
        *(line for line in rules.stdout.decode().splitlines() if "docker" in line.lower()),
        *(str(path) for path in Path("/sys/fs/cgroup").glob(f"**/{docker_engine.CGROUP}")),
        *(str(path) for path in Path("/sys/class/net").glob(docker_engine.BRIDGE)),
        *(str(path) for path in (*Path("/run").glob("docker*"), *Path("/etc/docker").glob("*"))),
    ]


def test_an_engine_is_started_once_and_leaves_nothing(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = _traces(state)
    if docker_engine.answers() or any(docker_engine.BRIDGE in trace for trace in before):
        pytest.skip("a Docker engine runs here")
    try:
        docker_engine.check()
    except Problem as problem:
        pytest.skip(problem.what)
    record = docker_engine.home() / "process"
    try:
        docker_engine.setup()
        assert f"DOCKER_HOST={docker_engine.host()}" in capsys.readouterr().out
        first = record.read_text()
        docker_engine.setup()
        assert "runs already" in capsys.readouterr().out
        assert record.read_text() == first
        os.kill(int(first.split()[0]), signal.SIGKILL)
        while docker_engine.running():
            time.sleep(0.1)
        docker_engine.setup()
        assert record.read_text() != first
    finally:
        docker_engine.remove()
    assert _traces(state) == before
    assert not state.exists()
