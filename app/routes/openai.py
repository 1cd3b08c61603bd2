"""Bodies of OpenAI's chat and completions, which vLLM defines and Ray's ingress routes, and /v1/models."""

import json
from typing import Any, Literal, Self

from fastapi import APIRouter
from pydantic import BaseModel, ModelWrapValidatorHandler, model_validator
from ray.llm._internal.serve.core.ingress.utils import _sanitize_chat_completion_request
from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest

from app.routes import Current, chosen

router = APIRouter()


class _Checked:
    """vLLM's own checks look into values before their types are known, and then fail as bugs do."""

    @model_validator(mode="wrap")
    @classmethod
    def _check(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            json.dumps(values, ensure_ascii=False, default=str).encode()
            return handler(values)
        except UnicodeEncodeError:
            raise ValueError("a text holds a lone surrogate, which is no character") from None
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"a field has a value of the wrong type ({error})") from None


class ChatRequest(_Checked, ChatCompletionRequest):
    """Body of /v1/chat/completions."""

    @model_validator(mode="after")
    def _parts_are_valid(self) -> Self:
        # Pydantic checks the parts of a message when they are first read, which here would be
        # after validation, as an internal error: https://github.com/pydantic/pydantic/issues/9467
        _sanitize_chat_completion_request(self)
        return self


class TextRequest(_Checked, CompletionRequest):
    """Body of /v1/completions."""


class Card(BaseModel):
    """A model as OpenAI describes it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "blueprint"


class CardList(BaseModel):
    """The answer of /v1/models."""

    object: Literal["list"] = "list"
    data: list[Card]


@router.get("/v1/models")
async def list_models(gateway: Current) -> CardList:
    """All models and adapters."""
    names = [name for name in gateway.names if "@" not in name]
    return CardList(data=[Card(id=name, created=gateway.started) for name in names])


@router.get("/v1/models/{model:path}")
async def get_model(model: str, gateway: Current) -> Card:
    """One model."""
    return Card(id=chosen(model, gateway.names), created=gateway.started)
