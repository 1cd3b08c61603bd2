"""Connections and streams that end in good order, before or after those who serve them; headers that Ray may read."""

import asyncio
import json
from types import SimpleNamespace

import httpx
import pytest
from ray.serve._private import constants
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from app import proxy
from tests.app.listening import listening


async def port(request: Request) -> PlainTextResponse:
    """The client's, which is the connection's."""
    assert request.client
    return PlainTextResponse(str(request.client.port))


def test_the_answer_on_an_old_connection_is_its_last(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(proxy, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    connections = proxy.Connections(Starlette(routes=[Route("/", port)]))

    async def ask() -> list[tuple[str, str | None]]:
        """Port and what was said of the connection, at seconds since the first answer."""
        said: list[tuple[str, str | None]] = []
        async with listening(connections) as http:
            for at in (0.0, proxy.CONNECTION_S - 1, proxy.CONNECTION_S + 1, proxy.CONNECTION_S + 2):
                clock[0] = at
                answered = await http.get("/")
                said.append((answered.text, answered.headers.get("connection")))
        return said

    first, second, third, fourth = asyncio.run(ask())
    assert first == second == (third[0], None)
    assert third[1] == "close"
    assert fourth[0] != first[0]
    assert fourth[1] is None


def test_connections_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(proxy, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    connections = proxy.Connections(Starlette())
    for number in range(3):
        connections._age(("10.0.0.1", number))
    clock[0] = proxy.FORGOTTEN_S + 1
    connections._age(("10.0.0.1", 4))
    assert list(connections._since) == [("10.0.0.1", 4)]


@pytest.mark.parametrize(
    ("content_type", "whole", "more"),
    [
        (b"text/event-stream; charset=utf-8", False, f"data: {json.dumps(proxy.BROKEN.body())}\n\ndata: [DONE]\n\n"),
        (b"text/event-stream; charset=utf-8", True, ""),
        (b"application/json", False, None),
    ],
    ids=["broken", "whole", "no stream"],
)
def test_a_stream_that_breaks_off_says_so(content_type: bytes, whole: bool, more: str | None) -> None:
    """To who reads it, as an event; a client of anything else finds out by the connection, which breaks off."""

    async def answered(scope: Scope, receive: Receive, send: Send) -> None:
        """As Ray's proxy does when the replica dies: it returns."""
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", content_type)]})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": not whole})

    async def ask() -> str:
        async with listening(proxy.BrokenStreams(answered)) as http:
            return (await http.get("/")).text

    if more is None:
        with pytest.raises(httpx.RemoteProtocolError):
            asyncio.run(ask())
    else:
        assert asyncio.run(ask()) == f"data: 1\n\n{more}"


def test_clients_give_no_orders_to_ray() -> None:
    """How long a request may take, and that it goes on without its client: Ray would believe anybody."""

    async def told(request: Request) -> JSONResponse:
        return JSONResponse([name for name, _ in request.headers.items()])

    async def ask() -> list[str]:
        transport = httpx.ASGITransport(proxy.CleanHeaders(Starlette(routes=[Route("/", told)])))
        sent = [
            *((order.encode(), b"?1") for order in proxy.ORDERS),
            (b"serve_Multiplexed-model_id", b"a"),
            (b"X-Session-Id", b"\xff"),
            (b"x-other", b"\xc3\xbc"),
        ]
        async with httpx.AsyncClient(transport=transport, base_url="http://proxy", headers={}) as http:
            return (await http.get("/", headers=sent)).json()

    names = asyncio.run(ask())
    assert "x-other" in names
    assert not {*proxy.ORDERS, "serve_multiplexed-model_id", "x-session-id"} & {*names}


def test_ray_still_knows_these_orders() -> None:
    """By these names."""
    known = {
        constants.SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER,
        constants.SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER,
        constants.SERVE_MULTIPLEXED_MODEL_ID,
    }
    assert {*proxy.ORDERS} == {name.replace("_", "-") for name in known}
