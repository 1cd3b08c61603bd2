"""Stands in for vLLM where there is no GPU: it loads no model, and says in every answer that it is a stub."""

from collections.abc import AsyncGenerator
from typing import Any

# These are in the pods' image, not where the tests run.
from ray.llm._internal.serve.core.engine.protocol import LLMEngine  # pyright: ignore[reportMissingImports]
from ray.serve.llm import LLMConfig  # pyright: ignore[reportMissingImports]
from ray.serve.llm.openai_api_models import (  # pyright: ignore[reportMissingImports]
    ChatCompletionRequest,
    ChatCompletionResponse,
    CompletionRequest,
    CompletionResponse,
)


class StubEngine(LLMEngine):
    """What Ray's LLMServer needs of an engine."""

    def __init__(self, llm_config: LLMConfig) -> None:
        self._answer = f"I am a stub without a GPU, in place of the model {llm_config.model_id}."

    async def start(self) -> None:
        """Nothing to start."""

    def routing_stats(self) -> dict[str, Any]:
        return {}

    async def chat(self, request: ChatCompletionRequest, *_: Any) -> AsyncGenerator[ChatCompletionResponse, None]:
        choice = {"index": 0, "message": {"role": "assistant", "content": self._answer}}
        yield ChatCompletionResponse.model_validate({"model": request.model, "choices": [choice], "usage": {}})

    async def completions(self, request: CompletionRequest, *_: Any) -> AsyncGenerator[CompletionResponse, None]:
        choice = {"index": 0, "text": self._answer, "finish_reason": "stop"}
        yield CompletionResponse.model_validate({"model": request.model, "choices": [choice], "usage": {}})

    async def _refuse(self, *_: Any) -> None:
        raise NotImplementedError(f"{self._answer} I answer chats and completions only.")

    embeddings = transcriptions = resolve_lora = reset_prefix_cache = _refuse
