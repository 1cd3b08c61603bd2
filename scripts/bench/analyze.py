"""/analyze beside a client that calls the same stages itself, one after the other.

Both ask the same server. Preprocessing has no route, so that client does it in its own process, by the same code.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from functools import cache, partial
from typing import Any

import aiohttp
import numpy as np

from app.deployments.pipeline import INSTRUCTION, Preprocess
from app.settings import Summary
from scripts.bench.kind import Contender, Kind
from scripts.bench.load import SUBJECTS, Measured, Point, answered, ask
from scripts.bench.servers import NAME, Served, ours

SENTIMENT = {"name": "sentiment", "source": "builtin:vader-sentiment"}
SETTINGS = {"models": [{"name": NAME}], "classifiers": [SENTIMENT], "pipeline": {}}
SHORT, LONG = 30, 60
"""Words of a text without a summary, and of one with."""
GOLDEN = Point(1, 2, words=SHORT), Point(1, 3, words=LONG)

Analyze = Callable[[str, aiohttp.ClientSession], Awaitable[dict[str, Any]]]
"""Language, sentiment and summary of a text."""


def texts(point: Point, salt: int) -> list[str]:
    """No two that begin alike, or the prefix cache would answer; the same for all contenders."""
    chosen = np.random.default_rng(salt)
    words = " ".join(SUBJECTS).split()
    return [f"{salt}.{index} {' '.join(chosen.choice(words, point.words - 1))}" for index in range(point.requests)]


async def in_pipeline(text: str, http: aiohttp.ClientSession) -> dict[str, Any]:
    done = await ask("/analyze", {"text": text}, http)
    assert not done["errors"], done
    return {key: done[key] for key in ("language", "sentiment", "summary")}


async def one_by_one(text: str, http: aiohttp.ClientSession) -> dict[str, Any]:
    prepared = await asyncio.to_thread(_preprocess()._prepare, text)
    (classified,) = (await ask("/v1/classify", {"model": SENTIMENT["name"], "input": prepared.text}, http))["data"]
    summary = None
    if prepared.words >= Summary().min_words:
        messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": prepared.text}]
        asked = {"model": NAME, "messages": messages, "temperature": 0, "max_completion_tokens": Summary().max_tokens}
        said = await ask("/v1/chat/completions", asked, http)
        summary = said["choices"][0]["message"]["content"].strip()
    sentiment = {key: classified[key] for key in ("label", "score")}
    return {"language": prepared.language, "sentiment": sentiment, "summary": summary}


@cache
def _preprocess() -> Preprocess:
    return Preprocess(None)


def _measured(analyze: Analyze, served: Served, point: Point, salt: int) -> Measured:
    return answered(served, [partial(analyze, text) for text in texts(point, salt)], point.concurrency)[0]


def _golden(analyze: Analyze, served: Served) -> list[str]:
    calls = [partial(analyze, text) for point in GOLDEN for text in texts(point, 0)]
    return [json.dumps(answer) for answer in answered(served, calls, 1)[1]]


def _contender(what: str, analyze: Analyze) -> Contender:
    return Contender(what, partial(ours, SETTINGS), {"aiohttp": partial(_measured, analyze)}, partial(_golden, analyze))


KIND = Kind(
    "requests",
    {
        "pipeline": _contender("/analyze", in_pipeline),
        "stages": _contender("its stages, called by the client one after the other", one_by_one),
    },
    peers=("stages",),
    points=(
        *(Point(1, 100, words=SHORT), Point(8, 200, words=SHORT), Point(32, 400, words=SHORT)),
        *(Point(1, 4, words=LONG), Point(8, 16, words=LONG), Point(32, 48, words=LONG)),
    ),
    warm=Point(8, 16, words=LONG),
)
