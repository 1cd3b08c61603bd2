"""The end-to-end tests drive the Makefile as a user would. One cluster of their own serves the whole run.

Each directory is a scenario, and any can be run alone: `pytest tests/e2e/gpus`.
"""

import subprocess
import sys
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from app.settings import NOTHING
from infra.clusters import LOCAL_KEY
from infra.config import PROJECT, ROOT, StackConfig, from_file
from infra.serving.rayservice import SERVE_PORT
from scripts import cluster, diagnose
from scripts.kubectl import Kubectl, connect
from tests.ports import free_port

SCENARIOS = Path(__file__).parent
ORDER = [
    *(
        "up",
        "operate",
        "interrupted",
        "changes",
        "observability",
        "broken",
        "operator",
        "autoscaler",
        "network",
        "gpus",
    ),
    *("upgrades", "kills"),
    "down",
    "incremental",
]
"""Some of up/ needs a machine where nothing runs yet; down/ takes the cluster of all others away, and incremental/ has
one of its own."""
NAME = "e2e"
"""Of the stack: a copy of `local`, which the scenarios change."""
FILE = ROOT / f"Pulumi.{NAME}.yaml"
reported: list[BaseException | None] = []


def chat(weights: tuple[float, ...] = (1, 0), canary: Mapping[str, Any] | None = None, **model: Any) -> dict[str, Any]:
    """A chat model with as many variants as weights, of which two cores hold two."""
    small = {"placement": {"num_cpus": 0.5}}
    stable = {"name": "stable", "weight": weights[0], **small}
    others = [{"name": "canary", "weight": weight, **small, **(canary or {})} for weight in weights[1:]]
    return {"name": "chat", "variants": [stable, *others], **model}


def little(**serving: Any) -> dict[str, Any]:
    """`serving` with chat and embeddings, and what else it is told."""
    return {
        **NOTHING,
        **{"models": [chat(weights=(1,))], "embeddings": [{}]},
        **serving,
    }


SENTIMENT = {"name": "sentiment", "source": "builtin:vader-sentiment", "placement": {"num_cpus": 0.1}}
"""A classifier that needs no core of its own."""
EMBED = {
    "name": "embed",
    # Two replicas do not fit beside a chat model into one pod of two cores.
    "placement": {"num_cpus": 0.9},
    # Requests that wait are load without work.
    "batching": {"batch_wait_timeout_s": 0.5},
    "scaling": {
        "autoscaling_config": {
            **{"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 3.0},
            **{"upscale_delay_s": 2.0, "downscale_delay_s": 5.0, "metrics_interval_s": 1.0, "look_back_period_s": 2.0},
        }
    },
}


def growing(**serving: Any) -> dict[str, Any]:
    """Keys of a stack whose second worker comes when `embed` is busy.

    The scenarios after changes/ begin and end with it: one of another size would be another Ray cluster, for minutes.
    """
    return {
        "serving": little(embeddings=[EMBED], classifiers=[SENTIMENT], **serving),
        "head": {"memory_gib": 4},
        "workers": [{"name": "cpu", "min_replicas": 1, "max_replicas": 2}],
        "idle_timeout_seconds": 20,
    }


class Stack:
    """The local stack with its state in a directory of the tests' own; caches are the user's."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self._is_up: dict[str, Any] | None = None

    def up(self, **config: Any) -> subprocess.CompletedProcess[str]:
        """`make up` with these keys in the stack file, beside those of the local stack's."""
        self._is_up = None
        self.configure(**config)
        done = self.make("up")
        if done.returncode == 0:
            self._is_up = config
        return done

    def up_without_its_image(self, **config: Any) -> subprocess.CompletedProcess[str]:
        """`up` with an image that is nowhere: `make up` puts every image on a native node, and this leaves that out."""
        self._is_up = None
        self.configure(**config, image={"repository": "registry.invalid/none"})
        script = f"from scripts import up; up.prepare_native = lambda stack: None; up.main(lambda: up.up({NAME!r}))"
        failed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=900)
        print(failed.stdout, failed.stderr)
        return failed

    def require(self, **config: Any) -> None:
        """`make up` with these keys, unless the last one had them: where a scenario begins, which may run alone."""
        if self._is_up != config:
            assert self.up(**config).returncode == 0

    def configure(self, **config: Any) -> None:
        content = yaml.safe_load((ROOT / "Pulumi.local.yaml").read_text())
        content["config"] |= {f"{PROJECT}:{key}": value for key, value in config.items()}
        FILE.write_text(yaml.safe_dump(content))

    def make(self, *arguments: str, timeout: float = 3600) -> subprocess.CompletedProcess[str]:
        """Run make; what it prints is shown as it comes, and returned."""
        lines: list[str] = []
        command = ["make", "--no-print-directory", f"STACK={NAME}", *arguments]
        with subprocess.Popen(
            command,
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
        return subprocess.CompletedProcess(command, code, "".join(lines), "")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runs", type=int, default=1, help="how often a test under load is made")
    parser.addoption("--results", type=Path, help="where to put what became of the load")


@pytest.hookimpl(trylast=True)  # all runs of a change, then the next one: each run begins with what the last one left
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "run" in metafunc.fixturenames:
        metafunc.parametrize("run", range(metafunc.config.option.runs))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    scenarios = {SCENARIOS / name: place for place, name in enumerate(ORDER)}
    items.sort(key=lambda item: scenarios.get(item.path.parent, -1))


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
        print(diagnose.explain(connect(config.cluster), namespace)[1])
    return report


@pytest.fixture(scope="session")
def results(request: pytest.FixtureRequest) -> Path | None:
    """A file for what became of the load; a line each."""
    return request.config.getoption("results")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Nothing runs before `make up`, and nothing after the last test."""
    stack = Stack(tmp_path_factory.mktemp("state") / "blueprint")
    with pytest.MonkeyPatch.context() as environment:
        # For the code under test that is called from here as well as for the commands.
        environment.setenv("BLUEPRINT_STATE", str(stack.state))
        environment.setenv("BLUEPRINT_API_PORT", str(free_port()))
        stack.configure()
        try:
            yield stack
            stack.make("down")
        finally:
            FILE.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def deployed(stack: Stack) -> subprocess.CompletedProcess[str]:
    """What the one `make up` of this run said."""
    done = stack.up()
    assert done.returncode == 0
    return done


@pytest.fixture(scope="session")
def kubernetes(deployed: subprocess.CompletedProcess[str]) -> Kubectl:
    return connect(from_file("local").cluster)


@pytest.fixture(scope="module")
def client(kubernetes: Kubectl) -> Iterator[httpx.Client]:
    """Of the application, by way of its Kubernetes Service."""
    with kubernetes.service(StackConfig().namespace, "llm-serve-svc", SERVE_PORT, LOCAL_KEY) as client:
        yield client
