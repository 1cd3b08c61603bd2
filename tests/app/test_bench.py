"""What `make bench` measures with, on a server whose speed is known."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.responses import Response

from app.builtin import ensure
from scripts.bench import load, overload, report
from scripts.bench.__main__ import role
from scripts.bench.contenders import MODEL, Served
from scripts.bench.load import Measured, Point
from scripts.bench.report import Report, Run, costs, ratios
from scripts.console import Problem

PACE_S = 0.05
POINT = Point(4, 8, 5)
PLACES = 8


@pytest.fixture(scope="module")
def paced() -> Iterator[Served]:
    """A fake of a model's server: each token takes PACE_S, for all at once."""
    api = FastAPI()
    under_way = 0

    @api.get("/health")
    async def health() -> bool:
        return True

    @api.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        nonlocal under_way
        body = await request.json()
        if under_way == PLACES:
            return JSONResponse({"error": {"message": "full"}}, 429, headers={"retry-after": "1"})
        if "fail" in body["messages"][0]["content"]:
            return JSONResponse({"error": {"message": "no"}}, 500)

        async def events() -> AsyncIterator[str]:
            nonlocal under_way
            for _ in range(body["max_completion_tokens"]):
                await asyncio.sleep(PACE_S)
                yield _event({"choices": [{"index": 0, "delta": {"content": "so"}}]})
            usage = {"prompt_tokens": 3, "completion_tokens": body["max_completion_tokens"], "total_tokens": 8}
            yield _event({"choices": [], "usage": usage})
            yield "data: [DONE]\n\n"
            under_way -= 1

        under_way += 1
        return StreamingResponse(events(), media_type="text/event-stream")

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(api, log_level="error"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield Served(f"http://127.0.0.1:{listening.getsockname()[1]}", "none", "no-process")
        finally:
            server.should_exit = True
            thread.join()


def _event(content: object) -> str:
    # Without spaces, as vLLM writes it.
    return f"data: {json.dumps(content, separators=(',', ':'))}\n\n"


def test_both_clients_measure_what_the_server_does(paced: Served, tmp_path: Path) -> None:
    began = time.perf_counter()
    found = {"httpx": load.by_httpx(paced, POINT, 0), "vllm": load.by_vllm(paced, ensure(MODEL), POINT, 0, tmp_path)}
    most = (POINT.requests * POINT.tokens) / (POINT.requests / POINT.concurrency * POINT.tokens * PACE_S)
    for client, measured in found.items():
        assert 0 < measured.tokens_per_second <= most, client
        for milliseconds in (measured.ttft_p50, measured.ttft_p95, measured.itl_p50, measured.itl_p95):
            assert PACE_S * 900 < milliseconds < (time.perf_counter() - began) * 1000, client


def test_an_answer_that_is_none_ends_the_run(paced: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "SUBJECTS", ("fail",))
    with pytest.raises(Problem, match=r"^500: "):
        load.by_httpx(paced, POINT, 0)


def test_no_two_prompts_are_alike_and_all_contenders_get_the_same() -> None:
    first, second = load.prompts(POINT, 1), load.prompts(POINT, 2)
    assert len({*first, *second}) == 2 * POINT.requests
    assert first == load.prompts(POINT, 1)


def test_ratios_are_of_medians_to_the_peer_with_their_spread(tmp_path: Path) -> None:
    def runs(contender: str, *rates: float) -> list[Run]:
        return [
            Run(contender, number, "httpx", POINT, Measured(rate, 10, 20 * rate, 1, 1), {"engine": 2.0})
            for number, rate in enumerate(rates)
        ]

    found = Report({}, {}, {}, [*runs("vllm", 90, 100, 110), *runs("governed", 80, 90, 95)])
    said = [line.split() for line in ratios(found).splitlines()]
    assert said[1][2:5] == ["vllm", "100.0", "1.00"]
    assert said[2][2:6] == ["governed", "90.0", "0.90", "(0.80–0.95)"]
    assert costs(found).splitlines()[1].split()[-2:] == ["2.00", "2.00"]
    report.plot(found, tmp_path / "plot.svg")
    assert "governed" in (tmp_path / "plot.svg").read_text()
    without = found._replace(runs=runs("bare", 90) + runs("governed", 80))
    report.plot(without, tmp_path / "plot.svg")
    assert "bare" in (tmp_path / "plot.svg").read_text()
    assert ratios(without).splitlines()[1].split()[2:4] == ["bare", "90.0"]
    parsed = json.loads(found.text())
    assert len(parsed["runs"]) == 6
    assert parsed["runs"][0]["measured"]["tokens_per_second"] == 90


def test_processes_are_told_by_what_they_do() -> None:
    said = {
        "VLLM::EngineCore": "engine",
        "ray::ServeReplica:default:Gateway.handle": "gateway",
        "ray::ServeReplica:default:LLM:chat@stable": "replica",
        "ray::ProxyActor": "proxy",
        "VLLM::Worker": "worker",
        "python -m vllm.entrypoints.openai.api_server --port 1": "frontend",
        "bash": "other",
    }
    assert {title: role(title) for title in said} == said


def test_a_flood_counts_what_is_answered_and_what_is_refused(paced: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overload, "FULL", Point(PLACES, 0, 5))
    capacity = PLACES / (5 * PACE_S)
    found = asyncio.run(overload.flood(paced, 10 * capacity, 2.0))
    assert 0.5 * capacity < found.tokens / 5 / found.seconds < 1.1 * capacity
    assert found.requests > len(found.refused) > 0.5 * found.requests
    assert found.health
    assert found.recovery > 0
