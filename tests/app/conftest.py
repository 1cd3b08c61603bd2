"""One real server for all tests of the application, and vLLM's own server to compare it with.

The server is what `make serve` starts, on its port: real Ray, real vLLM, the real built-in models. Its settings are the
defaults but for what tests need to see: a LoRA adapter, a short queue, quick health checks. vLLM's own server runs
first and alone, since each takes all cores.
"""

import contextlib
import operator
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import httpx
import psutil
import pytest
import yaml
from openai import DefaultHttpxClient, OpenAI
from prometheus_client import Metric

from app import keys
from app.builtin import cache_dir, ensure
from app.settings import Settings, load, parse
from scripts.metrics import scrape
from scripts.serve import URL, marked
from tests.app import lora
from tests.app.collector import Collector, collector
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
BINARIES = Path(sys.executable).parent
PROMPTS = [
    "What is the capital of France?",
    "Say hi",
    "Name three colors.",
    "What is 2+2?",
    "Write one sentence about the sea and the old harbour where fishermen mend their nets in the morning.",
]
START_SECONDS = 900.0
STOP_SECONDS = 180.0
PATIENCE_SECONDS = 300.0
"""With what takes seconds, on a machine that may be busy with something else."""
QUIET_SECONDS = 5.0
HEALTH_CHECK_SECONDS = 2.0
MARK = "BLUEPRINT_TEST"
FAST = {"dtype": "float32"}
"""For engines under test: several times as fast as bfloat16 in batches, on the many CPUs that only emulate that."""
SHAPES = ["local", "cluster"]
"""How `make serve` can start. To save time a module asks the one that it names in a SHAPES of its own; all of them
answer the same, which --both-shapes shows."""
T = TypeVar("T")
RAY = Path("/tmp/ray")
"""Where the Ray of `make serve` keeps its files."""


def answer(client: OpenAI, prompt: str) -> str | None:
    """The greedy answer to one prompt, of at most 24 tokens."""
    completion = client.chat.completions.create(
        model="chat",
        messages=[{"role": "user", "content": prompt}],
        max_tokens=24,
        temperature=0,
    )
    return completion.choices[0].message.content


def client_of(url: str, key: str = "none") -> OpenAI:
    # Without the environment's proxies; and a retry would hide an error.
    http = DefaultHttpxClient(trust_env=False, timeout=PATIENCE_SECONDS)
    return OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, http_client=http)


def wait_for(what: str, condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Return when `condition` holds; fail when `process` ends first or the deadline passes."""
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        assert process.poll() is None, f"{what}: the process ended ({process.returncode})"
        assert time.monotonic() < deadline, f"{what}: not within {START_SECONDS:.0f} s"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.2)


@contextlib.contextmanager
def started(
    command: list[str | Path], log: Path, status: int | None = 0, variables: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours, which must end when it is told to, with all that it started, and with `status`.

    With None for a status it is killed: a Ray would wait half a minute for replicas that go on.
    """
    mark = uuid.uuid4().hex
    environment = {**os.environ, **(variables or {}), MARK: mark, "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        ours = marked(MARK, mark)
        if status is None:
            for one in ours:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
        else:
            process.terminate()  # not an interrupt, which a child in the background ignores
        _, alive = psutil.wait_procs(ours, timeout=STOP_SECONDS)
        for left in alive:
            left.kill()
    assert not alive, f"{command} left processes behind: {alive}"
    process.wait(timeout=1)
    assert status in (None, process.returncode), f"{command} ended with {process.returncode}"


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="session")
def vllm_answers(logs: Path, settings: dict[str, Any]) -> list[str | None]:
    """What vLLM's own server answers to PROMPTS, with our engine arguments."""
    (model,) = parse(settings).models
    (variant,) = model.variants
    assert variant.builtin is not None
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command: list[str | Path] = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--model", ensure(variant.builtin), "--served-model-name", model.name),
        *("--max-model-len", str(variant.engine.max_model_len)),
        *("--dtype", variant.engine.dtype, "--enforce-eager", "--kv-cache-memory-bytes", str(2**28)),
    ]
    assert variant.engine.enforce_eager

    def answers() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{url}/health", trust_env=False).status_code == 200
        return False

    with started(command, logs / "vllm.log", status=None) as process:
        wait_for("vLLM's own server", answers, process)
        client = client_of(url)
        return [answer(client, prompt) for prompt in PROMPTS]


class Probe(NamedTuple):
    """What two routes answered at one moment of the start."""

    models: int
    ready: httpx.Response


class Running(NamedTuple):
    url: str
    key: str
    """What its clients must send, when the settings name keys."""
    http: httpx.Client
    settings: Settings
    process: subprocess.Popen[bytes]
    output: str
    """What `make serve` printed."""
    probes: list[Probe]
    """Answers of /v1/models and /ready while it started, in order."""

    def processes(self) -> list[psutil.Process]:
        """All that belong to it."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def metrics(self) -> dict[str, Metric]:
        return metrics(RAY)

    def engine_count(self, name: str, model: str) -> float:
        """What the model's engine has counted in this metric. Not for gauges, which are away while nothing changes."""
        samples = [sample for metric in self.metrics().values() for sample in metric.samples]
        return sum(one.value for one in samples if one.name == name and one.labels["model_name"] == model)

    def tokens(self, model: str, above: float = -1) -> float:
        """How many tokens the model's engine has generated, once they are more than `above` and it works no more.

        Health checks of an idle engine go on, and generate one each (HEALTH_CHECK_SECONDS).
        """

        def count() -> float:
            return self.engine_count("ray_vllm_generation_tokens_total", model)

        few = 2 * QUIET_SECONDS / HEALTH_CHECK_SECONDS
        eventually(f"tokens of {model} are counted", lambda: count() > above)
        return settled(count, lambda old, new: new - old <= few)


