"""`make metrics` with a real Prometheus, and every query of every dashboard answered by it.

In the server's place stands an exporter that has each metric of infra/observability/metrics.csv, with its labels. That
a running server has them is what `make record-metrics` and tests/app/test_metrics.py see to.
"""

import http.server
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from infra.config import ROOT, from_file
from infra.observability import metrics
from infra.observability.alerts import rule_groups
from infra.observability.dashboards import dashboards, queries
from scripts import local_prometheus
from tests.infra.test_program import STACKS
from tests.ports import free_port

VALUES = {
    "how": ["split"],
    "outcome": ["ok", "error"],
    "status_code": ["200", "500"],
    "variant": ["stable", "canary"],
    "model": ["chat"],
    "Name": ["CPU", "GPU"],
    "State": ["USED", "AVAILABLE"],
    "pod": ["llm-abcde-l4-worker-fghij"],
    "le": ["0.5", "1.0", "+Inf"],
}
"""What queries select by. Other labels have one value."""
SECONDS = 120.0


def exposition() -> str:
    """Each metric in Prometheus' format; counters and histograms grow."""
    now, lines = time.time(), []
    for metric in metrics.known():
        if metric.name == "up":
            continue
        lines.append(f"# TYPE {metric.name} {metric.type}")
        for name in metric.series:
            labels = [*metric.labels.split(), *(["le"] if name.endswith("_bucket") else [])]
            grows = metric.type in ("counter", "histogram", "summary")
            for values in itertools.product(*(VALUES.get(label, ["x"]) for label in labels)):
                given = ",".join(f'{label}="{value}"' for label, value in zip(labels, values, strict=True))
                lines.append(f"{name}{{{given}}} {now if grows else 1}")
    return "\n".join(lines) + "\n"


class FakeRay(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = exposition().encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Not into the tests' output."""


@pytest.fixture(scope="module")
def ray_tmpdir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """RAY_TMPDIR of a server that exports."""
    directory = tmp_path_factory.mktemp("ray")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeRay)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (directory / "ray").mkdir()
    targets = [{"labels": {"job": "ray"}, "targets": [f"127.0.0.1:{server.server_port}"]}]
    (directory / "ray" / local_prometheus.DISCOVERY.name).write_text(json.dumps(targets))
    yield directory
    server.shutdown()


@pytest.fixture(scope="module")
def prometheus(ray_tmpdir: Path) -> Iterator[httpx.Client]:
    """With the rules of the local stack, once it has seen every metric twice."""
    patch = pytest.MonkeyPatch()
    patch.setattr(local_prometheus, "DISCOVERY", ray_tmpdir / "ray" / local_prometheus.DISCOVERY.name)
    with patch.context(), local_prometheus.running(rule_groups(from_file("local")), free_port()) as http:
        until = time.monotonic() + SECONDS
        while not local_prometheus.ask(http, "rate(ray_vllm_generation_tokens_total[5m]) > 0"):
            assert time.monotonic() < until
            time.sleep(0.5)
        yield http


@pytest.mark.parametrize("stack", STACKS)
def test_every_query_is_answered(stack: str, prometheus: httpx.Client) -> None:
    for name, text in dashboards(from_file(stack)).items():
        unanswered = [query for query in queries(text) if not local_prometheus.ask(prometheus, query)]
        # Ray's own ask for much that is there at times only; that they are understood must do.
        assert not unanswered or name.startswith("ray-"), f"{name}: nothing for {unanswered}"


@pytest.mark.parametrize("stack", STACKS)
def test_every_rule_is_understood(stack: str, prometheus: httpx.Client) -> None:
    for group in rule_groups(from_file(stack)):
        for rule in group["rules"]:
            local_prometheus.ask(prometheus, rule["expr"])


def test_the_rules_are_there(prometheus: httpx.Client) -> None:
    groups = prometheus.get("/api/v1/rules").json()["data"]["groups"]
    assert {group["name"] for group in groups} == {group["name"] for group in rule_groups(from_file("local"))}
    assert all(rule["health"] != "err" for group in groups for rule in group["rules"])


def run(ray_tmpdir: Path, port: int, scratch: Path, *arguments: str) -> subprocess.Popen[str]:
    scratch.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "scripts.local_prometheus", "local", "--port", str(port), *arguments],
        cwd=ROOT,
        env={**os.environ, "RAY_TMPDIR": str(ray_tmpdir), "TMPDIR": str(scratch)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_command_shows_the_panels_and_leaves_nothing(ray_tmpdir: Path, tmp_path: Path) -> None:
    port, scratch = free_port(), tmp_path / "scratch"
    process = run(ray_tmpdir, port, scratch)
    assert process.stdin and process.stdout
    try:
        said = ""
        while "Ctrl-C" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        assert f"http://127.0.0.1:{port}" in said
        process.stdin.write("\n")
        process.stdin.flush()
        for line in process.stdout:
            said += line
            if line.startswith("Capacity and cost: Start of a replica"):
                break
        assert "Service: Active replicas" in said and "LLM: Time to first token" in said
    finally:
        process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS) == 0
    assert not list(scratch.iterdir())
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/-/ready", trust_env=False)


def test_without_a_server_it_says_so(tmp_path: Path) -> None:
    process = run(tmp_path, free_port(), tmp_path / "scratch")
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert "no server exports metrics" in said and "make serve" in said and "Traceback" not in said


@pytest.mark.parametrize("port", ["x", "0", "70000"])
def test_a_wrong_port_is_told(port: str, tmp_path: Path) -> None:
    process = run(tmp_path, 0, tmp_path / "scratch", "--port", port)
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 1 and "PORT" in said and "Traceback" not in said


def test_a_taken_port_is_told(ray_tmpdir: Path, tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port := free_port()))
        holder.listen()
        process = run(ray_tmpdir, port, tmp_path / "scratch")
        said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 1 and f"port {port}" in said and "is taken" in said and "Traceback" not in said
