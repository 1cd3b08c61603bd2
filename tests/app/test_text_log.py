"""The log of requests where `serve run` serves all in one application: for people to read."""

import re
import uuid

from tests.app.conftest import RAY, Running, eventually

SHAPES = ["local"]


def test_a_request_is_a_line_of_text(server: Running) -> None:
    request = str(uuid.uuid4())
    body = {"messages": [{"role": "user", "content": "Say hi"}], "max_tokens": 4}
    server.http.post("/v1/chat/completions", json=body, headers={"x-request-id": request}).raise_for_status()
    line = re.compile(
        rf"INFO .* {request} -- POST /v1/chat/completions 200 in [\d.]+ ms model=chat variant=stable "
        r"prompt_tokens=\d+ completion_tokens=4 total_tokens=\d+$",
        re.MULTILINE,
    )
    logs = RAY / "session_latest" / "logs" / "serve"
    eventually("it is logged", lambda: any(line.search(file.read_text()) for file in logs.glob("replica_*Gateway*")))


def test_an_id_that_is_none_is_replaced_here_too(server: Running) -> None:
    answered = server.http.get("/v1/models", headers={"x-request-id": "two words"})
    assert uuid.UUID(answered.headers["x-request-id"])
