"""Language models: a ray.serve.llm deployment for each, behind an ingress with OpenAI's routes."""

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Self

from fastapi import FastAPI, Request
from pydantic import ModelWrapValidatorHandler, model_validator
from ray import serve
from ray.exceptions import RayError
from ray.llm._internal.serve.core.configs.accelerators import CPUConfig
from ray.llm._internal.serve.core.configs.openai_api_models import (
    ErrorResponse,
    ModelCard,
    ModelList,
    OpenAIHTTPException,
    to_model_metadata,
)
from ray.llm._internal.serve.core.ingress.utils import _sanitize_chat_completion_request
from ray.serve import Application
from ray.serve.exceptions import RayServeException
from ray.serve.llm import LLMConfig, build_llm_deployment
from ray.serve.llm.ingress import OpenAiIngress, make_fastapi_ingress
from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest
from starlette.responses import JSONResponse, Response
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.exceptions import VLLMClientError

from app import builtin, errors
from app.errors import ApiError
from app.settings import Model

logger = logging.getLogger("ray.serve")

PROBE_SECONDS = 5.0
"""How long /ready waits for one token; probes of load balancers and Kubernetes wait 5 to 10 s."""


def build(models: Sequence[Model]) -> Application:
    """The Serve application that answers OpenAI's routes for `models`.

    Makes built-in models that are not made yet. Raises BuiltinModelError when one cannot be.
    """
    configs = {model.name: llm_config(model) for model in models}
    api = FastAPI(title="Language models")
    errors.install(api)
    api.add_exception_handler(OpenAIHTTPException, _ray_error)
    api.add_exception_handler(VLLMClientError, _vllm_error)
    ingress = serve.deployment(
        name="Ingress",
        # No core of its own: on two cores the engine has them all, and Ray would wait for ever.
        ray_actor_options={"num_cpus": 0},
        # The models limit themselves; when they are full, /health must still get through.
        max_ongoing_requests=10_000,
    )(make_fastapi_ingress(Ingress, endpoint_map=ROUTES, app=api))
    return ingress.bind(
        llm_deployments={name: build_llm_deployment(config) for name, config in configs.items()},
        model_cards={name: to_model_metadata(name, config) for name, config in configs.items()},
    )


def llm_config(model: Model) -> LLMConfig:
    """Ray's configuration of one model on CPUs."""
    return LLMConfig(
        model_loading_config={
            "model_id": model.name,
            "model_source": str(builtin.ensure(model.builtin)) if model.builtin else model.source,
        },
        accelerator_config=CPUConfig(),  # left out, it means GPU
        engine_kwargs=model.engine.model_dump(exclude={"kv_cache_gib"}),
        deployment_config={
            "num_replicas": model.scaling.num_replicas,
            "max_ongoing_requests": model.scaling.max_ongoing_requests,
            "ray_actor_options": {"num_cpus": model.scaling.num_cpus},
        },
        # vLLM's CPU worker is a child process of the replica, not an actor that Ray must place;
        # the default would reserve one more core for it.
        placement_group_config={"bundle_per_worker": {"CPU": 0}},
        runtime_env={
            "env_vars": {
                "VLLM_CPU_KVCACHE_SPACE": str(model.engine.kv_cache_gib),
                "HF_HUB_OFFLINE": "0" if model.from_hub else "1",
                "VLLM_NO_USAGE_STATS": "1",
                # Even an eager engine compiles its sampler, at the first answer that is not greedy, and dies of it
                # where there is no C++ compiler, as in our image.
                "TORCHDYNAMO_DISABLE": "1" if model.engine.enforce_eager else "0",
            }
        },
    )


