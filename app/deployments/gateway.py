"""The way in: every route, in front of the deployments that do the work."""

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

from fastapi import FastAPI, Request
from ray import serve
from ray.llm._internal.serve.core.configs.openai_api_models import ErrorResponse, OpenAIHTTPException
from ray.llm._internal.serve.core.protocol import RawRequestInfo
from ray.serve.handle import DeploymentHandle
from ray.serve.llm.ingress import OpenAiIngress, make_fastapi_ingress
from ray.serve.llm.openai_api_models import CompletionRequest
from starlette.responses import JSONResponse, Response
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.exceptions import VLLMClientError
from vllm.v1.engine.exceptions import EngineDeadError

from app import auth, errors, routes
from app.answers import Sampling
from app.deployments import experiment
from app.deployments.experiment import Measured, Metrics, Shadows
from app.errors import ApiError
from app.handles import RESTART_SECONDS, EngineDead, answering, resolve
from app.limits import BodyLimit
from app.routes import analyze, classify, embeddings, generate, health, openai, rerank
from app.routes.openai import ChatRequest, TextRequest
from app.settings import ANALYZE, GENERATE, Guard, Live, Model, Remote, Settings, live
from app.validation import validate

logger = logging.getLogger("ray.serve")

PROBE_SECONDS = 5.0
"""How long /ready waits for a model; probes of load balancers and Kubernetes wait 5 to 10 s."""
GUARD_SECONDS = 10.0
"""How long a request waits for its guard."""
READY_SECONDS = 30.0
"""How long a model that has answered a probe counts as ready without another."""


def deployment(settings: Settings) -> serve.Deployment:
    """The Serve deployment that answers HTTP."""
    gateway = settings.gateway
    api = FastAPI(title="Ray Serve blueprint")
    if settings.auth.keys_file:
        api.add_middleware(auth.Authenticate, settings.auth.keys_file, settings.auth.redis_url)
    errors.install(api)
    api.add_exception_handler(OpenAIHTTPException, _ray_error)
    api.add_exception_handler(VLLMClientError, _vllm_error)
    api.add_middleware(BodyLimit, largest=int(gateway.max_body_mib * 2**20))
    for module in (openai, embeddings, health):
        api.include_router(module.router)
    optional = (
        (generate.router, settings.generate),
        (classify.router, settings.classifiers),
        (classify.moderations, settings.moderation),
        (rerank.router, settings.rerankers),
        (analyze.router, settings.pipeline),
    )
    for router, served in optional:
        if served:
            api.include_router(router)
    return serve.deployment(
        name="Gateway",
        user_config=live(settings).model_dump(),
        ray_actor_options=gateway.placement.options(),
        **gateway.scaling.options(),
    )(make_fastapi_ingress(Gateway, endpoint_map=OPENAI, app=api))


class Target(NamedTuple):
    """Where a request for a model goes."""

    handle: DeploymentHandle
    model: str
    variant: str
    served: str
    """What the engine calls the model, or the adapter."""
    how: Literal["split", "pinned", "shadow"]

    def measured(self, metrics: Metrics) -> Measured:
        return Measured(metrics, self.model, self.variant, self.how)


