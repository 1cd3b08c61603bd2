"""Events of a stream, in which the gateway looks for usage and errors; their texts follow from what somebody says."""

import json
from typing import Any

import atheris
from ray.llm._internal.serve.core.configs.openai_api_models import (
    ChatCompletionStreamResponse,
    CompletionStreamResponse,
    ErrorInfo,
    ErrorResponse,
)

from app.deployments import gateway
from app.deployments.engine_errors import raise_engine_error
from app.errors import ApiError
from app.handles import EngineDead

SEEDS = [
    b'\x00"usage":{"prompt_tokens":1}',
    b'\x01data: {"error":{"message":"m","code":500,"param":null}}\n\n',
    b'\x02\\"usage\\":{ maximum context length (parameter=a, value=b)',
]


def _event(provider: Any) -> tuple[str, bool]:
    """An event as vLLM writes it, and whether it holds the usage."""
    text = provider.ConsumeUnicodeNoSurrogates(40)
    usage: Any = {"prompt_tokens": provider.ConsumeIntInRange(0, 9), "total_tokens": 9, "completion_tokens": 1}
    holds = provider.ConsumeBool()
    more: dict[str, Any] = {"usage": usage} if holds else {}
    if provider.ConsumeBool():
        delta = {"content": text, "reasoning": provider.ConsumeUnicodeNoSurrogates(20)}
        calls = [{"index": 0, "id": "1", "function": {"name": text, "arguments": text}}]
        choice: dict[str, Any] = {"index": 0, "delta": {**delta, "tool_calls": calls}, "stop_reason": text}
        kind: Any = ChatCompletionStreamResponse
    else:
        choice = {"index": 0, "text": text, "finish_reason": None, "stop_reason": text}
        kind = CompletionStreamResponse
    event = kind(id=text, model=text, choices=[choice], **more)
    return f"data: {event.model_dump_json(exclude_unset=True)}\n\n", holds


def run(data: bytes) -> None:
    """A text is never taken for a usage or an error, nothing of a stream is lost, and an error is told as one."""
    provider: Any = atheris.FuzzedDataProvider(data)  # pyright: ignore[reportAttributeAccessIssue]
    made = [_event(provider) for _ in range(provider.ConsumeIntInRange(0, 3))]
    events = [event for event, _ in made]
    raise_engine_error(events)
    usages = [json.loads(event.removeprefix("data: "))["usage"] for event, holds in made if holds]
    for wanted in (True, False):
        usage, kept = gateway._usage(events, wanted)
        assert usage == (usages[-1] if usages else {})
        assert kept == [event for event, holds in made if wanted or not holds]
    message, status = provider.ConsumeUnicodeNoSurrogates(60), provider.ConsumeIntInRange(400, 599)
    error = ErrorResponse(error=ErrorInfo(message=message, code=status, type="t", param=message))
    for output in (error, [f"data: {error.model_dump_json()}\n\n"]):
        try:
            raise_engine_error(output)
        except ApiError as raised:
            assert raised.status == status
            assert raised.response().body
        except EngineDead:
            assert "EngineCore" in message
        else:
            raise AssertionError("an error was taken for output")
