"""Autoscaling: a second replica of a model comes under load and goes when it is over, and no request fails."""

import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from app.settings import NOTHING, parse
from tests.app.conftest import FAST, START_SECONDS, eventually, metrics
from tests.app.ray_cluster import Cluster, ray_cluster

DEPLOYMENT = "LLM:chat@stable"
CLIENTS = 8
AUTOSCALING = {
    "min_replicas": 1,
    "max_replicas": 2,
    "target_ongoing_requests": 3.0,
    "upscale_delay_s": 5.0,
    "downscale_delay_s": 10.0,
    "metrics_interval_s": 1.0,
    "look_back_period_s": 3.0,
}
SETTINGS: dict[str, Any] = {
    **NOTHING,
    "models": [
        {
            "name": "chat",
            "variants": [
                {"engine": FAST, "scaling": {"autoscaling_config": AUTOSCALING}, "placement": {"num_cpus": 0.5}}
            ],
        }
    ],
}


@pytest.fixture(scope="module")
def cluster(logs: Path) -> Generator[Cluster]:
    with ray_cluster(parse(SETTINGS), logs / "ray-scaling.log") as cluster:
        eventually("the applications run", cluster.runs, START_SECONDS)
        yield cluster


def _running(cluster: Cluster) -> set[str]:
    replicas = cluster.deployments()[DEPLOYMENT]["replicas"]
    return {replica["replica_id"] for replica in replicas if replica["state"] == "RUNNING"}


def _answered(cluster: Cluster, replica: str) -> float:
    """How many requests the replica has answered."""
    counter = metrics(cluster.temp_dir).get("ray_serve_deployment_request_counter")
    samples = counter.samples if counter else []
    return sum(sample.value for sample in samples if sample.labels["replica"].endswith(replica))


def test_a_model_follows_the_load(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    over = threading.Event()
    body = {"model": "chat", "prompt": "Once upon a time", "max_tokens": 32, "ignore_eos": True}

    def ask_on(_: int) -> list[int]:
        """Status of every request, one after the other, until it is over."""
        statuses: list[int] = []
        while not over.is_set():
            statuses.append(cluster.http.post("/v1/completions", json=body).status_code)
        return statuses

    (first,) = _running(cluster)
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = pool.map(ask_on, range(CLIENTS))
        begun = time.monotonic()
        try:
            eventually(
                "a second replica is wanted", lambda: cluster.deployments()[DEPLOYMENT]["target_num_replicas"] == 2
            )
            wanted = time.monotonic()
            eventually("it runs", lambda: len(_running(cluster)) == 2)
            ran = time.monotonic()
            (second,) = _running(cluster) - {first}
            eventually("it answers", lambda: _answered(cluster, second) > 0)
            answered = time.monotonic()
        finally:
            ended = time.monotonic()
            over.set()
        statuses = [status for client in clients for status in client]
    assert set(statuses) == {200}
    assert wanted - begun >= AUTOSCALING["upscale_delay_s"]

    calm: list[int] = []

    def one_replica() -> bool:
        calm.append(cluster.http.post("/v1/completions", json={**body, "max_tokens": 1}).status_code)
        return len(_running(cluster)) == 1

    eventually("one replica is left", one_replica)
    gone = time.monotonic()
    assert set(calm) == {200}
    assert gone - ended >= AUTOSCALING["downscale_delay_s"]
    with capsys.disabled():
        print(
            f"\n1 → 2 replicas: {wanted - begun:.1f} s of load until the trigger (delay 5 s), "
            f"{ran - wanted:.1f} s until it runs, {answered - wanted:.1f} s until its first answer is counted; "
            f"2 → 1: {gone - ended:.1f} s after the load (delay 10 s); {len(statuses) + len(calm)} requests, 0 failed"
        )
