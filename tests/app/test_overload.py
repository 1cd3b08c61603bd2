"""Ten times what the model can do: it goes on doing that, and the rest is refused at once.

Clients and server share two cores here, so what the load itself costs is in the figures.
"""

import asyncio
import contextlib
import time
from collections import Counter
from typing import Any

import httpx
import psutil
import pytest

from tests.app.conftest import Running, eventually

SHAPES = ["cluster"]

SECONDS = 15.0
TIMES = 10
BODY = {"model": "chat", "prompt": "Once upon a time", "max_tokens": 32, "ignore_eos": True}
Outcome = tuple[float, int, float, dict[str, str]]
"""When it was over, status, how long it took, headers."""


async def _ask(http: httpx.AsyncClient) -> Outcome:
    begun = time.monotonic()
    answered = await http.post("/v1/completions", json=BODY)
    return time.monotonic(), answered.status_code, time.monotonic() - begun, dict(answered.headers)


def _client(server: Running) -> httpx.AsyncClient:
    headers, limits = {"Authorization": f"Bearer {server.key}"}, httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=server.url, headers=headers, trust_env=False, timeout=120, limits=limits)


async def _steady(server: Running, clients: int) -> list[Outcome]:
    """So many clients, each with its next request when the one before is answered."""
    outcomes: list[Outcome] = []
    async with _client(server) as http:
        end = time.monotonic() + SECONDS

        async def ask_on() -> None:
            while time.monotonic() < end:
                outcomes.append(await _ask(http))

        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(ask_on())
    return outcomes


async def _flood(server: Running, rate: float) -> list[Outcome]:
    """So many requests a second, whatever becomes of those before; and some clients that leave at once."""
    async with _client(server) as http, asyncio.TaskGroup() as group:
        begun, asked = time.monotonic(), list[asyncio.Task[Outcome]]()
        while (elapsed := time.monotonic() - begun) < SECONDS:
            while len(asked) < rate * elapsed:
                asked.append(group.create_task(_ask(http)))
                if len(asked) % 20 == 0:
                    group.create_task(_leave(http))
            await asyncio.sleep(0.01)
    return [task.result() for task in asked]


async def _leave(http: httpx.AsyncClient) -> None:
    with contextlib.suppress(httpx.TimeoutException):
        await http.post("/v1/completions", json=BODY, timeout=0.2)


def _rate(outcomes: list[Outcome]) -> float:
    """Answers a second."""
    ends = [end for end, status, *_ in outcomes if status == 200]
    return (len(ends) - 1) / (max(ends) - min(ends))


def _memory(server: Running) -> int:
    """Bytes that its processes have to themselves."""
    found = 0
    for process in server.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            found += process.memory_full_info().uss
    return found


def _replicas(server: Running) -> set[int]:
    found: set[int] = set()
    for process in server.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.cmdline()[0].startswith("ray::ServeReplica"):
                found.add(process.pid)
    return found


def test_it_goes_on_under_ten_times_its_load(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    scaling = server.settings.models[0].variants[0].scaling
    places = scaling.max_ongoing_requests + scaling.max_queued_requests
    steady = asyncio.run(_steady(server, scaling.max_ongoing_requests))
    assert {status for _, status, *_ in steady} == {200}
    before, replicas = _memory(server), _replicas(server)
    flood = asyncio.run(_flood(server, TIMES * _rate(steady)))
    ended = time.monotonic()
    eventually("it is idle", lambda: server.http.post("/v1/completions", json=BODY).status_code == 200)
    recovered = time.monotonic() - ended
    counted = Counter(status for _, status, *_ in flood)
    refused = sorted(seconds for _, status, seconds, _ in flood if status == 429)
    said: dict[str, Any] = {
        "goodput of the steady load": round(_rate(steady), 2),
        "goodput under ten times it": round(_rate(flood), 2),
        "answers": dict(counted),
        "seconds to a refusal, p50 and p99": [round(refused[int(len(refused) * part)], 2) for part in (0.5, 0.99)],
        "memory grew by MiB": round((_memory(server) - before) / 2**20),
        "seconds to an answer after it": round(recovered, 2),
    }
    with capsys.disabled():
        print(f"\n{said}")
    assert set(counted) == {200, 429}
    assert counted[429] > counted[200] > places / 2
    assert all(int(headers["retry-after"]) == scaling.retry_after_s for _, status, _, headers in flood if status == 429)
    assert _rate(flood) > 0.8 * _rate(steady)
    assert refused[len(refused) // 2] < min(seconds for _, status, seconds, _ in flood if status == 200)
    assert _memory(server) < 1.1 * before
    assert _replicas(server) == replicas
