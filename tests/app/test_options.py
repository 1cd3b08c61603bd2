"""Every deployment option, read back from Ray's own REST API, and what changes without a restart.

A Ray without GPUs is given, through that API as KubeRay does it, a language model that asks for some: its replicas wait
for ever, so no engine is started, and all that Ray was told can be read. The embedding model beside it is real.
"""

import json
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from app.settings import parse
from tests.app.conftest import eventually
from tests.app.ray_cluster import Cluster, ray_cluster

SCALING = {
    "max_ongoing_requests": 11,
    "max_queued_requests": 12,
    "retry_after_s": 13,
    "health_check_period_s": 14.0,
    "health_check_timeout_s": 15.0,
    "graceful_shutdown_wait_loop_s": 16.0,
    "graceful_shutdown_timeout_s": 17.0,
}
AUTOSCALING = {
    "min_replicas": 1,
    "max_replicas": 4,
    "initial_replicas": 2,
    "target_ongoing_requests": 5.0,
    "upscale_delay_s": 6.0,
    "downscale_delay_s": 7.0,
    "upscaling_factor": 0.8,
    "downscaling_factor": 0.9,
    "metrics_interval_s": 2.0,
    "look_back_period_s": 20.0,
}
SETTINGS: dict[str, Any] = {
    "models": [
        {
            "name": "large",
            "variants": [
                {
                    "engine": {"tensor_parallel_size": 4, "start_timeout_s": 123},
                    "scaling": {**SCALING, "autoscaling_config": AUTOSCALING},
                    "placement": {"num_cpus": 0.5, "num_gpus": 1.0, "memory_gib": 1.0, "accelerator_type": "H100"},
                }
            ],
        },
        {
            "name": "share",
            "variants": [{"scaling": {"num_replicas": 2}, "placement": {"num_cpus": 0.0, "num_gpus": 0.5}}],
        },
    ],
    "embeddings": [{"name": "real"}, {"name": "waiting", "placement": {"num_gpus": 0.25, "memory_gib": 2.0}}],
    "gateway": {"placement": {"num_cpus": 0.1}},
    **{"generate": None, "classifiers": [], "moderation": None, "rerankers": [], "pipeline": None},
}


@pytest.fixture(scope="module")
def cluster(logs: Path) -> Generator[Cluster]:
    """A Ray of its own, with SETTINGS deployed."""
    with ray_cluster(parse(SETTINGS), logs / "ray.log") as ours:
        built = {"LLM:large@stable", "LLM:share@stable", "Embeddings:waiting", "Gateway"}
        eventually("the applications are built", lambda: built <= ours.deployments().keys())
        yield ours


def test_scaling_and_health(cluster: Cluster) -> None:
    config = cluster.deployments()["LLM:large@stable"]["deployment_config"]
    expected = {key: value for key, value in SCALING.items() if key != "retry_after_s"}
    assert {key: config[key] for key in expected} == expected
    assert config["backpressure_config"] == {"status_code": 429, "retry_after_s": SCALING["retry_after_s"]}
    autoscaling = config["autoscaling_config"]
    assert {key: autoscaling[key] for key in AUTOSCALING} == AUTOSCALING


def test_a_fixed_number_of_replicas(cluster: Cluster) -> None:
    deployment = cluster.deployments()["LLM:share@stable"]
    assert deployment["deployment_config"]["num_replicas"] == deployment["target_num_replicas"] == 2


def test_tensor_parallelism_is_packed_strictly(cluster: Cluster) -> None:
    eventually("replicas wait for GPUs", lambda: len(cluster.placement_groups()) >= 3)
    wanted = [group for group in cluster.placement_groups() if len(group["bundles"]) == 4]
    assert wanted
    for group in wanted:
        assert group["strategy"] == "STRICT_PACK"
        first, *others = (group["bundles"][str(index)] for index in range(4))
        for bundle in (first, *others):
            assert bundle["GPU"] == 1
            assert 0 < bundle["accelerator_type:H100"] < 1
        assert (first["CPU"], first["memory"]) == (0.5, 2**30)


