"""vLLM's own OpenAI server with its CPU worker in the engine's process, as our replicas have it.

vLLM starts one more process for the worker, and on two cores the two of them, which wait for each other in busy loops,
take both. A comparison with that alone would be to our favour for a reason that no GPU has.
"""

import runpy
from typing import Any

from vllm.v1.engine.async_llm import AsyncLLM

from app.deployments import engine_start

SERVER = "vllm.entrypoints.openai.api_server"


def _in_one_process() -> None:
    start = AsyncLLM.from_vllm_config

    def from_vllm_config(vllm_config: Any, **options: Any) -> AsyncLLM:
        with engine_start.in_one_process(vllm_config):
            return start(vllm_config=vllm_config, **options)

    AsyncLLM.from_vllm_config = from_vllm_config  # pyright: ignore[reportAttributeAccessIssue]


if __name__ == "__main__":
    _in_one_process()
    runpy.run_module(SERVER, run_name="__main__", alter_sys=True)
