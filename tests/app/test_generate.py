"""/generate: the deployment that owns its vLLM engine."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai import OpenAI

from app.settings import GENERATE
from tests.app.bad import Bad, require_refusal
from tests.app.conftest import Running

SHAPES = ["cluster"]
PATH = "/generate"
PROMPT = "The capital of France is"


def ask(server: Running, **fields: Any) -> dict[str, Any]:
    answered = server.http.post(PATH, json={"prompt": PROMPT, "max_tokens": 16, "temperature": 0, **fields})
    assert answered.status_code == 200, answered.text
    assert answered.json().keys() == {"text", "tokens", "finish_reason"}
    return answered.json()


def events(server: Running, **fields: Any) -> list[dict[str, Any]]:
    """What a stream says, but for its [DONE]."""
    body = {"prompt": PROMPT, "max_tokens": 16, "temperature": 0, **fields, "stream": True}
    with server.http.stream("POST", PATH, json=body) as streamed:
        assert streamed.headers["Content-Type"].startswith("text/event-stream")
        lines = [line for line in streamed.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


@pytest.mark.parametrize("prompt", [PROMPT, "One, two, three,", "Der Hafen war", "def add(a, b):\n"])
def test_the_likeliest_text_is_that_of_the_openai_route(server: Running, client: OpenAI, prompt: str) -> None:
    expected = client.completions.create(model="chat", prompt=prompt, max_tokens=16, temperature=0)
    assert expected.usage is not None
    assert ask(server, prompt=prompt) == {
        "text": expected.choices[0].text,
        "tokens": expected.usage.completion_tokens,
        "finish_reason": expected.choices[0].finish_reason,
    }


def test_a_stream_says_the_same(server: Running) -> None:
    whole, parts = ask(server), events(server)
    assert len(parts) > 1
    assert "".join(part["text"] for part in parts) == whole["text"]
    assert (parts[-1]["tokens"], parts[-1]["finish_reason"]) == (whole["tokens"], whole["finish_reason"])
    assert [part["finish_reason"] for part in parts[:-1]] == [None] * (len(parts) - 1)
    counts = [part["tokens"] for part in parts]
    assert counts == sorted(set(counts))


@pytest.mark.parametrize("stop", [",", [",", "zebra"]])
def test_stop_is_not_part_of_the_text(server: Running, stop: str | list[str]) -> None:
    done = ask(server, prompt="One, two, three, four", stop=stop)
    assert done["finish_reason"] == "stop"
    assert "," not in done["text"]
    assert "".join(part["text"] for part in events(server, prompt="One, two, three, four", stop=stop)) == done["text"]


def test_seed_and_temperature(server: Running) -> None:
    drawn = [ask(server, temperature=1.5, seed=seed)["text"] for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1
    likeliest = {"max_tokens": 6}  # later, two tokens are equally likely
    assert ask(server, temperature=1.5, seed=4, top_p=1e-6, **likeliest) == ask(server, **likeliest)


def test_the_number_of_tokens(server: Running) -> None:
    for most in (1, 2, 7):
        done = ask(server, max_tokens=most)
        assert (done["tokens"], done["finish_reason"]) == (most, "length")


def test_requests_at_the_same_time_share_the_steps_of_the_engine(server: Running) -> None:
    def steps() -> float:
        return server.engine_count("ray_vllm_iteration_tokens_total_count", GENERATE)

    # What earlier tests made may not be counted yet, each token a step: here are many more.
    tokens_before, steps_before = server.tokens(GENERATE), steps()
    with ThreadPoolExecutor(16) as pool:
        done = list(pool.map(lambda number: ask(server, prompt=f"Number {number} is", max_tokens=100), range(48)))
    tokens = sum(one["tokens"] for one in done)
    assert tokens > 600
    server.tokens(GENERATE, above=tokens_before + tokens - 1)  # all of them are counted
    assert steps() - steps_before < tokens / 2


def test_a_client_that_leaves_stops_the_engine(server: Running) -> None:
    before = server.tokens(GENERATE)
    body = {"prompt": "Once upon", "max_tokens": 2000, "stop": ["no such text"], "stream": True}
    with server.http.stream("POST", PATH, json=body) as streamed:
        lines = streamed.iter_lines()  # kept: httpx closes the connection with the iterator
        assert next(lines).startswith("data: ")
    assert server.tokens(GENERATE, above=before) - before < 2000


def test_a_prompt_longer_than_the_model(server: Running) -> None:
    for stream in (False, True):
        answered = server.http.post(PATH, json={"prompt": "word " * 3000, "max_tokens": 4, "stream": stream})
        error = answered.json()["error"]
        assert (answered.status_code, error["code"]) == (400, "context_length_exceeded"), answered.text
        assert "2048" in error["message"]


def generate(name: str, param: str | None = None, /, **fields: Any) -> Bad:
    """A good request but for `fields`; the answer must blame `param`."""
    return Bad(name, {"prompt": "hi", "max_tokens": 1, **fields}, param, path=PATH)


BAD = [
    Bad("truncated JSON", b'{"prompt": ', path=PATH),
    Bad("no body", b"", path=PATH),
    Bad("a text", "hi", path=PATH),
    Bad("a list", ["hi"], path=PATH),
    Bad("null", None, path=PATH),
    Bad("not UTF-8", b'{"prompt": "\xff"}', path=PATH),
    Bad("no prompt", {}, "prompt", path=PATH),
    Bad("wrong method", None, status=405, path=PATH, method="GET"),
    Bad("a form", b"prompt=hi", path=PATH, content_type="application/x-www-form-urlencoded"),
    generate("an empty prompt", "prompt", prompt=""),
    generate("null for a prompt", "prompt", prompt=None),
    generate("a number for a prompt", "prompt", prompt=3),
    generate("a list of prompts", "prompt", prompt=["hi"]),
    generate("half a character", "prompt", prompt="hi \ud800"),
    generate("below no temperature", "temperature", temperature=-0.1),
    generate("above any temperature", "temperature", temperature=2.1),
    generate("a text for a temperature", "temperature", temperature="hot"),
    generate("true for a temperature", "temperature", temperature=True),
    generate("no share", "top_p", top_p=0),
    generate("more than all", "top_p", top_p=1.1),
    generate("no tokens", "max_tokens", max_tokens=0),
    generate("less than no tokens", "max_tokens", max_tokens=-1),
    generate("tokens beyond counting", "max_tokens", max_tokens=2**40),
    generate("half a token", "max_tokens", max_tokens=1.5),
    generate("a text for a number", "max_tokens", max_tokens="16"),
    generate("null for a number", "max_tokens", max_tokens=None),
    generate("an empty stop", "stop", stop=""),
    generate("an empty stop of several", "stop", stop=["a", ""]),
    generate("a number for a stop", "stop", stop=3),
    generate("half a character to stop at", "stop", stop="\udfff"),
    generate("more stops than taken", "stop", stop=list("abcdefghijklmnopq")),
    generate("a seed beyond 64 bits", "seed", seed=2**63),
    generate("a text for a seed", "seed", seed="one"),
    generate("a text for stream", "stream", stream="yes"),
    generate("a field of OpenAI's that is not here", "model", model="chat"),
    generate("a typo", "max_token", max_token=3),
]


@pytest.mark.parametrize("bad", BAD, ids=[bad.name for bad in BAD])
def test_a_bad_request(server: Running, bad: Bad) -> None:
    require_refusal(server.http, bad)
    assert ask(server, max_tokens=1)["tokens"] == 1
