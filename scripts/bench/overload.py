"""Ten times what a model can do: what of it is answered, how fast the rest is refused, and what is left of it later."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import aiohttp
import numpy as np
import psutil

from app.builtin import cache_dir
from scripts.bench import load
from scripts.bench.load import Point, session
from scripts.bench.servers import NAME, Served, ours
from scripts.console import Problem, say, step, table

PLACES, QUEUE = 16, 16
TOKENS = 64
"""Of the mean answer; from half of that to one and a half. Those of one length would all end in one step of the engine,
as those of no real load do."""
TIMES, SECONDS = 10, 60.0
FULL_SECONDS = 30.0
HEALTH_SECONDS, MEMORY_SECONDS = 0.5, 5.0
"""Between two looks. One at the memory takes 0.15 s of a core, since the kernel goes through all of its pages."""
SCALING = {"max_ongoing_requests": PLACES, "max_queued_requests": QUEUE, "health_check_period_s": 2}
SETTINGS = {"models": [{"name": NAME, "variants": [{"scaling": SCALING}]}]}


class Overload(NamedTuple):
    """What one round has found. Rates in tokens a second, times in ms or s, memory in GiB."""

    round: int
    before: float
    """At full load: as many clients as places, each of which asks again at once."""
    offered: float
    """At ten times as many requests a second."""
    answered: float
    requests: int
    refused: int
    """With 429 and Retry-After; any other answer ends the run."""
    refused_p50_ms: float
    refused_p95_ms: float
    health_p95_ms: float
    """Of /health, asked every HEALTH_SECONDS meanwhile."""
    recovery_s: float
    """From the end of it until a new request is answered in full."""
    after: float
    """At full load again."""
    memory_before: float
    memory_most: float
    memory_after: float
    replaced: int
    """Processes of replicas and engines that are not those of the beginning."""


def bench(rounds: int) -> list[Overload]:
    """A start of the server for each. Raises Problem when a request is neither answered nor refused as it should be."""
    found: list[Overload] = []
    for number in range(rounds):
        with (
            step(f"overload, round {number + 1} of {rounds}"),
            ours(SETTINGS, cache_dir() / "bench-overload.log") as one,
        ):
            load.by_httpx(one, Point(8, 16, 16), number)
            found.append(_measured(one, number))
            say(f"    {found[-1]}")
    return found


def _measured(served: Served, number: int) -> Overload:
    before = asyncio.run(full(served, FULL_SECONDS, 10 * number + 1))
    workers, memory = _workers(served), _memory(served)
    rate = TIMES * before / TOKENS
    found = asyncio.run(flood(served, rate, SECONDS))
    after = asyncio.run(full(served, FULL_SECONDS, 10 * number + 2))
    return Overload(
        round=number,
        before=before,
        offered=rate * TOKENS,
        answered=found.tokens / found.seconds,
        requests=found.requests,
        refused=len(found.refused),
        refused_p50_ms=_percentile(found.refused, 50),
        refused_p95_ms=_percentile(found.refused, 95),
        health_p95_ms=_percentile(found.health, 95),
        recovery_s=found.recovery,
        after=after,
        memory_before=memory,
        memory_most=max(found.memory),
        memory_after=_memory(served),
        replaced=len(_workers(served) ^ workers),
    )


def _percentile(seconds: list[float], part: int) -> float:
    """In ms."""
    return float(np.percentile(seconds, part)) * 1000 if seconds else 0.0


class Tally:
    """Requests, and what became of them. Times in seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.began = time.perf_counter()
        self.ends = self.began + seconds
        self.tokens = 0
        """That came before the end, of answers that came in full."""
        self.requests = 0
        self.recovery = 0.0
        self.refused: list[float] = []
        self.health: list[float] = []
        self.memory: list[float] = []
        self.wrong: Counter[str] = Counter()

    async def ask(self, http: aiohttp.ClientSession, prompt: str, tokens: int) -> bool:
        """Whether the request is answered."""
        sent = time.perf_counter()
        async with http.post("/v1/chat/completions", json=load.body(prompt, tokens)) as answered:
            last = b""
            async for line in answered.content:
                last = line.strip() or last
                self.tokens += b'"content":"' in line and time.perf_counter() < self.ends
            if answered.status == 429 and int(answered.headers["retry-after"]) > 0:
                self.refused.append(time.perf_counter() - sent)
            elif answered.status != 200 or last != b"data: [DONE]":
                self.wrong[f"{answered.status}: {last[-200:]!r}"] += 1
            else:
                return True
            return False

    def require_nothing_wrong(self) -> None:
        """Problem when a request was neither answered nor refused as it should be."""
        if self.wrong:
            raise Problem(f"neither answered nor refused as it should be: {dict(self.wrong)}", "read the server's log")