def httpx_client(url: str, key: str = "none") -> httpx.Client:
    """Without the environment's proxies, and with patience for answers of hundreds of tokens."""
    headers = {"Authorization": f"Bearer {key}"}
    no_limits = httpx.Limits(max_connections=None)
    return httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=PATIENCE_SECONDS, limits=no_limits)


def metrics(temp_dir: Path) -> dict[str, Metric]:
    """What the Ray with this directory exports to Prometheus now, by the metric's name."""
    return {metric.name: metric for metric in scrape(temp_dir)}


def eventually(what: str, condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
    """Return when `condition` holds; fail when it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.2)


def settled(read: Callable[[], T], same: Callable[[T, T], bool] = operator.eq) -> T:
    """What `read` says when that stays the `same` for longer than Ray takes to export metrics."""
    value, since = read(), time.monotonic()

    def quiet() -> bool:
        nonlocal value, since
        if not same(value, now := read()):
            value, since = now, time.monotonic()
        return time.monotonic() - since > QUIET_SECONDS

    eventually("the metrics settle", quiet)
    return value


def batches(temp_dir: Path, deployment: str) -> tuple[float, float]:
    """How many batches a deployment of the Ray with this directory has made, and how many with one text only."""

    def read() -> tuple[float, float]:
        metric = metrics(temp_dir).get("ray_serve_actual_batch_size")
        ours = [one for one in metric.samples if one.labels["deployment"] == deployment] if metric else []
        every = sum(sample.value for sample in ours if sample.name.endswith("_count"))
        return every, sum(sample.value for sample in ours if sample.labels.get("le") == "1.0")

    return settled(read)


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the server under test has in place of the defaults."""
    adapter = lora.make(ensure("smollm2-135m-instruct"), tmp_path_factory.mktemp("lora") / "odd")
    variant = {
        "engine": {**FAST, "tool_call_parser": "hermes", "max_lora_rank": lora.RANK},
        "adapters": [{"name": "odd", "source": str(adapter)}],
        "scaling": {
            "max_ongoing_requests": 32,
            "max_queued_requests": 32,
            "retry_after_s": 7,
            "health_check_period_s": HEALTH_CHECK_SECONDS,
            "health_check_timeout_s": 15,
        },
    }
    return {
        "models": [{"name": "chat", "variants": [variant]}],
        "generate": {"engine": FAST},
        "gateway": {"max_body_mib": 6},
    }


@pytest.fixture(scope="session")
def traces() -> Iterator[Collector]:
    """What the server in a cluster's shape sends its traces to."""
    with collector() as ours:
        yield ours


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--both-shapes", action="store_true", help="run every test of the server in both of its shapes")
    parser.addoption("--seconds", type=float, default=0, help="of test_any_request.py; else one round")
    parser.addoption("--results", type=Path, help="where to put what became of them")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "server" in metafunc.fixturenames:
        both = metafunc.config.getoption("both_shapes")
        shapes = SHAPES if both else getattr(metafunc.module, "SHAPES", SHAPES)
        metafunc.parametrize("server", shapes, indirect=True, scope="session")


@pytest.fixture(scope="session")
def server(
    request: pytest.FixtureRequest,
    logs: Path,
    tmp_path_factory: pytest.TempPathFactory,
    settings: dict[str, Any],
    vllm_answers: list[str | None],
    traces: Collector,
) -> Generator[Running]:
    """The server of `make serve`, once it says that it is ready: as one application, then in a cluster's shape.

    In the latter it asks for keys, as every cluster does; when both are to answer the same, in the former as well. And
    it sends traces.
    """
    directory = tmp_path_factory.mktemp(request.param)
    file, keys_file, key = directory / "settings.yaml", directory / "keys.yaml", keys.make()
    if request.param == "cluster" or request.config.getoption("both_shapes"):
        keys_file.write_text(yaml.safe_dump({"keys": [{"name": "tests", "sha256": keys.digest(key)}]}))
        settings = {**settings, "auth": {"keys_file": str(keys_file)}}
    if request.param == "cluster":
        settings = {**settings, "tracing": {"endpoint": traces.url}}
    file.write_text(yaml.safe_dump(settings))
    log = logs / f"serve-{request.param}.log"
    probes: list[Probe] = []

    def announced() -> bool:
        with contextlib.suppress(httpx.HTTPError), httpx_client(URL, key) as http:
            probes.append(Probe(http.get("/v1/models").status_code, http.get("/ready")))
        return "Ctrl-C stops it." in log.read_text()

    command: list[str | Path] = [sys.executable, "-m", "scripts.serve", file, "--shape", request.param]
    # Ten and five seconds otherwise, for which tests would wait.
    often = {"RAY_metrics_report_interval_ms": "500", "OTEL_BSP_SCHEDULE_DELAY": "500"}
    # One that leads nowhere, as a laptop's may for what is on it; the traces' exporter would ask for it.
    proxy = {"http_proxy": "http://127.0.0.1:9"} if request.param == "local" else {}
    with started(command, log, variables=often | proxy) as process, httpx_client(URL, key) as http:
        wait_for("make serve", announced, process)
        yield Running(URL, key, http, load(file), process, log.read_text(), probes)


@pytest.fixture(scope="session")
def client(server: Running) -> OpenAI:
    return client_of(server.url, server.key)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of the servers' logs beside a failure."""
    report = yield
    directory = getattr(item, "funcargs", {}).get("logs")
    if report.failed and directory is not None:
        for log in (*directory.glob("*.log"), cache_dir() / "serve.log"):
            if log.exists():
                tail = log.read_text(errors="replace").splitlines()[-60:]
                report.sections.append((f"end of {log}", "\n".join(tail)))
    return report
