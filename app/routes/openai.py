"""OpenAI's chat and completions, whose bodies vLLM defines, and /v1/models."""

import json
import logging
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, ModelWrapValidatorHandler, model_validator
from ray.llm._internal.serve.core.ingress.utils import _sanitize_chat_completion_request
from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest
from starlette.responses import Response

from app.routes import Current, chosen, examples

# Its warnings quote what a client has sent.
logging.getLogger("vllm.entrypoints.openai.chat_completion.protocol").setLevel(logging.ERROR)

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
        for index, message in enumerate(self.messages):
            # Some of the types that vLLM takes a message for have none, and it reads the role all the same.
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                raise ValueError(f"messages: message {index} has no role, which is a text")
        return self


class TextRequest(_Checked, CompletionRequest):
    """Body of /v1/completions."""


STREAMED: dict[str, Any] = {"content": {"application/json": {}, "text/event-stream": {}}}
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@router.post(
    "/v1/chat/completions",
    responses={200: STREAMED},
    openapi_extra=examples(
        an_answer={"messages": QUESTION, "max_tokens": 32, "temperature": 0},
        a_stream={"messages": QUESTION, "max_tokens": 32, "stream": True, "stream_options": {"include_usage": True}},
    ),
)
async def chat(body: ChatRequest, request: Request, gateway: Current) -> Response:
    """Answer a conversation; with `stream`, in server-sent events."""
    return await gateway.chat(body, request)


@router.post(
    "/v1/completions",
    responses={200: STREAMED},
    openapi_extra=examples(a_text={"prompt": "One, two, three,", "max_tokens": 8, "temperature": 0}),
)
async def completions(body: TextRequest, request: Request, gateway: Current) -> Response:
    """Continue a prompt; with `stream`, in server-sent events."""
    return await gateway.completions(body, request)


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
async def get_model(model: Annotated[str, Path(examples=["embed"])], gateway: Current) -> Card:
    """One model."""
    return Card(id=chosen(model, gateway.names), created=gateway.started)