def _requests(salt: int) -> Iterator[tuple[str, int]]:
    """Prompts, no two alike, and how long their answers are; without end."""
    chosen = np.random.default_rng(salt)
    for index in itertools.count():
        yield load.prompt(salt, index), int(chosen.integers(TOKENS // 2, TOKENS * 3 // 2, endpoint=True))


async def full(served: Served, seconds: float, salt: int) -> float:
    """Tokens a second of as many clients as places, each of which asks again when it is answered."""
    found, requests = Tally(seconds), _requests(salt)

    async def ask_on(http: aiohttp.ClientSession) -> None:
        while time.perf_counter() < found.ends:
            await found.ask(http, *next(requests))

    async with session(served) as http, asyncio.TaskGroup() as group:
        for _ in range(PLACES):
            group.create_task(ask_on(http))
    found.require_nothing_wrong()
    return found.tokens / found.seconds


async def flood(served: Served, rate: float, seconds: float) -> Tally:
    """Requests come at random, `rate` a second, whatever becomes of the earlier ones. Problem when one is lost."""
    found = Tally(seconds)
    chosen = np.random.default_rng(0)

    async def watch_health(http: aiohttp.ClientSession) -> None:
        while time.perf_counter() < found.ends:
            sent = time.perf_counter()
            async with http.get("/health") as answered:
                answered.raise_for_status()
                await answered.read()
            found.health.append(time.perf_counter() - sent)
            await asyncio.sleep(HEALTH_SECONDS)

    async def watch_memory() -> None:
        while time.perf_counter() < found.ends:
            found.memory.append(await asyncio.to_thread(_memory, served))
            await asyncio.sleep(MEMORY_SECONDS)

    async with session(served) as http, asyncio.TaskGroup() as group:
        group.create_task(watch_health(http))
        group.create_task(watch_memory())
        due = found.began
        for prompt, tokens in _requests(7):
            due += chosen.exponential(1 / rate)
            if due > found.ends:
                break
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            group.create_task(found.ask(http, prompt, tokens))
            found.requests += 1
        stopped = time.perf_counter()
        while not await found.ask(http, "and now?", TOKENS):
            await asyncio.sleep(1)
        found.recovery = time.perf_counter() - stopped
    found.require_nothing_wrong()
    return found


def _memory(served: Served) -> float:
    """GiB of all its processes; what they share counts once."""
    return sum(_of(process) for _, process in served.processes()) / 2**30


def _of(process: psutil.Process) -> float:
    try:
        return process.memory_full_info().pss
    except psutil.Error:
        return 0.0


def _workers(served: Served) -> set[int]:
    return {process.pid for role, process in served.processes() if role in ("gateway", "replica", "engine")}


def report(runs: list[Overload]) -> str:
    """A column for each round."""
    rows = [("", *(f"round {run.round + 1}" for run in runs))]

    def row(name: str, values: list[str]) -> None:
        rows.append((name, *values))

    row("tokens/s at full load", [f"{run.before:.0f}" for run in runs])
    row("… of which while ten times came", [f"{run.answered / run.before:.2f}" for run in runs])
    row("… and afterwards", [f"{run.after / run.before:.2f}" for run in runs])
    row("requests, refused of them", [f"{run.requests}, {run.refused}" for run in runs])
    row("refused after, p50 / p95 ms", [f"{run.refused_p50_ms:.0f} / {run.refused_p95_ms:.0f}" for run in runs])
    row("/health, p95 ms", [f"{run.health_p95_ms:.0f}" for run in runs])
    row("a new request answered after, s", [f"{run.recovery_s:.1f}" for run in runs])
    row(
        "memory before / most / after, GiB",
        [f"{run.memory_before:.2f} / {run.memory_most:.2f} / {run.memory_after:.2f}" for run in runs],
    )
    row("replicas or engines replaced", [str(run.replaced) for run in runs])
    return table(rows)
