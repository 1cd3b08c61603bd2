"""How replicas start a vLLM engine on a CPU: in as few processes as can be, since each imports all of vLLM."""

import contextlib
from collections.abc import Iterator

from vllm.config import VllmConfig
from vllm.model_executor.models import registry
from vllm.platforms import current_platform
from vllm.utils.ompmultiprocessing import OMPProcessManager


def inspect_models_here() -> None:
    """To be called before an engine's configuration is made: its model's class is looked at in this process.

    vLLM starts a process for that, which imports all of vLLM once more, lest CUDA be initialized in this one.
    """
    if current_platform.is_cpu():
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
