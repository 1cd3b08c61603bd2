"""/v1/classify, and /v1/moderations in OpenAI's shape."""

import uuid
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, field_validator

from app.deployments.classification import Scores, best
from app.handles import answering, once_more
from app.routes import Current, chosen, examples, require_texts
from app.settings import Classifier

router = APIRouter()
moderations = APIRouter()
"""The route of /v1/moderations, for an application that has it."""


class _Texts(BaseModel):
    """A body with one text, or many."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input: str | list[str] = Field(description="One text, or up to 2048.")

    @field_validator("input", mode="before")
    @classmethod
    def _texts(cls, given: Any) -> Any:
        require_texts(given if isinstance(given, list) else [given])
        return given

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


class ClassifyRequest(_Texts):
    """Body of /v1/classify."""

    model: str | None = Field(default=None, description="Name of a classifier; may be left out if there is one.")


class Classified(BaseModel):
    """What a text is."""

    index: int
    label: str = Field(description="The label of the highest score.")
    score: float
    scores: dict[str, float] = Field(description="Label → score, 0 to 1.")


class ClassifiedList(BaseModel):
    """The answer of /v1/classify."""

    object: Literal["list"] = "list"
    model: str
    data: list[Classified]


@router.post(
    "/v1/classify", openapi_extra=examples(two_texts={"model": "sentiment", "input": ["I love it!", "I hate it!"]})
)
async def classify(body: ClassifyRequest, gateway: Current) -> ClassifiedList:
    """Classify texts; one of more tokens than the classifier takes is cut off."""
    classifiers = {classifier.name: classifier for classifier in gateway.settings.classifiers}
    name = chosen(body.model, classifiers)
    data = [
        Classified(index=index, label=best(scores), score=max(scores.values()), scores=scores)
        for index, scores in enumerate(await _classify(gateway, classifiers[name], body.texts))
    ]
    return ClassifiedList(model=name, data=data)


class ModerationRequest(_Texts):
    """Body of /v1/moderations."""

    model: str | None = Field(default=None, description="Name of the safety classifier; may be left out.")


class Moderated(BaseModel):
    """Whether a text is safe."""

    flagged: bool = Field(description="Whether any category is.")
    categories: dict[str, bool] = Field(description="Category → whether its score reaches the threshold.")
    category_scores: dict[str, float] = Field(description="Category → score, 0 to 1.")


class ModeratedList(BaseModel):
    """The answer of /v1/moderations."""

    id: str
    model: str
    results: list[Moderated]


@moderations.post(
    "/v1/moderations", openapi_extra=examples(two_texts={"input": ["What a nice day", "You stupid idiot"]})
)
async def moderate(body: ModerationRequest, gateway: Current) -> ModeratedList:
    """Find unsafe texts. The categories are the classifier's own unsafe labels, not OpenAI's."""
    moderation = gateway.settings.moderation
    assert moderation
    name = chosen(body.model, [moderation.classifier])
    classifier = next(one for one in gateway.settings.classifiers if one.name == name)
    results: list[Moderated] = []
    for scores in await _classify(gateway, classifier, body.texts):
        unsafe = {label: scores[label] for label in classifier.unsafe}
        categories = {label: score >= moderation.threshold for label, score in unsafe.items()}
        results.append(Moderated(flagged=any(categories.values()), categories=categories, category_scores=unsafe))
    return ModeratedList(id=f"modr-{uuid.uuid4().hex}", model=name, results=results)


async def _classify(gateway: Current, classifier: Classifier, texts: list[str]) -> list[Scores]:
    with answering(classifier.name):
        return await once_more(gateway.handles[classifier.deployment].classify.remote, texts)
