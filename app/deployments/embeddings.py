"""Embeddings: texts of many requests, gathered into one batch, go through a transformers encoder at once."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
from ray.serve import Application

from app.answers import Embedded
from app.deployments import batching
from app.errors import ApiError
from app.settings import EmbeddingModel


def build(model: EmbeddingModel) -> Application:
    """The Serve deployment of one embedding model."""
    return batching.deployment(model)(Embeddings).bind(model)


class Embeddings:
    """One replica: tokenizer and encoder, on a GPU when the placement asks for one."""

    def __init__(self, model: EmbeddingModel) -> None:
        from app.deployments.encoder import Encoder  # imports torch, and the head builds the application without it

        self._settings = model
        self._tokenizing = asyncio.Lock()
        self._encoder = Encoder(model)
        self._batches = batching.Batches(self._encoder, model.placement)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take new `Batching` settings while requests go on. Raises SettingsError."""
        self._batches.reconfigure(user_config)

    async def embed(self, texts: Sequence[str], truncate: int | None = None) -> Embedded:
        """Vectors of `texts`, in their order.

        A text of more tokens than the model takes is an ApiError (400), unless `truncate` says at how many tokens to
        cut every text off: vLLM's truncate_prompt_tokens, -1 for as many as the model takes.
        """
        limit = self._settings.max_tokens
        cut = limit if truncate == -1 else truncate
        # One call at a time: fast tokenizers keep where to cut as their own state, for all threads.
        async with self._tokenizing:
            encoded = await asyncio.to_thread(
                self._encoder.tokenizer, list(texts), truncation=cut is not None, max_length=min(cut or limit, limit)
            )
        ids: list[list[int]] = encoded["input_ids"]
        for index, tokens in enumerate(ids):
            if len(tokens) > limit:
                raise ApiError(
                    400,
                    f"input {index} has {len(tokens)} tokens, and the model takes {limit}; "
                    "shorten it, or set truncate_prompt_tokens to -1 to have it cut off",
                    param="input",
                    code="context_length_exceeded",
                )
        vectors = await self._batches.results(ids)
        return Embedded(np.stack(vectors), sum(map(len, ids)))
