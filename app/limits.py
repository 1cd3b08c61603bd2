"""What a request may cost before anybody looks into it, and what a client may take in a minute."""

import asyncio
import contextlib
import logging
import math
import os
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import TypeVar

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter, RateLimiter
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import ApiError
from app.keys import Key

logger = logging.getLogger("ray.serve")

T = TypeVar("T")

BODY_SECONDS = 30.0
"""How long a body may take from a request's headers to its end: 8 MiB by a line of 2.3 Mbit/s. Neither Ray nor uvicorn
has such a limit, and until then the request holds its place."""
PREFIX = "blueprint"
"""What all keys in Redis begin with."""
REDIS_SECONDS = 1.0
"""How long a request waits for Redis."""
RETRY_SECONDS = 5.0
"""How long a Redis that has failed is left alone."""
LEASE_SECONDS = 60
"""After this long, the places of a replica that was killed are free again."""


class BodyLimit:
    """ASGI middleware: whoever reads a body of more than `largest` bytes gets an ApiError (413), and so does he who
    waits for one longer than BODY_SECONDS (408, the last answer on its connection).
    """

    def __init__(self, app: ASGIApp, largest: int) -> None:
        self.app = app
        self.largest = largest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        received, complete, late = 0, False, False
        deadline = asyncio.get_running_loop().time() + BODY_SECONDS

        async def counting() -> Message:
            nonlocal received, complete, late
            try:
                # Afterwards one waits here for the client to leave.
                async with asyncio.timeout_at(None if complete else deadline):
                    message = await receive()
            except TimeoutError:
                late = True
                reason = f"the body has not come within {BODY_SECONDS:g} s"
                raise ApiError(408, reason, code="request_timeout") from None
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > self.largest:
                raise ApiError(
                    413,
                    f"the body is larger than {self.largest} bytes; send less in one request",
                    code="request_too_large",
                )
            return message

        async def ending(message: Message) -> None:
            if late and message["type"] == "http.response.start":
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        await self.app(scope, counting, ending)


class Limiter:
    """Counts what each key takes: in Redis, for all replicas of the gateway together, or without one in memory.

    Requests are counted in a moving window: never more than the limit in any 60 s. Tokens are counted in a fixed
    window of 60 s that begins with the first of them, since they are known, and may exceed the limit, only afterwards.

    While Redis does not answer, requests are answered all the same, and each replica counts for itself: a broken
    counter costs a few requests too many, and refusing them all would cost the service.
    """

    def __init__(self, redis_url: str | None = None) -> None:
        self._local = _InMemory()
        self._shared = _InRedis(redis_url) if redis_url else None
        self._retry_at = 0.0

    async def admit(self, key: Key, places: AsyncExitStack) -> None:
        """Count a request, whose place among the concurrent ones is free when `places` closes.

        Raises ApiError (429) when one of the key's limits is reached.
        """
        await self._count(lambda counts: counts.admit(key, places))

    async def spend(self, key: Key, tokens: int) -> None:
        """Count tokens that were used."""
        await self._count(lambda counts: counts.spend(key, tokens))

    async def headers(self, key: Key) -> dict[str, str]:
        """What is left of the key's limits, in OpenAI's headers x-ratelimit-{limit,remaining,reset}-*.

        Reset is the time until the oldest request leaves its window, and until the window of the tokens ends.
        """
        return await self._count(lambda counts: counts.headers(key))

    async def _count(self, operation: Callable[["_Counts"], Awaitable[T]]) -> T:
        if self._shared and time.monotonic() >= self._retry_at:
            try:
                done = await operation(self._shared)
            except RedisError as error:
                if not self._retry_at:
                    logger.warning(
                        "Redis does not answer, so each replica counts for itself: %s: %s", type(error).__name__, error
                    )
                self._retry_at = time.monotonic() + RETRY_SECONDS
            else:
                if self._retry_at:
                    logger.info("Redis answers again")
                self._retry_at = 0.0
                return done
        return await operation(self._local)


