"""Classification and moderation over HTTP, without a language model, against the classifiers computed directly."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from profanity_check import predict_prob
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from app.builtin import ensure
from app.deployments.classification import Classification
from app.deployments.sequences import Sequences
from app.settings import Classifier, SettingsError
from tests.app.bad import Bad, require_refusal
from tests.app.conftest import client_of, eventually
from tests.app.nlp.conftest import LABELS, MAX_TOKENS, Made
from tests.app.nlp.models import logits
from tests.app.ray_cluster import Cluster

CLASSIFY = "/v1/classify"
MODERATIONS = "/v1/moderations"
TEXTS = [
    "ocean",
    "What a lovely day, I am so happy!",
    "This is the worst meal of my life, and I hated every bite of it.",
    "The table has four legs.",
    "Ein deutscher Satz über das Meer, mit Umlauten: äöü.",
    "日本語の文章です。",
    "word " * 200,
]


def ask(cluster: Cluster, model: str, given: str | list[str]) -> list[dict[str, Any]]:
    answered = cluster.http.post(CLASSIFY, json={"model": model, "input": given})
    assert answered.status_code == 200, answered.text
    body = answered.json()
    assert (body["object"], body["model"]) == ("list", model)
    assert [item["index"] for item in body["data"]] == list(range(len(body["data"])))
    for item in body["data"]:
        assert item["score"] == item["scores"][item["label"]] == max(item["scores"].values())
    return body["data"]


@pytest.mark.parametrize("model", ["single", "multi", "decoder"])
def test_scores_equal_those_of_transformers(made: Made, model: str) -> None:
    together = ask(made.cluster, model, TEXTS)
    assert len(together) == len(TEXTS)
    for text, item in zip(TEXTS, together, strict=True):
        raw = logits(made.models[model], MAX_TOKENS, text)
        expected = raw.sigmoid() if model == "multi" else raw.softmax(0)
        assert item["scores"] == pytest.approx(dict(zip(LABELS, expected.tolist(), strict=True)), abs=1e-5), text
        (alone,) = ask(made.cluster, model, text)
        assert alone["scores"] == pytest.approx(item["scores"], abs=1e-5)


def test_the_sentiment_is_what_vader_says(cluster: Cluster) -> None:
    analyzer = SentimentIntensityAnalyzer()
    texts = [*TEXTS[:-1], "I love it", "I hate it", "ok", "not bad at all", "It is good, but the service was awful."]
    for text, item in zip(texts, ask(cluster, "sentiment", texts), strict=True):
        compound = analyzer.polarity_scores(text)["compound"]
        # The rule in VADER's own documentation.
        expected = "positive" if compound >= 0.05 else "negative" if compound <= -0.05 else "neutral"
        assert item["label"] == expected, text
        assert sum(item["scores"].values()) == pytest.approx(1)


def test_offensiveness_is_what_the_package_says(cluster: Cluster) -> None:
    texts = ["You stupid idiot", "How do I bake bread?", "nice " * 2000 + "you stupid idiot"]
    for item, expected in zip(ask(cluster, "safety", texts), predict_prob(texts), strict=True):
        assert item["scores"]["offensive"] == pytest.approx(expected)
        assert sum(item["scores"].values()) == pytest.approx(1)


def test_requests_at_the_same_time_share_batches(cluster: Cluster) -> None:
    def batches() -> tuple[float, float]:
        return cluster.batches("Classifier:single")

    texts = [f"text number {number}" for number in range(64)]
    ask(cluster, "single", "the first batch makes the metric")
    eventually("the metric is there", lambda: batches()[0] > 0)
    every, single = batches()
    with ThreadPoolExecutor(32) as pool:
        alone = list(pool.map(lambda text: ask(cluster, "single", text)[0]["scores"], texts))
    for scores, item in zip(alone, ask(cluster, "single", texts), strict=True):
        assert scores == pytest.approx(item["scores"], abs=1e-5)
    more, more_single = batches()
    assert more - every > more_single - single
    assert more - every < len(texts)


def test_moderation_by_the_official_client(cluster: Cluster) -> None:
    client = client_of(cluster.url)
    texts = ["You stupid idiot, go to hell", "How do I bake bread?"]
    done = client.moderations.create(input=texts, model="safety")
    assert done.id.startswith("modr-")
    assert done.model == "safety"
    assert [result.flagged for result in done.results] == [True, False]
    for result, score in zip(done.results, predict_prob(texts), strict=True):
        assert result.categories.model_extra == {"offensive": result.flagged}
        assert result.category_scores.model_extra == {"offensive": pytest.approx(score)}
    (alone,) = client.moderations.create(input=texts[0]).results
    assert alone.flagged


def test_every_classifier_is_listed_and_ready(cluster: Cluster) -> None:
    client = client_of(cluster.url)
    listed = [model.id for model in client.models.list()]
    assert set(listed) >= {"sentiment", "safety", "single", "multi", "decoder"}
    assert client.get("/../ready", cast_to=dict[str, bool]) == {"ready": True}


def test_a_label_that_the_classifier_does_not_know() -> None:
    with pytest.raises(SettingsError, match=r"unsafe = 'ofensive'.*use offensive"):
        Classification(Classifier(name="safety", source="builtin:profanity", unsafe=["ofensive"]))


def test_weights_that_are_no_classifier() -> None:
    with pytest.raises(SettingsError, match="is no text classifier, it has no classifier"):
        Sequences(Classifier(name="wrong", source=str(ensure("all-minilm-l6-v2"))))


def test_replicas_without_a_model_of_their_own_are_small() -> None:
    """What they import; torch and vLLM would take 500 MB and more of each."""
    script = """
