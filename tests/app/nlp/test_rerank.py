"""Re-ranking over HTTP, without a language model: by embeddings, and by a cross-encoder against transformers."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from app.deployments.rerank import CrossEncoder
from app.settings import Reranker, SettingsError
from tests.app.bad import Bad, require_refusal
from tests.app.conftest import client_of, eventually
from tests.app.nlp.conftest import MAX_TOKENS, Made
from tests.app.nlp.models import logits, make_classifier
from tests.app.ray_cluster import Cluster

RERANK = "/v1/rerank"
QUERY = "How do I bake bread?"
DOCUMENTS = [
    "Income tax is due in April.",
    "Knead the dough, let it rise for an hour, and put it into a hot oven.",
    "The football match ended in a draw.",
    "Flour, water, salt and yeast are all that a loaf needs.",
    "word " * 300,
]
BAKING = {1, 3}


def ask(cluster: Cluster, model: str, **fields: Any) -> dict[str, Any]:
    answered = cluster.http.post(RERANK, json={"model": model, "query": QUERY, "documents": DOCUMENTS, **fields})
    assert answered.status_code == 200, answered.text
    body = answered.json()
    assert (body["object"], body["model"], body["meta"]) == ("list", model, {})
    scores = [result["relevance_score"] for result in body["results"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    return body


def test_what_fits_comes_first(cluster: Cluster) -> None:
    body = ask(cluster, "cosine")
    order = [result["index"] for result in body["results"]]
    assert sorted(order) == list(range(len(DOCUMENTS)))
    assert set(order[:2]) == BAKING
    assert all(result.keys() == {"index", "relevance_score"} for result in body["results"])


def test_a_score_is_that_of_the_embeddings(cluster: Cluster) -> None:
    done = client_of(cluster.url).embeddings.create(model="embed", input=[QUERY, *DOCUMENTS[:-1]])
    query, *others = (np.asarray(item.embedding) for item in done.data)
    body = ask(cluster, "cosine", documents=DOCUMENTS[:-1])
    for result in body["results"]:
        assert result["relevance_score"] == pytest.approx((1 + query @ others[result["index"]]) / 2, abs=1e-5)
    assert body["usage"]["total_tokens"] == done.usage.total_tokens
    (same,) = ask(cluster, "cosine", documents=[QUERY])["results"]
    assert same["relevance_score"] == pytest.approx(1)


def test_only_the_best_with_their_texts(cluster: Cluster) -> None:
    documents = [{"text": text} if index % 2 else text for index, text in enumerate(DOCUMENTS)]
    for model in ("cosine", "cross"):
        every = ask(cluster, model)["results"]
        best = ask(cluster, model, documents=documents, top_n=2, return_documents=True)["results"]
        assert [result["index"] for result in best] == [result["index"] for result in every[:2]]
        for result in best:
            assert result["document"] == {"text": DOCUMENTS[result["index"]]}
        assert len(ask(cluster, model, top_n=100)["results"]) == len(DOCUMENTS)


def test_scores_equal_those_of_transformers(made: Made) -> None:
    body = ask(made.cluster, "cross")
    tokenizer = AutoTokenizer.from_pretrained(made.models["cross"])
    tokens = 0
    for result in body["results"]:
        document = DOCUMENTS[result["index"]]
        expected = logits(made.models["cross"], MAX_TOKENS, QUERY, document).sigmoid().item()
        assert result["relevance_score"] == pytest.approx(expected, abs=1e-5), document
        tokens += len(tokenizer(QUERY, document, truncation=True, max_length=MAX_TOKENS)["input_ids"])
    assert body["usage"] == {"total_tokens": tokens}


def test_requests_at_the_same_time_share_batches(cluster: Cluster) -> None:
    def batches() -> tuple[float, float]:
        return cluster.batches("Rerank:cross")

    def score(text: str) -> float:
        return ask(cluster, "cross", documents=[text])["results"][0]["relevance_score"]

    texts = [f"document number {number}" for number in range(64)]
    score("the first batch makes the metric")
    eventually("the metric is there", lambda: batches()[0] > 0)
    every, single = batches()
    with ThreadPoolExecutor(32) as pool:
        alone = list(pool.map(score, texts))
    for result in ask(cluster, "cross", documents=texts)["results"]:
        assert result["relevance_score"] == pytest.approx(alone[result["index"]], abs=1e-5)
    more, more_single = batches()
    assert more - every > more_single - single
    assert more - every < len(texts)


def test_every_reranker_is_listed_and_ready(cluster: Cluster) -> None:
    client = client_of(cluster.url)
    assert {model.id for model in client.models.list()} >= {"embed", "cosine", "cross"}
    assert client.get("/../ready", cast_to=dict[str, bool]) == {"ready": True}


def test_weights_that_are_no_cross_encoder(tmp_path: Path) -> None:
    classifier = make_classifier(tmp_path / "classifier", ["calm", "angry"])
    with pytest.raises(SettingsError, match="is no cross-encoder, it has 2 labels"):
        CrossEncoder(Reranker(source=str(classifier)))


def rerank(name: str, param: str | None, /, **fields: Any) -> Bad:
    """A good request but for `fields`; the answer must blame `param`."""
    return Bad(name, {"model": "cosine", "query": "hi", "documents": ["a", "b"], **fields}, param, path=RERANK)


BAD = [
    Bad("truncated JSON", b'{"query": ', path=RERANK),
    Bad("a list", ["hi"], path=RERANK),
    Bad("no query", {"model": "cosine", "documents": ["a"]}, "query", path=RERANK),
    Bad("no documents", {"model": "cosine", "query": "a"}, "documents", path=RERANK),
    Bad("no model, of two", {"query": "a", "documents": ["a"]}, "model", path=RERANK),
    rerank("empty query", "query", query=" "),
    rerank("query is a list", "query", query=["a"]),
    rerank("half a character", "query", query="\ud800"),
    rerank("documents are text", "documents", documents="a"),
    rerank("empty list", "documents", documents=[]),
    rerank("empty document", "documents", documents=["a", ""]),
    rerank("empty object", "documents", documents=[{}]),
    rerank("empty text in an object", "documents", documents=[{"text": "\n"}]),
    rerank("unknown field of a document", "documents", documents=[{"text": "a", "title": "b"}]),
    rerank("document is a number", "documents", documents=[1]),
    rerank("document is null", "documents", documents=[None]),
    rerank("half a character in a document", "documents", documents=["\udfff"]),
    rerank("half a character in an object", "documents", documents=[{"text": "\udfff"}]),
    rerank("too many documents", "documents", documents=["a"] * 1001),
    rerank("none of them", "top_n", top_n=0),
    rerank("top_n is text", "top_n", top_n="2"),
    rerank("top_n is not whole", "top_n", top_n=1.5),
    rerank("return_documents is text", "return_documents", return_documents="yes"),
    rerank("unknown model", "model", model="gpt-5")._replace(status=404, code="model_not_found"),
    rerank("embedding model", "model", model="embed")._replace(status=404, code="model_not_found"),
    rerank("model is null, of two", "model", model=None),
    rerank("unknown field", "rank_fields", rank_fields=["title"]),
    Bad("wrong method", None, status=405, path=RERANK, method="PUT"),
]


@pytest.mark.parametrize("bad", BAD, ids=[bad.name for bad in BAD])
def test_a_bad_request(cluster: Cluster, bad: Bad) -> None:
    require_refusal(cluster.http, bad)
    assert len(ask(cluster, "cross", documents=["a"])["results"]) == 1