def test_a_share_of_a_gpu(cluster: Cluster) -> None:
    eventually("replicas wait for GPUs", lambda: len(cluster.placement_groups()) >= 3)
    shares = [group["bundles"] for group in cluster.placement_groups() if len(group["bundles"]) == 1]
    assert shares
    assert {bundles["0"]["GPU"] for bundles in shares} == {0.5}
    deployments = cluster.deployments()
    actor = deployments["Embeddings:waiting"]["deployment_config"]["ray_actor_options"]
    assert (actor["num_gpus"], actor["num_cpus"], actor["memory"]) == (0.25, 0.25, 2 * 2**30)
    assert deployments["Gateway"]["deployment_config"]["ray_actor_options"]["num_cpus"] == 0.1


def test_the_start_has_a_budget_of_its_own(cluster: Cluster) -> None:
    config = cluster.deployments()["LLM:large@stable"]["deployment_config"]
    variables = config["ray_actor_options"]["runtime_env"]["env_vars"]
    assert variables["RAYLLM_ENGINE_START_TIMEOUT_S"] == variables["VLLM_ENGINE_READY_TIMEOUT_S"] == "123"
    assert config["health_check_timeout_s"] == 15


def test_batching_changes_live(cluster: Cluster) -> None:
    """The same replica, without a restart, makes batches of one text once it is told so."""

    def replica() -> tuple[str, int]:
        (only,) = cluster.deployments()["Embeddings:real"]["replicas"]
        return only["actor_id"], only["pid"]

    def embed(text: str) -> int:
        return cluster.http.post("/v1/embeddings", json={"model": "real", "input": text}).status_code

    def ask_at_once(number: int) -> None:
        with ThreadPoolExecutor(number) as pool:
            assert set(pool.map(embed, map(str, range(number)))) == {200}

    eventually("the embedding model answers", lambda: embed("first") == 200)
    before = replica()
    ask_at_once(32)
    every, single = cluster.batches("Embeddings:real")
    assert every > single

    real, waiting = SETTINGS["embeddings"]
    cluster.deploy(parse({**SETTINGS, "embeddings": [{**real, "batching": {"max_batch_size": 1}}, waiting]}))

    def told() -> bool:
        """Whether the replica knows the new value: what Ray is to do says so earlier."""
        ours = cluster.deployments()["Embeddings:real"]
        return ours["deployment_config"]["user_config"]["max_batch_size"] == 1 and ours["status"] == "HEALTHY"

    eventually("the replica has the new value", told)
    ask_at_once(32)
    every_after, single_after = cluster.batches("Embeddings:real")
    assert every_after - every == single_after - single == 32
    assert replica() == before


def test_logging_changes_live(cluster: Cluster) -> None:
    """The same replica writes JSON, then text."""

    def line() -> str:
        """What the gateway logs of a request."""
        request = cluster.http.get("/v1/models").raise_for_status().headers["x-request-id"]
        found: list[str] = []

        def logged() -> bool:
            for file in (cluster.temp_dir / "session_latest" / "logs" / "serve").glob("replica_*Gateway*"):
                found.extend(one for one in file.read_text().splitlines() if request in one and " 200 in " in one)
            return bool(found)

        eventually("the request is logged", logged)
        return found[0]

    def replica() -> tuple[str, int]:
        (only,) = cluster.deployments()["Gateway"]["replicas"]
        return only["actor_id"], only["pid"]

    eventually("the gateway answers", lambda: cluster.http.get("/health").status_code == 200)
    before = replica()
    assert json.loads(line())["deployment"] == "gateway_Gateway"
    cluster.deploy(parse({**SETTINGS, "logging": {"encoding": "text"}}))
    eventually("its log is text", lambda: line().startswith("INFO "))
    assert replica() == before
