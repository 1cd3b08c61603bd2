"""What Serve's HTTP proxies do with a request before all else: the ids by which it is found in logs and traces.

Ray answers every request with the header x-request-id, errors and streams too, and writes that id on each log line of
each replica that works on the request. It takes whatever the client has sent as such.
"""

import re

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

REQUEST_ID = re.compile(r"[A-Za-z0-9._:=+/@~-]{1,128}")
"""A UUID, a ULID, base64, an AWS trace id; nothing that ends a line of a log, or looks like another part of one."""
NOT_SAMPLED = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f][02468ace]")
"""A traceparent whose sender has not recorded its span: https://www.w3.org/TR/trace-context/#sampled-flag"""


def middlewares() -> list[Middleware]:
    """What RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names; Ray puts it around its own middleware."""
    return [Middleware(Ids)]


class Ids:
    """ASGI middleware: an x-request-id that is none goes, and Ray makes another. So goes a trace nobody records."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = MutableHeaders(scope=scope)
            given = headers.get("x-request-id")
            del headers["x-request-id"]  # all of them: Ray would answer with the first, and log the last
            if given is not None and REQUEST_ID.fullmatch(given):
                headers["x-request-id"] = given
            # Ray's spans below one that is not sampled would lose each other, and be a trace each.
            if NOT_SAMPLED.fullmatch(headers.get("traceparent", "")):
                del headers["traceparent"]
        await self._app(scope, receive, send)
