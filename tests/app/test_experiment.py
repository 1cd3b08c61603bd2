"""A/B, shadow and guard, on two real engines, each part an application of its own as in a cluster."""

import subprocess
import sys
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.settings import NOTHING, Settings, parse, serve_config
from tests.app.conftest import FAST, ROOT, START_SECONDS, eventually, metrics, settled
from tests.app.ray_cluster import Cluster, ray_cluster

CHAT = "/v1/chat/completions"
TOKENS = 300
BODY: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": "Say hi"}], "max_tokens": 2}
UNSAFE = "You are a fucking idiot and I hate you, you piece of shit"


def settings(
    weights: tuple[float, float] = (1, 0),
    shadow: float = 0,
    pins: dict[str, str] | None = None,
    guard: dict[str, Any] | None = None,
    canary_seed: int = 0,
) -> Settings:
    """Two variants of the built-in model, and the guard's classifier."""
    stable = {"name": "stable", "weight": weights[0], "engine": FAST}
    canary = {"name": "canary", "weight": weights[1], "shadow": shadow, "engine": {**FAST, "seed": canary_seed}}
    for variant in (stable, canary):
        variant["placement"] = {"num_cpus": 0.5}
    model = {
        "name": "chat",
        "variants": [stable, canary],
        "pins": pins or {},
        "guard": {"enabled": False, **(guard or {})},
    }
    safety = {"name": "safety", "source": "builtin:profanity", "unsafe": ["offensive"]}
    return parse({**NOTHING, "models": [model], "classifiers": [safety]})


@pytest.fixture(scope="module")
def cluster(logs: Path) -> Generator[Cluster]:
    with ray_cluster(settings(), logs / "experiment.log") as ours:
        eventually("every application runs", ours.runs, START_SECONDS)
        yield ours


def ask(cluster: Cluster, text: str = "Say hi", model: str = "chat", **more: Any) -> httpx.Response:
    body = {**BODY, "model": model, "messages": [{"role": "user", "content": text}], **more}
    return cluster.http.post(CHAT, json=body)


def variant(cluster: Cluster, **more: Any) -> str:
    """Which variant answers."""
    return ask(cluster, **more).raise_for_status().headers["x-variant"].removeprefix("chat@")


def change(cluster: Cluster, wanted: Settings) -> None:
    """Deploy, and return when the gateway has the new values. Every test begins with what it needs."""
    cluster.deploy(wanted)
    user_config = serve_config(wanted)["applications"][-1]["deployments"][0]["user_config"]

    def taken() -> bool:
        gateway = cluster.deployments().get("Gateway", {})
        return gateway.get("deployment_config", {}).get("user_config") == user_config and cluster.runs()

    eventually("the gateway has the new values", taken)


def pids(cluster: Cluster) -> dict[str, list[int]]:
    """Processes of each deployment's replicas, when they run."""
    return {
        name: [one["pid"] for one in found["replicas"] if one["state"] == "RUNNING"]
        for name, found in cluster.deployments().items()
    }


def requests(cluster: Cluster, name: str, how: str) -> float:
    """How many requests the variant has answered that came there in this way."""
    metric = metrics(cluster.temp_dir).get("ray_blueprint_variant_requests")
    wanted = {"variant": name, "how": how, "outcome": "ok"}
    samples = metric.samples if metric else []
    return sum(one.value for one in samples if wanted.items() <= one.labels.items())


def test_a_variant_is_pinned_by_its_name(cluster: Cluster) -> None:
    change(cluster, settings())
    assert variant(cluster, model="chat@canary") == "canary"
    assert variant(cluster, model="chat@stable") == "stable"
    assert ask(cluster, model="chat@other").status_code == 404


def test_the_split_moves_live_and_streams_go_on(cluster: Cluster) -> None:
    change(cluster, settings())
    before = pids(cluster)
    body = {
        **{"model": "chat", "messages": [{"role": "user", "content": "Tell me a story"}]},
        **{"max_tokens": TOKENS, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}},
    }

    def stream(_: int) -> tuple[str, str]:
        with cluster.http.stream("POST", CHAT, json=body) as streamed:
            return streamed.headers["x-variant"], "".join(streamed.iter_text())

    with ThreadPoolExecutor(8) as pool:
        running: list[Future[tuple[str, str]]] = [pool.submit(stream, number) for number in range(8)]
        change(cluster, settings(weights=(0, 1)))
        assert not any(one.done() for one in running), "the change took longer than the streams"
        eventually("the split has moved", lambda: variant(cluster) == "canary")
        for one in running:
            answered_by, text = one.result()
            assert answered_by == "chat@stable"
            assert f'"completion_tokens":{TOKENS}' in text
            assert '"error"' not in text
            assert text.endswith("data: [DONE]\n\n")
    assert pids(cluster) == before


