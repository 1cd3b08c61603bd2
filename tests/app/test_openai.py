"""The server through OpenAI's own client: right answers, in every way that one may ask."""

import json
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest
from openai import OpenAI

from tests.app.conftest import PROMPTS, Running, answer

SHAPES = ["local"]
HELLO: Any = [{"role": "user", "content": "Say hi"}]


@pytest.mark.parametrize("index", range(len(PROMPTS)))
def test_answers_equal_those_of_vllm(client: OpenAI, vllm_answers: list[str | None], index: int) -> None:
    expected = vllm_answers[index]
    assert expected
    assert answer(client, PROMPTS[index]) == expected


def test_the_model_makes_sense(client: OpenAI) -> None:
    assert "Paris" in (answer(client, "What is the capital of France?") or "")


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_streamed_answer_is_the_same(client: OpenAI, prompt: str) -> None:
    stream = client.chat.completions.create(
        model="chat",
        messages=[{"role": "user", "content": prompt}],
        max_tokens=24,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    parts = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(parts) == answer(client, prompt)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] in ("stop", "length")
    usage = chunks[-1].usage
    assert usage is not None
    assert 0 < usage.completion_tokens <= 24
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * len(parts)


def test_usage_is_in_every_event_for_who_asks_for_that_and_in_none_for_who_does_not(client: OpenAI) -> None:
    def usages(**options: Any) -> list[bool]:
        prompt = [{"role": "user", "content": "Say hi"}]
        stream = client.chat.completions.create(
            **{"model": "chat", "messages": prompt, "max_tokens": 3, "stream": True, **options}
        )
        return [chunk.usage is not None for chunk in stream]

    assert not any(usages())
    often = {"include_usage": True, "continuous_usage_stats": True}
    assert all(usages(stream_options=often))


def test_completions(client: OpenAI) -> None:
    def complete() -> str:
        return (
            client.completions.create(model="chat", prompt="The capital of France is", max_tokens=8, temperature=0)
            .choices[0]
            .text
        )

    text = complete()
    assert "Paris" in text
    assert complete() == text


def test_streamed_completions(client: OpenAI) -> None:
    wanted = {"model": "chat", "prompt": "One, two, three,", "max_tokens": 8, "temperature": 0}
    whole = client.completions.create(**wanted)
    parts = [chunk.choices[0].text for chunk in client.completions.create(**wanted, stream=True)]
    assert len(parts) > 1
    assert "".join(parts) == whole.choices[0].text
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 8


def test_stop_sequences_and_seeds(client: OpenAI) -> None:
    def tell(seed: int, stop: str | None = None) -> str:
        return (
            client.completions.create(
                model="chat", prompt="Once upon", max_tokens=16, temperature=1, seed=seed, stop=stop
            )
            .choices[0]
            .text
        )

    story = tell(1)
    assert tell(1) == story
    word = story.split()[1]
    assert tell(1, stop=word) == story.partition(word)[0]


def test_models(client: OpenAI) -> None:
    models = client.models.list().data
    assert [model.id for model in models] == ["chat", "chat:odd", "embed", "sentiment", "safety", "rerank"]
    for model in models:
        assert model.object == "model"
        assert model.created > 0
        assert client.models.retrieve(model.id) == model


def test_a_variant_can_be_pinned(client: OpenAI) -> None:
    completion = client.chat.completions.create(model="chat@stable", messages=HELLO, max_tokens=4)
    assert completion.model == "chat"


def test_a_model_may_be_left_out_where_there_is_one(server: Running) -> None:
    body = {"messages": HELLO, "max_tokens": 1}
    answered = server.http.post("/v1/chat/completions", json=body)
    assert (answered.status_code, answered.json()["model"]) == (200, "chat")


def test_an_adapter_changes_the_answer(client: OpenAI) -> None:
    def ask(model: str) -> tuple[str, str | None]:
        done = client.chat.completions.create(model=model, messages=HELLO, max_tokens=12, temperature=0)
        return done.model, done.choices[0].message.content

    plain = ask("chat")
    adapted = ask("chat:odd")
    assert (plain[0], adapted[0]) == ("chat", "chat:odd")
    assert plain[1] != adapted[1]
    assert ask("chat@stable:odd") == adapted
    assert ask("chat") == plain


