"""Every deployment option, read back from Ray's own REST API, and what changes without a restart.

A Ray without GPUs is given, through that API as KubeRay does it, a language model that asks for some: its replicas wait
for ever, so no engine is started, and all that Ray was told can be read. The embedding model beside it is real.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from app.settings import APPLICATION, Settings, parse, serve_config
from tests.app.conftest import BINARIES, batches, eventually, started, wait_for
from tests.ports import free_port

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
}


class Cluster(NamedTuple):
    dashboard: httpx.Client
    gcs_port: int
    http_port: int
    temp_dir: Path

    def deploy(self, settings: Settings) -> None:
        config = {**serve_config(settings), "http_options": {"host": "127.0.0.1", "port": self.http_port}}
        sent = self.dashboard.put("/api/serve/applications/", json=config)
        assert sent.status_code == 200, sent.text

    def deployments(self) -> dict[str, Any]:
        applications = self.dashboard.get("/api/serve/applications/").json()["applications"]
        return applications.get(APPLICATION, {}).get("deployments", {})

    def placement_groups(self) -> list[dict[str, Any]]:
        """Those that replicas have asked for, from Ray's control store: the REST API leaves out their strategy."""
        script = (
            f"import json, ray, ray.util; ray.init('127.0.0.1:{self.gcs_port}', log_to_driver=False);"
            "print(json.dumps(list(ray.util.placement_group_table().values()), default=str))"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def cluster(logs: Path) -> Generator[Cluster]:
    """A Ray of its own, with SETTINGS deployed."""
    # Short: Ray keeps sockets in it, whose paths may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-") as name, pytest.MonkeyPatch.context() as environment:
        token = uuid.uuid4().hex
        environment.setenv("RAY_AUTH_MODE", "token")
        environment.setenv("RAY_AUTH_TOKEN", token)
        environment.setenv("RAY_metrics_report_interval_ms", "500")
        gcs_port, http_port, dashboard_port = free_port(), free_port(), free_port()
        dashboard = httpx.Client(
            base_url=f"http://127.0.0.1:{dashboard_port}",
            headers={"Authorization": f"Bearer {token}"},
            trust_env=False,
            timeout=60,
        )
        ours = Cluster(dashboard, gcs_port, http_port, Path(name))
        command: list[str | Path] = [
            *(BINARIES / "ray", "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=4", "--num-gpus=0"),
            *(f"--temp-dir={name}", f"--port={gcs_port}", f"--dashboard-port={dashboard_port}"),
        ]

        def answers() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                return dashboard.get("/api/version").status_code == 200
            return False

        with started(command, logs / "ray.log", status=None) as process, dashboard:
            wait_for("Ray's dashboard", answers, process)
            ours.deploy(parse(SETTINGS))
            eventually("the application is built", lambda: bool(ours.deployments()), 300)
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
    eventually("replicas wait for GPUs", lambda: len(cluster.placement_groups()) >= 3, 120)
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
    eventually("replicas wait for GPUs", lambda: len(cluster.placement_groups()) >= 3, 120)
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
        body = {"model": "real", "input": text}
        url = f"http://127.0.0.1:{cluster.http_port}/v1/embeddings"
        return httpx.post(url, json=body, trust_env=False, timeout=60).status_code

    def counted() -> tuple[float, float]:
        return batches(cluster.temp_dir, "Embeddings:real", quiet_seconds=3)  # this Ray exports them twice a second

    def ask_at_once(number: int) -> None:
        with ThreadPoolExecutor(number) as pool:
            assert set(pool.map(embed, map(str, range(number)))) == {200}

    eventually("the embedding model answers", lambda: embed("first") == 200, 300)
    before = replica()
    ask_at_once(32)
    every, single = counted()
    assert every > single

    real, waiting = SETTINGS["embeddings"]
    cluster.deploy(parse({**SETTINGS, "embeddings": [{**real, "batching": {"max_batch_size": 1}}, waiting]}))

    def batch_size() -> int:
        return cluster.deployments()["Embeddings:real"]["deployment_config"]["user_config"]["max_batch_size"]

    eventually("Ray has the new value", lambda: batch_size() == 1, 60)
    ask_at_once(32)
    every_after, single_after = counted()
    assert every_after - every == single_after - single == 32
    assert replica() == before
