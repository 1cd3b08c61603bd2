"""How much a key may take, counted in memory: requests, tokens, and requests at once. Redis: test_redis_limits.py."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import yaml
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.responses import StreamingResponse

from app import auth, errors
from app.errors import ApiError
from app.keys import Key, digest, make
from app.limits import Limiter, duration
from tests.app.listening import listening

SECRET = make()

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Clock:
    """The time, which passes when the test says so; the library reads no other clock."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    @contextlib.contextmanager
    def running(self) -> Iterator["Clock"]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(time, "time", lambda: self.now)
            yield self


@pytest.fixture
def clock() -> Iterator[Clock]:
    with Clock().running() as clock:
        yield clock


def key(name: str = "team-a", **limits: Any) -> Key:
    return Key(name=name, sha256=digest(SECRET), **limits)


def gateway(file: Path, **limits: Any) -> FastAPI:
    """What the gateway is to a client, with models that take as many tokens as they are told to."""
    file.write_text(yaml.safe_dump({"keys": [key(**limits).model_dump(exclude_none=True)]}))
    api = FastAPI()
    api.state.streaming = asyncio.Event()
    api.add_middleware(auth.Authenticate, str(file), None)
    errors.install(api)

    @api.get("/take/{tokens}")
    async def take(tokens: int) -> str:
        await auth.current().spend(tokens)
        return "done"

    @api.get("/fail")
    async def fail() -> None:
        raise RuntimeError("a bug")

    @api.get("/stream")
    async def stream() -> StreamingResponse:
        api.state.streaming.set()

        async def pieces() -> AsyncGenerator[str, None]:
            for number in range(10_000):
                yield f"{number}\n"
                await asyncio.sleep(0.01)

        return StreamingResponse(pieces())

    @api.get("/ready")
    async def ready() -> str:
        return "yes"

    return api


def client(api: FastAPI) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {SECRET}"}
    return httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://gateway", headers=headers)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def left(answer: httpx.Response) -> dict[str, str]:
    return {
        name.removeprefix("x-ratelimit-"): value
        for name, value in answer.headers.items()
        if name.startswith("x-ratelimit-")
    }


def refused(answer: httpx.Response) -> int:
    """Seconds after which a refused client may try again."""
    assert answer.status_code == 429, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert "team-a" in error["message"]
    return int(answer.headers["retry-after"])


async def test_requests_per_minute(file: Path, clock: Clock) -> None:
    async with client(gateway(file, requests_per_minute=2)) as http:
        answer = await http.get("/take/5")
        assert left(answer) == {"limit-requests": "2", "remaining-requests": "1", "reset-requests": "1m0s"}
        clock.now += 15.5
        assert left(await http.get("/take/5"))["remaining-requests"] == "0"
        clock.now += 4
        answer = await http.get("/take/5")
        assert refused(answer) == 41  # 40.5 s until the first request is a minute ago
        assert left(answer) == {"limit-requests": "2", "remaining-requests": "0", "reset-requests": "41s"}
        clock.now += 41
        assert (await http.get("/take/5")).status_code == 200
        # The second is 45 s ago.
        assert refused(await http.get("/take/5")) == 15


async def test_what_is_refused_or_open_does_not_count(file: Path, clock: Clock) -> None:
    async with client(gateway(file, requests_per_minute=1)) as http:
        for _ in range(3):
            assert (await http.get("/ready")).status_code == 200
            wrong = await http.get("/take/1", headers={"Authorization": "Bearer sk-wrong"})
            assert (wrong.status_code, left(wrong)) == (401, {})
        assert (await http.get("/take/1")).status_code == 200
        for _ in range(3):
            refused(await http.get("/take/1"))
        clock.now += 61
        assert (await http.get("/take/1")).status_code == 200


async def test_tokens_per_minute(file: Path, clock: Clock) -> None:
    async with client(gateway(file, tokens_per_minute=100)) as http:
        assert left(await http.get("/take/0"))["remaining-tokens"] == "100"
        answer = await http.get("/take/99")
        assert left(answer) == {"limit-tokens": "100", "remaining-tokens": "1", "reset-tokens": "1m0s"}
        clock.now += 12
        # What is left is enough to begin with: how much it will be, nobody knows.
        answer = await http.get("/take/1000")
        assert answer.status_code == 200
        assert left(answer)["remaining-tokens"] == "0"
        answer = await http.get("/take/1")
        assert refused(answer) == 48
        assert left(answer) == {"limit-tokens": "100", "remaining-tokens": "0", "reset-tokens": "48s"}
        clock.now += 48
        assert left(await http.get("/take/0"))["remaining-tokens"] == "100"


async def test_a_request_refused_for_its_tokens_is_no_request(file: Path, clock: Clock) -> None:
    async with client(gateway(file, tokens_per_minute=1, requests_per_minute=2)) as http:
        assert (await http.get("/take/1")).status_code == 200
        for _ in range(5):
            answer = await http.get("/take/1")
            refused(answer)
            assert left(answer)["remaining-requests"] == "1"


async def test_without_limits_there_is_nothing_to_say(file: Path) -> None:
    async with client(gateway(file)) as http:
        for _ in range(20):
            answer = await http.get("/take/1000000")
            assert (answer.status_code, left(answer)) == (200, {})


async def test_a_new_limit_counts_at_once(file: Path) -> None:
    api = gateway(file, requests_per_minute=1)
    async with client(api) as http:
        assert (await http.get("/take/1")).status_code == 200
        refused(await http.get("/take/1"))
        file.write_text(yaml.safe_dump({"keys": [key().model_dump(exclude_none=True)]}))
        with anyio.fail_after(10):
            while (await http.get("/take/1")).status_code == 429:
                await anyio.sleep(0.05)


