"""One line in the log for each request: who asked which model, and how it went. Never what was said."""

import logging
import time
from contextvars import ContextVar
from typing import Any

from ray.exceptions import TaskCancelledError
from ray.serve.context import _get_serve_request_context  # pyright: ignore[reportPrivateUsage]
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("ray.serve")

PROBES = ("/health", "/ready")
"""Paths that leave no line, with all below /ready/: every few seconds somebody asks for them."""
CLIENT_LEFT = 499
"""The status of a request whose client has gone before the end of its answer, as in nginx."""

_facts: ContextVar[dict[str, Any] | None] = ContextVar("facts", default=None)


def request_id() -> str:
    """The id of the request that is being answered; empty outside of one, as in a health check."""
    return _get_serve_request_context().request_id


def note(**facts: Any) -> None:
    """Something about the request that is being answered, for its line in the log."""
    known = _facts.get()
    if known is not None:
        known.update(facts)


class RequestLog:
    """ASGI middleware that writes the line, when the answer has ended or the client has left.

    In JSON each fact is a key: method, status, duration_ms, and as far as they are known tenant (the name of the API
    key), model, variant, prompt_tokens, completion_tokens and total_tokens. Ray adds request_id, route, application,
    deployment and replica.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES or scope["path"].startswith("/ready/"):
            await self.app(scope, receive, send)
            return
        facts: dict[str, Any] = {}
        before = _facts.set(facts)
        started, status = time.monotonic(), CLIENT_LEFT
        begun = 0

        async def noting(message: Message) -> None:
            nonlocal begun, status
            begun = message.get("status", begun)
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                status = begun

        try:
            await self.app(scope, receive, noting)
        except TaskCancelledError:
            raise  # Ray has cancelled the request, and what it asks another replica is sometimes the first to say so
        except Exception:
            status = 500
            raise
        finally:
            _facts.reset(before)
            _write(scope["method"], status, time.monotonic() - started, facts)


def _write(method: str, status: int, seconds: float, facts: dict[str, Any]) -> None:
    duration = round(seconds * 1000, 1)
    known = "".join(f" {name}={fact}" for name, fact in facts.items())
    # The route and not the path, which a client may fill with anything.
    route = _get_serve_request_context().route
    extra = {"method": method, "status": status, "duration_ms": duration, **facts}
    logger.info("%s %s %d in %.1f ms%s", method, route, status, duration, known, extra=extra)
