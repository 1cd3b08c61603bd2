"""Embeddings over HTTP, against transformers computed directly: one text at a time, no padding, no server."""

import base64
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from openai import OpenAI
from transformers import AutoModel, AutoTokenizer

from app.builtin import ensure
from tests.app.conftest import RAY, Running, batches, eventually

SHAPES = ["local"]
TEXTS = [
    "ocean",
    "The cat sat on the mat.",
    "Ein deutscher Satz über das Meer, mit Umlauten: äöü.",
    "日本語の文章です。",
    "Two  spaces\tand a tab\nand a line",
    "word " * 240,
]


@cache
def _model() -> tuple[Any, Any]:
    source = ensure("all-minilm-l6-v2")
    return AutoTokenizer.from_pretrained(source), AutoModel.from_pretrained(source, dtype=torch.float32).eval()


@torch.inference_mode()
def directly(text: str, limit: int = 256) -> np.ndarray:
    """The vector as the model's authors compute it: the mean of the tokens' vectors, of length 1."""
    tokenizer, model = _model()
    inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=limit)
    vector = model(**inputs).last_hidden_state[0].mean(0).numpy()
    return vector / np.linalg.norm(vector)


def number_of_tokens(text: str) -> int:
    return len(_model()[0](text)["input_ids"])


def close(one: object, other: np.ndarray) -> bool:
    vector = np.asarray(one)
    norm = float(np.linalg.norm(vector))
    return vector.shape == other.shape and abs(norm - 1) < 1e-5 and float(vector @ other) > 0.9999


@pytest.mark.parametrize("text", TEXTS)
def test_a_vector_equals_that_of_transformers(client: OpenAI, text: str) -> None:
    done = client.embeddings.create(model="embed", input=text)
    assert close(done.data[0].embedding, directly(text))
    assert done.usage.prompt_tokens == done.usage.total_tokens == number_of_tokens(text)


def test_a_list_keeps_its_order(client: OpenAI) -> None:
    done = client.embeddings.create(model="embed", input=TEXTS, encoding_format="float")
    assert [item.index for item in done.data] == list(range(len(TEXTS)))
    for item, text in zip(done.data, TEXTS, strict=True):
        assert close(item.embedding, directly(text)), text
    assert done.usage.prompt_tokens == sum(map(number_of_tokens, TEXTS))


def test_base64_holds_the_same_numbers(server: Running) -> None:
    def ask(encoding: str) -> dict:
        body = {"model": "embed", "input": "ocean", "encoding_format": encoding}
        return server.http.post("/v1/embeddings", json=body).json()

    packed = np.frombuffer(base64.b64decode(ask("base64")["data"][0]["embedding"]), dtype="<f4")
    assert np.allclose(packed, ask("float")["data"][0]["embedding"], atol=1e-6)


def test_like_texts_are_closer_than_others(client: OpenAI) -> None:
    data = client.embeddings.create(model="embed", input=["a small dog", "a little puppy", "tax law"]).data
    dog, puppy, law = (np.asarray(item.embedding) for item in data)
    assert dog @ puppy > dog @ law + 0.2


def test_a_long_text_is_cut_off_only_when_asked(server: Running) -> None:
    text = "word " * 1000

    def ask(**more: int) -> httpx.Response:
        body = {"model": "embed", "input": text, **more}
        return server.http.post("/v1/embeddings", json=body)

    refused = ask()
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    for tokens, expected in ((-1, 256), (16, 16), (100_000, 256)):
        cut = ask(truncate_prompt_tokens=tokens).json()
        assert cut["usage"]["prompt_tokens"] == expected
        assert close(cut["data"][0]["embedding"], directly(text, limit=expected))


def test_cutting_one_text_off_does_not_cut_another(server: Running) -> None:
    """Tokenizers keep where to cut as their own state, which threads would share."""

    def tokens(cut: int) -> int:
        body = {"model": "embed", "input": "word " * 200, "truncate_prompt_tokens": cut}
        answered = server.http.post("/v1/embeddings", json=body)
        return answered.json()["usage"]["prompt_tokens"]

    wanted = [8, 64, 100_000] * 20
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(tokens, wanted)) == [min(cut, 202) for cut in wanted]


def test_the_model_may_be_left_out(server: Running) -> None:
    answered = server.http.post("/v1/embeddings", json={"input": "ocean"})
    assert answered.json()["model"] == "embed"


def test_requests_at_the_same_time_share_batches(server: Running, client: OpenAI) -> None:
    def counted() -> tuple[float, float]:
        return batches(RAY, "Embeddings:embed")

    texts = [f"text number {number}" for number in range(64)]
    client.embeddings.create(model="embed", input="the first batch makes the metric")
    eventually("the metric is there", lambda: "ray_serve_actual_batch_size" in server.metrics())
    every, single = counted()
    with ThreadPoolExecutor(32) as pool:
        done = list(pool.map(lambda text: client.embeddings.create(model="embed", input=text).data[0].embedding, texts))
    for text, vector in zip(texts, done, strict=True):
        assert close(vector, directly(text)), text

    every_after, single_after = counted()
    assert every_after - every > single_after - single
    assert every_after - every < len(texts)
