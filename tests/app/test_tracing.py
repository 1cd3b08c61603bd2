"""Traces of a real server, in a collector of the tests' own: a tree for each request, from the proxy to the engine."""

import secrets
import uuid
from typing import Any

import pytest

from tests.app.collector import Collector, Span
from tests.app.conftest import Running, eventually

SHAPES = ["cluster"]

CHAT = {"messages": [{"role": "user", "content": "Say hi"}], "max_tokens": 4, "temperature": 0}
TREES: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "/v1/chat/completions": (CHAT, [("Gateway", "LLM:chat@stable"), ("LLM:chat@stable", "llm_request")]),
    "/generate": ({"prompt": "One, two,", "max_tokens": 4}, [("Gateway", "Generate"), ("Generate", "llm_request")]),
    "/v1/rerank": (
        {"query": "bread", "documents": ["ovens", "laws"]},
        [("Gateway", "Rerank:rerank"), ("Rerank:rerank", "Embeddings:embed")],
    ),
    "/analyze": (
        {"text": "The old harbour was quiet this morning, and I loved it. " * 5},
        [
            ("Gateway", "Analyze"),
            ("Analyze", "Preprocess"),
            ("Analyze", "Classifier:sentiment"),
            ("Analyze", "Summary"),
            ("Summary", "LLM:chat@stable"),
            ("LLM:chat@stable", "llm_request"),
        ],
    ),
}
"""Route → a body, and which span is somewhere above which: of a deployment's replica, or the engine's."""


def label(span: Span) -> str:
    return span.attributes["deployment"] if span.name.startswith("replica_handle_request") else span.name


def above(span: Span, spans: dict[str, Span]) -> list[str]:
    """Labels of the spans around this one, the nearest first."""
    found: list[str] = []
    while span.parent in spans:
        span = spans[span.parent]
        found.append(label(span))
    return found


def tree(traces: Collector, trace: str, pairs: list[tuple[str, str]]) -> dict[str, Span]:
    """The spans of a trace by their ids, once each of `pairs` is in it, one above the other, and the proxy's above all.

    Each process sends its own when it likes.
    """

    def spans() -> dict[str, Span]:
        return {span.id: span for span in traces.spans if span.trace == trace}

    def whole() -> bool:
        now = spans()
        tops = [span.name.split()[0] for span in now.values() if span.parent not in now]
        return tops == ["proxy_http_request"] and all(
            any(label(span) == inner and outer in above(span, now) for span in now.values()) for outer, inner in pairs
        )

    eventually(f"the trace has {pairs}, below the proxy's span", whole)
    return spans()


@pytest.mark.parametrize("path", TREES)
def test_a_request_is_one_tree_below_the_clients_span(server: Running, traces: Collector, path: str) -> None:
    body, pairs = TREES[path]
    trace, span = secrets.token_hex(16), secrets.token_hex(8)
    headers = {"traceparent": f"00-{trace}-{span}-01", "x-request-id": str(uuid.uuid4())}
    server.http.post(path, json=body, headers=headers).raise_for_status()
    found = tree(traces, trace, pairs)
    (first,) = (one for one in found.values() if one.parent == span)
    assert first.attributes["request_id"] == headers["x-request-id"]


def test_the_engines_span_counts_tokens(server: Running, traces: Collector) -> None:
    trace = secrets.token_hex(16)
    headers = {"traceparent": f"00-{trace}-{secrets.token_hex(8)}-01"}
    usage = server.http.post("/v1/chat/completions", json=CHAT, headers=headers).json()["usage"]
    (engine,) = (one for one in tree(traces, trace, [("Gateway", "llm_request")]).values() if one.name == "llm_request")
    assert int(engine.attributes["gen_ai.usage.prompt_tokens"]) == usage["prompt_tokens"]
    assert int(engine.attributes["gen_ai.usage.completion_tokens"]) == usage["completion_tokens"]
    assert float(engine.attributes["gen_ai.latency.time_to_first_token"]) > 0


@pytest.mark.parametrize("sampled", [None, "00"])
def test_a_request_that_nobody_traces_has_a_tree_of_its_own(
    server: Running, traces: Collector, sampled: str | None
) -> None:
    trace, request = secrets.token_hex(16), str(uuid.uuid4())
    headers = {"x-request-id": request}
    if sampled:
        headers["traceparent"] = f"00-{trace}-{secrets.token_hex(8)}-{sampled}"
    server.http.post("/v1/rerank", json=TREES["/v1/rerank"][0], headers=headers).raise_for_status()

    def ours() -> list[Span]:
        return [span for span in traces.spans if span.attributes.get("request_id") == request]

    eventually("the spans are there", lambda: "Embeddings:embed" in {label(span) for span in ours()})
    (one,) = {span.trace for span in ours()}
    assert one != trace
    found = tree(traces, one, TREES["/v1/rerank"][1])
    assert [span.parent for span in found.values() if span.parent not in found] == [""]


def test_health_checks_of_engines_leave_no_span(server: Running, traces: Collector) -> None:
    before = server.engine_count("ray_vllm_generation_tokens_total", "chat")
    eventually(
        "the idle engine is checked", lambda: server.engine_count("ray_vllm_generation_tokens_total", "chat") > before
    )
    request = str(uuid.uuid4())
    server.http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}, headers={"x-request-id": request})

    def engine_spans() -> list[Span]:
        return [one for one in traces.spans if one.name == "llm_request"]

    def traced() -> bool:
        return any(request in one.attributes["gen_ai.request.id"] for one in engine_spans())

    eventually("what comes after the check is traced", traced)
    assert not [one for one in engine_spans() if not one.parent]


def test_no_span_holds_a_prompt(server: Running, traces: Collector) -> None:
    trace, secret = secrets.token_hex(16), f"swordfish{uuid.uuid4().hex}"
    headers = {"traceparent": f"00-{trace}-{secrets.token_hex(8)}-01"}
    asked = {**CHAT, "messages": [{"role": "user", "content": secret}]}
    server.http.post("/v1/chat/completions", json=asked, headers=headers).raise_for_status()
    tree(traces, trace, [("Gateway", "llm_request")])
    for unwanted in (secret, server.key):
        assert not [body for body in traces.received if unwanted.encode() in body]
