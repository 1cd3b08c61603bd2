"""A/B inside a model's name: who gets which variant, copies for variants in the shadow, and what it is measured by."""

import asyncio
import hashlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

from ray.serve.metrics import Counter, Gauge, Histogram

from app.settings import LiveModel

logger = logging.getLogger("ray.serve")

MOST_SHADOWS = 8
"""Copies that a gateway replica has under way at once; more are left out, and so never crowd out the real ones."""
SHADOW_SECONDS = 120.0
"""How long a copy may take."""
_SECONDS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300]


def assign(experiment: str, user: str | None, weights: Mapping[str, float]) -> str:
    """The variant for a user: the same one every time and in every replica, or at random without a user.

    A user is a point between 0 and 1, and each variant has a stretch as long as its weight, in their order. So a change
    of weights moves only those users whose point changes hands.
    """
    total = sum(weights.values())
    digest = hashlib.sha256(f"{experiment}\0{user}".encode()).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64 if user is not None else random.random()  # noqa: S311
    for variant, weight in weights.items():
        point -= weight / total
        if point < 0:
            return variant
    return next(variant for variant in reversed(list(weights)) if weights[variant])  # the sum was not quite 1


def choose(experiment: str, user: str | None, live: LiveModel) -> str:
    """The variant for a user, who may be pinned to one."""
    pinned = live.pins.get(user) if user is not None else None
    return pinned or assign(experiment, user, live.weights)


class Metrics:
    """What variants are compared by, exported to Prometheus by Ray. One for each gateway replica.

    Labels: model, variant, and `how` a request came there: split (by the weights), pinned or shadow.
    """

    def __init__(self) -> None:
        labels: Any = ("model", "variant", "how")  # Ray's annotation says one label
        self.requests = Counter("blueprint_variant_requests", "Requests that are over.", (*labels, "outcome"))
        self.tokens = Counter("blueprint_variant_tokens", "Tokens generated.", labels)
        self.latency = Histogram("blueprint_variant_latency_seconds", "Time to the answer's end.", _SECONDS, labels)
        self.first = Histogram("blueprint_variant_ttft_seconds", "Time to the first output.", _SECONDS, labels)
        self.weight = Gauge("blueprint_variant_weight", "Share of the users that was asked for.", labels[:2])

    def set_weights(self, model: str, weights: Mapping[str, float]) -> None:
        """Export what the split ought to be."""
        for variant, weight in weights.items():
            self.weight.set(weight / sum(weights.values()), {"model": model, "variant": variant})


class Measured:
    """One request to a variant, from its start to `done`."""

    def __init__(self, metrics: Metrics, model: str, variant: str, how: Literal["split", "pinned", "shadow"]) -> None:
        self._metrics = metrics
        self._labels = {"model": model, "variant": variant, "how": how}
        self._started = time.monotonic()
        self._begun = False

    def output(self) -> None:
        """Something of the answer is there."""
        if not self._begun:
            self._begun = True
            self._metrics.first.observe(time.monotonic() - self._started, self._labels)

    def done(self, outcome: Literal["ok", "error", "cancelled"], tokens: int) -> None:
        """The request is over, and made so many tokens."""
        self._metrics.requests.inc(1, {**self._labels, "outcome": outcome})
        if outcome == "ok":
            self._metrics.latency.observe(time.monotonic() - self._started, self._labels)
        if tokens:
            self._metrics.tokens.inc(tokens, self._labels)


class Shadows:
    """Copies of requests, for variants whose answers nobody gets. They neither delay nor fail the real ones."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def maybe(self, share: float, copy: Callable[[], Awaitable[None]]) -> None:
        """Start `copy` for this share of the calls, if there is room."""
        if random.random() < share and len(self._tasks) < MOST_SHADOWS:  # noqa: S311
            task = asyncio.create_task(self._run(copy))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, copy: Callable[[], Awaitable[None]]) -> None:
        try:
            async with asyncio.timeout(SHADOW_SECONDS):
                await copy()
        except Exception as error:
            logger.info("a copy for the shadow failed: %r", error)
