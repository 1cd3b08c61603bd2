"""The pipeline: over HTTP without a summary, and its orchestrator with stages that wait for each other."""

import asyncio
import unicodedata
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError
from tokenizers import Tokenizer

from app.builtin import ensure
from app.deployments import pipeline
from app.deployments.pipeline import Analysis, Analyze, Prepared, Preprocess
from app.errors import ApiError
from app.settings import EmbeddingModel
from tests.app.bad import Bad, require_refusal
from tests.app.nlp.conftest import MAX_CHARACTERS
from tests.app.ray_cluster import Cluster

ANALYZE = "/analyze"
ENGLISH = "The old harbour was quiet this morning, and I loved every minute of my wonderful walk along the sea."
GERMAN = "Der alte Hafen war heute Morgen ruhig, und die Fischer flickten ihre Netze."
FRENCH = "Le vieux port était calme ce matin, et les pêcheurs réparaient leurs filets."


def ask(cluster: Cluster, text: str) -> dict[str, Any]:
    answered = cluster.http.post(ANALYZE, json={"text": text})
    assert answered.status_code == 200, answered.text
    return answered.json()


@pytest.mark.parametrize(("text", "language"), [(ENGLISH, "en"), (GERMAN, "de"), (FRENCH, "fr")])
def test_the_language_and_the_tokens(cluster: Cluster, text: str, language: str) -> None:
    done = ask(cluster, text)
    tokenizer = Tokenizer.from_file(str(ensure("all-minilm-l6-v2") / "tokenizer.json"))
    tokens = sum(tokenizer.encode(text, add_special_tokens=False).attention_mask)  # its file pads
    assert (done["language"], done["tokens"], done["original_length"]) == (language, tokens, len(text))
    assert (done["summary"], done["errors"]) == (None, [])


@pytest.mark.parametrize(
    ("text", "label"),
    [(ENGLISH, "positive"), ("I hate this terrible place.", "negative"), ("It has four legs.", "neutral")],
)
def test_the_sentiment_is_the_classifiers(cluster: Cluster, text: str, label: str) -> None:
    sentiment = ask(cluster, text)["sentiment"]
    (classified,) = cluster.http.post("/v1/classify", json={"model": "sentiment", "input": text}).json()["data"]
    assert sentiment == {"label": classified["label"], "score": classified["score"]}
    assert sentiment["label"] == label


def test_every_stage_is_a_deployment_of_its_own(cluster: Cluster) -> None:
    deployments = cluster.deployments()
    assert {"Analyze", "Preprocess", "Classifier:sentiment"} <= deployments.keys()
    assert deployments["Preprocess"]["target_num_replicas"] == 2
    ready = cluster.http.get("/ready/analyze")
    assert ready.json() == {"ready": True}


def test_the_longest_text(cluster: Cluster) -> None:
    assert ask(cluster, "é" * MAX_CHARACTERS)["original_length"] == MAX_CHARACTERS
    refused = cluster.http.post(ANALYZE, json={"text": "é" * (MAX_CHARACTERS + 1)})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "text_too_long")
    assert str(MAX_CHARACTERS) in refused.json()["error"]["message"]


def test_a_text_is_normalised() -> None:
    prepared = Preprocess(None)._prepare(unicodedata.normalize("NFD", FRENCH))
    assert prepared.text == FRENCH
    assert prepared.words == prepared.tokens == len(FRENCH.split())


def test_long_texts_are_counted_in_full() -> None:
    """The tokenizer's own file says to cut off at 128 tokens, and to pad to that."""
    preprocess = Preprocess(EmbeddingModel())
    assert preprocess._prepare("word " * 1000).tokens == 1000
    assert preprocess._prepare("word").tokens == 1


class FakeStage:
    """In place of a deployment's handle: every method of it is `answer`."""

    def __init__(self, answer: Callable[[], Awaitable[Any]]) -> None:
        self._answer = answer

    def __getattr__(self, method: str) -> "FakeStage":
        return self

    def remote(self, *_: Any) -> Awaitable[Any]:
        return self._answer()


async def _prepared() -> Prepared:
    return Prepared(ENGLISH, "en", 40, 40)


