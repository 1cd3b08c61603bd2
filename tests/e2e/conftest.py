"""The end-to-end tests drive the Makefile as a user would. One cluster of their own serves the whole run.

Each directory is a scenario, and any can be run alone: `pytest tests/e2e/gpus`.
"""

import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from infra.config import ROOT, from_file
from scripts import cluster, diagnose
from scripts.kubectl import Kubectl, connect
from tests.ports import free_port

SCENARIOS = Path(__file__).parent
reported: list[BaseException | None] = []


class Stack:
    """The local stack with its state in a directory of the tests' own; caches are the user's."""

    def __init__(self, state: Path) -> None:
        self.state = state

    def make(self, *arguments: str, timeout: float = 3600) -> subprocess.CompletedProcess[str]:
        """Run make; what it prints is shown as it comes, and returned."""
        lines: list[str] = []
        with subprocess.Popen(
            ["make", *arguments],
            cwd=ROOT,
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """up/ comes first, since some of it needs a machine where nothing runs yet, and down/ last."""
    first, last = SCENARIOS / "up", SCENARIOS / "down"
    items.sort(key=lambda item: (last in item.path.parents) - (first in item.path.parents))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failing test shows what the cluster says, while it is still there, of its module's NAMESPACE or the stack's."""
    report = yield
    error = call.excinfo and call.excinfo.value
    # A fixture's failure comes again with every test that wants it.
    if report.failed and report.when != "teardown" and error not in reported and cluster.running():
        reported.append(error)
        config = from_file("local")
        namespace = getattr(getattr(item, "module", None), "NAMESPACE", config.namespace)
        print(diagnose.report(connect(config.cluster), namespace))
    return report


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Nothing runs before `make up`, and nothing after the last test."""
    stack = Stack(tmp_path_factory.mktemp("state") / "blueprint")
    with pytest.MonkeyPatch.context() as environment:
        # For the code under test that is called from here as well as for the commands.
        environment.setenv("BLUEPRINT_STATE", str(stack.state))
        environment.setenv("BLUEPRINT_API_PORT", str(free_port()))
        yield stack
        stack.make("down")


@pytest.fixture(scope="session")
def deployed(stack: Stack) -> subprocess.CompletedProcess[str]:
    """What the one `make up` of this run said."""
    done = stack.make("up")
    assert done.returncode == 0
    return done


@pytest.fixture(scope="session")
def kubernetes(deployed: subprocess.CompletedProcess[str]) -> Kubectl:
    return connect(from_file("local").cluster)
