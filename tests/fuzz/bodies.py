"""Bodies of all routes: the gateway itself, up to the deployments behind it."""

import asyncio
import json
import logging
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import httpx
import yaml

from app import keys, routes
from app.deployments import gateway
from app.errors import ApiError
from app.settings import Settings, remotes

CANARY = "swordfish"
KEY = f"sk-{CANARY}"
SAID = {"role": "user", "content": CANARY}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {"messages": [SAID], "max_tokens": 2, "stream": True, "stream_options": {"include_usage": True}},
        {"model": "chat@b:odd", "messages": [{"role": "user", "content": [{"type": "text", "text": CANARY}]}], "n": 2},
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", **CALL}]}], "tools": [TOOL], "user": CANARY},
        {"messages": [SAID], "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}},
        {"messages": [SAID], "temperature": 0.5, "top_p": 1, "stop": ["a"], "seed": 1, "logprobs": True},
    ],
    "/v1/completions": [
        {"model": "chat:odd", "prompt": CANARY, "echo": True, "logprobs": 1, "suffix": None},
        {"prompt": [CANARY, "b"], "stop": "c", "logit_bias": {"5": 1}},
        {"prompt": [1, 2, 3]},
    ],
    "/v1/embeddings": [{"model": "embed", "input": [CANARY], "encoding_format": "base64", "dimensions": 384}],
    "/v1/classify": [{"model": "sentiment", "input": CANARY}],
    "/v1/moderations": [{"input": [CANARY, "b"]}],
    "/v1/rerank": [{"query": CANARY, "documents": [CANARY, {"text": "b"}], "top_n": 1, "return_documents": True}],
    "/generate": [{"prompt": CANARY, "stop": ["a"], "seed": 1, "temperature": 0.5, "max_tokens": 2, "stream": True}],
    "/analyze": [{"text": CANARY}],
}
PATHS = list(BODIES)
SEEDS = [bytes([index]) + json.dumps(body).encode() for index, path in enumerate(PATHS) for body in BODIES[path]]
ACCEPTED = 202
VARIANTS = [{"name": "a"}, {"name": "b", "adapters": [{"name": "odd", "source": "/odd"}]}]
LOOP = asyncio.new_event_loop()


class Handle:
    """In a deployment's place: what gets here was accepted."""

    def options(self, **_: Any) -> "Handle":
        return self

    def __getattr__(self, name: str) -> "Handle":
        return self

    def remote(self, *_: Any) -> NoReturn:
        raise ApiError(ACCEPTED, "accepted")


class Guarded(gateway.Gateway):
    """A gateway whose guard reads all, and has nobody to ask."""

    async def require_safe(self, model: str, param: str, texts: Any) -> None:
        assert all(isinstance(text, str) for text in texts())


class Lines(logging.Handler):
    """What is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@cache
def server() -> tuple[httpx.AsyncClient, Lines]:
    """A client of the application that the gateway's replicas answer with."""
    file = Path("keys.yaml").absolute()
    file.write_text(yaml.safe_dump({"keys": [{"name": "tests", "sha256": keys.digest(KEY)}]}))
    settings = Settings.model_validate(
        {
            "models": [{"name": "chat", "variants": VARIANTS, "guard": {}}],
            "generate": {},
            "auth": {"keys_file": str(file)},
        }
    )
    api = gateway.api(settings)
    every: Any = dict.fromkeys(remotes(settings), Handle())
    ours = Guarded(settings, every)

    async def current() -> Guarded:
        return ours

    api.dependency_overrides = {routes._gateway: current}
    lines = Lines()
    logging.getLogger().addHandler(lines)
    for name in ("ray.serve", "vllm"):  # which do not propagate
        logging.getLogger(name).addHandler(lines)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    transport = httpx.ASGITransport(api)
    return httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers), lines


def run(data: bytes) -> None:
    """Each is accepted, or refused with OpenAI's error object; and no line of the log says what was said."""
    client, log = server()
    log.lines.clear()
    path = PATHS[data[0] % len(PATHS)] if data else PATHS[0]
    answered = LOOP.run_until_complete(client.post(path, content=data[1:]))
    assert answered.status_code in (ACCEPTED, 400, 403, 404), log.lines
    error = answered.json()["error"]
    assert {"message", "type", "param", "code"} <= error.keys()
    assert not [line for line in log.lines if CANARY in line]
