"""Ids and log of requests on a real server in a cluster's shape, whose logs are JSON; and what no log may hold."""

import asyncio
import json
import logging
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray.exceptions import TaskCancelledError

from app.builtin import cache_dir
from app.request_log import RequestLog
from tests.app.conftest import RAY, Running, eventually, httpx_client

SHAPES = ["cluster"]
LOGS = RAY / "session_latest" / "logs"

CHAT = {"messages": [{"role": "user", "content": "Say hi"}], "max_tokens": 4, "temperature": 0}
MANY_WORDS = "The old harbour was quiet this morning, and I loved it. " * 5
ROUTES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "/v1/chat/completions": (CHAT, {"LLM:chat@stable"}),
    "/v1/completions": ({"prompt": "One, two,", "max_tokens": 4}, {"LLM:chat@stable"}),
    "/generate": ({"prompt": "One, two,", "max_tokens": 4}, {"Generate"}),
    "/v1/embeddings": ({"input": "the sea"}, {"Embeddings:embed"}),
    "/v1/classify": ({"model": "sentiment", "input": "I love it"}, {"Classifier:sentiment"}),
    "/v1/rerank": ({"query": "bread", "documents": ["ovens", "laws"]}, {"Rerank:rerank", "Embeddings:embed"}),
    "/analyze": (
        {"text": MANY_WORDS},
        {"Analyze", "Preprocess", "Classifier:sentiment", "Summary", "LLM:chat@stable"},
    ),
}
"""Route → a body, and the deployments behind the gateway that it asks."""
STREAMING = ("/v1/chat/completions", "/v1/completions", "/generate")


def entries(request: str) -> Iterator[dict[str, Any]]:
    """The replicas' lines about a request."""
    for file in (LOGS / "serve").glob("replica_*.log"):
        for line in file.read_text().splitlines():
            if request in line:
                entry = json.loads(line)
                assert entry["request_id"] == request
                yield entry


def summary(request: str) -> dict[str, Any]:
    """The request's own line, once it is there; it is alone."""
    found: list[dict[str, Any]] = []

    def there() -> bool:
        found[:] = [entry for entry in entries(request) if "duration_ms" in entry]
        return bool(found)

    eventually(f"request {request} is logged", there)
    (one,) = found
    return one


def log_files() -> list[Path]:
    """Everything that Ray and the server have written."""
    return [file for file in (*LOGS.rglob("*"), cache_dir() / "serve.log") if file.is_file()]


def new_id() -> str:
    return f"test/{uuid.uuid4()}"


@pytest.mark.parametrize("path", ROUTES)
def test_the_id_goes_through_every_deployment_and_back(server: Running, path: str) -> None:
    body, deployments = ROUTES[path]
    for stream in (False, True) if path in STREAMING else (False,):
        request = new_id()
        sent = {**body, "stream": True} if stream else body
        answered = server.http.post(path, json=sent, headers={"x-request-id": request}).raise_for_status()
        assert answered.headers.get_list("x-request-id") == [request]

        def logged(request: str = request) -> bool:
            # Ray calls it <application>_<deployment> here.
            found = {entry["deployment"].removeprefix(f"{entry['application']}_") for entry in entries(request)}
            return found == {"Gateway", *deployments}

        eventually(f"{path} is logged by {deployments}", logged)
        assert {entry["application"] for entry in entries(request)} >= {"gateway"}


def test_the_engine_knows_the_request_by_its_id(server: Running) -> None:
    request = new_id()
    answered = server.http.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": request})
    assert answered.json()["id"] == f"chatcmpl-{request}"


