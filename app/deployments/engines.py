"""The deployments with a vLLM engine, and what they share: arguments, environment, a health check that generates.

vLLM is not imported here. The head builds applications, each in a process of its own, and replicas wait for that; so it
names their classes, which Ray Serve then imports in the replicas.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import psutil
from ray import serve
from ray.serve import Application

from app import builtin, tracing
from app.deployments import router
from app.options import Placement
from app.settings import GENERATE, Generator, LanguageModel, Model, Variant

logger = logging.getLogger("ray.serve")

STALLED_AFTER = 3
"""Failed health checks in a row after which Ray replaces a replica (REPLICA_HEALTH_CHECK_UNHEALTHY_THRESHOLD)."""
KV_CACHE_GIB = 0.25
"""Key-value cache on CPUs when the settings say nothing; of the built-in model's, 11,000 tokens."""


def by_name(path: str, **options: Any) -> serve.Deployment:
    """A Serve deployment of the class at this import path, and its options."""
    deployment: Any = serve.deployment(**options)  # Ray's types do not know of paths
    return deployment(path)


def variant(model: Model, chosen: Variant) -> Application:
    """The Serve deployment of one variant; its methods take and give what vLLM's OpenAI server does (`llm.LLM`).

    Makes the built-in model if it is not made yet. Raises BuiltinModelError when it cannot be.
    """
    deployment = by_name("app.deployments.llm.LLM", name=model.deployment(chosen), **options(chosen))
    return deployment.bind(model, chosen, source(chosen))


def generator(model: Generator) -> Application:
    """The Serve deployment of /generate's model. Raises BuiltinModelError like `variant`."""
    place, scaling = model.placement, model.scaling
    actor: dict[str, Any] = {**place.options(), "runtime_env": {"env_vars": environment(model)}}
    if model.engine.workers > 1:
        actor["num_gpus"] = model.engine.workers  # vLLM starts a process for each in the replica's node
    chosen = {"ray_actor_options": actor, **scaling.options(), **router.OPTIONS}
    deployment = by_name("app.deployments.generate.Generate", name=GENERATE, **chosen)
    return deployment.bind(model, source(model))


def options(variant: Variant) -> dict[str, Any]:
    """Options of a variant's deployment: what LLMServer.get_deployment_options of ray.llm makes of its configuration.

    The replica and its engine's first worker have a bundle together, each other worker has one.
    """
    place = variant.placement
    worker: dict[str, float] = {"GPU": place.num_gpus} if place.num_gpus else {}
    if place.accelerator_type:
        worker[f"accelerator_type:{place.accelerator_type}"] = 0.001
    actor = Placement.options(place)  # the GPUs are the workers'
    first = {**worker, "CPU": place.num_cpus}
    if "memory" in actor:
        first["memory"] = actor["memory"]
    return {
        **variant.scaling.options(),
        **router.OPTIONS,
        "ray_actor_options": {**actor, "runtime_env": {"env_vars": environment(variant)}},
        "placement_group_bundles": [first, *[worker] * (variant.engine.workers - 1)],
        "placement_group_strategy": place.strategy,
    }


def source(model: LanguageModel) -> str:
    """Where vLLM reads the weights. Makes a built-in model; BuiltinModelError when it cannot be."""
    return str(builtin.ensure(model.builtin)) if model.builtin else model.source


def arguments(model: LanguageModel) -> dict[str, Any]:
    """Arguments of vLLM's engine."""
    engine = model.engine
    chosen = engine.model_dump(
        exclude={
            *("kv_cache_gib", "gpu_memory_utilization", "max_lora_rank", "start_timeout_s", "extra"),
            *("tool_call_parser", "reasoning_parser"),
        },
        exclude_none=True,
    )
    if model.placement.num_gpus:
        chosen["gpu_memory_utilization"] = model.gpu_memory_utilization
    else:
        chosen["kv_cache_memory_bytes"] = int((engine.kv_cache_gib or KV_CACHE_GIB) * 2**30)
    if endpoint := os.environ.get(tracing.ENDPOINT):
        chosen["otlp_traces_endpoint"] = endpoint
    if model.revision:
        chosen["revision"] = chosen["tokenizer_revision"] = model.revision
    return chosen | engine.extra


def environment(model: LanguageModel) -> dict[str, str]:
    """Environment variables of the replica and of the engine's processes."""
    engine = model.engine
    adapters = model.adapters if isinstance(model, Variant) else []
    online = model.from_hub or any(not adapter.source.startswith("/") for adapter in adapters)
    chosen = {
        "HF_HUB_OFFLINE": "0" if online else "1",
        "VLLM_NO_USAGE_STATS": "1",
        # Even an eager engine compiles its sampler, at the first answer that is not greedy, and dies of it where there
        # is no C++ compiler, as in our image.
        "TORCHDYNAMO_DISABLE": "1" if engine.enforce_eager else "0",
        # vLLM waits for its engine's process in a call that blocks, so Ray's limit alone would never be looked at.
        "VLLM_ENGINE_READY_TIMEOUT_S": str(engine.start_timeout_s),
        "RAYLLM_ENGINE_START_TIMEOUT_S": str(engine.start_timeout_s),
    }
    if model.placement.num_gpus:
        # FlashInfer's sampler would be compiled by each pod anew, with parts of CUDA that our image has not.
        chosen["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
    else:
        # vLLM would bind the threads of every engine on a node to the same cores, the first ones. How many threads
        # there are, Ray says (OMP_NUM_THREADS, from placement.num_cpus).
        chosen["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    return chosen


class Liveness:
    """A health check that finds an engine that is there but does nothing (docs/decisions/0004).

    vLLM's own looks only whether its process has died: https://github.com/ray-project/ray/issues/61263
    """

    def __init__(self, timeout_s: float, generate_one_token: Callable[[], Awaitable[None]]) -> None:
        self._timeout_s = timeout_s
        self._generate_one_token = generate_one_token
        self._checked = 0.0
        self._answered = time.monotonic()
        self._failures = 0

    async def noting(self, stream: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
        """The stream itself; that it goes on is the best health check."""
        async for output in stream:
            self._answered = time.monotonic()
            yield output

    async def check(self) -> None:
        """Raise unless the engine has answered since the last check, or generates a token now.

        A stalled engine is killed at the last failed check before Ray replaces the replica: its processes would outlive
        it, with all the memory of the weights.
        """
        answered, self._checked = self._answered > self._checked, time.monotonic()
        try:
            if not answered:
                async with asyncio.timeout(self._timeout_s * 0.9):  # before Ray's own patience ends
                    await self._generate_one_token()
        except Exception as error:
            self._failures += 1
            logger.warning("health check %d of %d failed: %r", self._failures, STALLED_AFTER, error)
            if self._failures >= STALLED_AFTER:
                for process in psutil.Process().children(recursive=True):
                    process.kill()
            raise
        self._failures = 0
