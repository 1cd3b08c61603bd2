"""A/B inside a model's name: who gets which variant, copies for variants in the shadow, and what it is measured by."""

import asyncio
import hashlib
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

from ray.serve.metrics import Counter, Histogram

from app.settings import LiveModel

logger = logging.getLogger("ray.serve")

How = Literal["split", "pinned", "shadow"]
"""How a request came to a variant: by the weights, by name or pin, as a copy."""

Outcome = Literal["ok", "error", "invalid", "cancelled"]
"""How a request ended: answered, failed or refused by a busy model, refused as wrong, left by its client."""

MOST_USERS = 100_000
"""Users that a gateway replica remembers, so that it counts each once."""
MOST_SHADOWS = 8
"""Copies that a gateway replica has under way at once; more are left out, and so never crowd out the real ones."""
SHADOW_SECONDS = 120.0
"""How long a copy may take."""
_SECONDS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300]


def identity(tenant: str, user: str | None, session: str | None) -> str | None:
    """Who a variant is chosen for: the request's user, or else its session, within the API key's tenant, if any."""
    one = user or session or None
    return f"{tenant}/{one}" if one and tenant else one


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
        self.assigned = Counter("blueprint_variant_assigned", "Users assigned, each once.", labels[:2])
        self.expected = Counter("blueprint_variant_expected", "Those that the weights let expect.", labels[:2])


class Assignments:
    """Who has which variant, counted for a sample-ratio check: a user once, an anonymous request each time."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._seen: OrderedDict[tuple[str, str], None] = OrderedDict()

    def choose(self, model: str, user: str | None, live: LiveModel) -> tuple[str, How]:
        """The variant for a user, who may be pinned to one, and how it was chosen."""
        if user is not None and user in live.pins:
            return live.pins[user], "pinned"
        variant = assign(model, user, live.weights)
        if user is None or self._is_new(model, user):
            self._metrics.assigned.inc(1, {"model": model, "variant": variant})
            for name, weight in live.weights.items():
                if weight:
                    share = weight / sum(live.weights.values())
                    self._metrics.expected.inc(share, {"model": model, "variant": name})
        return variant, "split"

    def _is_new(self, model: str, user: str) -> bool:
        new = (model, user) not in self._seen
        self._seen[model, user] = None
        self._seen.move_to_end((model, user))
        if len(self._seen) > MOST_USERS:
            self._seen.popitem(last=False)
        return new


class Measured:
    """One request to a variant, from its start to `done`."""

    def __init__(self, metrics: Metrics, model: str, variant: str, how: How) -> None:
        self._metrics = metrics
        self._labels = {"model": model, "variant": variant, "how": how}
        self._started = time.monotonic()
        self._begun = False

    def output(self) -> None:
        """Something of the answer is there."""
        if not self._begun:
            self._begun = True
            self._metrics.first.observe(time.monotonic() - self._started, self._labels)

    def done(self, outcome: Outcome, tokens: int) -> None:
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

    @property
    def under_way(self) -> int:
        """How many copies are being answered."""
        return len(self._tasks)

    def maybe(self, share: float, copy: Callable[[], Awaitable[None]]) -> None:
        """Start `copy` for this share of the calls, if there is room."""
        if random.random() < share and self.under_way < MOST_SHADOWS:  # noqa: S311
            task = asyncio.create_task(self._run(copy))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, copy: Callable[[], Awaitable[None]]) -> None:
        try:
            async with asyncio.timeout(SHADOW_SECONDS):
                await copy()
        except Exception as error:
            logger.info("a copy for the shadow failed: %r", error)
