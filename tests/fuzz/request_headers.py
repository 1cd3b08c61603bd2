"""Headers and path of a request, as far as the server reads them itself: ids, traces, API keys, connections."""

import asyncio
from pathlib import Path
from typing import Any

import atheris
import yaml
from starlette.types import Message, Receive, Scope, Send

from app import auth, keys, proxy

KEY = "sk-the-key"
SEEDS = [
    b"\x00/v1/models\nauthorization: Bearer sk-the-key\nx-request-id: a-1\nx-request-id: b",
    b"\x01/ready/chat\nx-api-key: sk-the-key\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
    b"\x03/analyze\nx-request-disconnect-disabled: ?1\nserve_multiplexed_model_id: a\nx-session-id: \xff",
    b"\x02/ready\nauthorization: bearer  sk-the-key \nx-api-key: other\nAuthorization: Basic c2st",
    b"\x00/l\nauthorization: Bearer sk-the-key\r\nx-request-id: b",
]
FILE = Path("keys.yaml")
LOOP = asyncio.new_event_loop()


class Server:
    """The proxy's middleware around the gateway's, and what gets through both."""

    def __init__(self) -> None:
        FILE.write_text(yaml.safe_dump({"keys": [{"name": "tests", "sha256": keys.digest(KEY)}]}))
        self.app: Any = auth.Authenticate(self._reached, str(FILE), None)
        for middleware in reversed(proxy.middlewares()):
            self.app = middleware.cls(self.app, *middleware.args, **middleware.kwargs)
        self.scope: Scope | None = None
        self.tenant = ""

    async def _reached(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self.tenant = scope, auth.current().name
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask(self, path: str, headers: list[tuple[bytes, bytes]], client: tuple[str, int]) -> Message:
        """How the answer starts."""
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        async def receive() -> Message:
            return {"type": "http.request"}

        self.scope, self.tenant = None, ""
        scope = {"type": "http", "method": "GET", "path": path, "headers": headers, "client": client}
        await self.app(scope, receive, send)
        return sent[0]


def run(data: bytes) -> None:
    """Nobody comes further without the key; an id is one, and the first; a sender that records no span has no trace."""
    global server
    if server is None:
        server = Server()
    provider: Any = atheris.FuzzedDataProvider(data)  # pyright: ignore[reportAttributeAccessIssue]
    port = provider.ConsumeInt(1)
    first, *lines = provider.ConsumeBytes(len(data)).split(b"\n")
    path = first.decode(errors="replace")
    # As uvicorn gives them: names in lower case, values without blanks around them.
    pairs = [line.partition(b":") for line in lines]
    given = [(name.lower(), value.strip(b" \t")) for name, _, value in pairs]
    start = LOOP.run_until_complete(server.ask(path, list(given), ("10.0.0.1", port)))
    values = [value for name, value in given if name in (b"authorization", b"x-api-key")]
    if server.scope is None:
        assert start["status"] == 401
        assert (b"www-authenticate", b"Bearer") in start["headers"]
        return
    # The server takes off what is blank around a key, and more is to Python than to HTTP.
    known = any(value.decode("latin-1").strip().endswith(KEY) for value in values)
    assert known or path in auth.OPEN or path.startswith("/ready/")
    assert server.tenant in ("tests", "")
    assert auth.current() is auth.ANONYMOUS
    ids = [value for name, value in given if name == b"x-request-id" and proxy._may_be_read(name, value)]
    kept = [value for name, value in server.scope["headers"] if name == b"x-request-id"]
    good = bool(ids) and proxy.REQUEST_ID.fullmatch(ids[0].decode("latin-1"))
    assert kept == (ids[:1] if good else [])
    assert all(0x20 < byte < 0x7F for value in kept for byte in value)
    for name, value in server.scope["headers"]:
        value.decode()
        assert name.decode("latin-1").replace("_", "-") not in proxy.ORDERS
        assert (name, value) in given


server: Server | None = None
