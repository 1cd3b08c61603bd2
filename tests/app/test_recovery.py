"""What fails comes back, and its neighbours go on: an engine that stalls, any replica that dies.

Takes the language model away for a minute or two, and waits until it is back. In the cluster's shape, where each of
them is found by its name.
"""

import contextlib
import json
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest
from openai import OpenAI

from tests.app.conftest import PROMPTS, START_SECONDS, Running, answer, eventually

SHAPES = ["cluster"]

LONG = {"model": "chat", "prompt": "Once upon a time", "max_tokens": 1900, "ignore_eos": True}


def _replica(server: Running, deployment: str) -> psutil.Process | None:
    """The process of a deployment's only replica, which Ray names after it."""
    for process in server.processes():
        with contextlib.suppress(psutil.Error):
            if re.fullmatch(rf"ray::ServeReplica:\w[^:]*:{deployment}(\.\w+)?", process.cmdline()[0]):
                return process
    return None


def _engine(server: Running) -> psutil.Process | None:
    replica = _replica(server, "LLM:chat@stable")
    children = replica.children() if replica else []
    return next((child for child in children if child.cmdline()[:1] == ["VLLM::EngineCore"]), None)


def _status(server: Running, path: str) -> int:
    return server.http.get(path).status_code


def _stream(server: Running) -> list[str]:
    """The events of a long answer."""
    with server.http.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as streamed:
        return [line.removeprefix("data: ") for line in streamed.iter_lines() if line]


def _whole(server: Running) -> httpx.Response:
    return server.http.post("/v1/completions", json=LONG)


def test_a_stalled_engine_is_replaced(server: Running, client: OpenAI, vllm_answers: list[str | None]) -> None:
    engine = _engine(server)
    assert engine
    family = [engine, *engine.children(recursive=True)]
    before = answer(client, PROMPTS[0])
    with ThreadPoolExecutor(2) as pool:
        streaming, whole = pool.submit(_stream, server), pool.submit(_whole, server)
        running = server.metrics  # both requests have begun when the engine says so
        eventually("two requests run", lambda: _gauge(running()) == 2)
        engine.send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        *_, last, done = streaming.result(timeout=300)
        assert json.loads(last)["error"]["code"] == "model_unavailable"
        assert done == "[DONE]"
        refused = whole.result(timeout=300)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_unavailable")
        assert int(refused.headers["Retry-After"]) > 0
    scaling = server.settings.models[0].variants[0].scaling
    patience = 3 * (scaling.health_check_period_s * 1.1 + scaling.health_check_timeout_s) + 30
    assert time.monotonic() - stopped < patience
    eventually("/ready says no", lambda: _status(server, "/ready/chat") == 503)
    assert _status(server, "/health") == 200
    assert _status(server, "/ready/embed") == 200
    eventually("the model answers again", lambda: _status(server, "/ready/chat") == 200, START_SECONDS)
    assert _status(server, "/ready") == 200
    assert answer(client, PROMPTS[0]) == before == vllm_answers[0]
    assert not [process for process in family if process.is_running()]
    assert _engine(server) != engine


@pytest.mark.parametrize(
    ("deployment", "path", "body"),
    [
        ("Gateway", "/v1/embeddings", {"input": "hi"}),
        ("Embeddings:embed", "/v1/embeddings", {"input": "hi"}),
        ("Classifier:sentiment", "/v1/classify", {"input": "hi", "model": "sentiment"}),
        ("Rerank:rerank", "/v1/rerank", {"query": "hi", "documents": ["hi"]}),
        ("Preprocess", "/analyze", {"text": "hi"}),
        ("Summary", "/analyze", {"text": "The harbour was quiet this morning. " * 10}),
        ("Analyze", "/analyze", {"text": "hi"}),
    ],
)
def test_a_replica_that_dies_comes_back(server: Running, deployment: str, path: str, body: dict[str, Any]) -> None:
    replica, others = _replica(server, deployment), {name: _replica(server, name) for name in ("Gateway", "Generate")}
    assert replica
    replica.kill()
    if deployment != "Gateway":
        assert server.http.post(path, json=body).status_code == 200  # it waits for the next one

    def whole() -> bool:
        with contextlib.suppress(httpx.TransportError):
            answered = server.http.post(path, json=body)
            return answered.status_code == 200 and not answered.json().get("errors")
        return False

    eventually("the route answers", lambda: whole() and _replica(server, deployment) not in (None, replica))
    for name, before in others.items():
        assert name == deployment or _replica(server, name) == before
    eventually("all is ready", lambda: _status(server, "/ready") == 200)


def test_a_stream_whose_gateway_dies_says_so(server: Running) -> None:
    gateway = _replica(server, "Gateway")
    assert gateway
    with server.http.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as streamed:
        lines = streamed.iter_lines()
        next(lines)
        gateway.kill()
        *_, last, done = [line.removeprefix("data: ") for line in lines if line]
    assert (json.loads(last)["error"]["code"], done) == ("server_unavailable", "[DONE]")
    eventually("the engine works for nobody", lambda: _gauge(server.metrics()) == 0)
    eventually("all is ready", lambda: _status(server, "/ready") == 200)


def _gauge(metrics: dict) -> float:
    """Requests that the engine works on."""
    metric = metrics.get("ray_vllm_num_requests_running")
    return sum(sample.value for sample in metric.samples) if metric else 0
