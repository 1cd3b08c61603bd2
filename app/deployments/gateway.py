"""The way in: every route, in front of the deployments that do the work."""

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from ray import serve
from ray.llm._internal.serve.core.protocol import RawRequestInfo
from ray.serve.handle import DeploymentHandle
from ray.serve.llm.ingress import OpenAiIngress
from starlette.responses import Response
from vllm.entrypoints.generate.base.protocol import StreamOptions

from app import auth, cores, errors, request_log, routes
from app.bodies import DetachBody
from app.deployments import engine_errors, experiment, guard
from app.deployments.engine_errors import raise_engine_error
from app.deployments.experiment import Assignments, How, Measured, Metrics, Shadows
from app.deployments.probes import probes
from app.errors import ApiError
from app.handles import answering, begun_once_more, resolve
from app.limits import BodyLimit
from app.request_log import RequestLog
from app.routes import analyze, classify, embeddings, generate, health, openai, rerank
from app.routes.openai import ChatRequest, TextRequest
from app.settings import Live, Model, Remote, Settings, live
from app.validation import validate

logger = logging.getLogger("ray.serve")

PROBE_SECONDS = 5.0
"""How long /ready waits for a model; probes of load balancers and Kubernetes wait 5 to 10 s."""
READY_SECONDS = 30.0
"""How long a model that has answered a probe counts as ready without another."""


def api(settings: Settings) -> FastAPI:
    """All routes, and what every request goes through."""
    api = FastAPI(title="Ray Serve blueprint")
    if settings.auth.keys_file:
        api.add_middleware(auth.Authenticate, settings.auth.keys_file, settings.auth.redis_url)
    errors.install(api)
    engine_errors.install(api)
    api.add_middleware(BodyLimit, largest=int(settings.gateway.max_body_mib * 2**20))
    api.add_middleware(DetachBody)
    api.add_middleware(RequestLog)
    for module in (openai, embeddings, health):
        api.include_router(module.router, responses=errors.DOCUMENTED)
    optional = (
        (generate.router, settings.generate),
        (classify.router, settings.classifiers),
        (classify.moderations, settings.moderation),
        (rerank.router, settings.rerankers),
        (analyze.router, settings.pipeline),
    )
    for router, served in optional:
        if served:
            api.include_router(router, responses=errors.DOCUMENTED)
    return api


class Target(NamedTuple):
    """Where a request for a model goes."""

    handle: DeploymentHandle
    model: str
    variant: str
    served: str
    """What the engine calls the model, or the adapter."""
    how: How

    def measured(self, metrics: Metrics) -> Measured:
        return Measured(metrics, self.model, self.variant, self.how)


