"""The server through OpenAI's own client: right answers, in every way that one may ask."""

import subprocess
import sys
import textwrap

import httpx
import pytest
from openai import OpenAI

from tests.app.conftest import PROMPTS, Running, answer


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
    (model,) = client.models.list().data
    assert (model.id, model.object) == ("chat", "model")
    assert model.created > 0
    assert client.models.retrieve("chat") == model


def test_health(server: Running) -> None:
    answered = httpx.get(f"{server.url}/health", trust_env=False)
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
    now = httpx.get(f"{server.url}/ready", trust_env=False)
    assert (now.status_code, now.json()) == (200, {"ready": True})


def test_what_make_serve_says(server: Running) -> None:
    """The first answer is there, and the Python example works as it is printed."""
    assert "Paris" in server.output
    assert f"curl {server.url}/v1/chat/completions" in server.output
    example = textwrap.dedent(server.output.partition("will do):\n")[2].partition("\n\nlog:")[0])
    assert example.startswith("from openai import OpenAI")
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
