"""The pipeline behind /analyze: preprocess, then sentiment and summary at once. Each stage is a deployment."""

import asyncio
import logging
import unicodedata
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import py3langid
from pydantic import BaseModel, Field
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from tokenizers import Tokenizer

from app import builtin
from app.deployments.classification import Scores, best
from app.errors import ApiError
from app.handles import answering, once_more, resolve
from app.settings import ANALYZE, EmbeddingModel, Remote, Settings, Stage

logger = logging.getLogger("ray.serve")

STAGE_SECONDS = 120.0
"""How long a stage may take; a deployment that is not there is waited for, too."""

INSTRUCTION = (
    "Summarize the user's text in one or two sentences, in the language of the text. Answer with the summary only."
)

T = TypeVar("T")


class Prepared(NamedTuple):
    """A text, ready for the stages."""

    text: str
    """In Unicode's normal form C."""
    language: str
    """ISO 639 code."""
    words: int
    tokens: int


class Sentiment(BaseModel):
    """The likeliest sentiment."""

    label: str
    score: float = Field(description="0 to 1.")


class Failure(BaseModel):
    """A stage that has no result."""

    stage: str = Field(description="sentiment or summary.")
    message: str


class Analysis(BaseModel):
    """What the pipeline finds; a stage that fails is null here and named in `errors`."""

    original_length: int = Field(description="Characters of the text as it was sent.")
    language: str = Field(description="ISO 639 code; zxx for a text of no language.")
    tokens: int = Field(description="Tokens of the text; words, when there is no tokenizer at hand.")
    sentiment: Sentiment | None
    summary: str | None = Field(description="null for a short text, too.")
    errors: list[Failure]


def build(
    settings: Settings, classifiers: Mapping[str, Application], engines: Mapping[str, Application | Remote]
) -> Application:
    """The pipeline's orchestrator, bound to its stages; `classifiers` and `engines` are deployments by their names."""
    pipeline = settings.pipeline
    assert pipeline
    encoder = settings.embeddings[0] if settings.embeddings else None
    preprocess = _stage("Preprocess", pipeline.preprocess)(Preprocess).bind(encoder)
    sentiment = next(one for one in settings.classifiers if one.name == pipeline.sentiment)
    summary, min_words = None, 0
    if pipeline.summary:
        model = next(one for one in settings.models if one.name == settings.summariser)
        engine = engines[model.deployment(model.variants[0])]
        summary = _stage("Summary", pipeline.summary)(Summary).bind(model.name, engine, pipeline.summary.max_tokens)
        min_words = pipeline.summary.min_words
    return _stage(ANALYZE, pipeline)(Analyze).bind(
        preprocess, classifiers[sentiment.deployment], summary, min_words=min_words
    )


def _stage(name: str, stage: Stage) -> Callable[[Any], serve.Deployment]:
    return serve.deployment(name=name, ray_actor_options=stage.placement.options(), **stage.scaling.options())


class Preprocess:
    """One replica: Unicode's normal form C, language, number of words and tokens.

    Tokens are those of `encoder`, when its tokenizer is a local file; else words.
    """

    def __init__(self, encoder: EmbeddingModel | None) -> None:
        self._tokenizer = _tokenizer(encoder) if encoder else None
        self._prepare("Hello")  # reads the language model, which takes a second

    async def prepare(self, text: str) -> Prepared:
        """The text, ready for the stages."""
        # In a thread, or nobody else is answered meanwhile.
        return await asyncio.to_thread(self._prepare, text)

    def _prepare(self, text: str) -> Prepared:
        text = unicodedata.normalize("NFC", text)
        words = len(text.split())
        tokens = len(self._tokenizer.encode(text, add_special_tokens=False)) if self._tokenizer else words
        return Prepared(text, py3langid.classify(text)[0], words, tokens)


def _tokenizer(encoder: EmbeddingModel) -> Tokenizer | None:
    file = (builtin.ensure(encoder.builtin) if encoder.builtin else Path(encoder.source)) / "tokenizer.json"
    if not file.is_file():
        return None
    tokenizer = Tokenizer.from_file(str(file))
    # The file says what the model is given: cut off, and padded.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class Summary:
    """One replica, which asks the language model `model` by its handle."""

    def __init__(self, model: str, engine: DeploymentHandle | Remote, max_tokens: int) -> None:
        self._model = model
        self._engine = resolve(engine)
        self._max_tokens = max_tokens

    async def summarize(self, text: str) -> str:
        """A summary of the text, the likeliest one.

        Raises ApiError: what the model says of a text that is too long for it, 429 when it is busy, 503 when it failed.
        """
        messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": text}]
        with answering(self._model):
            return await once_more(self._engine.answer.remote, messages, self._max_tokens)


class Analyze:
    """One replica of the orchestrator, which calls the stages by their handles; `summary` may be left out."""

    def __init__(
        self,
        preprocess: DeploymentHandle,
        sentiment: DeploymentHandle,
        summary: DeploymentHandle | None,
        *,
        min_words: int,
    ) -> None:
        self._preprocess = preprocess
        self._sentiment = sentiment
        self._summary = summary
        self._min_words = min_words

    async def analyze(self, text: str) -> Analysis:
        """Run the stages, sentiment and summary at the same time. Only what fails in the first is raised."""
        prepared: Prepared = await once_more(self._preprocess.prepare.remote, text)
        errors: list[Failure] = []
        sentiment, summary = await asyncio.gather(
            _caught("sentiment", self._feel(prepared), errors), _caught("summary", self._summarize(prepared), errors)
        )
        return Analysis(
            original_length=len(text),
            language=prepared.language,
            tokens=prepared.tokens,
            sentiment=sentiment,
            summary=summary,
            errors=errors,
        )

    async def _feel(self, prepared: Prepared) -> Sentiment:
        scores: Scores
        (scores,) = await once_more(self._sentiment.classify.remote, [prepared.text])
        label = best(scores)
        return Sentiment(label=label, score=scores[label])

    async def _summarize(self, prepared: Prepared) -> str | None:
        if self._summary is None or prepared.words < self._min_words:
            return None
        return await once_more(self._summary.summarize.remote, prepared.text)


async def _caught(stage: str, result: Awaitable[T], errors: list[Failure]) -> T | None:
    """The result of a stage; when there is none, None, and one failure more."""
    try:
        async with asyncio.timeout(STAGE_SECONDS):
            with answering(stage):
                return await result
    except TimeoutError:
        reason = f"gave no answer within {STAGE_SECONDS:g} s"
    except ApiError as error:
        reason = error.message
    except Exception:
        logger.exception("the stage %s failed", stage)
        reason = "internal error; the server's log says more"
    errors.append(Failure(stage=stage, message=reason))
    return None
