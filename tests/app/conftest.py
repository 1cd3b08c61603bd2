"""One real server for all tests of the application, and vLLM's own server to compare it with.

The server is what `make serve` starts, on its port: real Ray, real vLLM, the real built-in models. Its settings are the
defaults but for what tests need to see: a LoRA adapter, a short queue, quick health checks. vLLM's own server runs
first and alone, since each takes all cores.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil
import pytest
import yaml
from openai import DefaultHttpxClient, OpenAI
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from app.builtin import cache_dir, ensure
from app.settings import Model, Settings, load
from scripts.serve import URL
from tests.app import lora
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
MARK = "BLUEPRINT_TEST"
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


def client_of(url: str) -> OpenAI:
    # Without the environment's proxies; and a retry would hide an error.
    http = DefaultHttpxClient(trust_env=False, timeout=120)
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=http)


def wait_for(what: str, condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Return when `condition` holds; fail when `process` ends first or the deadline passes."""
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        assert process.poll() is None, f"{what}: the process ended ({process.returncode})"
        assert time.monotonic() < deadline, f"{what}: not within {START_SECONDS:.0f} s"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.2)


@contextlib.contextmanager
def started(command: list[str | Path], log: Path, status: int | None = 0) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours, which must end when it is told to, with all that it started, and with `status` if given."""
    mark = uuid.uuid4().hex
    environment = {**os.environ, MARK: mark, "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        ours = _marked(mark)
        process.send_signal(signal.SIGINT)
        _, alive = psutil.wait_procs(ours, timeout=STOP_SECONDS)
        for left in alive:
            left.kill()
    assert not alive, f"{command} left processes behind: {alive}"
    assert status in (None, process.wait(timeout=1)), f"{command} ended with {process.returncode}"


def _marked(mark: str) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                found.append(process)
    return found


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="session")
def vllm_answers(logs: Path) -> list[str | None]:
    """What vLLM's own server answers to PROMPTS, with our engine arguments."""
    model = Model()
    (variant,) = model.variants
    assert variant.builtin is not None
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command: list[str | Path] = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--model", ensure(variant.builtin), "--served-model-name", model.name),
        *("--max-model-len", str(variant.engine.max_model_len)),
        *("--dtype", variant.engine.dtype, "--enforce-eager"),
    ]
    assert variant.engine.enforce_eager

    def answers() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{url}/health", trust_env=False).status_code == 200
        return False

    with started(command, logs / "vllm.log") as process:
        wait_for("vLLM's own server", answers, process)
        client = client_of(url)
        return [answer(client, prompt) for prompt in PROMPTS]


class Probe(NamedTuple):
    """What two routes answered at one moment of the start."""

    models: int
    ready: httpx.Response


class Running(NamedTuple):
    url: str
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


def metrics(temp_dir: Path) -> dict[str, Metric]:
    """What the Ray with this directory exports to Prometheus now, by the metric's name."""
    found: dict[str, Metric] = {}
    # Ray writes the addresses for Prometheus to read.
    discovery = json.loads((temp_dir / "prom_metrics_service_discovery.json").read_text())
    for target in discovery[0]["targets"]:
        text = httpx.get(f"http://{target}/metrics", trust_env=False, timeout=30).text
        found |= {metric.name: metric for metric in text_string_to_metric_families(text)}
    return found


def eventually(what: str, condition: Callable[[], bool], seconds: float) -> None:
    """Return when `condition` holds; fail when it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.2)


def batches(temp_dir: Path, deployment: str, quiet_seconds: float) -> tuple[float, float]:
    """How many batches a deployment of the Ray with this directory has made, and how many with one text only.

    Read until they stay as they are for `quiet_seconds`, which must be longer than Ray takes to export its metrics.
    """

    def read() -> tuple[float, float]:
        metric = metrics(temp_dir).get("ray_serve_actual_batch_size")
        ours = [one for one in metric.samples if one.labels["deployment"] == deployment] if metric else []
        if not ours:
            return 0, 0
        (every,) = [sample.value for sample in ours if sample.name.endswith("_count")]
        (single,) = [sample.value for sample in ours if sample.labels.get("le") == "1.0"]
        return every, single

    counts, since = read(), time.monotonic()

    def settled() -> bool:
        nonlocal counts, since
        if counts != (now := read()):
            counts, since = now, time.monotonic()
        return time.monotonic() - since > quiet_seconds

    eventually("the metrics settle", settled, 90)
    return counts


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The settings of the server under test."""
    directory = tmp_path_factory.mktemp("settings")
    adapter = lora.make(ensure("smollm2-135m-instruct"), directory / "adapter")
    variant = {
        "engine": {"tool_call_parser": "hermes", "max_lora_rank": lora.RANK},
        "adapters": [{"name": "odd", "source": str(adapter)}],
        "scaling": {
            "max_ongoing_requests": 32,
            "max_queued_requests": 32,
            "retry_after_s": 7,
            "health_check_period_s": 2,
            "health_check_timeout_s": 15,
        },
    }
    file = directory / "settings.yaml"
    file.write_text(
        yaml.safe_dump({"models": [{"name": "chat", "variants": [variant]}], "gateway": {"max_body_mib": 1}})
    )
    return file


@pytest.fixture(scope="session")
def server(logs: Path, settings: Path, vllm_answers: list[str | None]) -> Generator[Running]:
    """The server of `make serve`, once it says that it is ready."""
    log = logs / "serve.log"
    probes: list[Probe] = []

    def announced() -> bool:
        with contextlib.suppress(httpx.HTTPError), httpx.Client(trust_env=False) as http:
            models = http.get(f"{URL}/v1/models", timeout=10).status_code
            probes.append(Probe(models, http.get(f"{URL}/ready", timeout=10)))
        return "Ctrl-C stops it." in log.read_text()

    with started([sys.executable, "-m", "scripts.serve", str(settings)], log) as process:
        wait_for("make serve", announced, process)
        yield Running(URL, load(settings), process, log.read_text(), probes)


@pytest.fixture(scope="session")
def client(server: Running) -> OpenAI:
    return client_of(server.url)


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
