"""Limits that replicas of the gateway share through a real Redis, and what happens without it."""

import asyncio
import contextlib
import logging
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from app import limits
from app.errors import ApiError
from app.keys import Key
from app.limits import Limiter
from tests.app import redis_container
from tests.app.redis_container import PASSWORD, Server

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def container() -> Generator[Server]:
    with redis_container.engine(), redis_container.started() as started:
        yield started


@pytest.fixture
def redis(container: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """An empty Redis, and its password where the gateway looks for it."""
    monkeypatch.setenv("REDIS_PASSWORD", PASSWORD)
    container.client.flushall()
    return container


def key(name: str = "team-a", **limits: Any) -> Key:
    return Key(name=name, sha256="0" * 64, **limits)


@contextlib.contextmanager
def refused(what: str) -> Iterator[None]:
    with pytest.raises(ApiError, match=what) as raised:
        yield
    assert raised.value.status == 429
    assert raised.value.retry_after is not None
    assert 1 <= raised.value.retry_after <= 60


async def admit(limiter: Limiter, limited: Key) -> None:
    async with AsyncExitStack() as places:
        await limiter.admit(limited, places)


async def test_replicas_share_requests(redis: Server) -> None:
    one, other, limited = Limiter(redis.url), Limiter(redis.url), key(requests_per_minute=3)
    for limiter in (one, other, one):
        await admit(limiter, limited)
    for limiter in (one, other):
        with refused("3 requests per minute"):
            await admit(limiter, limited)
    assert (await one.headers(limited))["x-ratelimit-remaining-requests"] == "0"
    await admit(other, key("team-b", requests_per_minute=3))


async def test_replicas_admit_no_more_together_when_all_ask_at_once(redis: Server) -> None:
    limiters, limited = [Limiter(redis.url) for _ in range(4)], key(requests_per_minute=10)
    answers = await asyncio.gather(
        *(admit(limiters[number % 4], limited) for number in range(60)), return_exceptions=True
    )
    assert answers.count(None) == 10
    assert all(answer is None or isinstance(answer, ApiError) for answer in answers)


async def test_the_window_moves(redis: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter, limited = Limiter(redis.url), key(requests_per_minute=1)
    await admit(limiter, limited)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 59)
    with refused("1 requests per minute"):
        await admit(limiter, limited)
    monkeypatch.setattr(time, "time", lambda: now + 61)
    await admit(limiter, limited)


async def test_replicas_share_tokens(redis: Server) -> None:
    one, other, limited = Limiter(redis.url), Limiter(redis.url), key(tokens_per_minute=100)
    await one.spend(limited, 60)
    assert (await other.headers(limited))["x-ratelimit-remaining-tokens"] == "40"
    await admit(other, limited)
    await other.spend(limited, 60)
    headers = await one.headers(limited)
    assert headers["x-ratelimit-remaining-tokens"] == "0"
    assert headers["x-ratelimit-limit-tokens"] == "100"
    assert headers["x-ratelimit-reset-tokens"] in {"1m0s", "59s", "58s"}
    with refused("100 tokens per minute"):
        await admit(one, limited)


async def test_replicas_share_places(redis: Server) -> None:
    one, other, limited = Limiter(redis.url), Limiter(redis.url), key(concurrency=2)
    async with AsyncExitStack() as places:
        await one.admit(limited, places)
        async with AsyncExitStack() as more:
            await other.admit(limited, more)
            for limiter in (one, other):
                with refused("2 requests under way"):
                    await admit(limiter, limited)
        await admit(one, limited)
    assert redis.client.keys("*places*") == []


async def test_a_request_that_is_cancelled_frees_its_place(redis: Server) -> None:
    limiter, limited, held = Limiter(redis.url), key(concurrency=1), asyncio.Event()

    async def hold() -> None:
        async with AsyncExitStack() as places:
            await limiter.admit(limited, places)
            held.set()
            await asyncio.Event().wait()

    request = asyncio.create_task(hold())
    await held.wait()
    request.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await request
    await admit(limiter, limited)


HOLD_A_PLACE = """
import asyncio, sys
from contextlib import AsyncExitStack
from app import limits
from app.keys import Key

async def hold(url):
    limits.LEASE_SECONDS = 3
    async with AsyncExitStack() as places:
        await limits.Limiter(url).admit(Key(name="team-a", sha256="0" * 64, concurrency=2), places)
        print("held", flush=True)
        await asyncio.Event().wait()

asyncio.run(hold(sys.argv[1]))
"""


async def test_the_places_of_a_killed_replica_are_free_again(redis: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place is leased, and whoever lives renews it for as long as the request takes."""
    monkeypatch.setattr(limits, "LEASE_SECONDS", 3)
    limiter, limited = Limiter(redis.url), key(concurrency=2)
    command = [sys.executable, "-c", HOLD_A_PLACE, redis.url]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE) as replica:
        assert replica.stdout is not None
        assert await anyio.to_thread.run_sync(replica.stdout.readline) == b"held\n"
        async with AsyncExitStack() as places:
            await limiter.admit(limited, places)
            await anyio.sleep(limits.LEASE_SECONDS + 1)
            with refused("2 requests under way"):
                await admit(limiter, limited)
            replica.kill()
            with refused("2 requests under way"):
                await admit(limiter, limited)
            await anyio.sleep(limits.LEASE_SECONDS + 1)
            async with AsyncExitStack() as more:
                await limiter.admit(limited, more)
                with refused("2 requests under way"):
                    await admit(limiter, limited)


async def test_without_redis_each_replica_counts_for_itself(
    redis: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "RETRY_SECONDS", 0.2)
    caplog.set_level(logging.INFO)
    one, other = Limiter(redis.url), Limiter(redis.url)
    limited = key(requests_per_minute=1, tokens_per_minute=10, concurrency=1)
    async with AsyncExitStack() as places:
        await one.admit(limited, places)  # whose place Redis takes along
        redis.stop()
        try:
            for limiter in (one, other):
                await admit(limiter, limited)
                await limiter.spend(limited, 10)
                assert (await limiter.headers(limited))["x-ratelimit-remaining-tokens"] == "0"
                with refused("10 tokens per minute"):
                    await admit(limiter, limited)
        finally:
            redis.start()
    assert caplog.text.count("each replica counts for itself") == 2
    assert PASSWORD not in caplog.text
    await anyio.sleep(0.3)
    await admit(one, limited)
    with refused("1 requests per minute"):
        await admit(other, limited)
    assert caplog.text.count("Redis answers again") >= 1


async def test_a_redis_that_hangs_is_left_alone(redis: Server) -> None:
    """The first requests wait for it; otherwise each of them would."""
    limiter, limited = Limiter(redis.url), key(requests_per_minute=100)
    await admit(limiter, limited)
    with redis.hanging():
        started = time.monotonic()
        for _ in range(20):
            await admit(limiter, limited)
        assert time.monotonic() - started < 10 * limits.REDIS_SECONDS


async def test_they_count_by_tls(redis: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(redis.certificate))
    one, other, limited = Limiter(redis.tls_url), Limiter(redis.url), key(requests_per_minute=1, concurrency=1)
    await admit(one, limited)
    with refused("1 requests per minute"):
        await admit(other, limited)


async def test_who_has_a_certificate_that_nobody_vouches_for_gets_no_password(
    redis: Server, caplog: pytest.LogCaptureFixture
) -> None:
    await admit(Limiter(redis.tls_url), key(requests_per_minute=1))
    assert "certificate verify failed" in caplog.text
    assert redis.client.keys("*") == []


async def test_a_wrong_password_is_told(
    redis: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("REDIS_PASSWORD", "no-such-password")
    await admit(Limiter(redis.url), key(requests_per_minute=1))
    assert "AuthenticationError" in caplog.text
    assert "no-such-password" not in caplog.text