@pytest.mark.parametrize("stream", [False, True])
def test_the_line_says_who_asked_what_and_how_it_went(server: Running, stream: bool) -> None:
    request = new_id()
    asked = {**CHAT, "stream": stream}
    answered = server.http.post("/v1/chat/completions", json=asked, headers={"x-request-id": request})
    assert answered.status_code == 200
    line = summary(request)
    expected = {
        **{"method": "POST", "route": "/v1/chat/completions", "status": 200, "tenant": "tests"},
        **{"model": "chat", "variant": "stable", "application": "gateway", "deployment": "gateway_Gateway"},
    }
    assert expected.items() <= line.items()
    assert line["duration_ms"] > 0
    assert line["completion_tokens"] == 4
    assert line["total_tokens"] == line["prompt_tokens"] + 4
    if not stream:
        usage = answered.json()["usage"]
        assert {name: line[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}.items() <= (
            usage.items()
        )


def test_lines_of_other_routes(server: Running) -> None:
    expected = {"/generate": "generate", "/v1/embeddings": "embed", "/v1/rerank": "rerank", "/analyze": "analyze"}
    for path, model in expected.items():
        request = new_id()
        server.http.post(path, json=ROUTES[path][0], headers={"x-request-id": request}).raise_for_status()
        line = summary(request)
        assert (line["route"], line["model"], line["status"]) == (path, model, 200)
        assert line["total_tokens"] > 0, path


def test_a_client_that_leaves_is_logged_as_such(server: Running) -> None:
    request = new_id()
    endless = {**CHAT, "stream": True, "max_tokens": 1500, "ignore_eos": True}
    headers = {"x-request-id": request}
    with server.http.stream("POST", "/v1/chat/completions", json=endless, headers=headers) as answered:
        assert answered.headers["x-request-id"] == request
        next(answered.iter_lines())
    assert summary(request)["status"] == 499


@pytest.mark.parametrize(("failure", "status"), [(TaskCancelledError(), 499), (RuntimeError("a bug"), 500)])
def test_a_request_that_fails_is_logged_as_such(
    caplog: pytest.LogCaptureFixture, failure: Exception, status: int
) -> None:
    """No server needed. Ray cancels the request of a client that has left, and with it what that asks of a replica."""

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise failure

    async def ask() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(RequestLog(broken))) as http:
            await http.get("http://gateway/")

    with caplog.at_level(logging.INFO, "ray.serve"), pytest.raises(type(failure)):
        asyncio.run(ask())
    (line,) = caplog.records
    assert vars(line)["status"] == status


def test_errors_have_an_id_and_a_line(server: Running) -> None:
    def ask(status: int, method: str, path: str, http: httpx.Client = server.http, **how: Any) -> dict[str, Any]:
        answered = http.request(method, path, **how)
        assert answered.status_code == status
        (request,) = answered.headers.get_list("x-request-id")
        return summary(request)

    with httpx_client(server.url, "sk-unknown") as stranger:
        refused = ask(401, "POST", "/v1/chat/completions", stranger, json=CHAT)
    assert refused["status"] == 401
    assert not {"tenant", "model"} & refused.keys()
    assert ask(400, "POST", "/v1/chat/completions", json={**CHAT, "temperature": 9})["status"] == 400
    unknown = ask(404, "POST", "/v1/chat/completions", json={**CHAT, "model": "gpt-5"})
    assert (unknown["status"], unknown["tenant"]) == (404, "tests")
    assert ask(404, "GET", "/nowhere")["status"] == 404
    assert ask(413, "POST", "/v1/chat/completions", content=b" " * 2**23)["status"] == 413


def test_without_an_id_each_request_gets_its_own(server: Running) -> None:
    first, second = (server.http.get("/health").headers["x-request-id"] for _ in range(2))
    assert first != second
    assert uuid.UUID(first)


@pytest.mark.parametrize(
    "bad",
    [
        *(b"", b"x" * 129, b"a b", b'a","status":"200', b"a\tb", b"\xff\xfe", "naïve\u2028line".encode(), b"%0aINFO"),
    ],
)
def test_an_id_that_is_none_is_replaced(server: Running, bad: bytes) -> None:
    answered = server.http.get("/v1/models", headers=[(b"x-request-id", bad)]).raise_for_status()
    (request,) = answered.headers.get_list("x-request-id")
    assert uuid.UUID(request)
    assert summary(request)["status"] == 200


def test_of_two_ids_the_first_counts(server: Running) -> None:
    first = new_id()
    answered = server.http.get("/v1/models", headers=[("x-request-id", first), ("x-request-id", new_id())])
    assert answered.headers.get_list("x-request-id") == [first]
    assert summary(first)


