"""What all deployments that answer in batches share. Imports no model's library."""

import asyncio
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, Generic, TypeVar

from ray import serve

from app.options import GpuPlacement
from app.settings import Batching, Classifier, EmbeddingModel, Reranker
from app.validation import validate

Item = TypeVar("Item")
Result = TypeVar("Result")

CPU_PASS, GPU_PASS = 12, 64
"""Items in one pass of a model, at most. On a CPU each pays for the longest one beside it (docs/performance.md); on a
GPU they bound the memory of a pass (not measured)."""
AT_ONCE = 4
"""Passes at once on a CPU, at most: a tenth of each is Python, which only one of them runs at a time."""


def deployment(model: EmbeddingModel | Classifier | Reranker) -> Callable[[Any], serve.Deployment]:
    """A decorator: the Serve deployment of one model."""
    return serve.deployment(
        name=model.deployment,
        user_config=model.batching.model_dump(),
        ray_actor_options={
            **model.placement.options(),
            "runtime_env": {"env_vars": {"HF_HUB_OFFLINE": "0" if model.from_hub else "1"}},
        },
        **model.scaling.options(),
    )


def by_length(items: Sequence[Any], length: Callable[[Any], int] = len) -> list[int]:
    """Indexes of texts, or of their tokens, the longest first.

    What is of like length shares a pass, which is padded to its longest. The cheapest comes last, so that the cores are
    done at nearly the same time.
    """
    return sorted(range(len(items)), key=lambda index: length(items[index]), reverse=True)


class Batches(Generic[Item, Result]):
    """Gathers what many requests ask of one model into batches.

    What comes while the model is at work waits until a core has nothing to do next, and then is a batch: the busier,
    the larger. `serve.batch` by itself closes a batch when its wait is over, even if another one is worked on for much
    longer. So it would need a wait long enough for the busiest hour, and a lone request would sit through it for
    nothing.

    A batch goes through the model in passes of like length. On a CPU each has a core of its own: cores that share a
    pass wait for each other at each of its steps. What that came to: docs/performance.md.
    """

    def __init__(
        self,
        model: Callable[[list[Item], int], Iterable[Result]],
        placement: GpuPlacement,
        length: Callable[[Any], int] = len,
        pads: bool = True,
    ) -> None:
        """`model` gives the results of one pass, on so many threads; `length` is what an item costs it.

        One that `pads` no item to the longest of its pass takes a whole batch in one.
        """
        self._model = model
        self._length = length
        self._cores = max(1, round(placement.num_cpus))
        self._at_once, self._largest = (1, GPU_PASS) if placement.num_gpus else (min(self._cores, AT_ONCE), CPU_PASS)
        if not pads:
            self._at_once, self._largest = 1, sys.maxsize
        self._passes = 0
        self._turn = asyncio.Semaphore(self._at_once)
        self._wanted = asyncio.Event()
        self._wanted.set()
        self._gathered: Any = serve.batch(max_concurrent_batches=self._at_once)(self._work)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take new `Batching` settings while requests go on. Raises SettingsError."""
        batching = validate(Batching, user_config, "user_config")
        self._gathered.set_max_batch_size(batching.max_batch_size)
        self._gathered.set_batch_wait_timeout_s(batching.batch_wait_timeout_s)

    async def results(self, items: Sequence[Item]) -> list[Result]:
        """What the model makes of each item, in their order."""
        await self._wanted.wait()
        order = by_length(items, self._length)
        return _in_order(order, await asyncio.gather(*(self._gathered(items[index]) for index in order)))

    async def _work(self, batch: list[Item]) -> list[Result]:
        order = by_length(batch, self._length)
        size = min(self._largest, math.ceil(len(batch) / self._at_once))
        parts = [[batch[index] for index in order[start : start + size]] for start in range(0, len(batch), size)]
        self._count(len(parts))
        return _in_order(order, chain.from_iterable(await asyncio.gather(*map(self._pass, parts))))

    async def _pass(self, part: list[Item]) -> Iterable[Result]:
        try:
            async with self._turn:
                threads = self._cores // min(self._passes, self._at_once)
                # In a thread, or nobody else is answered meanwhile.
                return await asyncio.to_thread(self._model, part, threads)
        finally:
            self._count(-1)

    def _count(self, passes: int) -> None:
        self._passes += passes
        if self._passes < self._at_once:
            self._wanted.set()
        else:
            self._wanted.clear()


def _in_order(order: list[int], found: Iterable[Result]) -> list[Result]:
    results = dict(zip(order, found, strict=True))
    return [results[index] for index in range(len(order))]