class Gateway(OpenAiIngress):
    """What the routes (app/routes) use: settings, handles, and which variant answers whom."""

    def __init__(self, settings: Settings, handles: Mapping[str, DeploymentHandle | Remote]) -> None:
        super().__init__({}, {})
        cores.leave_to_engines()
        auth.require(settings.auth)
        self.started = int(time.time())
        self.settings = settings
        self.handles = {name: resolve(handle) for name, handle in handles.items()}
        self.probes = probes(settings, self.handles)
        self._language = _names(settings.models)
        others = (*settings.embeddings, *settings.classifiers, *settings.rerankers)
        self.names = [*self._language, *(model.name for model in others)]
        """Everything that a request may ask for as `model`."""
        self._models = {model.name: model for model in settings.models}
        self._classifiers = {classifier.name: classifier for classifier in settings.classifiers}
        self._ready_until: dict[str, float] = {}
        self._shadows = Shadows()
        self._metrics = Metrics()
        self._assignments = Assignments(self._metrics)
        self._live = live(settings)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray asks for it in each replica."""
        return api(self.settings)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take new weights, shadow shares, pins and guards; requests under way go on. Raises SettingsError."""
        self._live = validate(Live, user_config, "user_config")

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """The answer of /v1/chat/completions."""
        return await self._answer(body, request, super().chat)

    async def completions(self, body: TextRequest, request: Request) -> Response:
        """The answer of /v1/completions."""
        return await self._answer(body, request, super().completions)

    async def require_safe(self, model: str, param: str, texts: Callable[[], list[str]]) -> None:
        """ApiError when the model's guard, if it has one, refuses a text; `param` is the field that holds them."""
        now = self._live.models[model].guard
        if now and now.enabled:
            classifier = self._classifiers[now.classifier]
            await guard.require_safe(texts(), param, now, classifier, self.handles[classifier.deployment])

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
        asked = routes.chosen(body.model, self._language)
        name, variant, adapter = re.fullmatch(r"([^@:]+)(?:@([^:]+))?(?::(.+))?", asked).groups()  # pyright: ignore[reportOptionalMemberAccess]
        model, now = self._models[name], self._live.models[name]
        param = "messages" if isinstance(body, ChatRequest) else "prompt"
        await self.require_safe(name, param, partial(guard.texts_of, body))
        how: How = "pinned"
        if variant is None:
            variant, how = self._choose(model, adapter, body, request)
        request_log.note(variant=variant)
        served = f"{name}:{adapter}" if adapter else name
        request.state.target = Target(self._handle(model, variant), name, variant, served, how)
        for other, share in now.shadow.items():
            if other != variant:
                copy = Target(self._handle(model, other), name, other, name, "shadow")
                self._shadows.maybe(share, partial(self._copy, copy, body, method.__name__))
        response = await method(body, request)
        response.headers["x-variant"] = f"{name}@{variant}"
        return response

    def _choose(self, model: Model, adapter: str | None, body: Any, request: Request) -> tuple[str, How]:
        """The variant for whoever asks, among those that have the adapter."""
        user = experiment.identity(auth.current().name, body.user, request.headers.get("x-session-id"))
        now = self._live.models[model.name]
        if adapter:
            fitting = [variant.name for variant in model.variants if adapter in _adapters(model, f"@{variant.name}")]
            weights = {name: weight for name, weight in now.weights.items() if name in fitting}
            chosen = experiment.assign(model.name, user, weights) if any(weights.values()) else fitting[0]
            return chosen, "pinned"
        return self._assignments.choose(model.name, user, now)

    def _handle(self, model: Model, variant: str) -> DeploymentHandle:
        return self.handles[next(model.deployment(one) for one in model.variants if one.name == variant)]

    async def _get_response(
        self, *, body: Any, call_method: str, raw_request: Request | None = None
    ) -> AsyncGenerator[Any, None]:
        assert raw_request is not None
        target: Target = raw_request.state.target
        wants_usage = bool(body.stream and body.stream_options and body.stream_options.include_usage)
        asked = body.model_copy(update={"model": target.served})
        if body.stream:
            # Quotas count it. vLLM's own enable_force_include_usage would put it into every event.
            often = wants_usage and body.stream_options.continuous_usage_stats
            asked.stream_options = StreamOptions(include_usage=True, continuous_usage_stats=often)
        info = RawRequestInfo.from_starlette_request(raw_request)
        measured, outcome, client = target.measured(self._metrics), "cancelled", auth.current()
        usage: dict[str, int] = {}
        events = 0
        try:
            method = getattr(target.handle.options(stream=True), call_method)
            with answering(target.model):
                async for output in begun_once_more(method.remote, asked, info):
                    raise_engine_error(output)
                    measured.output()
                    if not body.stream:
                        # All is said before: Ray takes the answer and never comes back for more.
                        outcome, usage = "ok", _noted(output.usage.model_dump())
                        await client.spend(usage["total_tokens"])
                        yield output
                        return
                    found, kept = _usage(output if isinstance(output, list) else [output], wants_usage)
                    usage = _noted(found) if found else usage
                    if kept:
                        events += len(kept)
                        yield kept
            outcome = "ok"
        except ApiError as error:
            outcome = "error" if error.status >= 500 or error.status == 429 else "invalid"
            if not events:
                raise
            yield error.event()
        finally:
            measured.done(outcome, usage.get("completion_tokens", 0))
            if body.stream:
                # The usage is the end of a stream; of one that its reader has left, each event counts as a token.
                await client.spend(usage.get("total_tokens", events))

    async def _copy(self, target: Target, body: Any, call_method: str) -> None:
        """A copy of a request for a variant in the shadow; its answer is only measured."""
        measured, outcome, tokens = target.measured(self._metrics), "error", 0
        asked = body.model_copy(update={"model": target.served, "stream": False, "stream_options": None})
        try:
            async for output in getattr(target.handle.options(stream=True), call_method).remote(asked, None):
                raise_engine_error(output)
                measured.output()
                tokens = output.usage.completion_tokens
            outcome = "ok"
        finally:
            measured.done(outcome, tokens)


Ingress = serve.ingress()(Gateway)
"""What a replica makes."""


def _noted(usage: dict[str, int]) -> dict[str, int]:
    """The usage, which the request's line in the log has as well."""
    request_log.note(prompt_tokens=usage["prompt_tokens"], completion_tokens=usage["completion_tokens"])
    return usage


def _names(models: list[Model]) -> list[str]:
    """What a request may call the language models: by name, variant and adapter."""
    found: list[str] = []
    for model in models:
        for suffix in ("", *(f"@{variant.name}" for variant in model.variants)):
            found.append(f"{model.name}{suffix}")
            found += [f"{model.name}{suffix}:{name}" for name in _adapters(model, suffix)]
    return found


def _adapters(model: Model, suffix: str) -> list[str]:
    """Names of the adapters of the variant @..., or of all variants."""
    variants = [variant for variant in model.variants if suffix in ("", f"@{variant.name}")]
    return list(dict.fromkeys(adapter.name for variant in variants for adapter in variant.adapters))


def _usage(events: list[str], wanted: bool) -> tuple[dict[str, int], list[str]]:
    """The usage in a stream's events, if it is there, and the events; without that of the usage unless it is wanted."""
    usage: dict[str, int] = {}
    kept: list[str] = []
    for event in events:
        holds = '"usage":{' in event  # within a text the quotes would be escaped
        if holds:
            usage = json.loads(event.removeprefix("data: "))["usage"]
        if wanted or not holds:
            kept.append(event)
    return usage, kept
