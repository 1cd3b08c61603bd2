"""The end-to-end tests drive the Makefile as a user would, on a cluster of their own."""

import os
import socket
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from infra.config import from_file
from scripts import cluster, diagnose
from scripts.kubectl import connect

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Stack:
    """The local stack with its state in a directory of the test's own; caches are the user's."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.environment = {
            **os.environ,
            "BLUEPRINT_STATE": str(state),
            "BLUEPRINT_API_PORT": str(free_port()),
        }

    def make(self, *arguments: str, timeout: float = 3600) -> subprocess.CompletedProcess[str]:
        """Run make; what it prints is shown as it comes, and returned."""
        lines: list[str] = []
        with subprocess.Popen(
            ["make", *arguments],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout
            for line in process.stdout:
                print(line, end="", flush=True)
                lines.append(line)
            code = process.wait(timeout)
        return subprocess.CompletedProcess(["make", *arguments], code, "".join(lines), "")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failing test shows what the cluster says, while it is still there."""
    report = yield
    if report.when == "call" and report.failed and cluster.running():
        config = from_file("local")
        print(diagnose.report(connect(config.cluster), config.namespace))
    return report


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("state") / "blueprint")
    yield stack
    stack.make("down")
