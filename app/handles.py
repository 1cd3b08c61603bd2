"""Calls from one deployment to another: by a handle of the same application, or by name in another one."""

import contextlib
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterator
from typing import Any, TypeVar

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from app.errors import ApiError
from app.settings import Remote

T = TypeVar("T")
logger = logging.getLogger("ray.serve")

RESTART_SECONDS = 30
"""Retry-After while a failed replica is replaced."""


class EngineDead(Exception):
    """The engine says in its answer that it is no more."""


def resolve(handle: DeploymentHandle | Remote) -> DeploymentHandle:
    """What to call, in a replica."""
    if isinstance(handle, Remote):
        return DeploymentHandle(handle.deployment, handle.application)
    return handle


async def once_more(call: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """What a handle's method answers. When the replica dies meanwhile, another one is asked, or the one that comes.

    Once: a request that kills replicas must not get all of them.
    """
    try:
        return await call(*arguments)
    except Exception as error:
        _require_death(error)
    return await call(*arguments)


async def begun_once_more(call: Callable[..., AsyncIterable[T]], *arguments: Any) -> AsyncGenerator[T]:
    """The same of a method that streams, as long as nothing has come."""
    begun = False
    try:
        async for output in call(*arguments):
            begun = True
            yield output
        return
    except Exception as error:
        if begun:
            raise
        _require_death(error)
    async for output in call(*arguments):
        yield output


def _require_death(error: Exception) -> None:
    """Raise the error unless it says that the replica which was asked is no more, or one that it had asked."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if not isinstance(cause, RayActorError):
        raise error
    logger.warning("a replica died with a request, which another one gets: %r", cause)


@contextlib.contextmanager
def answering(model: str) -> Iterator[None]:
    """What goes wrong in the deployment that serves `model`, as an ApiError: 429 with Retry-After, 503, or its own."""
    try:
        yield
    except Exception as error:
        # Ray wraps what a replica raises, be it what another one has raised there.
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, ApiError):
            raise cause from None
        if isinstance(cause, BackPressureError):
            reason = f"the model {model} has as many requests waiting as it may; try again later"
            wait = math.ceil(cause.retry_after_s or 0)
            raise ApiError(429, reason, code="overloaded", retry_after=wait) from error
        if isinstance(cause, ArithmeticError):
            # Some of vLLM's integers have no limit in its request models, and one in its engine.
            raise ApiError(400, f"a number in the request is too large or too small for the model {model}") from error
        # vLLM's by its name: importing it takes 500 MB, which a replica without an engine can do without.
        gone = isinstance(cause, EngineDead) or type(cause).__name__ == "EngineDeadError"
        if gone or isinstance(cause, RayActorError | DeploymentUnavailableError):
            logger.warning("the model %s failed: %r", model, cause)
            reason = f"the model {model} has failed and is being restarted; try again later"
            raise ApiError(503, reason, code="model_unavailable", retry_after=RESTART_SECONDS) from error
        raise