class _Checked:
    """vLLM's own checks look into values before their types are known, and then fail as bugs do."""

    @model_validator(mode="wrap")
    @classmethod
    def _check(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            # JSON can write half of a character, which tokenizers then fail on.
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


class Card(ModelCard):
    """A model as OpenAI describes it; Ray's card lacks the time."""

    created: int


class CardList(ModelList):
    data: list[Card]  # pyright: ignore[reportIncompatibleVariableOverride]


class Ingress(OpenAiIngress):
    """OpenAI's routes, with /health (the ingress is alive) and /ready (every model generates)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._started = int(time.time())
        self._generating: set[str] = set()

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """Answer a conversation; with `stream`, in server-sent events."""
        return await super().chat(body, request)

    async def completions(self, body: TextRequest, request: Request) -> Response:
        """Continue a prompt; with `stream`, in server-sent events."""
        return await super().completions(body, request)

    async def models(self) -> CardList:
        """All models."""
        return CardList(data=[self._card(name) for name in self._model_cards])

    async def model_data(self, model: str) -> Card:
        """One model."""
        return self._card(await self._get_model_id(model))

    async def health(self) -> dict[str, bool]:
        """Whether the ingress is alive."""
        return {"healthy": True}

    async def ready(self) -> dict[str, bool]:
        """Whether every model has generated a token since the ingress started; until then 503.

        Ray lists the models minutes before their engines are up, so nothing less would do.
        """
        for name in self._model_cards.keys() - self._generating:
            await self._generate_one_token(name)
            self._generating.add(name)
        return {"ready": True}

    async def _generate_one_token(self, name: str) -> None:
        probe = CompletionRequest(model=name, prompt="Hello", max_tokens=1)
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                async for _ in self._get_response(body=probe, call_method="completions"):
                    pass
        except (TimeoutError, ApiError, RayError, RayServeException) as error:
            logger.warning("readiness probe of the model %s failed: %r", name, error)
            reason = f"the model {name} has not generated a token yet"
            raise ApiError(503, reason, code="not_ready") from error

    async def _get_model_id(self, model: str | None) -> str:
        # Ray's own takes name:suffix for a LoRA adapter, and fails on it in the replica.
        if model is None and len(self._model_cards) == 1:
            return next(iter(self._model_cards))
        if model not in self._model_cards:
            known = ", ".join(self._model_cards)
            reason = f"the model {model!r} does not exist; models: {known}"
            raise ApiError(404, reason, param="model", code="model_not_found")
        return model

    async def _get_response(self, **request: Any) -> AsyncGenerator[Any, None]:
        # Ray would drop the name of the field at fault.
        async for response in super()._get_response(**request):
            first = response[0] if isinstance(response, list) else response
            if isinstance(first, ErrorResponse):
                raise _engine_error(first.error.code, first.error.message, first.error.param)
            yield response

    def _card(self, name: str) -> Card:
        return Card(created=self._started, **self._model_cards[name].model_dump())


ROUTES: dict[str, Callable[[FastAPI], Callable[..., Any]]] = {
    "models": lambda api: api.get("/v1/models"),
    "model_data": lambda api: api.get("/v1/models/{model:path}"),
    "chat": lambda api: api.post("/v1/chat/completions"),
    "completions": lambda api: api.post("/v1/completions"),
    "health": lambda api: api.get("/health"),
    "ready": lambda api: api.get("/ready"),
}
"""Method of the ingress → its route."""


def _engine_error(status: int, message: str, param: str | None) -> ApiError:
    """An error that vLLM answered with."""
    if status >= 500:
        return ApiError(status, "the engine failed; the server's log says more")
    reason = re.sub(r" \(parameter=.*\)$", "", message, flags=re.DOTALL)  # param says it
    code = "context_length_exceeded" if "maximum context length" in reason else None
    return ApiError(status, reason, param=param, code=code)


def _vllm_error(_: Request, error: Exception) -> JSONResponse:
    """An error that vLLM's request models raise: not a ValueError, so FastAPI does not catch it."""
    info = create_error_response(error).error
    return _engine_error(info.code, info.message, info.param).response()


def _ray_error(_: Request, error: Exception) -> JSONResponse:
    """An error of Ray's ingress: a time-out."""
    assert isinstance(error, OpenAIHTTPException)
    return ApiError(error.status_code, error.message).response()
