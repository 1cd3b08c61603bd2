"""A replica of a language model: Ray's LLMServer, whose health is that it generates."""

from collections.abc import AsyncGenerator
from typing import Any

from ray.llm._internal.serve.core.configs.accelerators import CPUConfig, GPUConfig
from ray.llm._internal.serve.core.configs.openai_api_models import ErrorResponse
from ray.llm._internal.serve.core.protocol import RawRequestInfo
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer
from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest
from vllm.entrypoints.openai.models.protocol import LoRAModulePath

from app import cores, tracing
from app.deployments import engine_start, engines
from app.deployments.engines import Liveness
from app.deployments.gathered import gathered
from app.errors import ApiError
from app.settings import Model, Variant


def config(model: Model, variant: Variant, source: str) -> LLMConfig:
    """Ray's configuration of one variant, whose weights are at `source`."""
    place = variant.placement
    # vLLM's CPU worker is no actor that Ray must place; the default would reserve one more core for it. On GPUs each
    # worker is an actor in a bundle of its own.
    bundle = {"GPU": place.num_gpus} if place.num_gpus else {"CPU": 0}
    return LLMConfig(
        model_loading_config={"model_id": model.name, "model_source": source},
        accelerator_type=place.accelerator_type,
        accelerator_config=GPUConfig() if place.num_gpus else CPUConfig(),
        engine_kwargs={**_frontend_arguments(model, variant), **engines.arguments(variant)},
        placement_group_config={"bundle_per_worker": bundle, "strategy": place.strategy},
        runtime_env={"env_vars": engines.environment(variant)},
    )


def _frontend_arguments(model: Model, variant: Variant) -> dict[str, Any]:
    """Arguments of vLLM's OpenAI frontend, and of the engine for what the frontend loads into it."""
    engine = variant.engine
    chosen: dict[str, Any] = {}
    if engine.tool_call_parser:
        chosen |= {"enable_auto_tool_choice": True, "tool_call_parser": engine.tool_call_parser}
    if engine.reasoning_parser:
        chosen["reasoning_parser"] = engine.reasoning_parser
    if variant.adapters:
        chosen |= {
            "enable_lora": True,
            "max_loras": len(variant.adapters),
            "max_lora_rank": engine.max_lora_rank,
            "lora_modules": [LoRAModulePath(f"{model.name}:{a.name}", a.source) for a in variant.adapters],
        }
    return chosen


class _Engine(VLLMEngine):
    def _prepare_engine_config(self, callback_ctx: Any) -> Any:
        engine_start.inspect_models_here()
        return super()._prepare_engine_config(callback_ctx)

    def _start_async_llm_engine(self, vllm_engine_args: Any, vllm_engine_config: Any, placement_group: Any) -> Any:
        with engine_start.in_one_process(vllm_engine_config):
            return super()._start_async_llm_engine(vllm_engine_args, vllm_engine_config, placement_group)


class LLM(LLMServer):
    """Ray's server of one model, with a health check that generates."""

    _default_engine_cls = _Engine

    async def __init__(self, model: Model, variant: Variant, source: str, **experimental: Any) -> None:
        llm_config = config(model, variant, source)
        llm_config.experimental_configs |= experimental
        await super().__init__(llm_config)
        cores.leave_to_engines()
        # The first token has the start's budget, not that of a health check: kernels are made for it.
        await self._generate_one_token()
        self._liveness = Liveness(variant.scaling.health_check_timeout_s, self._generate_one_token)

    async def _start_engine(self) -> None:
        # Ray's own also starts an actor that reports usage to Ray's makers, and takes 400 MB.
        assert self.engine is not None
        # A task on each node fetches weights from a bucket. Without one it does nothing, but imports vLLM before it.
        callback, config = self._llm_config.get_or_create_callback(), self._llm_config.get_engine_config()
        assert callback is not None
        assert config is not None
        callback.ctx.run_init_node = config.mirror_config is not None
        await self.engine.start()

    async def _run_request(
        self, request: Any, *, raw_request_info: RawRequestInfo | None = None, **kwargs: Any
    ) -> AsyncGenerator[Any, None]:
        # The engine's span is to be below this replica's, not below the client's.
        headers = raw_request_info.headers if raw_request_info else {}
        raw_request_info = RawRequestInfo({**headers, **tracing.headers()})
        stream = await super()._run_request(request, raw_request_info=raw_request_info, **kwargs)
        return self._liveness.noting(stream)

    def _batch_output_stream(self, generator: AsyncGenerator[Any, None]) -> AsyncGenerator[list[Any], None]:
        interval_ms = self._get_batch_interval_ms()
        # The fast path passes on each token, for which Ray's own needs no task.
        return gathered(generator, interval_ms / 1000) if interval_ms else super()._batch_output_stream(generator)

    async def answer(self, messages: list[dict[str, str]], max_tokens: int) -> str:
        """The likeliest answer to a conversation, for deployments that cannot import vLLM's types.

        Raises ApiError: what the model says of a conversation that it does not take, or that its engine failed.
        """
        name = self._llm_config.model_id
        request = ChatCompletionRequest(model=name, messages=messages, temperature=0, max_completion_tokens=max_tokens)
        stream: Any = await self.chat(request)
        async for output in stream:
            if isinstance(output, ErrorResponse):
                known = output.error.code < 500
                reason = output.error.message if known else "the engine failed; the server's log says more"
                raise ApiError(output.error.code, f"the model {name}: {reason}")
            return (output.choices[0].message.content or "").strip()
        raise ApiError(500, f"the model {name} answered nothing")

    async def check_health(self) -> None:
        """Raise unless the engine generates."""
        await super().check_health()
        await self._liveness.check()

    async def _generate_one_token(self) -> None:
        assert self.engine is not None
        answer: Any = self.engine.completions(
            CompletionRequest(model=self._llm_config.model_id, prompt="Hello", max_tokens=1),
            RawRequestInfo(tracing.headers()),
        )
        async for output in answer:
            # A cancelled request ends like this, too: vLLM makes an answer of it and goes on.
            if isinstance(output, ErrorResponse):
                raise RuntimeError(f"no token: {output.error.message}")
