"""Bodies that go from proxy to gateway with their request, and those that the gateway asks for."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.types import Message, Receive, Scope, Send

from app.bodies import ATTACHED, LARGEST, AttachBody, DetachBody

pytestmark = pytest.mark.anyio

Answered = tuple[bool, bytes, str]
"""Whether it was attached, the body, and what came after it."""
Ask = Callable[..., Awaitable[Answered]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Gateway:
    """Receives all there is of one request after the other."""

    def __init__(self) -> None:
        self.called = asyncio.Event()
        self.answered: asyncio.Queue[Answered] = asyncio.Queue()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        attached, body, more = ATTACHED in scope, b"", True
        self.called.set()

        async def whole(scope: Scope, receive: Receive, send: Send) -> None:
            nonlocal body, more
            while more:
                message: Message = await receive()
                body, more = body + message["body"], message.get("more_body", False)
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})
            await send({"type": "http.response.body", "body": b"1"})
            self.answered.put_nowait((attached, body, (await receive())["type"]))

        await DetachBody(whole)(scope, receive, send)


@asynccontextmanager
async def asked() -> AsyncIterator[tuple[Gateway, Ask]]:
    gateway = Gateway()
    server = uvicorn.Server(uvicorn.Config(AttachBody(gateway), port=0, log_level="error", lifespan="off"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0)

    async def ask(path: str, *parts: bytes, length: int) -> Answered:
        """The first part comes with the headers, each other one when the gateway knows of the request."""
        reader, writer = await asyncio.open_connection(*server.servers[0].sockets[0].getsockname())
        first, *others = parts
        writer.write(b"POST %s HTTP/1.1\r\nhost: here\r\ncontent-length: %d\r\n\r\n%s" % (path.encode(), length, first))
        for part in others:
            await gateway.called.wait()
            writer.write(part)
        async with asyncio.timeout(10):
            assert (await reader.readuntil(b"\r\n\r\n1")).startswith(b"HTTP/1.1 200")
            writer.close()
            await writer.wait_closed()
            return await gateway.answered.get()

    yield gateway, ask
    server.should_exit = True
    await serving


@pytest.mark.parametrize("body", [b"{}", b"", b"\xff" * LARGEST], ids=["small", "none", "largest"])
async def test_a_small_body_goes_with_its_request(body: bytes) -> None:
    async with asked() as (_, ask):
        assert await ask("/v1/chat/completions", body, length=len(body)) == (True, body, "http.disconnect")


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("/v1/chat/completions", [b"x" * (LARGEST + 1)]),
        ("/v1/chat/completions", [b"", b"late"]),
        ("/v1/chat/completions", [b"early ", b"and late"]),
        ("/of/another/application", [b"{}"]),
    ],
    ids=["large", "late", "in part", "not ours"],
)
async def test_another_body_is_asked_for(path: str, parts: list[bytes]) -> None:
    async with asked() as (_, ask):
        whole = b"".join(parts)
        assert await ask(path, *parts, length=len(whole)) == (False, whole, "http.disconnect")


async def test_a_gateway_that_gives_up() -> None:
    """Then nobody waits for what was to come."""
    waiting = asyncio.Event()

    async def never() -> Message:
        waiting.set()
        try:
            return await asyncio.Event().wait()  # pyright: ignore[reportReturnType]
        finally:
            waiting.clear()

    async def refuses(scope: Scope, receive: Receive, send: Send) -> None:
        assert waiting.is_set()

    async def nowhere(message: Message) -> None:
        raise AssertionError(message)

    await AttachBody(refuses)({"type": "http", "path": "/generate"}, never, nowhere)
    await asyncio.sleep(0)
    assert not waiting.is_set()
