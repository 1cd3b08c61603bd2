"""A small body goes from Serve's HTTP proxy to the gateway with its request.

Ray sends a request's headers alone: the replica then calls the proxy for the body, and calls again for the client to
leave. Each call costs both of them, and the first one holds up the answer.
"""

import asyncio
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATHS = frozenset(
    {
        *("/v1/chat/completions", "/v1/completions", "/generate"),
        *("/v1/embeddings", "/v1/classify", "/v1/moderations", "/v1/rerank", "/analyze"),
    }
)
"""Where the gateway takes bodies so: another application behind the same proxies would wait for its own forever."""
LARGEST = 64 * 1024
"""In bytes; as many as a server reads before it waits for the application (uvicorn's HIGH_WATER_LIMIT)."""
ATTACHED = "blueprint.body"
"""The key of a scope that has it."""


class AttachBody:
    """ASGI middleware of a proxy: a body that has come with its headers, as most do, is part of the scope."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in PATHS:
            await self._app(scope, receive, send)
            return
        first = asyncio.ensure_future(receive())
        try:
            # What is there already comes at once. The gateway waits for all else, and not forever.
            await asyncio.sleep(0)
            if first.done() and _small_and_whole(first.result()):
                scope[ATTACHED] = first.result().get("body", b"")
                await self._app(scope, receive, send)
            else:
                await self._app(scope, _beginning_with(first, receive), send)
        finally:
            first.cancel()


class DetachBody:
    """ASGI middleware of the gateway: whoever receives gets what was attached."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if ATTACHED in scope:
            first = asyncio.get_running_loop().create_future()
            first.set_result({"type": "http.request", "body": scope.pop(ATTACHED), "more_body": False})
            receive = _beginning_with(first, receive)
        await self._app(scope, receive, send)


def _small_and_whole(message: Message) -> bool:
    whole = message["type"] == "http.request" and not message.get("more_body")
    return whole and len(message.get("body", b"")) <= LARGEST


def _beginning_with(first: asyncio.Future[Any], receive: Receive) -> Receive:
    given = False

    async def received() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return await first

    return received