def test_users_keep_their_variant_and_pins_change_live(cluster: Cluster) -> None:
    change(cluster, settings(weights=(1, 1)))
    users = [f"user-{number}" for number in range(12)]
    first = {user: variant(cluster, user=user) for user in users}
    assert set(first.values()) == {"stable", "canary"}
    assert {user: variant(cluster, user=user) for user in users} == first
    sessions = {
        user: cluster.http.post(CHAT, json=BODY, headers={"x-session-id": user}).headers["x-variant"] for user in users
    }
    assert sessions == {user: f"chat@{name}" for user, name in first.items()}
    mine = next(user for user in users if first[user] == "stable")
    change(cluster, settings(weights=(1, 1), pins={mine: "canary"}))
    eventually("the pin counts", lambda: variant(cluster, user=mine) == "canary")


def test_the_shadow_gets_copies_and_nobody_notices(cluster: Cluster) -> None:
    change(cluster, settings())
    assert variant(cluster) == "stable"
    assert requests(cluster, "canary", "shadow") == 0
    change(cluster, settings(shadow=1))
    eventually("a copy was answered", lambda: bool(variant(cluster)) and requests(cluster, "canary", "shadow") > 0)
    assert {variant(cluster) for _ in range(5)} == {"stable"}


def test_make_experiment_compares_the_variants(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(cluster, settings(weights=(3, 1)))
    for number in range(24):
        ask(cluster, user=f"someone-{number}").raise_for_status()
    (tmp_path / "ray").symlink_to(cluster.temp_dir)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))

    def printed() -> str:
        done = subprocess.run(
            [sys.executable, "-m", "scripts.experiment"], cwd=ROOT, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    eventually("the last requests are in the table", lambda: "as asked for" in printed())
    lines = [line.split() for line in printed().splitlines() if line]
    assert lines[0] == ["chat"]
    for name in ("stable", "canary"):
        (row,) = [line for line in lines if line[0] == name and line[1] != "(shadow)"]
        assert float(row[1]) > 0
        assert row[2] == "0.00%"
        assert all(0 < float(cell) <= 300 for cell in row[3:7])


@pytest.fixture(scope="module")
def guarded(cluster: Cluster) -> None:
    change(cluster, settings(guard={"enabled": True}))
    eventually("the guard refuses", lambda: ask(cluster, UNSAFE).status_code == 400)


@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("earlier", [False, True])
def test_an_unsafe_prompt_costs_no_token(cluster: Cluster, stream: bool, earlier: bool) -> None:
    messages = [{"role": "user", "content": UNSAFE}]
    if earlier:
        messages += [{"role": "assistant", "content": "Hm."}, {"role": "user", "content": "Say hi"}]
    refused = cluster.http.post(CHAT, json={"model": "chat", "messages": messages, "stream": stream})
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "content_policy_violation", "messages")
    assert "offensive" in error["message"]
    assert (error["classification"]["classifier"], error["classification"]["label"]) == ("safety", "offensive")
    assert error["classification"]["score"] >= 0.8
    assert ask(cluster, "What is the capital of France?").status_code == 200


@pytest.mark.usefixtures("guarded")
def test_a_refused_prompt_never_reaches_an_engine(cluster: Cluster) -> None:
    def answered() -> float:
        return settled(lambda: requests(cluster, "stable", "split"))

    before = answered()
    for _ in range(10):
        assert ask(cluster, UNSAFE, max_tokens=200).status_code == 400
    ask(cluster, "Say hi").raise_for_status()
    assert answered() == before + 1


@pytest.mark.usefixtures("guarded")
def test_a_guard_changes_live(cluster: Cluster) -> None:
    before = pids(cluster)
    change(cluster, settings(guard={"enabled": True, "threshold": 1.0}))
    eventually("the threshold counts", lambda: ask(cluster, UNSAFE).status_code == 200)
    change(cluster, settings())
    assert ask(cluster, UNSAFE).status_code == 200
    assert pids(cluster) == before


@pytest.mark.parametrize(("on_failure", "status"), [("close", 503), ("open", 200)])
def test_a_guard_that_fails_closes_unless_told_otherwise(cluster: Cluster, on_failure: str, status: int) -> None:
    wanted = settings(guard={"enabled": True, "on_failure": on_failure})
    cluster.deploy(wanted, without="nlp")
    eventually("the classifier is gone", lambda: "nlp" not in cluster.applications())

    def answered() -> httpx.Response:
        return ask(cluster)

    eventually("the guard fails as it was told", lambda: answered().status_code == status)
    if status == 503:
        error = answered()
        assert error.json()["error"]["code"] == "guard_unavailable"
        assert int(error.headers["Retry-After"]) > 0


def test_only_the_canary_restarts_when_only_it_changes(cluster: Cluster) -> None:
    change(cluster, settings())
    before = pids(cluster)
    cluster.deploy(settings(canary_seed=7))
    eventually(
        "the canary is another process",
        lambda: pids(cluster).get("LLM:chat@canary") not in (None, [], before["LLM:chat@canary"]) and cluster.runs(),
        START_SECONDS,
    )
    after = pids(cluster)
    assert {name for name in before if after[name] != before[name]} == {"LLM:chat@canary"}
    assert variant(cluster, model="chat@canary") == "canary"
