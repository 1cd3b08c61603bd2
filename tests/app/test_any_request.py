"""No request is an error of the server, whether it fits the OpenAPI document or not; and every answer fits it."""

from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error, response_schema_conformance

from tests.app.conftest import Running
from tests.app.test_openapi import ROUTES, document

SHAPES = ["local"]
FEW = 2
"""Tokens and choices of an answer at most: thousands would take hours."""
EXAMPLES = 30
"""Requests to each route, those that fit the document and those that do not."""
SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large, HealthCheck.large_base_example]


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_nothing_is_an_error_of_the_server(server: Running, mode: GenerationMode, subtests: pytest.Subtests) -> None:
    schema = schemathesis.openapi.from_dict(document(server))
    schema.config.update(base_url=server.url)
    checks: list[Any] = [not_a_server_error, response_schema_conformance]
    session = requests.Session()
    session.trust_env = False
    session.headers["Authorization"] = f"Bearer {server.key}"

    def send(case: schemathesis.Case) -> None:
        case.validate_response(case.call(session=session, timeout=300), checks=checks)

    operations: list[Any] = [result.ok() for result in schema.get_all_operations()]  # pyright: ignore
    assert {operation.path for operation in operations} == ROUTES
    for operation in operations:
        if mode == GenerationMode.NEGATIVE and operation.method != "post":
            continue  # no body, so nothing that does not fit
        cases = operation.as_strategy(generation_mode=mode).map(_of_few_tokens)
        run = settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=SLOW)
        with subtests.test(operation.path):
            run(given(case=cases)(send))()


def _of_few_tokens(case: schemathesis.Case) -> schemathesis.Case:
    if isinstance(case.body, dict) and case.path in ("/generate", "/v1/completions", "/v1/chat/completions"):
        for field in ("max_tokens", "max_completion_tokens", "n"):
            if isinstance(asked := case.body.get(field), int):
                case.body[field] = min(asked, FEW)
        case.body.setdefault("max_tokens", FEW)
    return case
