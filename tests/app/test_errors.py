"""Bad requests: each gets a 4xx in OpenAI's shape that names the fault, and harms nobody else."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from openai import OpenAI

from app import errors
from tests.app.bad import Bad, require_refusal
from tests.app.conftest import Running

SHAPES = ["cluster"]
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"


def chat(name: str, param: str | None = None, /, **fields: Any) -> Bad:
    """A good chat request but for `fields`; the answer must blame `param`."""
    good = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    return Bad(name, {**good, **fields}, param)


def text(name: str, param: str | None = None, /, **fields: Any) -> Bad:
    """A good text request but for `fields`."""
    return Bad(name, {"model": "chat", "prompt": "hi", "max_tokens": 4, **fields}, param, path=TEXT)


def embed(name: str, param: str | None = "input", /, **fields: Any) -> Bad:
    """A good request for embeddings but for `fields`."""
    return Bad(name, {"model": "embed", "input": "hi", **fields}, param, path=EMBEDDINGS)


def message(content: Any, role: str = "user") -> list[dict[str, Any]]:
    return [{"role": role, "content": content}]


LONG = "word " * 5000
IMAGE = [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}}]

BAD = [
    Bad("truncated JSON", b'{"model": "chat", '),
    Bad("no body", b""),
    Bad("not UTF-8", b'{"model": "\xff"}'),
    Bad("nested without end", b"[" * 100_000),
    Bad("a list", [1]),
    Bad("a string", "hi"),
    Bad("null", None),
    Bad("a form", b"model=chat", content_type="application/x-www-form-urlencoded"),
    Bad("half a character", b'{"model":"chat","messages":[{"role":"user","content":"\\ud800"}]}'),
    Bad("half a character in text", b'{"model": "chat", "prompt": "\\udfff"}', path=TEXT),
    chat("unknown model", "model", model="gpt-5")._replace(status=404, code="model_not_found"),
    chat("unknown variant", "model", model="chat@x")._replace(status=404, code="model_not_found"),
    chat("embedding model", "model", model="embed")._replace(status=404, code="model_not_found"),
    chat("empty model", "model", model="")._replace(status=404, code="model_not_found"),
    chat("unknown LoRA adapter", "model", model="chat:x")._replace(status=404, code="model_not_found"),
    text("unknown model", "model", model="gpt-5")._replace(status=404, code="model_not_found"),
    chat("model is a number", "model", model=3),
    Bad("no messages", {"model": "chat"}, "messages"),
    chat("empty messages", messages=[]),
    chat("null messages", messages=None),
    chat("messages are text", "messages", messages="hi"),
    chat("message is a number", "messages", messages=[3]),
    chat("content is a number", "messages", messages=message(3)),
    chat("content holds a number", messages=message([3])),
    chat("unknown kind of content", messages=message([{"type": "smell", "smell": "sea"}])),
    chat("image for a text model", messages=message(IMAGE)),
    chat("tool calls are a number", messages=[{"role": "assistant", "tool_calls": 5}]),
    chat("negative max_tokens", "max_tokens", max_tokens=-1),
    chat("max_tokens is text", "max_tokens", max_tokens="many"),
    chat("max_tokens beyond the model", "max_tokens", max_tokens=100_000),
    chat("negative temperature", "temperature", temperature=-1),
    chat("temperature above 2", "temperature", temperature=99),
    chat("temperature is text", "temperature", temperature="hot"),
    chat("temperature is NaN", "temperature", temperature=float("nan")),
    chat("streamed, negative temperature", "temperature", temperature=-1, stream=True),
    chat("top_p above 1", "top_p", top_p=2),
    chat("no choices", n=0),
    chat("stop is a number", "stop", stop=3),
    chat("stream is text", "stream", stream="perhaps"),
    chat("stream options without stream", "stream_options", stream_options={"include_usage": True}),
    chat("too many logprobs", "logprobs", logprobs=True, top_logprobs=999),
    chat("token that does not exist", "logit_bias", logit_bias={"99999999": 1}),
    chat("seed beyond 64 bits", "seed", seed=2**80),
    chat("unknown response format", "response_format", response_format={"type": "poem"}),
    chat("bad regular expression", structured_outputs={"regex": "((("}),
    chat("structured outputs are true", structured_outputs=True),
    chat("tools without a function", "tools", tools=[{"type": "function"}]),
    chat("template of the caller's", chat_template="{{ 1/0 }}"),
    chat("too long", "input_tokens", messages=message(LONG))._replace(code="context_length_exceeded"),
    chat("too long, streamed", "input_tokens", messages=message(LONG), stream=True)._replace(
        code="context_length_exceeded"
    ),
    text("too long", "input_tokens", prompt=LONG)._replace(code="context_length_exceeded"),
    text("empty prompt", "prompt", prompt=""),
    text("tokens that do not exist", prompt=[99_999_999]),
    text("prompt is an object", "prompt", prompt={"a": 1}),
    text("suffix", suffix="end"),
    Bad("truncated JSON", b'{"input": ', path=EMBEDDINGS),
    Bad("no body", b"", path=EMBEDDINGS),
    Bad("a list", ["hi"], path=EMBEDDINGS),
    Bad("no input", {"model": "embed"}, "input", path=EMBEDDINGS),
    embed("empty text", input=""),
    embed("only spaces", input="  \n"),
    embed("empty list", input=[]),
    embed("empty text in a list", input=["hi", ""]),
    embed("null", input=None),
    embed("a number", input=3),
    embed("true", input=True),
    embed("an object", input={"text": "hi"}),
    embed("null in a list", input=["hi", None]),
    embed("tokens", input=[1, 2, 3]),
    embed("lists of tokens", input=[[1, 2], [3]]),
    embed("half a character", input="\ud800"),
    embed("half a character in a list", input=["hi", "\udfff"]),
    embed("too many texts", input=["hi"] * 2049),
    embed("too long", input=LONG)._replace(code="context_length_exceeded"),
    embed("too long in a list", input=["hi", LONG])._replace(code="context_length_exceeded"),
    embed("unknown model", "model", model="gpt-5")._replace(status=404, code="model_not_found"),
    embed("language model", "model", model="chat")._replace(status=404, code="model_not_found"),
    embed("model is a number", "model", model=3),
    embed("unknown encoding", "encoding_format", encoding_format="int8"),
    embed("encoding is a number", "encoding_format", encoding_format=8),
    embed("other dimensions", "dimensions", dimensions=128),
    embed("dimensions are text", "dimensions", dimensions="384"),
    embed("cut off at nothing", "truncate_prompt_tokens", truncate_prompt_tokens=0),
    embed("cut off below nothing", "truncate_prompt_tokens", truncate_prompt_tokens=-2),
    embed("cut off at half a token", "truncate_prompt_tokens", truncate_prompt_tokens=1.5),
    embed("unknown field", "temperature", temperature=1),
    Bad("body of 6 MiB and more", b'"' + b"x" * 6 * 2**20 + b'"', None, 413, "request_too_large"),
    Bad("body of 6 MiB and more", b'"' + b"x" * 6 * 2**20 + b'"', None, 413, "request_too_large", EMBEDDINGS),
    Bad("no such model to be ready", None, "model", 404, "model_not_found", "/ready/gpt-5", "GET"),
    Bad("wrong method", None, status=405, path=EMBEDDINGS, method="GET"),
    Bad("unknown route", None, status=404, path="/v1/nothing", method="GET"),
    Bad("unknown route, posted", {}, status=404, path="/v2/chat/completions"),
    Bad("wrong method", None, status=405, path=CHAT, method="GET"),
    Bad("models cannot be deleted", None, status=405, path="/v1/models", method="DELETE"),
    Bad("no such model", None, "model", 404, "model_not_found", "/v1/models/gpt-5", "GET"),
]


@pytest.mark.parametrize("bad", BAD, ids=[f"{bad.path} {bad.name}" for bad in BAD])
def test_a_bad_request(server: Running, client: OpenAI, bad: Bad) -> None:
    require_refusal(server.http, bad)
    good = client.completions.create(model="chat", prompt="One, two,", max_tokens=1)
    assert good.usage is not None
    assert good.usage.completion_tokens == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_body_that_grpc_would_not_take(server: Running, stream: bool) -> None:
    """Calls go from replica to replica by gRPC, whose own limit is 4 MiB."""
    body = {"model": "chat", "messages": message("word " * 2**20), "stream": stream}
    answered = server.http.post(CHAT, json=body)
    assert (answered.status_code, answered.json()["error"]["code"]) == (400, "context_length_exceeded"), answered.text


def test_the_official_client_knows_our_errors(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "hi"}])
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as wrong:
        client.completions.create(model="chat", prompt="hi", temperature=-1)
    assert wrong.value.param == "temperature"


def test_there_are_enough_of_them() -> None:
    assert len(BAD) >= 80


def test_a_body_without_end_is_cut_off(server: Running) -> None:
    """Its length is not announced, so that only counting helps."""
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 2**26:
            sent += 2**16
            yield b"x" * 2**16

    headers = {"Content-Type": "application/json"}
    answered = server.http.post(CHAT, content=endless(), headers=headers)
    assert (answered.status_code, answered.json()["error"]["code"]) == (413, "request_too_large")


def test_overload_is_told_at_once(server: Running) -> None:
    """More requests than one replica takes and than may wait: the rest is refused, and told when to try again."""
    scaling = server.settings.models[0].variants[0].scaling
    fits = scaling.max_ongoing_requests + scaling.max_queued_requests
    body = {"model": "chat", "prompt": "One, two,", "max_tokens": 8, "ignore_eos": True}

    def ask(_: int) -> httpx.Response:
        return server.http.post(TEXT, json=body)

    with ThreadPoolExecutor(2 * fits) as pool:
        answers = list(pool.map(ask, range(2 * fits)))
    good = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(good) + len(refused) == len(answers)
    assert len(good) >= scaling.max_ongoing_requests
    assert refused
    for answer in refused:
        assert answer.headers["Retry-After"] == str(scaling.retry_after_s)
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "overloaded")
    assert ask(0).status_code == 200


def test_a_client_that_leaves_frees_its_place(server: Running) -> None:
    """The engine's own count: a stream runs, its reader goes, and nothing more is generated long before its end."""
    tokens = 1900
    before = server.tokens("chat")
    body = {"model": "chat", "prompt": "Once upon", "max_tokens": tokens, "ignore_eos": True, "stream": True}
    with server.http.stream("POST", TEXT, json=body) as stream:
        lines = stream.iter_lines()  # kept: httpx closes the connection with the iterator
        assert next(lines).startswith("data: ")
    assert server.tokens("chat", above=before) - before < tokens


def test_a_mistake_of_ours_tells_nothing() -> None:
    """No server needed: an exception that no code expected, before and within an answer."""
    api = FastAPI()
    errors.install(api)

    @api.get("/broken")
    def broken() -> None:
        raise RuntimeError("the secret")

    answered = TestClient(api).get("/broken")
    assert answered.status_code == 500
    assert answered.json()["error"]["type"] == "server_error"
    assert "secret" not in answered.text
