"""What `make bench` measures with, on a server whose speed is known."""

import asyncio
import contextlib
import itertools
import json
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.responses import Response

from scripts.bench import analyze, chat, generate, load, noop, noop_app, overload, profiles, report, scaling, texts
from scripts.bench.__main__ import bench
from scripts.bench.kind import Contender
from scripts.bench.load import Measured, Point
from scripts.bench.profiles import Stacks
from scripts.bench.report import Report, Run, costs, ratios
from scripts.bench.servers import Served, role
from scripts.bench.texts import Reader
from scripts.console import Problem
from scripts.plan.traffic import Traffic
from tests.app.conftest import Running, eventually

SHAPES = ["cluster"]
PACE_S = 0.05
POINT = Point(4, 8, 5)
PLACES = 8


@contextlib.contextmanager
def serving(api: FastAPI) -> Iterator[Served]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()  # whoever is early waits
        server = uvicorn.Server(uvicorn.Config(api, log_level="error"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield Served(f"http://127.0.0.1:{listening.getsockname()[1]}", "none", "no-process")
        finally:
            server.should_exit = True
            thread.join()


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

    @api.post("/v1/completions")
    async def completions(request: Request) -> Response:
        tokens = (body := await request.json())["max_tokens"]
        usage = {"completion_tokens": tokens}
        parts = [{"choices": [{"index": 0, "text": "so"}]}] * tokens
        whole = {"choices": [{"index": 0, "text": "so" * tokens}], "usage": usage}
        return await continued(body["stream"], [*parts, {"choices": [], "usage": usage}], whole)

    @api.post("/generate")
    async def generate(request: Request) -> Response:
        tokens = (body := await request.json())["max_tokens"]
        parts = [{"text": "so", "tokens": number, "finish_reason": None} for number in range(1, tokens + 1)]
        return await continued(body["stream"], parts, {**parts[-1], "text": "so" * tokens})

    async def continued(stream: bool, parts: list[dict[str, Any]], whole: dict[str, Any]) -> Response:
        """Each part of a stream in its time, but for one of usage; a whole answer in the time of all of them."""

        async def events() -> AsyncIterator[str]:
            for part in parts:
                await asyncio.sleep(PACE_S)
                yield _event(part)
            yield "data: [DONE]\n\n"

        if stream:
            return StreamingResponse(events(), media_type="text/event-stream")
        await asyncio.sleep(len(parts) * PACE_S)
        return JSONResponse(whole)

    @api.post("/lengths")
    async def lengths(request: Request) -> list[list[float]]:
        await asyncio.sleep(PACE_S)
        return [[float(len(text)), 1.0] for text in (await request.json())["input"]]

    with serving(api) as served:
        yield served


def _event(content: object) -> str:
    # Without spaces, as vLLM writes it.
    return f"data: {json.dumps(content, separators=(',', ':'))}\n\n"


def test_both_clients_measure_what_the_server_does(paced: Served) -> None:
    began = time.perf_counter()
    found = {"httpx": load.by_httpx(paced, POINT, 0), "vllm": load.by_vllm(paced, POINT, 0)}
    most = (POINT.requests * POINT.tokens) / (POINT.requests / POINT.concurrency * POINT.tokens * PACE_S)
    for client, measured in found.items():
        assert measured.counted == POINT.requests * POINT.tokens, client
        assert 0 < measured.per_second <= most, client
        for milliseconds in (measured.p50, measured.p95, measured.itl_p50, measured.itl_p95):
            assert PACE_S * 900 < milliseconds < (time.perf_counter() - began) * 1000, client


@pytest.mark.parametrize("contender", ["vllm", "generate"])
def test_a_prompt_is_continued_in_a_stream_and_whole(paced: Served, contender: str) -> None:
    clients = generate.KIND.contenders[contender].clients
    for name, waits in (("stream", 1), ("whole", POINT.tokens)):
        measured = clients[name](paced, POINT, 0)
        assert measured.counted == POINT.requests * POINT.tokens
        assert measured.per_second <= POINT.concurrency / PACE_S
        assert measured.p50 > waits * PACE_S * 900


def _measured_texts(served: Served, point: Point, loop: Any) -> dict[str, Measured]:
    """By a kind whose model says how long a text is, once over HTTP and once in a loop."""
    kind = texts._kind(Reader(lambda: {}, "/lengths", {}, np.array, lambda _: loop))
    return {name: kind.contenders[name].clients["aiohttp"](served, point, 0) for name in (texts.BATCHED, texts.LOOP)}


def test_texts_are_read_over_http_and_in_a_loop(paced: Served) -> None:
    point = Point(4, 8, texts=10)
    sizes: list[int] = []

    def forward(part: list[str]) -> np.ndarray:
        assert part == sorted(part, key=len, reverse=True)
        sizes.append(len(part))
        return np.array([[len(text), 1] for text in part])

    found = _measured_texts(paced, point, lambda given, size: texts.in_passes(given, forward, size))
    assert found[texts.BATCHED].per_second <= point.concurrency * point.texts / PACE_S
    assert found[texts.BATCHED].p50 > PACE_S * 900
    assert sizes == [8] * 10 + [16] * 5 + [32, 32, 16] + [64, 16]
    assert {measured.counted for measured in found.values()} == {80}


def test_whoever_makes_another_vector_ends_the_run(paced: Served) -> None:
    with pytest.raises(Problem, match=r"a vector is 1\.00000 from"):
        _measured_texts(paced, Point(4, 8, texts=10), lambda given, size: np.array([[len(one), 2] for one in given]))


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("load", [texts._embed, texts._classify])
def test_the_loop_says_the_same_in_passes_of_any_size(load: Any, at_once: int) -> None:
    run = load(at_once)
    given = [text for request in texts.texts(Point(1, 2, texts=10)) for text in request]
    alone, together = run(given, 1), run(given, 64)
    assert alone.shape[0] == len(given)
    assert np.abs(alone - together).max() < texts.CLOSE


def test_next_to_nothing_is_measured_on_both_routes() -> None:
    with serving(noop_app.api) as served:
        for client in noop.CLIENTS.values():
            measured = client(served, Point(4, 20), 0)
            assert measured.counted == 20
            assert 0 < measured.p50 <= measured.p95


def test_an_answer_that_is_no_200_ends_the_run(paced: Served) -> None:
    with pytest.raises(Problem, match=r"^404: "):
        noop.CLIENTS["way in"](paced, Point(4, 20), 0)


def test_the_stages_by_themselves_say_what_the_pipeline_says(server: Running) -> None:
    served = Served(server.url, server.key, "")
    pipeline, stages = (contender.golden(served) for contender in analyze.KIND.contenders.values())
    assert pipeline == stages
    assert sum('"summary": null' in answer for answer in pipeline) == 2 < len(pipeline)


def test_generate_is_held_against_completions(server: Running) -> None:
    served = Served(server.url, server.key, "")
    answers = [generate.KIND.contenders[name].golden(served) for name in ("vllm", "generate")]
    assert answers[0] == answers[1]
    assert all(answers[0])


def test_contenders_take_turns_and_must_agree(
    paced: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def contender(says: str) -> Contender:
        clients = {"httpx": load.by_httpx}
        return Contender("a fake", lambda log: contextlib.nullcontext(paced), clients, lambda served: [says])

    points = (Point(2, 2, 2), Point(4, 4, 1))
    kind = chat.KIND._replace(contenders={name: contender("4") for name in ("vllm", "bare")}, points=points)
    found = bench(kind, 2, tmp_path / "chat.json")
    assert [run.contender for run in found.runs[::2]] == ["vllm", "bare", "bare", "vllm"]
    assert [run.point for run in found.runs[:2]] == [*points]
    assert [run["point"] for run in json.loads((tmp_path / "chat.json").read_text())["runs"][:2]] == [
        {"concurrency": 2, "requests": 2, "tokens": 2},
        {"concurrency": 4, "requests": 4, "tokens": 1},
    ]
    assert "2 at once, 2 tokens  bare" in capsys.readouterr().out
    with pytest.raises(Problem, match=r"^bare answers \['5'\], and vllm \['4'\]"):
        bench(kind._replace(contenders={"vllm": contender("4"), "bare": contender("5")}), 1, tmp_path / "chat.json")


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
            Run(contender, number, "httpx", POINT, Measured(40, rate, 10, 20 * rate), {"engine": 2.0})
            for number, rate in enumerate(rates)
        ]

    found = Report({}, {}, {}, [*runs("vllm", 90, 100, 110), *runs("governed", 80, 90, 95)])
    said = [line.removeprefix("httpx   4 at once, 5 tokens").split() for line in ratios(found, chat.KIND).splitlines()]
    assert said[1][:3] == ["vllm", "100.0", "1.00"]
    assert said[2][:4] == ["governed", "90.0", "0.90", "(0.80–0.95)"]
    assert costs(found, chat.KIND).splitlines()[1].split()[-2:] == ["2.00", "2.00"]
    report.plot(found, chat.KIND, tmp_path / "plot.svg")
    assert "governed" in (tmp_path / "plot.svg").read_text()
    without = found._replace(runs=runs("bare", 90) + runs("governed", 80))
    report.plot(without, chat.KIND, tmp_path / "plot.svg")
    assert "bare" in (tmp_path / "plot.svg").read_text()
    assert ratios(without, chat.KIND).splitlines()[1].split()[-4:-2] == ["bare", "90.0"]
    parsed = json.loads(found.text())
    assert len(parsed["runs"]) == 6
    assert parsed["runs"][0]["measured"]["per_second"] == 90


def test_processes_are_told_by_what_they_do() -> None:
    said = {
        "VLLM::EngineCore": "engine",
        "ray::ServeReplica:default:Gateway.handle": "gateway",
        "ray::ServeReplica:default:LLM:chat@stable": "replica",
        "ray::ServeReplica:default:Ingress.__call__": "gateway",
        "python -m uvicorn scripts.bench.noop_app:api": "frontend",
        "ray::ProxyActor": "proxy",
        "VLLM::Worker": "worker",
        "python -m vllm.entrypoints.openai.api_server --port 1": "frontend",
        "bash": "other",
    }
    assert {title: role(title) for title in said} == said


def test_who_has_not_waited_is_not_compared_in_that() -> None:
    point = Point(8, 32, texts=64)
    runs = [
        Run(texts.UNBATCHED, 0, "aiohttp", point, Measured(2048, 10, 5, 8), {"replica": 3.0}),
        Run(texts.LOOP, 0, "aiohttp", point, Measured(2048, 40, 0, 0), {}),
    ]
    _, unbatched, loop = ratios(found := Report({}, {}, {}, runs), texts.EMBEDDINGS).splitlines()
    assert unbatched.split()[-2:] == ["ms", "1.00"]
    assert loop.split()[-4:] == ["4.00", "(4.00–4.00)", "1.00", "(1.00–1.00)"]
    assert [line.split()[0] for line in costs(found, texts.EMBEDDINGS).splitlines()[1:]] == [texts.UNBATCHED]


def test_a_profile_says_where_the_time_is_spent_and_on_whose_behalf() -> None:
    seen = profiles.collapsed("run (a.py:1);read (b.py:2) 30\nrun (a.py:1);run (a.py:1);write (b.py:9) 70\n")
    header, itself, within = profiles.told(Stacks(2, seen)).split("\n\n")
    assert header.startswith("2 processes, 100 samples")
    assert [line.split() for line in itself.splitlines()[1:3]] == [
        ["70.0", "%", "70.0", "%", "write", "(b.py:9)"],
        ["30.0", "%", "30.0", "%", "read", "(b.py:2)"],
    ]
    assert within.splitlines()[1].split() == ["0.0", "%", "100.0", "%", "run", "(a.py:1)"]


def test_py_spy_records_what_processes_do() -> None:
    spin = "def spin():\n while True: pass\nspin()"
    with subprocess.Popen([sys.executable, "-c", spin]) as busy, subprocess.Popen(["sleep", "600"]) as gone:
        try:
            process = psutil.Process(busy.pid)
            eventually("it spins", lambda: process.cpu_times().user > 0.1)
            with profiles.recording([("engine", process)]) as found:
                before = process.cpu_times().user
                eventually("it spins on", lambda: process.cpu_times().user > before + 0.5)
            assert found["engine"].processes == 1
            assert Counter(stack[-1] for stack in found["engine"].seen).most_common(1)[0][0].startswith("spin (")
            with (
                pytest.raises(Problem, match="py-spy cannot record"),
                profiles.recording([("engine", psutil.Process(gone.pid))]),
            ):
                pass
        finally:
            busy.kill()
            gone.kill()


def test_a_flood_counts_what_is_answered_and_what_is_refused(paced: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overload, "TOKENS", 5)
    capacity = PLACES / PACE_S
    monkeypatch.setattr(overload, "PLACES", PLACES)
    assert 0 < asyncio.run(overload.full(paced, 2.0, 1)) < 1.1 * capacity  # less where the machine is busy
    found = asyncio.run(overload.flood(paced, 10 * capacity / 5, 2.0))
    assert 0 < found.tokens / found.seconds < 1.1 * capacity
    assert found.requests > len(found.refused) > 0.5 * found.requests
    assert found.health
    assert found.recovery > 0


def test_scaling_is_recorded_with_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake of what scales: it refuses more than a mean request, and has a second replica after some looks."""
    api, looks = FastAPI(), itertools.count()

    @api.get("/replicas")
    async def replicas() -> tuple[int, int]:
        return 2, 1 + (next(looks) > 2)

    @api.post("/work")
    async def work(request: Request) -> Response:
        if (await request.json())["work"] > 1:
            return JSONResponse(None, 429)
        began = time.time()
        await asyncio.sleep(PACE_S)
        return JSONResponse(began)

    monkeypatch.setattr(scaling, "BURST", Traffic("short", np.array([0.0, 1.0, 2.0]), np.array([20.0, 40.0])))
    with serving(api) as served:
        found = asyncio.run(scaling.measured(served, 7))
    assert len(found.asked) == scaling.BURST.load(seed=7).arrivals.size
    for one in found.asked:
        assert (one.began is None) == (one.ended is None) == (one.work > 1)
        if one.began is not None and one.ended is not None:
            assert one.came <= one.began < one.ended - PACE_S / 2
    assert [(one.wanted, one.running) for one in found.replicas] == [(2, 1), (2, 2)]
    waited = found.replicas[1].second - found.replicas[0].second
    assert waited > scaling.LOOK_SECONDS
    assert scaling.start_seconds(found.replicas) == pytest.approx(waited)
    seen = scaling.real(found)
    assert seen["requests refused"] == sum(one.work > 1 for one in found.asked)
    assert 1 < seen["replicas in the mean"] < 2
