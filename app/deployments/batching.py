"""What all deployments that answer in batches share. Imports no model's library."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ray import serve

from app.settings import Batching, Classifier, EmbeddingModel, Reranker
from app.validation import validate


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


def reconfigure(batched: Any, user_config: dict[str, Any]) -> None:
    """Give a method of @serve.batch new `Batching` settings while requests go on. Raises SettingsError."""
    batching = validate(Batching, user_config, "user_config")
    batched.set_max_batch_size(batching.max_batch_size)
    batched.set_batch_wait_timeout_s(batching.batch_wait_timeout_s)


class Turns:
    """What comes while a batch is worked on waits for its end, and then is a batch: the busier, the larger.

    @serve.batch by itself closes a batch when its wait is over, even if another one is worked on for much longer. So
    it would need a wait long enough for the busiest hour, and a lone request would sit through it for nothing.
    """

    def __init__(self) -> None:
        self._free = asyncio.Event()
        self._free.set()

    async def wait(self) -> None:
        """Return when no batch is worked on."""
        await self._free.wait()

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """While a batch is worked on."""
        self._free.clear()
        try:
            yield
        finally:
            self._free.set()


def by_length(texts: Sequence[Any]) -> list[int]:
    """Indexes of the texts, or of their tokens, the shortest first.

    What is of like length shares a batch, which is padded to its longest.
    """
    return sorted(range(len(texts)), key=lambda index: len(texts[index]))
