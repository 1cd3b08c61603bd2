"""API keys on a real server: who gets in, what a key may take, and keys that change while the server runs."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

from app import keys
from tests.app.conftest import Running, client_of, eventually, httpx_client

SHAPES = ["cluster"]

EMBED = {"model": "embed", "input": "the sea"}
CHAT = {"model": "chat", "messages": [{"role": "user", "content": "Say hi"}], "max_tokens": 8, "temperature": 0}


@contextmanager
def a_key(server: Running, **limits: Any) -> Iterator[httpx.Client]:
    """A client with a key of its own, which the running server learns of, and forgets again."""
    assert server.settings.auth.keys_file
    file = Path(server.settings.auth.keys_file)
    before = file.read_text()
    key = keys.make()
    item = {"name": "guest", "sha256": keys.digest(key), **limits}
    file.write_text(yaml.safe_dump({"keys": [*yaml.safe_load(before)["keys"], item]}))
    with httpx_client(server.url, key) as http:
        eventually("the key is known", lambda: http.get("/v1/models/embed").status_code != 401)
        try:
            yield http
        finally:
            file.write_text(before)
        eventually("the key is gone", lambda: http.get("/v1/models/embed").status_code == 401)


def error(answered: httpx.Response, status: int) -> dict[str, Any]:
    assert answered.status_code == status, answered.text
    return answered.json()["error"]


def test_nobody_gets_in_without_a_key(server: Running) -> None:
    with httpx.Client(base_url=server.url, trust_env=False) as http:
        for path in ("/v1/chat/completions", "/v1/embeddings", "/generate", "/analyze", "/v1/classify"):
            answered = http.post(path, json={})
            assert error(answered, 401)["code"] == "invalid_api_key"
            assert answered.headers["WWW-Authenticate"] == "Bearer"
        for path in ("/health", "/ready", "/ready/embed", "/docs", "/openapi.json"):
            assert http.get(path).status_code == 200, path
    with pytest.raises(openai.AuthenticationError):
        client_of(server.url, keys.make()).models.list()
    assert len(client_of(server.url, server.key).models.list().data) > 0


def test_a_key_asks_only_for_its_models(server: Running) -> None:
    with a_key(server, models=["embed"]) as http:
        assert http.post("/v1/embeddings", json=EMBED).status_code == 200
        for path, body in (
            ("/v1/chat/completions", CHAT),
            ("/v1/chat/completions", {**CHAT, "model": "chat@stable"}),
            ("/v1/chat/completions", {**CHAT, "model": "chat:odd"}),
            ("/generate", {"prompt": "hi"}),
            ("/analyze", {"text": "hi"}),
            ("/v1/classify", {"model": "sentiment", "input": "hi"}),
            ("/v1/moderations", {"input": "hi"}),
            ("/v1/rerank", {"query": "hi", "documents": ["hi"]}),
        ):
            assert error(http.post(path, json=body), 403)["code"] == "model_not_allowed", path


def test_requests_per_minute(server: Running) -> None:
    with a_key(server, requests_per_minute=50) as http:
        left = int(http.post("/v1/embeddings", json=EMBED).headers["x-ratelimit-remaining-requests"])
        for expected in range(left - 1, -1, -1):
            answered = http.post("/v1/embeddings", json=EMBED)
            assert answered.status_code == 200
            assert answered.headers["x-ratelimit-limit-requests"] == "50"
            assert answered.headers["x-ratelimit-remaining-requests"] == str(expected)
        refused = http.post("/v1/embeddings", json=EMBED)
        assert error(refused, 429)["type"] == "rate_limit_error"
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert server.http.post("/v1/embeddings", json=EMBED).status_code == 200


def test_tokens_per_minute_of_streams_too(server: Running) -> None:
    with a_key(server, tokens_per_minute=60) as http:
        before = int(http.post("/v1/embeddings", json=EMBED).headers["x-ratelimit-remaining-tokens"])
        with http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as streamed:
            lines = [line for line in streamed.iter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        assert all(not json.loads(line[6:]).get("usage") for line in lines[:-1]), "usage that nobody asked for"
        answered = http.post("/v1/embeddings", json=EMBED)
        after = int(answered.headers["x-ratelimit-remaining-tokens"])
        assert before - after > 20, "a chat of 8 tokens, with its prompt"
        while answered.status_code == 200:
            answered = http.post("/v1/chat/completions", json=CHAT)
        assert "tokens per minute" in error(answered, 429)["message"]
        assert 1 <= int(answered.headers["Retry-After"]) <= 60


def test_tokens_of_a_stream_that_was_left(server: Running) -> None:
    with a_key(server, tokens_per_minute=10_000) as http:

        def left() -> int:
            return int(http.get("/v1/models/embed").headers["x-ratelimit-remaining-tokens"])

        before = left()
        body = {**CHAT, "max_tokens": 1000, "ignore_eos": True, "stream": True}
        with http.stream("POST", "/v1/chat/completions", json=body) as streamed:
            lines = (line for line in streamed.iter_lines() if line)
            for _ in range(20):
                next(lines)
        eventually("they are counted", lambda: before - left() >= 15)
        assert before - left() < 1000


def test_requests_at_once(server: Running) -> None:
    with a_key(server, concurrency=1) as http:
        body = {**CHAT, "max_tokens": 400, "ignore_eos": True, "stream": True}
        with http.stream("POST", "/v1/chat/completions", json=body) as streamed:
            lines = streamed.iter_lines()  # kept: httpx closes the connection with the iterator
            assert next(lines).startswith("data: ")
            refused = http.post("/v1/embeddings", json=EMBED)
            assert "under way" in error(refused, 429)["message"]
        eventually("the place is free", lambda: http.post("/v1/embeddings", json=EMBED).status_code == 200)
