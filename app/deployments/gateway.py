"""The way in: OpenAI's routes, in front of the deployments that do the work."""

import asyncio
import base64
import contextlib
import json
import logging
import math
import re
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, Self

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, field_validator, model_validator
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.llm._internal.serve.core.configs.openai_api_models import ErrorResponse, OpenAIHTTPException
from ray.llm._internal.serve.core.ingress.utils import _sanitize_chat_completion_request
from ray.llm._internal.serve.core.protocol import RawRequestInfo
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.llm.ingress import OpenAiIngress, make_fastapi_ingress
from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest
from starlette.responses import JSONResponse, Response
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.exceptions import VLLMClientError
from vllm.v1.engine.exceptions import EngineDeadError

from app import errors
from app.deployments.embeddings import Embedded
from app.errors import ApiError
from app.limits import BodyLimit
from app.settings import Model, Settings, Variant

logger = logging.getLogger("ray.serve")

PROBE_SECONDS = 5.0
"""How long /ready waits for a model; probes of load balancers and Kubernetes wait 5 to 10 s."""
READY_SECONDS = 30.0
"""How long a model that has answered a probe counts as ready without another."""
RESTART_SECONDS = 30
"""Retry-After while a failed replica is replaced."""
MOST_INPUTS = 2048
"""Texts in one request for embeddings, as OpenAI allows."""


def deployment(settings: Settings) -> serve.Deployment:
    """The Serve deployment that answers HTTP."""
    gateway = settings.gateway
    api = FastAPI(title="Ray Serve blueprint")
    errors.install(api)
    api.add_exception_handler(OpenAIHTTPException, _ray_error)
    api.add_exception_handler(VLLMClientError, _vllm_error)
    api.add_middleware(BodyLimit, largest=int(gateway.max_body_mib * 2**20))
    return serve.deployment(name="Gateway", ray_actor_options=gateway.placement.options(), **gateway.scaling.options())(
        make_fastapi_ingress(Gateway, endpoint_map=ROUTES, app=api)
    )


