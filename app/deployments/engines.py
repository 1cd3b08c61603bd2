"""What all deployments with a vLLM engine share: its arguments, its environment, and a health check that generates."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import Any

import psutil
from vllm.config import VllmConfig
from vllm.platforms import current_platform
from vllm.utils.ompmultiprocessing import OMPProcessManager

from app import builtin, tracing
from app.settings import LanguageModel

logger = logging.getLogger("ray.serve")

STALLED_AFTER = 3
"""Failed health checks in a row after which Ray replaces a replica (REPLICA_HEALTH_CHECK_UNHEALTHY_THRESHOLD)."""
KV_CACHE_GIB = 0.25
"""Key-value cache on CPUs when the settings say nothing; of the built-in model's, 11,000 tokens."""


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
    chosen = {
        "HF_HUB_OFFLINE": "0" if model.from_hub else "1",
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


def inspect_models_here() -> None:
    """To be called before an engine's configuration is made: its model's class is looked at in this process.

    vLLM starts a process for that, which imports all of vLLM once more, lest CUDA be initialized in this one.
    """
    if current_platform.is_cpu():
        from vllm.model_executor.models import registry  # which the head, where applications are built, does without

        registry._run_in_subprocess = lambda fn: fn()  # pyright: ignore[reportPrivateUsage]


@contextlib.contextmanager
def in_one_process(config: VllmConfig) -> Iterator[None]:
    """An engine with one worker on a CPU, started within this, has the worker in its own process: 0.6 GB less.

    vLLM starts one more process for the worker, as it must know OpenMP's threads beforehand; so may the engine's.
    """
    parallel = config.parallel_config
    if not current_platform.is_cpu() or parallel.world_size > 1:
        yield
        return
    parallel.distributed_executor_backend = "uni"
    with OMPProcessManager(config).configure_omp_envs(rank=0, local_rank=0):
        yield


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
