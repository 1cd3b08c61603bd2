"""HTTP: one module for each route, with the bodies that it takes and gives."""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends
from ray import serve

from app import auth
from app.errors import ApiError

if TYPE_CHECKING:
    from app.deployments.gateway import Gateway


MOST_TEXTS = 2048
"""Texts in one request, as OpenAI allows."""


def examples(**bodies: dict[str, Any]) -> dict[str, Any]:
    """`openapi_extra` of a route with these bodies, by their titles, for /docs to show and `make demo` to send."""
    named = {title.replace("_", " "): {"value": body} for title, body in bodies.items()}
    return {"requestBody": {"content": {"application/json": {"examples": named}}}}


async def _gateway() -> Any:  # else FastAPI would call it in a thread
    return serve.get_replica_context().servable_object


if TYPE_CHECKING:
    Current = Annotated[Gateway, Depends(_gateway)]
    """The gateway that answers; a parameter of a route."""
else:  # FastAPI would import the type
    Current = Annotated[Any, Depends(_gateway)]


def require_characters(text: str) -> str:
    """The text; ValueError when it holds half of a character, which JSON can write and tokenizers fail on."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds a lone surrogate, which is no character") from None
    return text


def require_texts(texts: Sequence[Any], most: int = MOST_TEXTS) -> None:
    """ValueError unless these are 1 to `most` texts with something in them; what is no text is left to pydantic."""
    if not texts:
        raise ValueError("is empty; send at least one text")
    if len(texts) > most:
        raise ValueError(f"has {len(texts)} texts; send at most {most} in one request")
    for index, text in enumerate(texts):
        if isinstance(text, str):
            require_characters(text)
            if not text.strip():
                raise ValueError(f"text {index} is empty")


def chosen(model: str | None, known: Iterable[str]) -> str:
    """The name of a known model; a request may leave it out where there is one model only.

    Raises ApiError: 400 when it must not be left out, 404 when it is not known, 403 when the client may not use it.
    """
    known = list(known)
    names = [name for name in known if "@" not in name and ":" not in name]
    if model is None and len(names) == 1:
        model = names[0]
    if model is None:
        raise ApiError(400, f"model: is missing; models: {', '.join(names)}", param="model")
    if model not in known:
        reason = f"the model {model!r} does not exist; models: {', '.join(names)}"
        raise ApiError(404, reason, param="model", code="model_not_found")
    auth.require_model(re.split("[@:]", model)[0])
    return model
