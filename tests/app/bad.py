"""Bad requests of a route: each must get a 4xx in OpenAI's shape that names the fault."""

import json
from typing import Any, NamedTuple

import httpx


class Bad(NamedTuple):
    name: str
    body: Any  # bytes are sent as they are
    param: str | None = None
    status: int = 400
    code: str | None = None
    path: str = "/v1/chat/completions"
    method: str = "POST"
    content_type: str = "application/json"


def require_refusal(http: httpx.Client, bad: Bad) -> None:
    """Send it, and fail unless the answer is the error that it should be."""
    body = bad.body if isinstance(bad.body, bytes) else json.dumps(bad.body).encode()
    headers = {"Content-Type": bad.content_type}
    answered = http.request(bad.method, bad.path, content=body if bad.method == "POST" else None, headers=headers)
    assert answered.status_code == bad.status, answered.text
    assert answered.json().keys() == {"error"}
    error = answered.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    assert "Traceback" not in error["message"]
    assert "File " not in error["message"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", bad.param, bad.code)
