"""Clients that read nothing, send byte by byte, or vanish: they pile up nowhere, and keep nobody else waiting."""

import asyncio
import contextlib
import json
import select
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import yaml
from fastapi import FastAPI

from app import auth, errors, keys, limits
from app.limits import BodyLimit
from scripts.bench.servers import role
from tests.app.conftest import PATIENCE_SECONDS, Running, eventually
from tests.app.listening import listening
from tests.app.test_keys import EMBED, a_key

SHAPES = ["cluster"]
CLIENTS = 20
"""Of each kind; the model takes 32 requests, and lets as many wait."""
BYTES = 4096
"""That the kernel holds for a client that does not read: the rest waits in the server."""
STREAM = {"model": "chat", "prompt": "Once", "max_tokens": 100, "ignore_eos": True, "stream": True, "logprobs": 20}
"""A quarter of a megabyte of events."""
MOST_MIB = 100
"""More memory that proxy and gateway may have after these clients than before. It is 5 MiB for each."""


def _request(key: str, body: bytes) -> bytes:
    head = ["POST /v1/completions HTTP/1.1", "Host: x", f"Authorization: Bearer {key}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*head, "Content-Type: application/json", "", ""]).encode() + body


def _key(guest: httpx.Client) -> str:
    return guest.headers["Authorization"].removeprefix("Bearer ")


@contextlib.contextmanager
def _clients(server: Running) -> Iterator[list[socket.socket]]:
    """Connections, closed at the end."""
    url = httpx.URL(server.url)
    with contextlib.ExitStack() as stack:
        found: list[socket.socket] = []
        for _ in range(CLIENTS):
            client = stack.enter_context(socket.socket())
            client.settimeout(PATIENCE_SECONDS)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BYTES)
            client.connect((url.host, url.port))
            found.append(client)
        yield found


@contextlib.contextmanager
def _nothing_is_left(server: Running) -> Iterator[None]:
    """Whatever happens within, others are answered at once, and then connections and memory are as before."""
    processes = [one for one in server.processes() if role(" ".join(one.cmdline())) in ("proxy", "gateway")]

    def memory() -> float:
        return sum(one.memory_full_info().pss for one in processes) / 2**20

    def connections() -> int:
        return sum(len(one.net_connections("tcp")) for one in processes)

    _require_answers(server)
    before, open_before = memory(), connections()
    yield
    _require_answers(server)
    eventually("their connections are gone", lambda: connections() < open_before + CLIENTS / 5)
    eventually("their memory is free", lambda: memory() < before + MOST_MIB)


def _require_answers(server: Running) -> None:
    assert server.http.get("/health", timeout=10).status_code == 200
    assert server.http.post("/v1/embeddings", json=EMBED, timeout=60).status_code == 200


def _has_all_places(guest: httpx.Client) -> bool:
    """Whether as many requests as the key may have at once are answered."""

    def ask(_: int) -> int:
        return guest.post("/v1/embeddings", json=EMBED).status_code

    with ThreadPoolExecutor(CLIENTS) as pool:
        statuses = {*pool.map(ask, range(CLIENTS))}
    assert statuses <= {200, 429}
    return statuses == {200}


def test_clients_that_read_nothing(server: Running) -> None:
    """Their answers are made to their ends, which frees their places; the rest of them waits in the proxy."""
    with _nothing_is_left(server), a_key(server, concurrency=CLIENTS) as guest, _clients(server) as clients:
        before = server.engine_count("ray_vllm_generation_tokens_total", "chat")
        for client in clients:
            client.sendall(_request(_key(guest), json.dumps(STREAM).encode()))
        _require_answers(server)
        server.tokens("chat", above=before + CLIENTS * STREAM["max_tokens"] - 1)  # their answers are made
        eventually("their places are free", lambda: _has_all_places(guest))
        _require_answers(server)


def test_clients_that_send_byte_by_byte_and_stop(server: Running) -> None:
    """In a body, for which nobody waits forever; or in the headers, where they hold a connection and nothing else."""
    with (
        _nothing_is_left(server),
        a_key(server, concurrency=CLIENTS) as guest,
        _clients(server) as clients,
        _clients(server) as others,
    ):
        whole = _request(_key(guest), json.dumps(STREAM).encode())
        for client in clients:
            client.sendall(whole[:-20])
        for at in range(10):
            for client in clients:
                client.sendall(whole[at - 20 :][:1])
            for client in others:
                client.sendall(whole[at:][:1])
        _require_answers(server)
        assert not select.select(clients, [], [], 0)[0]  # nobody had to wait for their ends
        said = [client.recv(BYTES)[:12] for client in clients]
        assert {*said} == {b"HTTP/1.1 408"}  # each had a place until then
        eventually("their places are free", lambda: _has_all_places(guest))


def _reset(client: socket.socket) -> None:
    """Leave as a process that is killed with a full buffer does."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@pytest.mark.parametrize("leave", [_reset, socket.socket.close], ids=["reset", "close"])
def test_clients_that_vanish(server: Running, leave: Callable[[socket.socket], None]) -> None:
    with _nothing_is_left(server), a_key(server, concurrency=CLIENTS) as guest, _clients(server) as clients:
        # Nor does it help to say that nobody should mind: Ray would believe it.
        asked = _request(_key(guest), json.dumps({**STREAM, "max_tokens": 1900}).encode())
        asked = asked.replace(b"\r\n", b"\r\nx-request-disconnect-disabled: ?1\r\n", 1)
        for client in clients:
            client.sendall(asked)
        for client in clients:
            assert client.recv(1, socket.MSG_PEEK)  # its answer has begun
        before = server.engine_count("ray_vllm_generation_tokens_total", "chat")
        for client in clients:
            leave(client)
        eventually("their places are free", lambda: _has_all_places(guest))
        assert server.tokens("chat", above=before) - before < CLIENTS * 1900 / 2


def test_a_body_that_does_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model needed: its place is free again, and its connection ends with a 408."""
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.2)
    file, key = tmp_path / "keys.yaml", keys.make()
    file.write_text(yaml.safe_dump({"keys": [{"name": "guest", "sha256": keys.digest(key), "concurrency": 1}]}))
    api = FastAPI()
    api.add_middleware(auth.Authenticate, str(file), None)
    errors.install(api)
    api.add_middleware(BodyLimit, largest=1000)

    @api.post("/v1/completions")
    async def ask(body: dict[str, str]) -> int:
        return len(body)

    async def both() -> tuple[bytes, bytes]:
        """What a client gets that stops in its body, and one after it that does not."""
        whole = _request(key, b'{"a": "b"}')
        said: list[bytes] = []
        async with listening(api) as http:
            for sent in (whole[:-3], whole.replace(b"Host: x", b"Connection: close")):
                reader, writer = await asyncio.open_connection(http.base_url.host, http.base_url.port)
                writer.write(sent)
                said.append(await reader.read())
                writer.close()
        return said[0], said[1]

    stopped, whole = asyncio.run(both())
    assert stopped.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in stopped.lower()
    assert json.loads(stopped.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"
    assert whole.startswith(b"HTTP/1.1 200 ")
