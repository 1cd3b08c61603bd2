"""Embeddings: what batching gains over answering one text at a time, and loses against a loop without a server."""

import asyncio
import base64
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import httpx
import numpy as np
import torch

from app.builtin import cache_dir
from app.deployments import batching
from app.deployments.embeddings import Embeddings
from app.settings import EmbeddingModel
from scripts.bench.contenders import Served, ours
from scripts.bench.load import SUBJECTS, client
from scripts.console import Problem, say, step, table

CORES = 1.5
"""What the deployment sets aside: two threads."""
MODEL = EmbeddingModel.model_validate({"placement": {"num_cpus": CORES}})
BATCH = MODEL.batching.max_batch_size
BATCHED, UNBATCHED, LOOP = "batched", "one at a time", "loop of sorted batches"


class Load(NamedTuple):
    """So many requests at once, each of so many texts."""

    concurrency: int
    texts: int
    requests: int

    def __str__(self) -> str:
        return f"{self.concurrency} at once, {self.texts} text{'s' if self.texts > 1 else ''} each"


LOADS = (Load(1, 1, 200), Load(64, 1, 1280), Load(8, 64, 40))


class TextRun(NamedTuple):
    """What one contender did in one round."""

    contender: str
    round: int
    load: Load
    texts_per_second: float
    p50_ms: float
    p95_ms: float


def texts(load: Load) -> list[list[str]]:
    """Those of each request: of 4 to 60 words, at random, the same for all."""
    chosen = np.random.default_rng(load.concurrency)
    words = " ".join(SUBJECTS).split()
    return [
        [" ".join(chosen.choice(words, chosen.integers(4, 61))) for _ in range(load.texts)]
        for _ in range(load.requests)
    ]


def bench(rounds: int) -> list[TextRun]:
    """All contenders, in another order each time. Raises Problem, also when they do not agree about the vectors."""
    runs: list[TextRun] = []
    vectors: dict[str, np.ndarray] = {}
    for number in range(rounds):
        contenders = [BATCHED, UNBATCHED, LOOP]
        for name in contenders[number % 3 :] + contenders[: number % 3]:
            with step(f"{name}, round {number + 1} of {rounds}"):
                for run, found in _loop(number) if name == LOOP else _served(name, number):
                    runs.append(run)
                    vectors.setdefault(f"{run.load} {name}", found)
                    say(f"    {run.load}: {run.texts_per_second:.0f} texts/s, p95 {run.p95_ms:.0f} ms")
    for load in LOADS:
        expected = vectors[f"{load} {LOOP}"]
        for name in (BATCHED, UNBATCHED):
            least = float((vectors[f"{load} {name}"] * expected).sum(1).min())
            if least < 0.9999:
                raise Problem(f"{name}, {load}: a vector has a cosine of {least:.5f} with the loop's", "find out why")
    return runs


def _start(name: str, log: Path) -> AbstractContextManager[Served]:
    model = MODEL.model_dump(mode="json")
    if name == UNBATCHED:
        model["batching"] = {"max_batch_size": 1}
    return ours({"embeddings": [model]}, log)


def _served(name: str, number: int) -> Iterator[tuple[TextRun, np.ndarray]]:
    with _start(name, cache_dir() / "bench-embeddings.log") as served:
        asyncio.run(_ask(served, Load(8, 8, 40)))
        for load in LOADS:
            began = time.perf_counter()
            vectors, waits = asyncio.run(_ask(served, load))
            rate = load.requests * load.texts / (time.perf_counter() - began)
            p50, p95 = (float(value) * 1000 for value in np.percentile(waits, (50, 95)))
            yield TextRun(name, number, load, rate, p50, p95), vectors


async def _ask(served: Served, load: Load) -> tuple[np.ndarray, list[float]]:
    """The vectors, in order, and how long each request took."""
    requests = texts(load)
    found: list[Any] = [None] * len(requests)
    waits: list[float] = []
    waiting = iter(enumerate(requests))

    async def work(http: httpx.AsyncClient) -> None:
        for index, given in waiting:
            sent = time.perf_counter()
            answered = await http.post("/v1/embeddings", json={"input": given, "encoding_format": "base64"})
            waits.append(time.perf_counter() - sent)
            found[index] = answered.raise_for_status().content

    async with (
        client(served) as http,
        asyncio.TaskGroup() as clients,
    ):
        for _ in range(load.concurrency):
            clients.create_task(work(http))
    return np.concatenate([_vectors(content) for content in found]), waits


def _vectors(content: bytes) -> np.ndarray:
    items = json.loads(content)["data"]
    return np.stack([np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in items])


def _loop(number: int) -> Iterator[tuple[TextRun, np.ndarray]]:
    """All texts, sorted by their length, through the deployment's own model in full batches."""
    model = Embeddings(MODEL)
    torch.set_num_threads(round(CORES))
    for load in LOADS:
        given = [text for request in texts(load) for text in request]
        began = time.perf_counter()
        ids = model._encoder.tokenizer(given)["input_ids"]
        order = batching.by_length(ids)
        parts = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        done = np.concatenate([model._encoder([ids[index] for index in part]) for part in parts])
        seconds = time.perf_counter() - began
        vectors = np.empty_like(done)
        vectors[order] = done
        yield TextRun(LOOP, number, load, len(given) / seconds, 0.0, 0.0), vectors


def report(runs: Sequence[TextRun]) -> str:
    """Medians over the rounds."""
    rows: list[tuple[str, ...]] = [("load", "contender", "texts/s", "of one at a time", "of the loop", "p95")]
    for load in LOADS:

        def rate(name: str, load: Load = load) -> float:
            return median(run.texts_per_second for run in runs if (run.contender, run.load) == (name, load))

        for name in (LOOP, BATCHED, UNBATCHED):
            p95 = median(run.p95_ms for run in runs if (run.contender, run.load) == (name, load))
            ratios = (f"{rate(name) / rate(other):.2f}" for other in (UNBATCHED, LOOP))
            rows.append((str(load), name, f"{rate(name):.0f}", *ratios, f"{p95:.0f} ms" if p95 else ""))
    return table(rows)
