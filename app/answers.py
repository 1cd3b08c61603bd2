"""What deployments give each other: plain types, so that whoever only asks need not import what answers."""

from typing import NamedTuple

import numpy as np


class Embedded(NamedTuple):
    """Vectors of texts."""

    vectors: np.ndarray
    """float32 [texts, dimensions], each of length 1."""
    tokens: int
    """Number of tokens of all texts, with those that the tokenizer adds."""


class Sampling(NamedTuple):
    """How to continue a prompt; the fields are vLLM's SamplingParams."""

    max_tokens: int
    temperature: float
    top_p: float
    stop: list[str]
    seed: int | None


class Piece(NamedTuple):
    """A part of a continued prompt."""

    text: str
    """What is new."""
    tokens: int
    """Tokens generated until now."""
    prompt_tokens: int
    finish_reason: str | None
    """stop or length with the last piece."""
