"""What /ready asks each deployment: the least work that shows that it answers."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from ray.serve.handle import DeploymentHandle
from ray.serve.llm.openai_api_models import CompletionRequest

from app.answers import Sampling
from app.deployments.engine_errors import raise_engine_error
from app.settings import ANALYZE, GENERATE, Settings

Probe = Callable[[], Awaitable[None]]


def probes(settings: Settings, handles: Mapping[str, DeploymentHandle]) -> dict[str, list[Probe]]:
    """Model or route → what each of its deployments is asked."""
    found: dict[str, list[Probe]] = {
        model.name: [
            partial(_generate_one_token, handles[model.deployment(variant)], model.name) for variant in model.variants
        ]
        for model in settings.models
    }
    for encoder in settings.embeddings:
        found[encoder.name] = [partial(_embed_one_text, handles[encoder.deployment])]
    for classifier in settings.classifiers:
        found[classifier.name] = [partial(_classify_one_text, handles[classifier.deployment])]
    for reranker in settings.rerankers:
        found[reranker.name] = [partial(_rank_one_text, handles[reranker.deployment])]
    if settings.pipeline:
        found["analyze"] = [partial(_analyze_one_text, handles[ANALYZE])]
    if settings.generate:
        found["generate"] = [partial(_continue_by_one_token, handles[GENERATE])]
    return found


async def _generate_one_token(handle: DeploymentHandle, name: str) -> None:
    answer: Any = handle.options(stream=True).completions.remote(
        CompletionRequest(model=name, prompt="Hello", max_tokens=1)
    )
    async for output in answer:
        raise_engine_error(output)


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
