"""The fast path, deployed as in a cluster: the same answers, keys and limits, from one deployment."""

import json
from collections.abc import Generator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from openai import OpenAI

from app import keys
from app.settings import NOTHING, parse
from tests.app.bad import Bad, require_refusal
from tests.app.conftest import (
    FAST,
    HEALTH_CHECK_SECONDS,
    PROMPTS,
    START_SECONDS,
    answer,
    client_of,
    eventually,
    httpx_client,
)
from tests.app.ray_cluster import Cluster, ray_cluster

KEY = keys.make()
PLACES, QUEUE = 2, 2
VARIANT = {
    "engine": FAST,
    "scaling": {
        **{"max_ongoing_requests": PLACES, "max_queued_requests": QUEUE, "retry_after_s": 7},
        "health_check_period_s": HEALTH_CHECK_SECONDS,
    },
}
LONG = {"model": "chat", "prompt": "Once upon a time", "max_tokens": 1900, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def cluster(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Cluster]:
    file = tmp_path_factory.mktemp("keys") / "keys.yaml"
    limited = {"name": "team", "sha256": keys.digest(KEY), "tokens_per_minute": 10**6}
    file.write_text(yaml.safe_dump({"keys": [limited]}))
    settings = parse(
        {
            **NOTHING,
            "models": [{"name": "chat", "variants": [VARIANT]}],
            **{"gateway": {"fast": True}, "auth": {"keys_file": str(file)}},
        }
    )
    with ray_cluster(settings, logs / "ray-fast.log") as cluster:
        eventually("it runs", cluster.runs, START_SECONDS)
        yield cluster


@pytest.fixture
def client(cluster: Cluster) -> OpenAI:
    return client_of(cluster.url, KEY)


@pytest.fixture
def http(cluster: Cluster) -> Generator[httpx.Client]:
    with httpx_client(cluster.url, KEY) as client:
        yield client


def _stream(http: httpx.Client) -> httpx.Response:
    """A stream that has begun, or what is said in its place."""
    return http.send(http.build_request("POST", "/v1/completions", json=LONG), stream=True)


def _replica() -> psutil.Process:
    """The one with an engine; Ray names replicas after their application and deployment."""
    replicas = [
        process
        for process in psutil.process_iter(["cmdline"])
        if "".join(process.info["cmdline"] or []).startswith("ray::ServeReplica:gateway:LLM:chat@stable")
    ]
    (replica,) = [one for one in replicas if _engines(one)]
    return replica


def _engines(replica: psutil.Process) -> list[psutil.Process]:
    return [child for child in replica.children() if child.cmdline()[:1] == ["VLLM::EngineCore"]]


def test_it_is_one_deployment(cluster: Cluster) -> None:
    assert list(cluster.deployments()) == ["LLM:chat@stable"]


@pytest.mark.parametrize("index", range(len(PROMPTS)))
def test_answers_equal_those_of_vllm(client: OpenAI, vllm_answers: list[str | None], index: int) -> None:
    assert answer(client, PROMPTS[index]) == vllm_answers[index]


def test_a_streamed_answer_is_the_same_and_is_counted(client: OpenAI, http: httpx.Client) -> None:
    def left() -> int:
        return int(http.get("/v1/models").headers["x-ratelimit-remaining-tokens"])

    before = left()
    chunks = list(
        client.chat.completions.create(
            model="chat",
            messages=[{"role": "user", "content": PROMPTS[0]}],
            max_tokens=24,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer(client, PROMPTS[0])
    usage = chunks[-1].usage
    assert usage
    eventually("its tokens are counted", lambda: left() <= before - 2 * usage.total_tokens)


def test_it_is_ready_and_says_which_variant_has_answered(http: httpx.Client) -> None:
    assert http.get("/ready").json() == {"ready": True}
    assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["chat"]
    answered = http.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 1})
    assert (answered.status_code, answered.headers["x-variant"]) == (200, "chat@stable")


@pytest.mark.parametrize(
    "bad",
    [
        Bad("no messages", {"model": "chat"}, "messages"),
        Bad(
            "unknown model", {"model": "gpt-5", "messages": [{"role": "user", "content": "Hi"}]}, "model", 404
        )._replace(code="model_not_found"),
        Bad("what is not served", {"prompt": "Hi"}, None, 404, path="/generate"),
    ],
    ids=lambda bad: bad.name,
)
def test_bad_requests_are_told_as_everywhere(http: httpx.Client, bad: Bad) -> None:
    require_refusal(http, bad)


def test_who_has_no_key_is_refused(cluster: Cluster) -> None:
    with httpx_client(cluster.url) as nobody:
        refused = nobody.post("/v1/completions", json={"prompt": "Hi"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")


def test_a_full_model_refuses_and_those_that_leave_free_their_places(http: httpx.Client) -> None:
    with ThreadPoolExecutor(QUEUE + 1) as pool, ExitStack() as stack:
        begun = [stack.enter_context(closing(_stream(http))) for _ in range(PLACES)]
        more = [pool.submit(_stream, http) for _ in range(QUEUE + 1)]
        (first,), waiting = wait(more, START_SECONDS, FIRST_COMPLETED)
        with closing(first.result()) as refused:
            refused.read()
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "7")
            assert refused.json()["error"]["code"] == "overloaded"
        assert http.get("/health").status_code == 200
        for stream in begun:
            assert stream.status_code == 200
            stream.close()
        for later in waiting:
            with closing(later.result(START_SECONDS)) as stream:
                assert stream.status_code == 200
    eventually("all places are free", lambda: http.post("/v1/completions", json={**LONG, "max_tokens": 1}).is_success)


def test_an_engine_that_dies_is_replaced(http: httpx.Client, client: OpenAI) -> None:
    before = answer(client, PROMPTS[0])
    (engine,) = _engines(_replica())
    with closing(_stream(http)) as stream:
        lines = stream.iter_lines()
        next(lines)
        engine.kill()
        *_, error, done = [line.removeprefix("data: ") for line in lines if line]
    # The replica outlives its engine for long enough to say so.
    assert (json.loads(error)["error"]["code"], done) == ("model_unavailable", "[DONE]")

    def answers() -> bool:
        return http.post("/v1/completions", json={**LONG, "stream": False, "max_tokens": 1}).status_code == 200

    eventually("it answers again", answers, START_SECONDS)
    assert answer(client, PROMPTS[0]) == before


def test_a_stream_whose_replica_dies_says_so(http: httpx.Client) -> None:
    """The last test: it does not wait for the next replica."""
    with closing(_stream(http)) as stream:
        lines = stream.iter_lines()
        next(lines)
        _replica().kill()
        *_, error, done = [line.removeprefix("data: ") for line in lines if line]
    assert (json.loads(error)["error"]["code"], done) == ("server_unavailable", "[DONE]")
