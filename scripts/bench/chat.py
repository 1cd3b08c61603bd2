"""Chat in streams: our paths beside vLLM's own server and Ray's own application."""

from functools import partial
from typing import Any

from scripts.bench.kind import Contender, Kind
from scripts.bench.load import CHAT, Point, answered, ask, by_httpx, by_vllm
from scripts.bench.servers import NAME, VLLM, Served, Start, ours, serve_run

GOLDEN = (
    "What is the capital of France?",
    "Say hi",
    "Name three colors.",
    "What is 2+2?",
    "Write one sentence about the sea and the old harbour where fishermen mend their nets in the morning.",
)


def golden(served: Served) -> list[str]:
    """The greedy answers to GOLDEN, one after the other."""
    common = {"model": NAME, "temperature": 0, "max_completion_tokens": 24}
    bodies = [{**common, "messages": [{"role": "user", "content": prompt}]} for prompt in GOLDEN]
    _, answers = answered(served, [partial(ask, CHAT.path, body) for body in bodies], 1)
    return [answer["choices"][0]["message"]["content"] for answer in answers]


def _contender(what: str, start: Start) -> Contender:
    return Contender(what, start, {"vllm": by_vllm, "httpx": by_httpx}, golden)


def _variants(**more: Any) -> dict[str, Any]:
    """Two variants, of which one has all the weight: the choice is made, and one engine does the work."""
    idle = {"name": "canary", "weight": 0, "placement": {"num_cpus": 0.25}}
    return {"models": [{"name": NAME, "variants": [{"name": "stable", "weight": 1}, idle], **more}]}


SAFETY = {"name": "safety", "source": "builtin:profanity", "unsafe": ["offensive"]}
KIND = Kind(
    "tokens",
    {
        **{name: _contender(*server) for name, server in VLLM.items()},
        "ray-llm": _contender(
            "ray.serve.llm, build_openai_app as its documentation has it",
            partial(serve_run, ["scripts.bench.stock:app"]),
        ),
        "bare": _contender(
            "ours without keys, limits, second variant and guard",
            partial(ours, {"models": [{"name": NAME}]}, governed=False),
        ),
        "fast": _contender(
            "ours with keys and limits, its gateway in the model's replica",
            partial(ours, {"models": [{"name": NAME}], "gateway": {"fast": True}}),
        ),
        "governed": _contender("ours with keys, limits and two variants", partial(ours, _variants())),
        "guarded": _contender(
            "the same, and a guard",
            partial(ours, {**_variants(guard={"classifier": "safety"}), "classifiers": [SAFETY]}),
        ),
    },
    peers=tuple(VLLM),
    points=(Point(1, 20, 64), Point(8, 24, 64), Point(32, 64, 64), Point(128, 256, 4)),
    warm=Point(8, 16, 16),
)
