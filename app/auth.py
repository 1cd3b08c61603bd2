"""Who asks: the client behind a request, by its API key, and whether it may."""

import asyncio
import ipaddress
from contextlib import AsyncExitStack
from contextvars import ContextVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import keys, request_log
from app.errors import ApiError
from app.keys import Key, KeyRing
from app.limits import Limiter
from app.settings import Auth
from app.validation import SettingsError

OPEN = ("/health", "/ready", "/docs", "/docs/oauth2-redirect", "/openapi.json")
"""Paths that need no key, with all below /ready/: what probes and readers of the documentation ask for."""


class Client:
    """Nobody in particular: without keys, everybody may ask everything."""

    name = ""
    """Whose key it is. Nothing else that a request says counts."""

    def may_use(self, model: str) -> bool:
        """Whether the client may ask for a model, named without @ and :."""
        return True

    async def spend(self, tokens: int) -> None:
        """Count tokens that a request took."""
        request_log.note(total_tokens=tokens)


class _KeyHolder(Client):
    def __init__(self, key: Key, limiter: Limiter) -> None:
        self.name = key.name
        self._key = key
        self._limiter = limiter

    def may_use(self, model: str) -> bool:
        return self._key.models is None or model in self._key.models

    async def spend(self, tokens: int) -> None:
        await super().spend(tokens)
        # To the end also when the client has left, and with it whoever answers.
        await asyncio.shield(self._limiter.spend(self._key, tokens))


ANONYMOUS = Client()
_client: ContextVar[Client] = ContextVar("client", default=ANONYMOUS)


def current() -> Client:
    """The client of the request that is being answered."""
    return _client.get()


def require_model(model: str) -> None:
    """ApiError (403) unless the current client may ask for a model, named without @ and :."""
    request_log.note(model=model)
    if not current().may_use(model):
        reason = f"the API key {current().name!r} may not use the model {model!r}"
        raise ApiError(403, reason, param="model", code="model_not_allowed")


class Authenticate:
    """ASGI middleware: whoever has no key gets a 401; whoever has asked too much, a 429 with Retry-After.

    A request holds its place among the key's concurrent ones until its answer has ended, or the client is gone. Every
    answer says what is left of the key's limits. Raises SettingsError when the keys file is wrong.
    """

    def __init__(self, app: ASGIApp, keys_file: str, redis_url: str | None) -> None:
        self.app = app
        self._keys = KeyRing(keys_file)
        self._limiter = Limiter(redis_url)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in OPEN or scope["path"].startswith("/ready/"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        scheme, _, presented = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            presented = headers.get("x-api-key", "")  # for those behind a proxy that keeps Authorization for itself
        if not presented.strip():
            await _refuse(
                "the request has no API key; send the header Authorization: Bearer <key>", scope, receive, send
            )
            return
        key = self._keys.find(presented.strip())
        if key is None:
            await _refuse("this API key is not known", scope, receive, send)
            return

        async def saying_what_is_left(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(await self._limiter.headers(key))
            await send(message)

        request_log.note(tenant=key.name)
        before = _client.set(_KeyHolder(key, self._limiter))
        try:
            async with AsyncExitStack() as places:
                answer = self.app
                try:
                    await self._limiter.admit(key, places)
                except ApiError as error:
                    answer = error.response()
                await answer(scope, receive, saying_what_is_left)
        finally:
            _client.reset(before)


async def _refuse(reason: str, scope: Scope, receive: Receive, send: Send) -> None:
    response = ApiError(401, reason, code="invalid_api_key").response()
    response.headers["WWW-Authenticate"] = "Bearer"
    await response(scope, receive, send)


def require(auth: Auth) -> None:
    """Raise SettingsError when the keys file is wrong, and when there is none where others can reach Ray Serve."""
    if auth.keys_file is None:
        require_keys_or_loopback(auth, _host())
    else:
        keys.load(auth.keys_file)


def require_keys_or_loopback(auth: Auth, host: str | None) -> None:
    """Raise SettingsError when nobody is asked for a key and `host`, where Ray Serve listens, is more than loopback."""
    if auth.keys_file is None and not _is_loopback(host):
        raise SettingsError(
            f"auth.keys_file = None: Ray Serve listens on {host!r}, so whoever reaches that could use every model; "
            "fix: name a file of keys (`make key NAME=...` makes one), or let Ray Serve listen on 127.0.0.1"
        )


def _is_loopback(host: str | None) -> bool:
    if host in (None, "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host() -> str | None:
    """Where Ray Serve's HTTP proxies listen; None when there are none."""
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    assert client is not None
    return client.http_config.host
