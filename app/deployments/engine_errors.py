"""Errors of vLLM, and of Ray's ingress around it, as OpenAI's."""

import json
import re
from typing import Any

from fastapi import FastAPI, Request
from ray.llm._internal.serve.core.configs.openai_api_models import ErrorResponse, OpenAIHTTPException
from starlette.responses import JSONResponse
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.exceptions import VLLMClientError
from vllm.v1.engine.exceptions import EngineDeadError

from app.errors import ApiError
from app.handles import EngineDead


def install(api: FastAPI) -> None:
    """Answer what the request models and the ingress raise."""
    api.add_exception_handler(OpenAIHTTPException, _ray_error)
    api.add_exception_handler(VLLMClientError, _vllm_error)


def raise_engine_error(output: Any) -> None:
    """An error that the engine answers with, as an object or, once it streams, as an event."""
    for part in output if isinstance(output, list) else [output]:
        if isinstance(part, ErrorResponse):
            raise _engine_error(part.error.code, part.error.message, part.error.param)
        if isinstance(part, str) and part.startswith('data: {"error"'):
            error = json.loads(part.removeprefix("data: "))["error"]
            raise _engine_error(error["code"], error["message"], error["param"])


def _engine_error(status: int, message: str, param: str | None) -> Exception:
    """An error that vLLM answered with, as an ApiError unless it means that the engine is no more."""
    if message == str(EngineDeadError()):
        return EngineDead()
    if status >= 500:
        return ApiError(status, "the engine failed; the server's log says more")
    reason = re.sub(r" \(parameter=.*\)$", "", message, flags=re.DOTALL)  # param says it
    code = "context_length_exceeded" if "maximum context length" in reason else None
    return ApiError(status, reason, param=param, code=code)


async def _vllm_error(_: Request, error: Exception) -> JSONResponse:
    """An error that vLLM's request models raise: not a ValueError, so FastAPI does not catch it."""
    info = create_error_response(error).error
    refused = _engine_error(info.code, info.message, info.param)
    assert isinstance(refused, ApiError)
    return refused.response()


async def _ray_error(_: Request, error: Exception) -> JSONResponse:
    """An error of Ray's ingress: a time-out."""
    assert isinstance(error, OpenAIHTTPException)
    return ApiError(error.status_code, error.message).response()
