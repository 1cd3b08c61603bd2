"""Re-ranking: how well documents fit a query, by a cross-encoder or by an embedding model's vectors."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from app.answers import Embedded
from app.deployments import batching
from app.handles import once_more
from app.settings import Batching, Reranker, SettingsError
from app.validation import validate


class Relevance(NamedTuple):
    """The answer to one request."""

    scores: list[float]
    """0 … 1 for each document, in the documents' order; greater fits better."""
    tokens: int
    """Number of tokens that the model has read."""


def build(reranker: Reranker, embeddings: Application | None) -> Application:
    """The Serve deployment of one reranker; `embeddings` is the embedding model that its settings name."""
    deployment = batching.deployment(reranker)
    if embeddings is not None:
        return deployment(Cosines).bind(embeddings)
    return deployment(CrossEncoder).bind(reranker)


class CrossEncoder:
    """One replica of a model that reads query and document together, on a GPU when the placement asks for one.

    Raises SettingsError when the model has more than one label.
    """

    def __init__(self, reranker: Reranker) -> None:
        from app.deployments.sequences import Sequences  # imports torch, which Cosines can do without

        self._model = Sequences(reranker)
        if len(self._model.labels) != 1:
            raise SettingsError(
                f"source = {reranker.source!r}: is no cross-encoder, it has {len(self._model.labels)} labels and not "
                "one; fix: use a model that was trained to re-rank"
            )
        self._batches = batching.Batches(
            self._score, reranker.placement, length=lambda pair: len(pair[0]) + len(pair[1])
        )

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take new `Batching` settings while requests go on. Raises SettingsError."""
        self._batches.reconfigure(user_config)

    async def rerank(self, query: str, documents: Sequence[str]) -> Relevance:
        """The sigmoid of the model's logit for each document; a pair of more than `max_tokens` is cut off."""
        found = await self._batches.results([(query, document) for document in documents])
        return Relevance([score for score, _ in found], sum(tokens for _, tokens in found))

    def _score(self, batch: list[tuple[str, str]], threads: int) -> list[tuple[float, int]]:
        """Score and number of tokens of each pair of a batch."""
        scored = self._model(batch, threads)
        return list(zip(scored.scores[:, 0].tolist(), scored.tokens, strict=True))


class Cosines:
    """One replica that compares the vectors of an embedding model's deployment."""

    def __init__(self, embeddings: DeploymentHandle) -> None:
        self._embeddings = embeddings

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Nothing to take: the embedding model's own settings say how texts are gathered. Raises SettingsError."""
        validate(Batching, user_config, "user_config")

    async def rerank(self, query: str, documents: Sequence[str]) -> Relevance:
        """(1 + cosine) / 2 of the query's and each document's vector; what is too long for the model is cut off."""
        embedded: Embedded = await once_more(self._embeddings.embed.remote, [query, *documents], -1)
        cosines = embedded.vectors[1:] @ embedded.vectors[0]
        return Relevance(np.clip((1 + cosines) / 2, 0, 1).tolist(), embedded.tokens)
