"""Bodies that go from proxy to gateway with their request, and those that the gateway asks for."""

import asyncio

import pytest
from starlette.types import Message, Receive, Scope, Send

from app.bodies import ATTACHED, LARGEST, AttachBody, DetachBody
from tests.app.listening import listening

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def received(path: str, *parts: bytes) -> tuple[bool, bytes, str]:
    """Whether the body was attached, the body, and what comes after it.

    The first part comes with the headers, each other one when the gateway knows of the request.
    """
    attached: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    over: asyncio.Future[tuple[bytes, str]] = asyncio.get_running_loop().create_future()

    async def gateway(scope: Scope, receive: Receive, send: Send) -> None:
        attached.set_result(ATTACHED in scope)
        await DetachBody(whole)(scope, receive, send)

    async def whole(scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message.get("more_body", False)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})
        over.set_result((body, (await receive())["type"]))

    async with listening(AttachBody(gateway)) as http, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(http.base_url.host, http.base_url.port)
        first, *others = parts
        length = sum(map(len, parts))
        writer.write(f"POST {path} HTTP/1.1\r\nhost: here\r\ncontent-length: {length}\r\n\r\n".encode() + first)
        for part in others:
            await attached
            writer.write(part)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
        writer.close()
        return await attached, *await over


@pytest.mark.parametrize("body", [b"{}", b"", b"\xff" * LARGEST], ids=["small", "none", "largest"])
async def test_a_small_body_goes_with_its_request(body: bytes) -> None:
    assert await received("/v1/chat/completions", body) == (True, body, "http.disconnect")


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
    assert await received(path, *parts) == (False, b"".join(parts), "http.disconnect")


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
