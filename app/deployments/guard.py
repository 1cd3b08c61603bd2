"""The guard before a language model: a safety classifier reads all of a request before an engine does."""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

from ray.serve.handle import DeploymentHandle

from app.errors import ApiError
from app.handles import RESTART_SECONDS, once_more
from app.settings import Classifier, Guard

logger = logging.getLogger("ray.serve")

GUARD_SECONDS = 10.0
"""How long a request waits for its guard."""


async def require_safe(
    texts: list[str], param: str, guard: Guard, classifier: Classifier, handle: DeploymentHandle
) -> None:
    """ApiError (400) when one of the texts is unsafe, and (503) when nobody can tell and the guard closes.

    `param` names the field of the request that holds them.
    """
    parts = [window for text in texts for window in _windows(text, classifier.max_tokens)]
    try:
        async with asyncio.timeout(GUARD_SECONDS):
            found = await once_more(handle.classify.remote, parts)
    except Exception as error:
        logger.warning("the guard %s failed: %r", classifier.name, error)
        if guard.on_failure == "open":
            return
        reason = "the prompt cannot be checked, so it is not answered; try again later"
        raise ApiError(503, reason, code="guard_unavailable", retry_after=RESTART_SECONDS) from error
    score, label = max((scores.get(label, 0.0), label) for scores in found for label in classifier.unsafe)
    if score >= guard.threshold:
        raise ApiError(
            400,
            f"the prompt was classified as {label} ({score:.2f}, of less than {guard.threshold:g} allowed)",
            param=param,
            code="content_policy_violation",
            details={"classification": {"classifier": classifier.name, "label": label, "score": round(score, 4)}},
        )


def texts_of(body: Any) -> list[str]:
    """All that a request gives the model to read: each message whole, what its tools say, or each prompt."""
    if hasattr(body, "messages"):
        given = body.model_dump(mode="json", include={"messages", "tools", "documents"}, exclude_none=True)
        messages: list[Any] = given.pop("messages")
        return ["\n".join(_strings(part)) for part in [*messages, *given.values()]]
    prompts = body.prompt if isinstance(body.prompt, list) else [body.prompt]
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise ApiError(400, "prompt: this model is guarded and takes text, no tokens", param="prompt")
    return [prompt + (body.suffix or "") for prompt in prompts]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def _windows(text: str, size: int) -> Iterator[str]:
    """The text in parts that overlap by a quarter, each of no more tokens than `size`: classifiers cut off the rest.

    A token is a character or more; only in rare scripts it is less.
    """
    step = max(1, size * 3 // 4)
    for start in range(0, max(1, len(text) - size + step), step):
        yield text[start : start + size]
