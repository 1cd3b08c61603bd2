"""The fast path (`gateway.fast`): the way in, in the replicas of the one model that is behind it.

From the engine a token goes to Ray's HTTP proxy at once; otherwise it goes from the model's replica to a gateway first,
which takes as much time as all the rest of that way.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, NamedTuple, Self

from ray import serve
from ray.serve import Application
from ray.serve.exceptions import BackPressureError
from ray.serve.llm.ingress import make_fastapi_ingress

from app.deployments import engines, gateway
from app.deployments.gateway import Gateway
from app.deployments.llm import LLM
from app.options import Scaling
from app.routes import openai
from app.settings import Settings


def build(settings: Settings) -> Application:
    """The Serve deployment of everything. Raises BuiltinModelError when the model cannot be made."""
    (model,) = settings.models
    (variant,) = model.variants
    limits = settings.gateway.scaling
    options = {
        **engines.options(variant),
        "name": model.deployment(variant),
        # `Here` limits what the engine gets, and leaves room for /health.
        "max_ongoing_requests": limits.max_ongoing_requests,
        "max_queued_requests": limits.max_queued_requests,
    }
    ingress = make_fastapi_ingress(Fast, endpoint_map=openai.ROUTES, app=gateway.api(settings))
    return serve.deployment(**options)(ingress).bind(settings, engines.source(variant))


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