def test_several_choices_with_logprobs(client: OpenAI) -> None:
    done = client.chat.completions.create(
        model="chat", messages=HELLO, max_tokens=6, n=3, seed=1, temperature=1, logprobs=True, top_logprobs=2
    )
    assert [choice.index for choice in done.choices] == [0, 1, 2]
    for choice in done.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content
        for token in choice.logprobs.content:
            assert token.logprob <= 0
            assert len(token.top_logprobs) == 2


def test_structured_outputs(client: OpenAI) -> None:
    properties = {"city": {"type": "string", "enum": ["Paris", "Rome"]}, "large": {"type": "boolean"}}
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    done = client.chat.completions.create(
        model="chat",
        messages=HELLO,
        max_tokens=256,
        temperature=0,  # JSON may hold any space, and a small model that is left to chance fills its answer with it
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": True}},
    )
    jsonschema.validate(json.loads(done.choices[0].message.content or ""), schema)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls(client: OpenAI, choice: Any, stream: bool) -> None:
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
    }
    tool: Any = {"type": "function", "function": {"name": "get_weather", "parameters": parameters}}
    wanted: dict[str, Any] = {
        "model": "chat",
        "messages": [{"role": "user", "content": "How is the weather in Paris?"}],
        "max_tokens": 64,
        "temperature": 0,
        "tools": [tool],
        "tool_choice": choice,
    }
    if stream:
        chunks = list(client.chat.completions.create(**wanted, stream=True))
        calls = [call for chunk in chunks if chunk.choices for call in chunk.choices[0].delta.tool_calls or []]
        parts = [call.function for call in calls if call.function]
        name = next(part.name for part in parts if part.name)
        arguments = "".join(part.arguments or "" for part in parts)
    else:
        (call,) = client.chat.completions.create(**wanted).choices[0].message.tool_calls
        name, arguments = call.function.name, call.function.arguments
    assert name == "get_weather"
    jsonschema.validate(json.loads(arguments), parameters)


def test_tools_are_offered_when_the_model_may_choose(client: OpenAI) -> None:
    tool: Any = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
    done = client.chat.completions.create(model="chat", messages=HELLO, max_tokens=4, tools=[tool], tool_choice="auto")
    without = client.chat.completions.create(model="chat", messages=HELLO, max_tokens=4)
    assert done.usage is not None
    assert without.usage is not None
    assert done.usage.prompt_tokens >= without.usage.prompt_tokens


def test_32_streams_at_once_complete(client: OpenAI) -> None:
    def stream(number: int) -> tuple[str, str | None, int]:
        chunks = list(
            client.chat.completions.create(
                model="chat",
                messages=[{"role": "user", "content": PROMPTS[number % len(PROMPTS)]}],
                max_tokens=24,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        reason = next(c.choices[0].finish_reason for c in reversed(chunks) if c.choices)
        assert chunks[-1].usage is not None
        return text, reason, chunks[-1].usage.completion_tokens

    with ThreadPoolExecutor(32) as pool:
        done = list(pool.map(stream, range(32)))
    for text, reason, tokens in done:
        assert text
        assert reason in ("stop", "length")
        assert 0 < tokens <= 24


def test_health(server: Running) -> None:
    answered = server.http.get("/health")
    assert (answered.status_code, answered.json()) == (200, {"healthy": True})


def test_ready_means_that_a_token_was_generated(server: Running) -> None:
    """While Ray already lists the model, /ready says no; then a token makes it say yes for good."""
    early = [p for p in server.probes if p.models == 200 and p.ready.status_code != 200]
    assert early, "the server was never seen with its engine still loading"
    for probe in early:
        assert probe.ready.status_code == 503
        assert probe.ready.json()["error"]["code"] == "not_ready"
    statuses = [probe.ready.status_code for probe in server.probes]
    first = statuses.index(200) if 200 in statuses else len(statuses)
    assert set(statuses[first:]) <= {200}
    now = server.http.get("/ready")
    assert (now.status_code, now.json()) == (200, {"ready": True})


def test_what_make_serve_says(server: Running) -> None:
    """The first answer is there, and the Python example works as it is printed."""
    assert "Paris" in server.output
    assert f"curl {server.url}/v1/chat/completions" in server.output
    example = textwrap.dedent(server.output.partition("will do):\n")[2].partition("\n\nmodels:")[0])
    assert example.startswith("from openai import OpenAI")
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