import sys
from app.deployments import classification, pipeline, rerank
from app.settings import Classifier
for source in ("builtin:profanity", "builtin:vader-sentiment"):
    classification.Classification(Classifier(name="one", source=source))
print({"torch", "transformers", "vllm"} & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() == "set()"


def classify(name: str, param: str | None = "input", /, **fields: Any) -> Bad:
    """A good request to classify but for `fields`; the answer must blame `param`."""
    return Bad(name, {"model": "sentiment", "input": "hi", **fields}, param, path=CLASSIFY)


def moderate(name: str, param: str | None = "input", /, **fields: Any) -> Bad:
    """A good request to moderate but for `fields`."""
    return Bad(name, {"input": "hi", **fields}, param, path=MODERATIONS)


BAD = [
    Bad("truncated JSON", b'{"input": ', path=CLASSIFY),
    Bad("no body", b"", path=CLASSIFY),
    Bad("a list", ["hi"], path=CLASSIFY),
    Bad("no input", {"model": "sentiment"}, "input", path=CLASSIFY),
    Bad("no model, of several", {"input": "hi"}, "model", path=CLASSIFY),
    classify("empty text", input=""),
    classify("only spaces", input=" \n\t"),
    classify("empty list", input=[]),
    classify("empty text in a list", input=["hi", ""]),
    classify("null", input=None),
    classify("a number", input=3),
    classify("an object", input={"text": "hi"}),
    classify("null in a list", input=["hi", None]),
    classify("tokens", input=[1, 2]),
    classify("half a character", input="\ud800"),
    classify("half a character in a list", input=["hi", "\udfff"]),
    classify("too many texts", input=["hi"] * 2049),
    classify("unknown model", "model", model="gpt-5")._replace(status=404, code="model_not_found"),
    classify("model is a number", "model", model=3),
    classify("unknown field", "threshold", threshold=0.5),
    Bad("wrong method", None, status=405, path=CLASSIFY, method="PUT"),
    Bad("truncated JSON", b'{"input": ', path=MODERATIONS),
    Bad("no input", {}, "input", path=MODERATIONS),
    moderate("empty text", input=""),
    moderate("empty list", input=[]),
    moderate("an image", input=[{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}]),
    moderate("half a character", input="\ud800"),
    moderate("too many texts", input=["hi"] * 2049),
    moderate("another classifier", "model", model="sentiment")._replace(status=404, code="model_not_found"),
    moderate("unknown field", "user", user="me"),
]


@pytest.mark.parametrize("bad", BAD, ids=[f"{bad.path} {bad.name}" for bad in BAD])
def test_a_bad_request(cluster: Cluster, bad: Bad) -> None:
    require_refusal(cluster.http, bad)
    assert ask(cluster, "sentiment", "I love it")[0]["label"] == "positive"
