"""What Serve's HTTP proxies do around all else: headers that they may read, and connections and streams that end well.

Ray answers every request with the header x-request-id, errors and streams too, and writes that id on each log line of
each replica that works on the request. It takes whatever the client has sent as such.
"""

import re
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import cores
from app.bodies import AttachBody
from app.errors import ApiError

REQUEST_ID = re.compile(r"[A-Za-z0-9._:=+/@~-]{1,128}")
"""A UUID, a ULID, base64, an AWS trace id; nothing that ends a line of a log, or looks like another part of one."""
NOT_SAMPLED = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f][02468ace]")
"""A traceparent whose sender has not recorded its span: https://www.w3.org/TR/trace-context/#sampled-flag"""
ORDERS = ("x-request-timeout-seconds", "x-request-disconnect-disabled", "serve-multiplexed-model-id")
"""What Ray takes from a proxy of its own in front of it, and from anybody: how long a request may take, that nobody
minds whether its client is still there, and which replica gets it. With _ for - as well."""


def middlewares() -> list[Middleware]:
    """What RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names; Ray puts it around its own middleware."""
    cores.leave_to_engines()
    return [Middleware(Connections), Middleware(CleanHeaders), Middleware(BrokenStreams), Middleware(AttachBody)]


CONNECTION_S = 15.0
"""How old a connection becomes."""
FORGOTTEN_S = 300.0
"""After so long a connection is gone: it was told to end, or Ray has ended it for having been idle for 90 s."""


class Connections:
    """ASGI middleware: the answer on an old connection says that it is the last one.

    A Kubernetes Service decides for each new connection, and never again. Clients that keep theirs, as all good ones
    do, would stay with the old Ray cluster of an upgrade until its end, and some request of theirs be under way then:
    https://github.com/ray-project/kuberay/issues/4799. An Ingress or load balancer knows better, and does not mind.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._since: dict[object, float] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._age(scope.get("client")) < CONNECTION_S:
            await self._app(scope, receive, send)
            return
        self._since.pop(scope.get("client"), None)

        async def ending(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        await self._app(scope, receive, ending)

    def _age(self, client: object) -> float:
        """Seconds since the first request on the connection from this address and port."""
        now = time.monotonic()
        while self._since and now - next(iter(self._since.values())) > FORGOTTEN_S:
            del self._since[next(iter(self._since))]
        return now - self._since.setdefault(client, now)


class CleanHeaders:
    """ASGI middleware: an x-request-id that is none goes, and Ray makes another. So goes a trace nobody records.

    And so go orders to Ray, and values that are no UTF-8, which it fails on.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["headers"] = [header for header in scope["headers"] if _may_be_read(*header)]
            headers = MutableHeaders(scope=scope)
            given = headers.get("x-request-id")
            del headers["x-request-id"]  # all of them: Ray would answer with the first, and log the last
            if given is not None and REQUEST_ID.fullmatch(given):
                headers["x-request-id"] = given
            # Ray's spans below one that is not sampled would lose each other, and be a trace each.
            if NOT_SAMPLED.fullmatch(headers.get("traceparent", "")):
                del headers["traceparent"]
        await self._app(scope, receive, send)


BROKEN = ApiError(503, "the stream broke off: who sent it has failed; try again", code="server_unavailable")


class BrokenStreams:
    """ASGI middleware: a stream whose replica has died ends with an error event, as those of dead engines do.

    From Ray's proxy it would just break off.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        open_stream = False

        async def seen(message: Message) -> None:
            nonlocal open_stream
            if message["type"] == "http.response.start":
                content_type = Headers(raw=message.get("headers", [])).get("content-type", "")
                open_stream = content_type.startswith("text/event-stream")
            elif not message.get("more_body"):
                open_stream = False
            await send(message)

        await self._app(scope, receive, seen)
        if open_stream:
            await send({"type": "http.response.body", "body": f"{BROKEN.event()}data: [DONE]\n\n".encode()})


def _may_be_read(name: bytes, value: bytes) -> bool:
    """Whether a header is no order to Ray, and nothing that it would fail on."""
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return name.decode("latin-1").replace("_", "-") not in ORDERS