@contextlib.asynccontextmanager
async def streaming(http: httpx.AsyncClient) -> AsyncGenerator[None]:
    """A client that reads a stream, and goes away at the end."""
    async with http.stream("GET", "/stream") as answer:
        assert answer.status_code == 200
        lines = answer.aiter_lines()
        await anext(lines)
        yield


async def becomes(status: int, http: httpx.AsyncClient) -> None:
    with anyio.fail_after(20):
        while (await http.get("/take/1")).status_code != status:
            await anyio.sleep(0.02)


async def test_a_stream_holds_its_place_until_its_client_goes_away(file: Path) -> None:
    async with listening(gateway(file, concurrency=2), Authorization=f"Bearer {SECRET}") as http:
        async with streaming(http):
            assert (await http.get("/take/1")).status_code == 200  # and this place is free again
            async with streaming(http):
                answer = await http.get("/take/1")
                assert refused(answer) == 1
                assert "2 requests under way" in answer.text
            await becomes(200, http)
        async with streaming(http):
            await becomes(200, http)


async def test_a_request_that_is_cancelled_frees_its_place(file: Path) -> None:
    """Ray Serve cancels the request of a client that is gone."""
    api = gateway(file, concurrency=1)
    async with client(api) as http:
        request = asyncio.create_task(http.get("/stream"))
        await api.state.streaming.wait()
        refused(await http.get("/take/1"))
        request.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await request
        assert (await http.get("/take/1")).status_code == 200


async def test_a_request_that_fails_frees_its_place(file: Path) -> None:
    async with client(gateway(file, concurrency=1)) as http:
        for _ in range(3):
            assert (await http.get("/fail")).status_code == 500
        for path in ("/none", "/take/x", "/take/1"):
            assert (await http.get(path)).status_code in (404, 400, 200)


async def test_a_request_refused_in_its_place_frees_it(file: Path, clock: Clock) -> None:
    async with client(gateway(file, concurrency=1, requests_per_minute=1)) as http:
        assert (await http.get("/take/1")).status_code == 200
        for _ in range(3):
            assert "per minute" in (await http.get("/take/1")).json()["error"]["message"]


async def test_keys_do_not_share_their_limits() -> None:
    limiter = Limiter()
    limits = {"requests_per_minute": 1, "tokens_per_minute": 1, "concurrency": 1}
    async with AsyncExitStack() as places:
        for name in ("a", "b", "a.b", "a-b"):
            await limiter.admit(key(name, **limits), places)
            await limiter.spend(key(name, **limits), 1)
            with pytest.raises(ApiError):
                await limiter.admit(key(name, **limits), places)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6), st.lists(st.floats(0, 70) | st.floats(0, 5), min_size=1, max_size=40))
def test_never_more_requests_in_any_minute(limit: int, pauses: list[float]) -> None:
    """Whenever they come: no window of 60 s, wherever it begins, has more; and within the limit none is refused."""

    async def arrive() -> None:
        limiter, limited, admitted = Limiter(), key(requests_per_minute=limit), list[float]()
        for pause in pauses:
            clock.now += pause
            recent = sum(clock.now - then <= 60 for then in admitted)
            async with AsyncExitStack() as places:
                try:
                    await limiter.admit(limited, places)
                except ApiError as error:
                    assert recent == limit
                    assert error.retry_after is not None
                    assert 1 <= error.retry_after <= 60
                else:
                    assert recent < limit
                    admitted.append(clock.now)

    with Clock().running() as clock:
        asyncio.run(arrive())


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 100), st.lists(st.tuples(st.floats(0, 70), st.integers(0, 150)), min_size=1, max_size=30))
def test_at_most_one_request_exceeds_the_tokens(limit: int, requests: list[tuple[float, int]]) -> None:
    """One after the other: what a window took before its last request is within the limit."""

    async def arrive() -> None:
        limiter, limited = Limiter(), key(tokens_per_minute=limit)
        ends, spent = clock.now, 0
        for pause, tokens in requests:
            clock.now += pause
            if clock.now >= ends:
                spent = 0
            async with AsyncExitStack() as places:
                try:
                    await limiter.admit(limited, places)
                except ApiError:
                    assert spent >= limit
                else:
                    assert spent < limit
                    await limiter.spend(limited, tokens)
                    if spent == 0:
                        ends = clock.now + 60
                    spent += tokens

    with Clock().running() as clock:
        asyncio.run(arrive())


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5), st.lists(st.booleans(), max_size=60))
def test_never_more_requests_at_once(limit: int, begins: list[bool]) -> None:
    async def arrive() -> None:
        limiter, limited, under_way = Limiter(), key(concurrency=limit), list[AsyncExitStack]()
        for begin in begins:
            if not begin and under_way:
                await under_way.pop().aclose()
                continue
            places = AsyncExitStack()
            try:
                await limiter.admit(limited, places)
            except ApiError:
                assert len(under_way) == limit
            else:
                under_way.append(places)
                assert len(under_way) <= limit
        for places in under_way:
            await places.aclose()

    asyncio.run(arrive())


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0, "0ms"), (0.0012, "2ms"), (0.12, "120ms"), (1, "1s"), (1.01, "2s"), (59.2, "1m0s"), (360, "6m0s")],
)
def test_durations_are_written_as_openai_does(seconds: float, written: str) -> None:
    assert duration(seconds) == written
