"""Text classification: texts of many requests, gathered into one batch, go through a classifier at once."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from ray.serve import Application

from app import builtin
from app.deployments import batching
from app.settings import Classifier, SettingsError
from app.validation import nearest

# The back ends are imported where they are chosen: a lexicon needs no torch.

Scores = dict[str, float]
"""Label → score in 0 … 1 of one text; they add up to 1, unless several labels may hold at once."""
Classify = Callable[[list[str], int], list[Scores]]
"""The scores of each text of a batch, on so many threads."""

SHARPNESS = 10.0
"""How quickly VADER's compound score, from -1 to 1, makes a sentiment likely: 0.2 means 81 %, 0.5 means 99 %."""
NEUTRAL = 0.05
"""Compound scores nearer to 0 are neutral, by VADER's own rule."""


def build(classifier: Classifier) -> Application:
    """The Serve deployment of one classifier."""
    return batching.deployment(classifier)(Classification).bind(classifier)


class Classification:
    """One replica: a classifier, on a GPU when the placement asks for one.

    Raises SettingsError when the classifier does not know one of its `unsafe` labels.
    """

    def __init__(self, classifier: Classifier) -> None:
        scores = _back_end(classifier)
        (known,) = scores(["Hello"], 1)
        for label in classifier.unsafe:
            if label not in known:
                reason = f"the classifier {classifier.name} has no such label"
                raise SettingsError(f"unsafe = {label!r}: {reason}; fix: use {nearest(label, list(known))}")
        self._batches = batching.Batches(scores, classifier.placement, pads=classifier.builtin is None)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take new `Batching` settings while requests go on. Raises SettingsError."""
        self._batches.reconfigure(user_config)

    async def classify(self, texts: Sequence[str]) -> list[Scores]:
        """The scores of each text, in their order; a text of more tokens than `max_tokens` is cut off."""
        return await self._batches.results(texts)


def best(scores: Scores) -> str:
    """The label of the highest score; of equal ones, the first."""
    return max(scores, key=lambda label: scores[label])


def _back_end(classifier: Classifier) -> Classify:
    if classifier.builtin is None:
        return _transformer(classifier)
    builtin.ensure(classifier.builtin)
    return {"vader-sentiment": _vader, "profanity": _profanity}[classifier.builtin](classifier)


def _transformer(classifier: Classifier) -> Classify:
    from app.deployments.sequences import Sequences

    model = Sequences(classifier)

    def classify(texts: list[str], threads: int) -> list[Scores]:
        return [dict(zip(model.labels, scores, strict=True)) for scores in model(texts, threads).scores.tolist()]

    return classify


def _vader(classifier: Classifier) -> Classify:
    """VADER, a lexicon with rules: positive, negative, neutral. English only.

    VADER's compound score becomes a distribution whose best label is what VADER's own rule says: a softmax over how far
    the score is beyond the border to each sentiment, and neutral at the borders.
    """
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()

    def scores(text: str) -> Scores:
        # VADER's time may grow with the square of the number of words.
        compound = analyzer.polarity_scores(" ".join(text.split()[: classifier.max_tokens]))["compound"]
        beyond = {"positive": compound - NEUTRAL, "negative": -compound - NEUTRAL, "neutral": 0.0}
        weights = {label: math.exp(SHARPNESS * distance) for label, distance in beyond.items()}
        return {label: weight / sum(weights.values()) for label, weight in weights.items()}

    return lambda texts, _: list(map(scores, texts))


def _profanity(_: Classifier) -> Classify:
    """A linear model of the words: offensive, clean. English only; it reads all of a text, however long."""
    from profanity_check import predict_prob

    return lambda texts, _: [{"offensive": score, "clean": 1 - score} for score in predict_prob(texts).tolist()]