class _Counts:
    """The counts of all keys, in one storage."""

    def __init__(self, storage: MemoryStorage | RedisStorage) -> None:
        self._requests = MovingWindowRateLimiter(storage)
        self._tokens = FixedWindowRateLimiter(storage)

    async def admit(self, key: Key, places: AsyncExitStack) -> None:
        if key.concurrency and not await places.enter_async_context(self._place(key.name, key.concurrency)):
            reason = f"the API key {key.name!r} has {key.concurrency} requests under way, as many as it may"
            raise ApiError(429, f"{reason}; wait for one of them", code="rate_limit_exceeded", retry_after=1)
        for what, counter, limit in self._windows(key):
            admitted = counter.hit if what == "requests" else counter.test
            if not await admitted(limit, what, key.name):
                reset, _ = await counter.get_window_stats(limit, what, key.name)
                seconds = max(math.ceil(reset - time.time()), 1)
                reason = f"the API key {key.name!r} has used up its {limit.amount} {what} per minute"
                raise ApiError(
                    429, f"{reason}; try again in {seconds} s", code="rate_limit_exceeded", retry_after=seconds
                )

    async def spend(self, key: Key, tokens: int) -> None:
        for what, counter, limit in self._windows(key):
            if what == "tokens":
                await counter.hit(limit, what, key.name, cost=tokens)

    async def headers(self, key: Key) -> dict[str, str]:
        found: dict[str, str] = {}
        for what, counter, limit in self._windows(key):
            reset, remaining = await counter.get_window_stats(limit, what, key.name)
            found[f"x-ratelimit-limit-{what}"] = str(limit.amount)
            found[f"x-ratelimit-remaining-{what}"] = str(remaining)
            found[f"x-ratelimit-reset-{what}"] = duration(max(reset - time.time(), 0))
        return found

    def _windows(self, key: Key) -> Iterator[tuple[str, RateLimiter, RateLimitItem]]:
        """What is counted, by whom, up to where: tokens first, so that a request refused for them does not count."""
        if key.tokens_per_minute:
            yield "tokens", self._tokens, RateLimitItemPerMinute(key.tokens_per_minute)
        if key.requests_per_minute:
            yield "requests", self._requests, RateLimitItemPerMinute(key.requests_per_minute)

    def _place(self, name: str, limit: int) -> AbstractAsyncContextManager[bool]:
        """Hold one of `limit` places; false when all are taken."""
        raise NotImplementedError


class _InMemory(_Counts):
    def __init__(self) -> None:
        super().__init__(MemoryStorage())
        self._taken: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def _place(self, name: str, limit: int) -> AsyncGenerator[bool]:
        if self._taken[name] >= limit:
            yield False
            return
        self._taken[name] += 1
        try:
            yield True
        finally:
            self._taken[name] -= 1


TAKE_PLACE = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local held = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not held and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then
    return 0
end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
"""
"""Take a place or renew it: the sorted set of a key's places, each with the time when its lease ends."""


class _InRedis(_Counts):
    """One Redis, without cluster mode; its password is the environment variable REDIS_PASSWORD."""

    def __init__(self, url: str) -> None:
        self._redis = Redis.from_url(
            url,
            password=os.environ.get("REDIS_PASSWORD"),
            socket_timeout=REDIS_SECONDS,
            socket_connect_timeout=REDIS_SECONDS,
            retry=Retry(NoBackoff(), 1),  # Redis may have closed an idle connection
        )
        pool = self._redis.connection_pool
        super().__init__(RedisStorage(url, implementation="redispy", key_prefix=PREFIX, connection_pool=pool))  # pyright: ignore[reportArgumentType]
        self._take_place = self._redis.register_script(TAKE_PLACE)

    @contextlib.asynccontextmanager
    async def _place(self, name: str, limit: int) -> AsyncGenerator[bool]:
        places, place = f"{PREFIX}:places/{name}", uuid.uuid4().hex
        if not await self._take_place(keys=[places], args=[place, limit, LEASE_SECONDS]):
            yield False
            return
        renewal = asyncio.create_task(self._renew(places, place))
        try:
            yield True
        finally:
            renewal.cancel()
            # A request that is cancelled frees its place too; a place that cannot be freed now ends with its lease.
            with contextlib.suppress(RedisError):
                await asyncio.shield(self._redis.zrem(places, place))

    async def _renew(self, places: str, place: str) -> None:
        # Not forever: redis-py calls asyncio.wait_for, in which Python 3.11 may lose the cancellation.
        # https://github.com/python/cpython/issues/86296
        task = asyncio.current_task()
        while task and not task.cancelling():
            await asyncio.sleep(LEASE_SECONDS / 3)
            with contextlib.suppress(RedisError):
                # Of 0 places none is free, so this renews the place while it is held and never takes it again.
                await self._take_place(keys=[places], args=[place, 0, LEASE_SECONDS])


def duration(seconds: float) -> str:
    """As OpenAI writes it: 120ms, 1s, 6m0s; rounded up."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