def test_two_requests_at_once_may_have_one_id(server: Running) -> None:
    """As those of a client that tries again while the first is still under way."""
    headers = {"x-request-id": new_id()}
    with server.http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}, headers=headers) as first:
        lines = first.iter_lines()
        next(lines)
        again = server.http.post("/v1/chat/completions", json=CHAT, headers=headers)
        assert again.status_code == 200
        assert list(lines)[-2:] == ["data: [DONE]", ""]


def test_probes_leave_no_line(server: Running) -> None:
    probes = [server.http.get(path).headers["x-request-id"] for path in ("/health", "/ready", "/ready/embed")]
    summary(server.http.get("/v1/models").headers["x-request-id"])  # a later one is there
    for request in probes:
        assert not [entry for entry in entries(request) if "duration_ms" in entry]


SECRET = f"swordfish{uuid.uuid4().hex}"


def requests_with(secret: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Route and body: the secret in every field that holds what somebody says, also of requests that are wrong."""
    said = [{"role": "system", "content": secret}, {"role": "user", "content": f"Repeat: {secret}"}]
    chat = {**CHAT, "messages": said, "user": secret}
    yield "/v1/chat/completions", chat
    yield "/v1/chat/completions", {**chat, "stream": True}
    yield "/v1/chat/completions", {**chat, "max_tokens": secret}
    yield "/v1/chat/completions", {**chat, "messages": [{"role": secret, "content": 3}]}
    yield "/v1/chat/completions", {**chat, "messages": [{"role": "user", "content": secret * 500}]}
    yield "/v1/chat/completions", {**chat, "model": secret}
    yield "/v1/chat/completions", {**chat, "response_format": {"type": "json_object", "secret": secret}}
    yield "/v1/chat/completions", {**chat, "tools": [{"type": secret}]}
    yield "/v1/completions", {"prompt": secret, "max_tokens": 4}
    yield "/v1/completions", {"prompt": [secret, {"no": "text"}], "max_tokens": 4}
    yield "/generate", {"prompt": secret, "max_tokens": 4}
    yield "/generate", {"prompt": secret, "max_tokens": 4, "stream": True}
    yield "/generate", {"prompt": secret * 500, "max_tokens": 4}
    yield "/v1/embeddings", {"input": [secret, secret * 500]}
    yield "/v1/embeddings", {"input": [secret, 3]}
    yield "/v1/classify", {"model": "sentiment", "input": secret}
    yield "/v1/moderations", {"input": [secret, f"you stupid {secret}"]}
    yield "/v1/rerank", {"query": secret, "documents": [secret, {"text": secret}], "return_documents": True}
    yield "/analyze", {"text": f"{MANY_WORDS} {secret}"}
    yield "/analyze", {"text": f"{secret} " * 2500}
    yield "/analyze", {"text": secret, secret: secret}


def test_neither_prompts_nor_keys_are_in_any_log(server: Running) -> None:
    for path, body in requests_with(SECRET):
        answered = server.http.post(path, json=body, headers={"x-session-id": SECRET})
        assert answered.status_code in (200, 400, 404), answered.text
    last = server.http.post("/v1/chat/completions", content=f'{{"model": "chat", "messages": [{SECRET}')
    assert last.status_code == 400
    with httpx_client(server.url, SECRET) as stranger:
        assert stranger.get("/v1/models").status_code == 401
    summary(last.headers["x-request-id"])
    logs = log_files()
    assert any(last.headers["x-request-id"] in file.read_text(errors="replace") for file in logs), "all were read"
    for secret in (SECRET, server.key):
        assert not [file for file in logs if secret in file.read_text(errors="replace")]


def test_a_request_is_found_by_grep(server: Running) -> None:
    """What docs/application.md says to look for."""
    request = new_id()
    server.http.get("/v1/models", headers={"x-request-id": request})
    summary(request)

    def by_proxy() -> bool:
        return any(request in file.read_text() for file in (LOGS / "serve").glob("proxy_*.log"))

    eventually("the proxy's log has it", by_proxy)  # which it writes after the answer
