"""A steady load of short requests and long streams, and what became of each.

It is a process in the cluster's network and asks the Service or a Gateway, as a client in the cluster does: `kubectl
proxy` would have to answer for what it lost itself. It repeats nothing. It ends when its standard input does, with a
report.
"""

import asyncio
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from infra.clusters import LOCAL_KEY
from infra.config import ROOT, StackConfig
from infra.serving.rayservice import SERVE_PORT
from scripts.cluster.layout import Record
from scripts.kubectl import Kubectl
from tests.e2e.conftest import SENTIMENT, chat, little

NAMESPACE = StackConfig().namespace
RATE = 10.0
"""Short requests a second, whatever becomes of those before them."""
STREAMS = 2
"""Streams at any time."""
TOKENS = 96
"""Of a stream: it takes longer than the change from one Ray cluster to the other."""
PATIENCE = httpx.Timeout(120)
SHORT = {"model": SENTIMENT["name"], "input": "I love it"}
LONG = {
    "model": "chat",
    "messages": [{"role": "user", "content": "Tell a long story of the sea."}],
    "max_tokens": TOKENS,
    "temperature": 0,
    "stream": True,
}
KEY = "LOAD_API_KEY"
TWO = {"scaling": {"num_replicas": 2}}


def serving(weights: tuple[float, ...] = (1,), canary: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A language model with as many variants as weights, and what answers short requests."""
    models = [chat(weights, canary)]
    return little(models=models, embeddings=[], classifiers=[{**SENTIMENT, **more}], gateway=more)


def keys(workers: int, **more: Any) -> dict[str, Any]:
    """Keys of a stack for this load."""
    group = {"name": "cpu", "min_replicas": workers, "max_replicas": workers, "memory_gib": 9}
    return {"serving": serving(**more), "head": {"memory_gib": 4}, "workers": [group]}


@dataclass
class Lost:
    """A request without an answer, or a stream without an end."""

    began: float
    """In seconds since the load did."""
    ended: float
    events: int
    """Of a stream, before it broke."""
    seen: str
    """What the client saw: status and body, or its own error."""


@dataclass
class Report:
    """What became of a load."""

    requests: int = 0
    streams: int = 0
    lost: list[Lost] = field(default_factory=list[Lost])
    broken: list[Lost] = field(default_factory=list[Lost])
    begun: float = 0
    """Seconds since 1970."""
    seconds: float = 0
    latencies: list[float] = field(default_factory=list[float])
    """Seconds until the answer to a request, of those that got one."""

    def percentile(self, part: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, math.ceil(part * len(ordered)) - 1)]

    def summary(self) -> dict[str, Any]:
        """Without the single latencies."""
        found = {key: value for key, value in asdict(self).items() if key != "latencies"}
        return found | {f"p{percent}_s": round(self.percentile(percent / 100), 2) for percent in (50, 99, 100)}


class Load:
    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http
        self.report = Report(begun=time.time())
        self._begun = time.monotonic()

    def now(self) -> float:
        """Seconds since the load began."""
        return round(time.monotonic() - self._begun, 2)

    async def request(self) -> None:
        began = self.now()
        self.report.requests += 1
        try:
            answered = await self.http.post("/v1/classify", json=SHORT)
            if answered.status_code == 200:
                self.report.latencies.append(self.now() - began)
                return
            seen = f"{answered.status_code}: {answered.text[:300]}"
        except httpx.HTTPError as error:
            seen = repr(error)
        self.report.lost.append(Lost(began, self.now(), 0, seen))

    async def stream(self) -> None:
        began, events, last = self.now(), 0, ""
        self.report.streams += 1
        try:
            async with self.http.stream("POST", "/v1/chat/completions", json=LONG) as answered:
                async for line in answered.aiter_lines():
                    if line:
                        last, events = line, events + 1
                    if '"error"' in line:
                        break
                if last == "data: [DONE]":
                    return
                seen = f"{answered.status_code}: {last[:300]}"
        except httpx.HTTPError as error:
            seen = repr(error)
        self.report.broken.append(Lost(began, self.now(), events, seen))


async def _main(url: str) -> Report:
    over = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, over.set)
    headers = {"Authorization": f"Bearer {os.environ[KEY]}"}
    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=PATIENCE, limits=limits) as http,
        asyncio.TaskGroup() as requests,
    ):
        load = Load(http)

        async def stream_on() -> None:
            while not over.is_set():
                await load.stream()
                if load.report.broken and load.report.broken[-1].ended > load.now() - 1:
                    await asyncio.sleep(1)  # as a client that minds Retry-After a little

        for _ in range(STREAMS):
            requests.create_task(stream_on())
        while not over.is_set():
            requests.create_task(load.request())
            await asyncio.sleep(max(0, load.report.requests / RATE - load.now()))
        load.report.seconds = load.now()
    return load.report


def inside(*command: str, namespaces: Iterable[str] = ("net",), **options: Any) -> subprocess.Popen[str]:
    """A process in the cluster's network, or in others of its namespaces."""
    record = Record.load()
    assert record
    entered = ["nsenter", *(f"--{kind}" for kind in namespaces), f"--target={record.node}", "--", *command]
    return subprocess.Popen(entered, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)


def service(kubernetes: Kubectl) -> str:
    """The URL of the stack's Service in the cluster's network."""
    found = kubernetes.get("service", "llm-serve-svc", "--namespace", NAMESPACE)
    return f"http://{found['spec']['clusterIP']}:{SERVE_PORT}"


@contextmanager
def loaded(url: str, api_key: str = LOCAL_KEY) -> Iterator[Report]:
    """The load, for as long as the block lasts; the report is complete after it."""
    report = Report()
    command = (sys.executable, "-m", "tests.e2e.load", url)
    with inside(*command, cwd=ROOT, env={**os.environ, KEY: api_key}) as process:
        try:
            yield report
            said, _ = process.communicate(timeout=300)
        except BaseException:
            process.kill()
            raise
    found = json.loads(said)
    for kind in ("lost", "broken"):
        found[kind] = [Lost(**one) for one in found[kind]]
    report.__dict__.update(found)


def nothing_is_lost(report: Report) -> None:
    assert report.requests > 5 * report.seconds
    assert report.streams > 0
    assert (report.lost, report.broken) == ([], [])


def keep(said: Mapping[str, Any], results: Path | None = None) -> None:
    """Show what became of a load, and add it to a file, a line."""
    print(json.dumps(said, indent=1))
    if results:
        with results.open("a") as file:
            file.write(f"{json.dumps(said)}\n")


def clusters(kubernetes: Kubectl) -> set[str]:
    """The names of the Ray clusters, and of those whose pods are still there."""
    found = kubernetes.get("rayclusters", "--namespace", NAMESPACE)["items"]
    pods = kubernetes.get("pods", "--namespace", NAMESPACE, "--selector", "ray.io/cluster")["items"]
    return {item["metadata"]["name"] for item in found} | {pod["metadata"]["labels"]["ray.io/cluster"] for pod in pods}


def until_one_is_left(kubernetes: Kubectl) -> None:
    """Requests that are under way on a Ray cluster that goes are part of an upgrade."""
    deadline = time.monotonic() + 600
    while len(found := clusters(kubernetes)) != 1:
        assert time.monotonic() < deadline, found
        time.sleep(1)


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(_main(sys.argv[1])))))
