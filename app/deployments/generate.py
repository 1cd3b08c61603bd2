"""/generate's model: vLLM's AsyncLLM in a deployment of ours, without OpenAI's frontend.

For what that frontend cannot do: change this class, and nothing else, to put something of your own around the engine.
"""

import uuid
from collections.abc import AsyncGenerator

from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

from app import cores, request_log, tracing
from app.answers import Piece, Sampling
from app.deployments import engine_start, engines
from app.deployments.engines import Liveness
from app.deployments.gathered import gathered
from app.errors import ApiError
from app.settings import GENERATE, Generator

GATHERED_S = 0.05
"""How long tokens of a stream are gathered, as by Ray's server of language models."""


class Generate:
    """One replica: an engine, loaded once, that takes requests in whenever a step has room for them."""

    async def __init__(self, model: Generator, source: str) -> None:
        engine_start.inspect_models_here()
        config = AsyncEngineArgs(
            model=source,
            served_model_name=GENERATE,
            distributed_executor_backend="mp" if model.engine.workers > 1 else "uni",
            **engines.arguments(model),
        ).create_engine_config()
        with engine_start.in_one_process(config):
            self._engine = AsyncLLM.from_vllm_config(config, stat_loggers=[RayPrometheusStatLogger])
        cores.leave_to_engines()
        await self._generate_one_token()
        self._liveness = Liveness(model.scaling.health_check_timeout_s, self._generate_one_token)

    async def generate(self, prompt: str, sampling: Sampling, stream: bool = False) -> AsyncGenerator[Piece, None]:
        """Continue the prompt, in one piece or with `stream` in many. Whoever stops listening stops the engine's work.

        Raises ApiError (400) for what vLLM does not take, a prompt that is too long above all.
        """
        async for found in gathered(self._liveness.noting(self._pieces(prompt, sampling, stream)), GATHERED_S):
            yield found[-1]._replace(text="".join(piece.text for piece in found))

    async def check_health(self) -> None:
        """Raise unless the engine generates."""
        await self._engine.check_health()
        await self._liveness.check()

    async def _pieces(self, prompt: str, sampling: Sampling, stream: bool) -> AsyncGenerator[Piece, None]:
        tokens, kind = 0, RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY
        try:
            parameters = SamplingParams(**sampling._asdict(), output_kind=kind)
            name = f"generate-{request_log.request_id() or uuid.uuid4().hex}"
            spans = tracing.headers() or None
            async for output in self._engine.generate(prompt, parameters, name, trace_headers=spans):
                (choice,) = output.outputs
                tokens += len(choice.token_ids)
                yield Piece(choice.text, tokens, len(output.prompt_token_ids or []), choice.finish_reason)
        except (ValueError, VLLMClientError) as error:
            reason = str(error)
            code = "context_length_exceeded" if "maximum" in reason and "length" in reason else None
            raise ApiError(400, reason, code=code) from None

    async def _generate_one_token(self) -> None:
        async for _ in self._pieces("Hello", Sampling(1, 1.0, 1.0, [], None), stream=False):
            pass
