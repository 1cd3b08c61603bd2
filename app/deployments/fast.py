"""The fast path (`gateway.fast`): the way in, in the replicas of the one model that is behind it.

From the engine a token goes to Ray's HTTP proxy at once; otherwise it goes from the model's replica to a gateway first,
which takes as much time as all the rest of that way.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, NamedTuple, Self

from ray import serve
from ray.serve.exceptions import BackPressureError

from app.deployments.gateway import Gateway
from app.deployments.llm import LLM
from app.options import Scaling
from app.settings import Settings


class Fast(Gateway):
    """The gateway and its model."""

    async def __init__(self, settings: Settings, source: str) -> None:
        (model,) = settings.models
        (variant,) = model.variants
        self._server = LLM.__new__(LLM)
        # Others gather tokens for 50 ms, which saves calls between Ray's processes.
        await self._server.__init__(model, variant, source, stream_batching_interval_ms=0)
        here: Any = Here(self._server, variant.scaling)
        super().__init__(settings, {model.deployment(variant): here})

    async def check_health(self) -> None:
        """Raise unless the engine generates."""
        await self._server.check_health()


Ingress = serve.ingress()(Fast)
"""What a replica makes."""


class Here:
    """An object in this process, called as by a handle that streams, and with a handle's limits."""

    def __init__(self, instance: Any, scaling: Scaling) -> None:
        self._instance = instance
        self._scaling = scaling
        self._places = asyncio.Semaphore(scaling.max_ongoing_requests)
        self._waiting = 0

    def options(self, *, stream: bool) -> Self:
        assert stream
        return self

    def __getattr__(self, name: str) -> "_Method":
        return _Method(self._calls(getattr(self._instance, name)))

    def _calls(self, method: Callable[..., Any]) -> Callable[..., AsyncGenerator[Any]]:
        async def call(*arguments: Any) -> AsyncGenerator[Any]:
            most = self._scaling.max_queued_requests
            if self._places.locked() and self._waiting >= most >= 0:
                raise BackPressureError(self._waiting, most, retry_after_s=self._scaling.retry_after_s)
            self._waiting += 1
            try:
                await self._places.acquire()
            finally:
                self._waiting -= 1
            try:
                async for output in await method(*arguments):
                    yield output
            finally:
                self._places.release()

        return call


class _Method(NamedTuple):
    remote: Callable[..., AsyncGenerator[Any]]
