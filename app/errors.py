"""Errors in OpenAI's shape, {"error": {"message", "type", "param", "code"}}, for every route.

What the caller did wrong is a 4xx that names it; what we did wrong is a 500 that names nothing.
"""

import json
import logging
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("ray.serve")


class _Error(BaseModel):
    message: str
    type: str = Field(description="invalid_request_error, rate_limit_error or server_error.")
    param: str | None = Field(description="The field of the request that is wrong.")
    code: str | None = Field(description="For programs.")


class ErrorBody(BaseModel):
    """An error, in OpenAI's shape."""

    error: _Error


DOCUMENTED: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": meaning}
    for status, meaning in {
        400: "The request is wrong; `param` names the field.",
        401: "No API key, or an unknown one.",
        403: "The API key may not use this model.",
        404: "There is no such model.",
        408: "The body has not come in time.",
        413: "The body is too large.",
        429: "Too much at once, or for this API key; Retry-After says when to come again.",
        503: "The model does not answer; Retry-After says when to come again.",
        "default": "An error.",
    }.items()
}
"""`responses` of every route, for its documentation."""


class ApiError(HTTPException):
    """Raised anywhere behind a route to answer with `status` and OpenAI's error object.

    `param` names the request's field at fault, `code` is for programs, `message` for people; `retry_after` is the
    header, in seconds; `details` are further keys of the object.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after
        self.details = details or {}

    def __reduce__(self) -> tuple[Callable[..., "ApiError"], tuple[()], dict[str, Any]]:
        # Exceptions are pickled by their positional arguments, and this one travels between replicas.
        return partial(ApiError, self.status, self.message), (), self.__dict__

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        if self.status == HTTPStatus.TOO_MANY_REQUESTS:
            kind = "rate_limit_error"
        else:
            kind = "invalid_request_error" if self.status < 500 else "server_error"
        named = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": {**named, **self.details}}

    def response(self) -> JSONResponse:
        headers = {"Retry-After": str(self.retry_after)} if self.retry_after is not None else None
        return JSONResponse(self.body(), self.status, headers)

    def event(self) -> str:
        """The same in a stream, where it is too late for another status; so do OpenAI's own streams."""
        return f"data: {json.dumps(self.body())}\n\n"


def install(api: FastAPI) -> None:
    """Make every error of `api` an OpenAI error."""
    # Coroutines, all of them: Starlette calls a function in a thread, and a busy model refuses many.
    api.add_exception_handler(ApiError, _api_error)
    api.add_exception_handler(RequestValidationError, _invalid_request)
    api.add_exception_handler(HTTPException, _http_error)
    # A handler for Exception would answer and raise on, into Ray's log as a failure of its own.
    api.add_middleware(_LastResort)


async def _api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return error.response()


async def _invalid_request(_: Request, error: Exception) -> JSONResponse:
    """FastAPI's 422 as OpenAI's 400. The first of its errors is the one to mend first."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        reason = f"the body is not JSON: {first['ctx']['error']} at character {first['loc'][1]}"
        return ApiError(400, reason).response()
    # The location goes on with the names of types; only the field's own name means a thing to a
    # caller. A problem with the whole body has none.
    param = str(first["loc"][1]) if len(first["loc"]) > 1 else None
    reason = first["msg"].removeprefix("Value error, ")
    if isinstance(error.body, bytes):
        reason += "; the header Content-Type must be application/json"
    return ApiError(400, f"{param}: {reason}" if param else reason, param=param).response()


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    reason = error.detail
    if reason == HTTPStatus(error.status_code).phrase:  # the router's own: no such route or method
        reason = f"{reason}: {request.method} {request.url.path}"
    response = ApiError(error.status_code, reason).response()
    response.headers.update(error.headers or {})
    return response


class _LastResort:
    """Answers 500 to an exception that nothing else knows, and logs it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answering = False

        async def noting(message: Message) -> None:
            nonlocal answering
            answering = True
            await send(message)

        try:
            await self.app(scope, receive, noting)
        except Exception:
            if answering or scope["type"] != "http":  # too late for another answer
                raise
            logger.exception("%s %r failed", scope["method"], scope["path"])
            response = ApiError(500, "internal error; the server's log says more").response()
            await response(scope, receive, send)