class Gateway(OpenAiIngress):
    """What the routes (app/routes) use: settings, handles, and which variant answers whom."""

    def __init__(self, settings: Settings, handles: Mapping[str, DeploymentHandle | Remote]) -> None:
        super().__init__({}, {})
        auth.require(settings.auth)
        self.started = int(time.time())
        self.settings = settings
        self.handles = {name: resolve(handle) for name, handle in handles.items()}
        self.probes: dict[str, list[Callable[[], Awaitable[None]]]] = {}
        """Model → what each of its deployments is asked to see whether it answers."""
        self._models = {model.name: model for model in settings.models}
        self._ready_until: dict[str, float] = {}
        self._shadows = Shadows()
        self._metrics = Metrics()
        self._live = live(settings)
        for model in settings.models:
            handle_of = (self.handles[model.deployment(variant)] for variant in model.variants)
            self.probes[model.name] = [partial(_generate_one_token, handle, model.name) for handle in handle_of]
        for encoder in settings.embeddings:
            self.probes[encoder.name] = [partial(_embed_one_text, self.handles[encoder.deployment])]
        for classifier in settings.classifiers:
            self.probes[classifier.name] = [partial(_classify_one_text, self.handles[classifier.deployment])]
        for reranker in settings.rerankers:
            self.probes[reranker.name] = [partial(_rank_one_text, self.handles[reranker.deployment])]
        if settings.pipeline:
            self.probes["analyze"] = [partial(_analyze_one_text, self.handles[ANALYZE])]
        if settings.generate:
            self.probes["generate"] = [partial(_continue_by_one_token, self.handles[GENERATE])]

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take new weights, shadow shares, pins and guards; requests under way go on. Raises SettingsError."""
        self._live = validate(Live, user_config, "user_config")
        for model, now in self._live.models.items():
            self._metrics.set_weights(model, now.weights)

    @property
    def names(self) -> list[str]:
        """Everything that a request may ask for as `model`."""
        found: list[str] = []
        for model in self.settings.models:
            for suffix in ("", *(f"@{variant.name}" for variant in model.variants)):
                found.append(f"{model.name}{suffix}")
                found += [f"{model.name}{suffix}:{name}" for name in _adapters(model, suffix)]
        others = (*self.settings.embeddings, *self.settings.classifiers, *self.settings.rerankers)
        return [*found, *(model.name for model in others)]

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """Answer a conversation; with `stream`, in server-sent events."""
        return await self._answer(body, request, super().chat)

    async def completions(self, body: TextRequest, request: Request) -> Response:
        """Continue a prompt; with `stream`, in server-sent events."""
        return await self._answer(body, request, super().completions)

    async def require_ready(self, name: str) -> None:
        """ApiError (503) unless the model answers.

        Ray lists the models minutes before their engines are up, so nothing less than an answer would do.
        """
        if time.monotonic() < self._ready_until.get(name, 0):
            return
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await asyncio.gather(*(probe() for probe in self.probes[name]))
        except Exception as error:
            logger.warning("readiness probe of the model %s failed: %r", name, error)
            raise ApiError(503, f"the model {name} does not answer", code="not_ready") from error
        self._ready_until[name] = time.monotonic() + READY_SECONDS

    async def _answer(self, body: Any, request: Request, method: Callable[..., Awaitable[Response]]) -> Response:
        """Choose a variant, see that the prompt is safe, answer, and say which variant it was."""
        asked = routes.chosen(body.model, [name for name in self.names if re.split("[@:]", name)[0] in self._models])
        name, variant, adapter = re.fullmatch(r"([^@:]+)(?:@([^:]+))?(?::(.+))?", asked).groups()  # pyright: ignore[reportOptionalMemberAccess]
        model, now = self._models[name], self._live.models[name]
        if now.guard:
            await self._require_safe(now.guard, body)
        how = "pinned" if variant or adapter else "split"
        if variant is None:
            variant = self._choose(model, adapter, body, request)
        served = f"{name}:{adapter}" if adapter else name
        request.state.target = Target(self._handle(model, variant), name, variant, served, how)
        for other, share in now.shadow.items():
            if other != variant:
                copy = Target(self._handle(model, other), name, other, name, "shadow")
                self._shadows.maybe(share, partial(self._copy, copy, body, method.__name__))
        response = await method(body, request)
        response.headers["x-variant"] = f"{name}@{variant}"
        return response

    def _choose(self, model: Model, adapter: str | None, body: Any, request: Request) -> str:
        """The variant for whoever asks, among those that have the adapter."""
        user = body.user or request.headers.get("x-session-id")
        if user is not None and (tenant := auth.current().name):
            user = f"{tenant}/{user}"
        now = self._live.models[model.name]
        if adapter:
            fitting = [variant.name for variant in model.variants if adapter in _adapters(model, f"@{variant.name}")]
            weights = {name: weight for name, weight in now.weights.items() if name in fitting}
            return experiment.assign(model.name, user, weights) if any(weights.values()) else fitting[0]
        return experiment.choose(model.name, user, now)

    def _handle(self, model: Model, variant: str) -> DeploymentHandle:
        return self.handles[next(model.deployment(one) for one in model.variants if one.name == variant)]

    async def _require_safe(self, guard: Guard, body: Any) -> None:
        """ApiError (400) when a text of the request is unsafe, and (503) when nobody can tell and the guard closes."""
        if not guard.enabled:
            return
        texts = _texts(body)
        classifier = next(one for one in self.settings.classifiers if one.name == guard.classifier)
        try:
            async with asyncio.timeout(GUARD_SECONDS):
                found = await self.handles[classifier.deployment].classify.remote(texts)
        except Exception as error:
            logger.warning("the guard %s failed: %r", classifier.name, error)
            if guard.on_failure == "open":
                return
            reason = "the prompt cannot be checked, so it is not answered; try again later"
            raise ApiError(503, reason, code="guard_unavailable", retry_after=RESTART_SECONDS) from error
        for scores in found:
            label = max(classifier.unsafe, key=lambda label: scores.get(label, 0))
            score = scores.get(label, 0)
            if score >= guard.threshold:
                reason = f"the prompt was classified as {label} ({score:.2f}, of {guard.threshold:g} allowed)"
                raise ApiError(
                    400,
                    reason,
                    code="content_policy_violation",
                    param="messages" if hasattr(body, "messages") else "prompt",
                )

    async def _get_response(
        self, *, body: Any, call_method: str, raw_request: Request | None = None
    ) -> AsyncGenerator[Any, None]:
        assert raw_request is not None
        target: Target = raw_request.state.target
        wants_usage = bool(body.stream and body.stream_options and body.stream_options.include_usage)
        asked = body.model_copy(update={"model": target.served})
        info = RawRequestInfo.from_starlette_request(raw_request)
        measured, outcome, tokens = target.measured(self._metrics), "cancelled", 0
        begun = False
        try:
            with answering(target.model):
                async for output in getattr(target.handle.options(stream=True), call_method).remote(asked, info):
                    _raise_engine_error(output)
                    measured.output()
                    usage, kept = _usage(output, wants_usage)
                    if usage:
                        tokens = usage["completion_tokens"]
                        await auth.current().spend(usage["total_tokens"])
                    if kept:
                        yield kept
                        begun = True
            outcome = "ok"
        except ApiError as error:
            outcome = "error"
            if not begun:
                raise
            # Too late for another status: the stream says it, as OpenAI's own do.
            yield f"data: {json.dumps(error.body())}\n\n"
        finally:
            measured.done(outcome, tokens)

    async def _copy(self, target: Target, body: Any, call_method: str) -> None:
        """A copy of a request for a variant in the shadow; its answer is only measured."""
        measured, outcome, tokens = target.measured(self._metrics), "error", 0
        asked = body.model_copy(update={"model": target.served, "stream": False, "stream_options": None})
        try:
            async for output in getattr(target.handle.options(stream=True), call_method).remote(asked, None):
                _raise_engine_error(output)
                measured.output()
                tokens = output.usage.completion_tokens
            outcome = "ok"
        finally:
            measured.done(outcome, tokens)


OPENAI: dict[str, Callable[[FastAPI], Callable[..., Any]]] = {
    "chat": lambda api: api.post("/v1/chat/completions"),
    "completions": lambda api: api.post("/v1/completions"),
}
"""Routes of OpenAI's that Ray's ingress answers with our help: method → route."""


def _adapters(model: Model, suffix: str) -> list[str]:
    """Names of the adapters of the variant @..., or of all variants."""
    variants = [variant for variant in model.variants if suffix in ("", f"@{variant.name}")]
    return list(dict.fromkeys(adapter.name for variant in variants for adapter in variant.adapters))


def _texts(body: Any) -> list[str]:
    """All that a request gives the model to read."""
    if isinstance(body, TextRequest):
        prompts = body.prompt if isinstance(body.prompt, list) else [body.prompt]
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise ApiError(400, "prompt: this model is guarded and takes text, no tokens", param="prompt")
        return prompts
    parts: list[str] = []
    for message in body.messages:
        content = message.get("content") or ""
        parts += [content] if isinstance(content, str) else [part.get("text") or "" for part in content]
    return [part for part in parts if part.strip()]


def _usage(output: Any, wanted: bool) -> tuple[dict[str, int] | None, Any]:
    """The usage in an output, if it is there, and the output, without the event of the usage unless it is wanted."""
    if not isinstance(output, list | str):
        return output.usage.model_dump(), output
    events = output if isinstance(output, list) else [output]
    for index, event in enumerate(events):
        if '"choices":[]' in event:
            usage = json.loads(event.removeprefix("data: "))["usage"]
            return usage, events if wanted else [*events[:index], *events[index + 1 :]]
    return None, events


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
        return EngineDead()
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


async def _generate_one_token(handle: DeploymentHandle, name: str) -> None:
    answer: Any = handle.options(stream=True).completions.remote(
        CompletionRequest(model=name, prompt="Hello", max_tokens=1)
    )
    async for output in answer:
        _raise_engine_error(output)


async def _continue_by_one_token(handle: DeploymentHandle) -> None:
    answer: Any = handle.options(stream=True).generate.remote("Hello", Sampling(1, 1.0, 1.0, [], None))
    async for _ in answer:
        pass


async def _embed_one_text(handle: DeploymentHandle) -> None:
    await handle.embed.remote(["Hello"])


async def _classify_one_text(handle: DeploymentHandle) -> None:
    await handle.classify.remote(["Hello"])


async def _rank_one_text(handle: DeploymentHandle) -> None:
    await handle.rerank.remote("Hello", ["Hello"])


async def _analyze_one_text(handle: DeploymentHandle) -> None:
    await handle.analyze.remote("Hello")
