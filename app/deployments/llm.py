"""Language models: one ray.serve.llm deployment for each variant, whose health is that it generates."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from typing import Any

import psutil
from ray.llm._internal.serve.core.configs.accelerators import CPUConfig, GPUConfig
from ray.llm._internal.serve.core.configs.openai_api_models import ErrorResponse
from ray.serve import Application
from ray.serve.llm import LLMConfig, build_llm_deployment
from ray.serve.llm.deployment import LLMServer
from ray.serve.llm.openai_api_models import CompletionRequest
from vllm.entrypoints.openai.models.protocol import LoRAModulePath

from app import builtin
from app.settings import Model, Variant

logger = logging.getLogger("ray.serve")

STALLED_AFTER = 3
"""Failed health checks in a row after which Ray replaces a replica (REPLICA_HEALTH_CHECK_UNHEALTHY_THRESHOLD)."""


def build(model: Model, variant: Variant) -> Application:
    """The Serve deployment of one variant; its methods take and give what vLLM's OpenAI server does.

    Makes the built-in model if it is not made yet. Raises BuiltinModelError when it cannot be.
    """
    return build_llm_deployment(
        config(model, variant),
        deployment_cls=LLM,
        bind_kwargs={"probe_timeout_s": variant.scaling.health_check_timeout_s},
        override_serve_options={"name": model.deployment(variant)},
    )


def config(model: Model, variant: Variant) -> LLMConfig:
    """Ray's configuration of one variant."""
    place, scaling = variant.placement, variant.scaling.options()
    # The GPUs are the workers', in the placement group.
    actor = {name: value for name, value in place.options().items() if name in ("num_cpus", "memory")}
    # vLLM's CPU worker is a child process of the replica, not an actor that Ray must place; the default would reserve
    # one more core for it. On GPUs each worker is an actor in a bundle of its own.
    bundle = {"GPU": place.num_gpus} if place.num_gpus else {"CPU": 0}
    return LLMConfig(
        model_loading_config={
            "model_id": model.name,
            "model_source": str(builtin.ensure(variant.builtin)) if variant.builtin else variant.source,
        },
        accelerator_type=place.accelerator_type,
        accelerator_config=GPUConfig() if place.num_gpus else CPUConfig(),
        engine_kwargs=_engine_kwargs(model, variant),
        deployment_config={**scaling, "ray_actor_options": actor},
        placement_group_config={"bundle_per_worker": bundle, "strategy": place.strategy},
        runtime_env={"env_vars": _environment(variant)},
    )


def _engine_kwargs(model: Model, variant: Variant) -> dict[str, Any]:
    """vLLM's arguments, those of its engine and those of its OpenAI frontend."""
    engine = variant.engine
    arguments = engine.model_dump(
        exclude={"kv_cache_gib", "gpu_memory_utilization", "max_lora_rank", "start_timeout_s", "extra"},
        exclude_none=True,
    )
    if variant.placement.num_gpus:
        arguments["gpu_memory_utilization"] = variant.gpu_memory_utilization
    if engine.tool_call_parser:
        arguments["enable_auto_tool_choice"] = True
    if variant.revision:
        arguments["revision"] = arguments["tokenizer_revision"] = variant.revision
    if variant.adapters:
        arguments |= {
            "enable_lora": True,
            "max_loras": len(variant.adapters),
            "max_lora_rank": engine.max_lora_rank,
            "lora_modules": [LoRAModulePath(f"{model.name}:{a.name}", a.source) for a in variant.adapters],
        }
    return arguments | engine.extra


def _environment(variant: Variant) -> dict[str, str]:
    """Environment variables of the replica and the engine's processes."""
    engine = variant.engine
    from_hub = variant.from_hub or any(not adapter.source.startswith("/") for adapter in variant.adapters)
    variables = {
        "HF_HUB_OFFLINE": "0" if from_hub else "1",
        "VLLM_NO_USAGE_STATS": "1",
        # Even an eager engine compiles its sampler, at the first answer that is not greedy, and dies of it where there
        # is no C++ compiler, as in our image.
        "TORCHDYNAMO_DISABLE": "1" if engine.enforce_eager else "0",
        # vLLM waits for its engine's process in a call that blocks, so Ray's limit alone would never be looked at.
        "VLLM_ENGINE_READY_TIMEOUT_S": str(engine.start_timeout_s),
        "RAYLLM_ENGINE_START_TIMEOUT_S": str(engine.start_timeout_s),
    }
    if not variant.placement.num_gpus:
        variables["VLLM_CPU_KVCACHE_SPACE"] = str(engine.kv_cache_gib or 1)
    return variables


class LLM(LLMServer):
    """Ray's server of one model, with a health check that finds an engine that is there but does nothing.

    vLLM's own looks only whether its process has died: https://github.com/ray-project/ray/issues/61263
    """

    async def __init__(self, llm_config: LLMConfig, *, probe_timeout_s: float, **kwargs: Any) -> None:
        self._probe_timeout_s = probe_timeout_s
        self._failures = 0
        await super().__init__(llm_config, **kwargs)
        # The first token has the start's budget, not that of a health check: kernels are made for it.
        await self._generate_one_token()
        self._checked = 0.0
        self._answered = time.monotonic()

    async def _start_engine(self) -> None:
        # Ray's own also starts an actor that reports usage to Ray's makers, and takes 400 MB.
        assert self.engine is not None
        await self.engine.start()

    async def _run_request(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        return self._noting(await super()._run_request(*args, **kwargs))

    async def _noting(self, stream: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
        """The stream itself; that it goes on is the best health check."""
        async for output in stream:
            self._answered = time.monotonic()
            yield output

    async def check_health(self) -> None:
        """Raise unless the engine has answered since the last check, or generates a token now.

        A stalled engine is killed at the last failed check before Ray replaces the replica: its processes would outlive
        it, with all the memory of the weights.
        """
        answered, self._checked = self._answered > self._checked, time.monotonic()
        try:
            await super().check_health()
            if not answered:
                async with asyncio.timeout(self._probe_timeout_s * 0.9):  # before Ray's own patience ends
                    await self._generate_one_token()
        except Exception as error:
            self._failures += 1
            logger.warning("health check %d of %d failed: %r", self._failures, STALLED_AFTER, error)
            if self._failures >= STALLED_AFTER:
                for process in psutil.Process().children(recursive=True):
                    process.kill()
            raise
        self._failures = 0

    async def _generate_one_token(self) -> None:
        assert self.engine is not None
        probe = CompletionRequest(model=self._llm_config.model_id, prompt="Hello", max_tokens=1)
        answer: Any = self.engine.completions(probe)
        async for output in answer:
            # A cancelled request ends like this, too: vLLM makes an answer of it and goes on.
            if isinstance(output, ErrorResponse):
                raise RuntimeError(f"no token: {output.error.message}")