class _Checked:
    """vLLM's own checks look into values before their types are known, and then fail as bugs do."""

    @model_validator(mode="wrap")
    @classmethod
    def _check(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            _require_characters(values)
            return handler(values)
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


class EmbeddingsRequest(BaseModel):
    """Body of /v1/embeddings."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(default=None, description="Name of an embedding model; may be left out if there is one.")
    input: str | list[str] = Field(description="One text, or up to 2048.")
    encoding_format: Literal["float", "base64"] = Field(
        default="float", description="Numbers, or the bytes of little-endian float32, four times smaller."
    )
    dimensions: int | None = Field(default=None, description="Must be the model's own number, if given.")
    user: str | None = Field(default=None, description="Taken for compatibility.")
    truncate_prompt_tokens: int | None = Field(
        default=None, ge=-1, description="Cut each text off at so many tokens; -1 means at the model's limit."
    )

    @field_validator("input", mode="before")
    @classmethod
    def _texts(cls, given: Any) -> Any:
        texts = given if isinstance(given, list) else [given]
        if isinstance(given, list) and any(isinstance(text, int | list) for text in given):
            raise ValueError("tokens are not taken, since a client's tokenizer is not the model's; send the text")
        if not texts:
            raise ValueError("is empty; send at least one text")
        if len(texts) > MOST_INPUTS:
            raise ValueError(f"has {len(texts)} texts; send at most {MOST_INPUTS} in one request")
        for index, text in enumerate(texts):
            if isinstance(text, str) and not text.strip():
                raise ValueError(f"text {index} is empty")
        _require_characters(texts)
        return given

    @field_validator("truncate_prompt_tokens")
    @classmethod
    def _leaves_something(cls, tokens: int | None) -> int | None:
        if tokens == 0:
            raise ValueError("would leave nothing; send -1 or a number above 0")
        return tokens

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


class Vector(BaseModel):
    """The embedding of one text."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """What a request for embeddings took, in tokens."""

    prompt_tokens: int
    total_tokens: int


class VectorList(BaseModel):
    """The answer of /v1/embeddings."""

    object: Literal["list"] = "list"
    data: list[Vector]
    model: str
    usage: Usage


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


class Target(NamedTuple):
    """Where a request for a model goes."""

    handle: DeploymentHandle
    served: str
    """What the engine calls the model, or the adapter."""


class Gateway(OpenAiIngress):
    """The routes, and /health (the gateway is alive) and /ready (every model answers)."""

    def __init__(
        self,
        settings: Settings,
        models: Mapping[str, DeploymentHandle],
        embeddings: Mapping[str, DeploymentHandle],
    ) -> None:
        super().__init__({}, {})
        self._started = int(time.time())
        self._targets: dict[str, Target] = {}
        self._probes: dict[str, list[Callable[[], Any]]] = {}
        self._ready_until: dict[str, float] = {}
        for model in settings.models:
            self._probes[model.name] = []
            for variant in model.variants:
                handle = models[model.deployment(variant)].options(stream=True)
                self._add(model, variant, handle)
                self._probes[model.name].append(partial(_generate_one_token, handle, model.name))
        self._embeddings = {model.name: embeddings[model.deployment] for model in settings.embeddings}
        for name, handle in self._embeddings.items():
            self._probes[name] = [partial(_embed_one_text, handle)]

    def _add(self, model: Model, variant: Variant, handle: DeploymentHandle) -> None:
        """Make the variant answer to its names; the first variant of a model answers to the model's."""
        for name in (model.name, f"{model.name}@{variant.name}"):
            self._targets.setdefault(name, Target(handle, model.name))
            for adapter in variant.adapters:
                self._targets.setdefault(f"{name}:{adapter.name}", Target(handle, f"{model.name}:{adapter.name}"))

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """Answer a conversation; with `stream`, in server-sent events."""
        return await super().chat(body, request)

    async def completions(self, body: TextRequest, request: Request) -> Response:
        """Continue a prompt; with `stream`, in server-sent events."""
        return await super().completions(body, request)

    async def embed(self, body: EmbeddingsRequest) -> VectorList:
        """Turn texts into vectors of length 1.

        A text of more tokens than the model takes is refused, unless `truncate_prompt_tokens` says where to cut it off.
        """
        name = _chosen(body.model, self._embeddings)
        with _answering(name):
            done: Embedded = await self._embeddings[name].embed.remote(body.texts, body.truncate_prompt_tokens)
        width = done.vectors.shape[1]
        if body.dimensions not in (None, width):
            raise ApiError(400, f"dimensions: the model {name!r} has {width} and no other", param="dimensions")
        if body.encoding_format == "base64":
            vectors = [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in done.vectors]
        else:
            vectors = done.vectors.tolist()
        data = [Vector(index=index, embedding=vector) for index, vector in enumerate(vectors)]
        return VectorList(data=data, model=name, usage=Usage(prompt_tokens=done.tokens, total_tokens=done.tokens))

    async def list_models(self) -> CardList:
        """All models and adapters."""
        names = [name for name in self._targets if "@" not in name]
        return CardList(data=[self._card(name) for name in (*names, *self._embeddings)])

    async def get_model(self, model: str) -> Card:
        """One model."""
        return self._card(_chosen(model, {**self._targets, **self._embeddings}))

    async def health(self) -> dict[str, bool]:
        """Whether the gateway is alive."""
        return {"healthy": True}

    async def ready(self) -> dict[str, bool]:
        """Whether every model answers; until then 503."""
        await asyncio.gather(*map(self._require_ready, self._probes))
        return {"ready": True}

    async def model_ready(self, model: str) -> dict[str, bool]:
        """Whether one model answers; until then 503."""
        await self._require_ready(_chosen(model, self._probes))
        return {"ready": True}

    async def _require_ready(self, name: str) -> None:
        """Ray lists the models minutes before their engines are up, so nothing less than an answer would do."""
        if time.monotonic() < self._ready_until.get(name, 0):
            return
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await asyncio.gather(*(probe() for probe in self._probes[name]))
        except Exception as error:
            logger.warning("readiness probe of the model %s failed: %r", name, error)
            raise ApiError(503, f"the model {name} does not answer", code="not_ready") from error
        self._ready_until[name] = time.monotonic() + READY_SECONDS

    async def _get_response(
        self, *, body: Any, call_method: str, raw_request: Request | None = None
    ) -> AsyncGenerator[Any, None]:
        name = _chosen(body.model, self._targets)
        target = self._targets[name]
        asked = body.model_copy(update={"model": target.served})
        info = RawRequestInfo.from_starlette_request(raw_request) if raw_request else None
        begun = False
        try:
            with _answering(name):
                async for output in getattr(target.handle, call_method).remote(asked, info):
                    _raise_engine_error(output)
                    yield output
                    begun = True
        except ApiError as error:
            if not begun:
                raise
            # Too late for another status: the stream says it, as OpenAI's own do.
            yield f"data: {json.dumps(error.body())}\n\n"

    def _card(self, name: str) -> Card:
        return Card(id=name, created=self._started)


ROUTES: dict[str, Callable[[FastAPI], Callable[..., Any]]] = {
    "list_models": lambda api: api.get("/v1/models"),
    "get_model": lambda api: api.get("/v1/models/{model:path}"),
    "chat": lambda api: api.post("/v1/chat/completions"),
    "completions": lambda api: api.post("/v1/completions"),
    "embed": lambda api: api.post("/v1/embeddings"),
    "health": lambda api: api.get("/health"),
    "ready": lambda api: api.get("/ready"),
    "model_ready": lambda api: api.get("/ready/{model:path}"),
}
"""Method of the gateway → its route."""


def _chosen(model: str | None, known: Mapping[str, Any]) -> str:
    """The name of a known model; a request may leave it out where there is one model only."""
    names = [name for name in known if "@" not in name and ":" not in name]
    if model is None and len(names) == 1:
        return names[0]
    if model is None:
        raise ApiError(400, f"model: is missing; models: {', '.join(names)}", param="model")
    if model not in known:
        reason = f"the model {model!r} does not exist; models: {', '.join(names)}"
        raise ApiError(404, reason, param="model", code="model_not_found")
    return model


@contextlib.contextmanager
def _answering(model: str) -> Iterator[None]:
    """What goes wrong in a deployment behind us, as an ApiError."""
    try:
        yield
    except BackPressureError as error:
        reason = f"the model {model} has as many requests waiting as it may; try again later"
        raise ApiError(429, reason, code="overloaded", retry_after=math.ceil(error.retry_after_s or 0)) from error
    except (EngineDeadError, RayActorError, DeploymentUnavailableError) as error:
        logger.warning("the model %s failed: %r", model, error)
        raise _unavailable(model) from error
    except RayTaskError as error:
        if isinstance(error.cause, ApiError):
            raise error.cause from None
        raise


def _unavailable(model: str) -> ApiError:
    reason = f"the model {model} has failed and is being restarted; try again later"
    return ApiError(503, reason, code="model_unavailable", retry_after=RESTART_SECONDS)


def _raise_engine_error(output: Any) -> None:
    """An error that the engine answers with, as an object or, once it streams, as an event."""
    for part in output if isinstance(output, list) else [output]:
        if isinstance(part, ErrorResponse):
            raise _engine_error(part.error.code, part.error.message, part.error.param)
        if isinstance(part, str) and part.startswith('data: {"error"'):
            error = json.loads(part.removeprefix("data: "))["error"]
            raise _engine_error(error["code"], error["message"], error["param"])


def _engine_error(status: int, message: str, param: str | None) -> Exception:
    """An error that vLLM answered with, as an ApiError unless it means that the engine is no more."""
    if message == str(EngineDeadError()):
        return EngineDeadError()
    if status >= 500:
        return ApiError(status, "the engine failed; the server's log says more")
    reason = re.sub(r" \(parameter=.*\)$", "", message, flags=re.DOTALL)  # param says it
    code = "context_length_exceeded" if "maximum context length" in reason else None
    return ApiError(status, reason, param=param, code=code)


def _vllm_error(_: Request, error: Exception) -> JSONResponse:
    """An error that vLLM's request models raise: not a ValueError, so FastAPI does not catch it."""
    info = create_error_response(error).error
    refused = _engine_error(info.code, info.message, info.param)
    assert isinstance(refused, ApiError)
    return refused.response()


def _ray_error(_: Request, error: Exception) -> JSONResponse:
    """An error of Ray's ingress: a time-out."""
    assert isinstance(error, OpenAIHTTPException)
    return ApiError(error.status_code, error.message).response()


def _require_characters(values: Any) -> None:
    """JSON can write half of a character, which tokenizers then fail on."""
    try:
        json.dumps(values, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        raise ValueError("a text holds a lone surrogate, which is no character") from None


async def _generate_one_token(handle: DeploymentHandle, name: str) -> None:
    answer: Any = handle.completions.remote(CompletionRequest(model=name, prompt="Hello", max_tokens=1))
    async for output in answer:
        _raise_engine_error(output)


async def _embed_one_text(handle: DeploymentHandle) -> None:
    await handle.embed.remote(["Hello"])
