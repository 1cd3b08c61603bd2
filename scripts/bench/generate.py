"""/generate beside vLLM's own completions: the same prompts, and the same engine behind them."""

from collections.abc import Callable
from functools import partial

from scripts.bench.kind import Contender, Kind
from scripts.bench.load import Point, Route, answered, ask, by_httpx, read
from scripts.bench.servers import NAME, VLLM, Served, Start, ours

GOLDEN = ("The capital of France is", "One, two, three,", "Der Hafen war", "def add(a, b):\n")


def _body(prompt: str, tokens: int, stream: bool) -> dict[str, object]:
    return {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": stream}


def _ours(stream: bool) -> Route:
    return Route("/generate", partial(_body, stream=stream), lambda said: (said["text"], said["tokens"]))


def _vllms(stream: bool) -> Route:
    def body(prompt: str, tokens: int) -> dict[str, object]:
        usage = {"stream_options": {"include_usage": True}} if stream else {}
        return {"model": NAME, **_body(prompt, tokens, stream), **usage}

    return Route("/v1/completions", body, read)


def _contender(what: str, start: Start, route: Callable[[bool], Route]) -> Contender:
    clients = {"stream": partial(by_httpx, route=route(True)), "whole": partial(by_httpx, route=route(False))}
    return Contender(what, start, clients, partial(_golden, route(False)))


def _golden(route: Route, served: Served) -> list[str]:
    _, answers = answered(served, [partial(ask, route.path, route.body(prompt, 16)) for prompt in GOLDEN], 1)
    return [route.read(answer)[0] for answer in answers]


KIND = Kind(
    "tokens",
    {
        **{name: _contender(*server, _vllms) for name, server in VLLM.items()},
        "generate": _contender("ours with keys and limits", partial(ours, {"generate": {}}), _ours),
    },
    peers=tuple(VLLM),
    points=(Point(1, 4, 32), Point(8, 16, 32), Point(32, 64, 32)),
    warm=Point(8, 8, 16),
)
