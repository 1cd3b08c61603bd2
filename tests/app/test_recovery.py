"""A stalled engine: found by the health check, told to its callers, replaced, and nothing of it left.

Takes the language model away for a minute or two, and waits until it is back.
"""

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
from openai import OpenAI

from tests.app.conftest import PROMPTS, Running, answer, eventually

LONG = {"model": "chat", "prompt": "Once upon a time", "max_tokens": 1900, "ignore_eos": True}


def _engines(server: Running) -> list[psutil.Process]:
    return [process for process in server.processes() if process.cmdline()[:1] == ["VLLM::EngineCore"]]


def _status(server: Running, path: str) -> int:
    return httpx.get(server.url + path, trust_env=False, timeout=30).status_code


def _stream(server: Running) -> list[str]:
    """The events of a long answer."""
    with httpx.stream(
        "POST", f"{server.url}/v1/completions", json={**LONG, "stream": True}, trust_env=False, timeout=300
    ) as streamed:
        return [line.removeprefix("data: ") for line in streamed.iter_lines() if line]


def _whole(server: Running) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/completions", json=LONG, trust_env=False, timeout=300)


def test_a_stalled_engine_is_replaced(server: Running, client: OpenAI, vllm_answers: list[str | None]) -> None:
    (engine,) = _engines(server)
    family = [engine, *engine.children(recursive=True)]
    before = answer(client, PROMPTS[0])
    with ThreadPoolExecutor(2) as pool:
        streaming, whole = pool.submit(_stream, server), pool.submit(_whole, server)
        running = server.metrics  # both requests have begun when the engine says so
        eventually("two requests run", lambda: _gauge(running()) == 2, 60)
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
    eventually("/ready says no", lambda: _status(server, "/ready/chat") == 503, 60)
    assert _status(server, "/health") == 200
    assert _status(server, "/ready/embed") == 200
    eventually("the model answers again", lambda: _status(server, "/ready/chat") == 200, 600)
    assert _status(server, "/ready") == 200
    assert answer(client, PROMPTS[0]) == before == vllm_answers[0]
    assert not [process for process in family if process.is_running()]
    assert [process.pid for process in _engines(server)] != [engine.pid]


def _gauge(metrics: dict) -> float:
    """Requests that the engine works on."""
    metric = metrics.get("ray_vllm_num_requests_running")
    return sum(sample.value for sample in metric.samples) if metric else 0
