"""Connections that end in good order, before a Ray cluster does, and headers that Ray's proxy may read."""

import asyncio
from types import SimpleNamespace

import httpx
import pytest
import uvicorn
from ray.serve._private import constants
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from app import proxy


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
        server = uvicorn.Server(uvicorn.Config(connections, port=0, log_level="error", lifespan="off"))
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0)
        here = server.servers[0].sockets[0].getsockname()
        said: list[tuple[str, str | None]] = []
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{here[1]}", trust_env=False) as http:
            for at in (0.0, proxy.CONNECTION_S - 1, proxy.CONNECTION_S + 1, proxy.CONNECTION_S + 2):
                clock[0] = at
                answered = await http.get("/")
                said.append((answered.text, answered.headers.get("connection")))
        server.should_exit = True
        await serving
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
