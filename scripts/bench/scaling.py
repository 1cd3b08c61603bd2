"""Is `make plan` right? A real Ray Serve scales under a burst of load, beside what the simulation says of the same."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Self

import aiohttp
import numpy as np

from app.builtin import cache_dir
from scripts.bench.load import session
from scripts.bench.scaling_app import ALONE_SECONDS, AUTOSCALING, FULL_SECONDS, SCALING
from scripts.bench.servers import Served, serve_run
from scripts.console import Problem, say, step, table
from scripts.plan.simulation import Deployment, Load, simulate
from scripts.plan.traffic import Traffic

BURST = Traffic("burst", np.array([0.0, 30.0, 150.0, 210.0]), np.array([1.0, 8.0, 1.0]))
"""At its peak one replica would have to do twice what it can."""
LOOK_SECONDS = 0.25
"""Between two looks at the replicas."""
IDLE_SECONDS = 20.0
"""Before the load, in the simulation: longer than Ray looks back."""
PHASES = np.arange(0, AUTOSCALING.metrics_interval_s, 0.1)
"""How long after a report the load may begin. Nobody knows of a real one."""


class Asked(NamedTuple):
    """A request. Times in seconds since the load's begin."""

    came: float
    work: float
    """How much it is of a mean one."""
    began: float | None = None
    """None when it was refused."""
    ended: float | None = None


class Replicas(NamedTuple):
    """What there is from this second on."""

    second: float
    wanted: int
    running: int


class Scaled(NamedTuple):
    """What one round has found."""

    round: int
    seconds: float
    """How long the load lasted."""
    asked: list[Asked]
    replicas: list[Replicas]

    @classmethod
    def read(cls, said: dict[str, Any]) -> Self:
        """From the results' JSON."""
        asked, replicas = (Asked(*one) for one in said["asked"]), (Replicas(*one) for one in said["replicas"])
        return cls(**{**said, "asked": list(asked), "replicas": list(replicas)})


def bench(rounds: int) -> list[Scaled]:
    """A start of Ray for each. Raises Problem when a request is neither answered nor refused as it should be."""
    found: list[Scaled] = []
    for number in range(rounds):
        with (
            step(f"scaling, round {number + 1} of {rounds}"),
            serve_run(["scripts.bench.scaling_app:app"], cache_dir() / "bench-scaling.log") as served,
        ):
            found.append(asyncio.run(measured(served, number)))
            say(f"    {len(found[-1].asked)} requests")
    return found


async def measured(served: Served, number: int) -> Scaled:
    """BURST, whatever becomes of earlier requests, and the replicas meanwhile. Problem when a request is lost."""
    load = BURST.load(seed=number)
    asked: list[Asked] = []
    replicas: list[Replicas] = []

    async def watch(http: aiohttp.ClientSession, began: float) -> None:
        while (now := time.time() - began) < load.seconds:
            async with http.get("/replicas") as answered:
                seen = Replicas(round(now, 3), *await answered.json())
            if not replicas or replicas[-1][1:] != seen[1:]:
                replicas.append(seen)
            await asyncio.sleep(LOOK_SECONDS)

    async def ask(http: aiohttp.ClientSession, began: float, work: float) -> None:
        came = time.time()
        async with http.post("/work", json={"work": work}) as answered:
            times = [came - began, work]
            if answered.status == 200:
                times += [await answered.json() - began, time.time() - began]
            elif answered.status != 429:
                raise Problem(f"a request was answered {answered.status}", "read the server's log")
        asked.append(Asked(*(round(one, 3) for one in times)))

    async with session(served) as http, asyncio.TaskGroup() as group:
        began = time.time()
        group.create_task(watch(http, began))
        for arrival, work in zip(load.arrivals.tolist(), load.work.tolist(), strict=True):
            await asyncio.sleep(max(began + arrival - time.time(), 0))
            group.create_task(ask(http, began, work))
    return Scaled(number, load.seconds, sorted(asked), replicas)


def real(run: Scaled) -> dict[str, float]:
    """What there was to be seen of a run."""
    answered = [one for one in run.asked if one.began is not None]
    came, _, began, ended = np.array(answered, dtype=float).T
    return _figures(run.replicas, began - came, ended - came, len(run.asked) - len(answered), run.seconds)


def simulated(run: Scaled) -> Iterator[dict[str, float]]:
    """What the simulation says of the same requests, whenever the load began after a report."""
    one = Deployment(
        AUTOSCALING,
        max_ongoing_requests=SCALING.max_ongoing_requests,
        max_queued_requests=SCALING.max_queued_requests,
        shutdown_s=SCALING.graceful_shutdown_timeout_s,
        alone_s=ALONE_SECONDS,
        full_s=FULL_SECONDS,
        start_s=start_seconds(run.replicas),
    )
    came, work = np.array([(one.came, one.work) for one in run.asked]).T
    for begun in (IDLE_SECONDS + PHASES).tolist():
        found = simulate(Load(begun + came, work, begun + run.seconds), one)
        ends = [*(one.second for one in found.moments[1:]), begun + run.seconds]
        moments = [
            Replicas(max(one.second - begun, 0), one.target, one.running)
            for one, end in zip(found.moments, ends, strict=True)
            if end > begun
        ]
        yield _figures(moments, found.waits, found.answers, found.lost, run.seconds)


def start_seconds(replicas: Sequence[Replicas]) -> float:
    """How long a replica took from being wanted to running, in the mean."""
    waited = sum((one.wanted - one.running) * (after.second - one.second) for one, after in pairwise(replicas))
    return waited / sum(max(after.running - one.running, 0) for one, after in pairwise(replicas))


def _figures(
    replicas: Sequence[Replicas], waits: np.ndarray, answers: np.ndarray, refused: int, seconds: float
) -> dict[str, float]:
    spans = pairwise([*replicas, Replicas(seconds, 0, 0)])
    more = next(one.second for one in replicas if one.wanted > 1)
    return {
        "more replicas wanted, s after the burst's begin": more - BURST.edges[1],
        "replicas at most": max(one.running for one in replicas),
        "replicas in the mean": sum(one.running * (after.second - one.second) for one, after in spans) / seconds,
        "requests refused": refused,
        "wait, mean, s": float(waits.mean()),
        "wait, 95th percentile, s": float(np.quantile(waits, 0.95)),
        "answer, mean, s": float(answers.mean()),
        "answer, 95th percentile, s": float(np.quantile(answers, 0.95)),
    }


def report(runs: list[Scaled]) -> str:
    """Real and simulated, from the least to the greatest of all phases; two columns for each round."""
    rows = [("", *(f"round {run.round + 1}, {what}" for run in runs for what in ("real", "simulated")))]
    columns = [(real(run), list(simulated(run))) for run in runs]
    for what in columns[0][0]:
        cells: list[str] = []
        for seen, said in columns:
            values = [one[what] for one in said]
            cells += [f"{seen[what]:.2f}", f"{min(values):.2f}–{max(values):.2f}"]
        rows.append((what, *cells))
    return table(rows)
