"""/generate beside vLLM's own completions: the same prompts, and the same engine behind them."""

from functools import partial
from typing import Any

import httpx

from scripts.bench.kind import Client, Contender, Kind
from scripts.bench.load import PATIENCE_SECONDS, Point, Route, by_httpx, read
from scripts.bench.servers import NAME, Served, ours, vllm

GOLDEN = ("The capital of France is", "One, two, three,", "Der Hafen war", "def add(a, b):\n")


def _ours(stream: bool) -> Route:
    def body(prompt: str, tokens: int) -> dict[str, object]:
        return {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": stream}

    return Route("/generate", body, lambda said: (said["text"], said["tokens"]))


def _vllms(stream: bool) -> Route:
    def body(prompt: str, tokens: int) -> dict[str, object]:
        options = {"stream_options": {"include_usage": True}} if stream else {}
        return {
            **{"model": NAME, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": stream},
            **options,
        }

    return Route("/v1/completions", body, read)


def _clients(route: Any) -> dict[str, Client]:
    return {name: partial(by_httpx, route=route(name == "stream")) for name in ("stream", "whole")}


def _golden(route: Route, served: Served) -> list[str]:
    headers = {"Authorization": f"Bearer {served.key}"}
    with httpx.Client(base_url=served.url, headers=headers, timeout=PATIENCE_SECONDS, trust_env=False) as http:
        answers = [http.post(route.path, json=route.body(prompt, 16)).raise_for_status().json() for prompt in GOLDEN]
    return [route.read(answer)[0] for answer in answers]


KIND = Kind(
    "tokens",
    {
        **{
            name: Contender(what, partial(vllm, module), _clients(_vllms), partial(_golden, _vllms(stream=False)))
            for name, what, module in (
                ("vllm", "vLLM's own OpenAI server", "vllm.entrypoints.openai.api_server"),
                ("vllm-uni", "the same with our engine's processes", "scripts.bench.one_process"),
            )
        },
        "generate": Contender(
            "ours with keys and limits",
            partial(ours, {"generate": {}}),
            _clients(_ours),
            partial(_golden, _ours(stream=False)),
        ),
    },
    peers=("vllm", "vllm-uni"),
    points=(Point(1, 4, 32), Point(8, 16, 32), Point(32, 64, 32)),
    warm=Point(8, 8, 16),
)
