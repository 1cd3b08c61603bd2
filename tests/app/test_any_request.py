"""No request is an error of the server, whether it fits the OpenAPI document or not; and every answer fits it.

`make fuzz-server` does the same for longer, and looks for what only time shows: memory that grows, processes that die.
"""

import json
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psutil
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error, response_schema_conformance

from scripts.bench.__main__ import machine, versions
from scripts.bench.servers import role
from scripts.console import say
from tests.app.conftest import Running
from tests.app.test_openapi import ROUTES, document
from tests.app.test_request_log import log_files

SHAPES = ["cluster"]
FEW = 2
"""Tokens and choices of an answer at most: thousands would take hours."""
EXAMPLES = 30
"""Requests to each route, those that fit the document and those that do not."""
SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large, HealthCheck.large_base_example]
SECRET = f"swordfish{uuid.uuid4().hex}"
"""In all that is said, and in headers: no log may have it."""
SAID = {"prompt", "content", "input", "query", "documents", "text", "user", "suffix", "stop"}
"""Fields that hold what somebody says."""
HEADERS = {
    **{"User-Agent": SECRET, "Referer": SECRET, "Cookie": f"session={SECRET}", "X-Session-Id": SECRET},
    **{"X-Request-Id": f"{SECRET} is no id", "X-Api-Key": SECRET, "Tracestate": f"a={SECRET}"},
}
WARM_SHARE = 0.1
"""Of the time, until memory is measured: allocators and caches fill up."""
GROWTH = 0.05
"""Of all processes' memory at most, from then to the end."""


def test_nothing_is_an_error_of_the_server(
    server: Running, pytestconfig: pytest.Config, subtests: pytest.Subtests
) -> None:
    """Requests of both kinds to all routes; again and again, and others each time, until --seconds are over."""
    seconds: Any = pytestconfig.getoption("seconds")
    results: Any = pytestconfig.getoption("results")
    session, answers, memory = _session(server), Counter[str](), list[dict[str, float]]()
    started, before = time.monotonic(), _processes(server).keys()
    while not memory or time.monotonic() < started + seconds:
        for mode in GenerationMode:
            for operation in _operations(server, mode):
                with subtests.test(f"{mode.value} {operation.path}"):
                    _fuzz(session, operation, mode, answers, derandomize=not seconds)
        now = round(time.monotonic() - started)
        if not memory or now > WARM_SHARE * seconds:
            memory.append({"second": now, **_mib(server)})
            say(f"{now} s, {answers.total()} requests, {memory[-1]['all']} MiB")
    logs = log_files()
    leaks = [str(file) for file in logs for one in (SECRET, server.key) if one in file.read_text(errors="replace")]
    died = len(before - _processes(server).keys())
    first, last = memory[min(1, len(memory) - 1)], memory[-1]
    growth = round(last["all"] / first["all"] - 1, 4)
    if results:
        found = {
            "versions": {**versions(), "schemathesis": schemathesis.__version__},
            "machine": machine(),
            "seconds": last["second"],
            "requests": answers.total(),
            "answers": dict(sorted(answers.items())),
            "log_files": len(logs),
            "log_mib": round(sum(file.stat().st_size for file in logs) / 2**20, 1),
            "log_files_with_a_secret": leaks,
            "processes_died": died,
            "growth": growth,
            "growth_allowed": GROWTH,
            "memory_mib": memory,
        }
        results.write_text(json.dumps(found, indent=1) + "\n")
    assert not leaks, "what was said is in a log"
    assert not died, "a replica, an engine or a proxy is another one now"
    assert growth <= GROWTH


def _session(server: Running) -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    session.headers.update({**HEADERS, "Authorization": f"Bearer {server.key}"})
    return session


def _operations(server: Running, mode: GenerationMode) -> Iterator[Any]:
    """Routes, but those without a body where it should not fit."""
    schema = schemathesis.openapi.from_dict(document(server))
    schema.config.update(base_url=server.url)
    found: list[Any] = [result.ok() for result in schema.get_all_operations()]  # pyright: ignore
    assert {operation.path for operation in found} == ROUTES
    yield from (one for one in found if mode == GenerationMode.POSITIVE or one.method == "post")


def _fuzz(session: requests.Session, operation: Any, mode: GenerationMode, answers: Counter[str], **how: Any) -> None:
    checks: list[Any] = [not_a_server_error, response_schema_conformance]

    def send(case: schemathesis.Case) -> None:
        answered = case.call(session=session, timeout=300)
        answers[f"{case.path} {answered.status_code}"] += 1
        case.validate_response(answered, checks=checks)

    cases = operation.as_strategy(generation_mode=mode).map(_of_few_tokens).map(_with_the_secret)
    run = settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=SLOW, **how)
    run(given(case=cases)(send))()


def _of_few_tokens(case: schemathesis.Case) -> schemathesis.Case:
    if isinstance(case.body, dict) and case.path in ("/generate", "/v1/completions", "/v1/chat/completions"):
        for field in ("max_tokens", "max_completion_tokens", "n"):
            if isinstance(asked := case.body.get(field), int):
                case.body[field] = min(asked, FEW)
        case.body.setdefault("max_tokens", FEW)
    return case


def _with_the_secret(case: schemathesis.Case) -> schemathesis.Case:
    case.body = _saying(case.body, said=False)
    return case


def _saying(value: Any, said: bool) -> Any:
    """The value, with the secret after each text that somebody says."""
    if isinstance(value, dict):
        return {key: _saying(one, said or key in SAID) for key, one in value.items()}
    if isinstance(value, list):
        return [_saying(one, said) for one in value]
    return f"{value} {SECRET}" if said and isinstance(value, str) else value


def _processes(server: Running) -> dict[int, str]:
    """What each process that works for requests is, by its id; others come and go."""
    found: dict[int, str] = {}
    for process in server.processes():
        with suppress(psutil.Error):
            found[process.pid] = role(" ".join(process.cmdline()))
    return {pid: name for pid, name in found.items() if name != "other"}


def _mib(server: Running) -> dict[str, float]:
    """PSS of the server's processes, what they share counted once: by what they are, and `all`."""
    sums = Counter[str]()
    for process in server.processes():
        with suppress(psutil.Error):
            pss = process.memory_full_info().pss
            sums[role(" ".join(process.cmdline()))] += pss
            sums["all"] += pss
    return {name: round(value / 2**20, 1) for name, value in sorted(sums.items())}