async def _positive() -> list[dict[str, float]]:
    return [{"positive": 0.75, "negative": 0.25}]


async def _summarized() -> str:
    return "A walk."


def _failing(error: Exception) -> Callable[[], Awaitable[Any]]:
    async def fail() -> Any:
        raise error

    return fail


def _analyze(
    sentiment: Callable[[], Awaitable[Any]] = _positive,
    summary: Callable[[], Awaitable[Any]] = _summarized,
    preprocess: Callable[[], Awaitable[Any]] = _prepared,
    min_words: int = 1,
) -> Analysis:
    stages: list[Any] = [FakeStage(preprocess), FakeStage(sentiment), FakeStage(summary)]
    return asyncio.run(asyncio.wait_for(Analyze(*stages, min_words=min_words).analyze(ENGLISH), 10))


def test_sentiment_and_summary_run_at_the_same_time() -> None:
    """Each waits until the other one has begun; one after the other they would wait for ever."""
    feels, sums_up = asyncio.Event(), asyncio.Event()

    async def sentiment() -> Any:
        feels.set()
        await sums_up.wait()
        return await _positive()

    async def summary() -> str:
        sums_up.set()
        await feels.wait()
        return await _summarized()

    done = _analyze(sentiment, summary)
    assert done.sentiment
    assert (done.sentiment.label, done.sentiment.score, done.summary, done.errors) == ("positive", 0.75, "A walk.", [])


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ApiError(400, "the model chat: the text is too long"), "the model chat: the text is too long"),
        (RuntimeError("the secret"), "internal error; the server's log says more"),
        (RayTaskError("f", "", RayActorError()), "the model {} has failed and is being restarted; try again later"),
    ],
)
def test_a_stage_that_fails_is_named(error: Exception, message: str) -> None:
    done = _analyze(summary=_failing(error))
    assert done.sentiment
    assert done.summary is None
    assert [failure.model_dump() for failure in done.errors] == [
        {"stage": "summary", "message": message.format("summary")}
    ]
    done = _analyze(sentiment=_failing(error))
    assert (done.sentiment, done.summary) == (None, "A walk.")
    assert [failure.model_dump() for failure in done.errors] == [
        {"stage": "sentiment", "message": message.format("sentiment")}
    ]


def test_a_stage_that_never_answers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "STAGE_SECONDS", 0.1)
    done = _analyze(summary=lambda: asyncio.sleep(3600))
    assert done.sentiment
    assert [(failure.stage, failure.message) for failure in done.errors] == [("summary", "gave no answer within 0.1 s")]


def test_a_short_text_is_not_summarised() -> None:
    done = _analyze(summary=_failing(RuntimeError("not asked")), min_words=41)
    assert (done.summary, done.errors) == (None, [])


def test_without_preprocessing_there_is_no_answer() -> None:
    with pytest.raises(RuntimeError):
        _analyze(preprocess=_failing(RuntimeError("broken")))


def analyze(name: str, text: Any) -> Bad:
    """A request with a bad text."""
    return Bad(name, {"text": text}, "text", path=ANALYZE)


BAD = [
    Bad("truncated JSON", b'{"text": ', path=ANALYZE),
    Bad("no body", b"", path=ANALYZE),
    Bad("a text", "hi", path=ANALYZE),
    Bad("no text", {}, "text", path=ANALYZE),
    Bad("unknown field", {"text": "hi", "model": "chat"}, "model", path=ANALYZE),
    analyze("empty", ""),
    analyze("only spaces", " \n\t "),
    analyze("null", None),
    analyze("a number", 3),
    analyze("true", True),
    analyze("a list", ["hi"]),
    analyze("an object", {"text": "hi"}),
    analyze("half a character", "hi \ud800"),
    analyze("too long", "a" * (MAX_CHARACTERS + 1))._replace(code="text_too_long"),
    Bad("wrong method", None, status=405, path=ANALYZE, method="GET"),
]


@pytest.mark.parametrize("bad", BAD, ids=[bad.name for bad in BAD])
def test_a_bad_request(cluster: Cluster, bad: Bad) -> None:
    require_refusal(cluster.http, bad)
    assert ask(cluster, "I love it")["sentiment"]["label"] == "positive"
