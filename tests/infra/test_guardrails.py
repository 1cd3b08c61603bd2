"""How many pods may go at once, and how much the namespace may hold."""

from typing import Any

import pytest

from app.keys import Key, digest
from infra.clusters import ExistingCluster
from infra.config import Head, StackConfig, WorkerGroup
from infra.platform import kuberay
from infra.serving.guardrails import disruption_budget, quota
from infra.serving.rayservice import rayservice
from infra.upgrade import Incremental, NewCluster, NoUpgrade, Upgrade
from tests.infra import schemas

ELSEWHERE = ExistingCluster(contexts=["dev"], models_path="/srv/models")
TEAM = Key(name="team", sha256=digest("sk-a-key-that-nobody-guesses"))
GPUS = WorkerGroup(name="gpu", min_replicas=2, max_replicas=6, cpus=16, gpus=4, memory_gib=128)


@pytest.mark.parametrize(
    ("workers", "least"),
    [([WorkerGroup()], 1), ([WorkerGroup(), GPUS], 3), ([WorkerGroup(min_replicas=0)], 0)],
    ids=["one worker", "three workers or more", "none or one"],
)
def test_of_the_fewest_pods_one_may_go(workers: list[WorkerGroup], least: int) -> None:
    budget = disruption_budget("llm", StackConfig(workers=workers))
    schemas.validate(budget)
    assert budget["spec"]["minAvailable"] == least
    fewest = 1 + sum(group.min_replicas for group in workers)
    assert fewest - budget["spec"]["minAvailable"] == 1


def test_the_budget_counts_without_asking_the_pods_owner() -> None:
    """Whether a percentage or maxUnavailable would work: only of pods whose owner has a scale subresource."""
    crds = {crd["metadata"]["name"]: crd for crd in kuberay.manifests("kuberay-crds")}
    (served,) = [version for version in crds["rayclusters.ray.io"]["spec"]["versions"] if version["name"] == "v1"]
    assert "scale" not in served["subresources"]
    spec = disruption_budget("llm", StackConfig())["spec"]
    assert isinstance(spec["minAvailable"], int)
    assert "maxUnavailable" not in spec


def test_the_budget_outlives_an_upgrade() -> None:
    selector = disruption_budget("llm", StackConfig())["spec"]["selector"]
    assert selector == {"matchLabels": {"ray.io/is-ray-node": "yes"}}


def test_the_quota_holds_two_clusters_and_one_pod_of_each_kind() -> None:
    found = quota("llm", StackConfig(head=Head(cpus=4, memory_gib=8), workers=[WorkerGroup(max_replicas=1), GPUS]))
    schemas.validate(found)
    assert found["spec"]["hard"] == {
        "pods": "19",  # heads, workers of the first group, of the second: 3 + 3 + 13
        "limits.cpu": "227500m",  # 3 * (4 + 0.5 of the autoscaler) + 3 * 2 + 13 * 16
        "limits.memory": "1766912Mi",  # 3 * (8 + 0.5) + 3 * 12 + 13 * 128, in GiB
        "requests.nvidia.com/gpu": "52",
    }


def test_the_quota_holds_no_more_than_the_upgrade_adds() -> None:
    """One kind of pod, so that the number of all tells how many of it."""
    workers = [WorkerGroup(max_replicas=3, cpus=4)]

    def pods(upgrade: Upgrade) -> str:
        stack = StackConfig(cluster=ELSEWHERE, keys=[TEAM], workers=workers, upgrade=upgrade)
        return quota("llm", stack)["spec"]["hard"]["pods"]

    assert pods(NewCluster()) == "10"  # heads, workers: 3 + 7
    assert pods(Incremental(gateway_class_name="envoy", step_size_percent=10, interval_seconds=5)) == "8"  # 3 + 5
    assert pods(NoUpgrade()) == "6"  # 2 + 4


def test_a_namespace_without_gpus_may_take_none() -> None:
    found = quota("llm", StackConfig())
    assert found["spec"]["hard"] == {
        "pods": "6",
        "limits.cpu": "12",
        "limits.memory": "51Gi",
        "requests.nvidia.com/gpu": "0",
    }


@pytest.mark.parametrize("workers", [[WorkerGroup()], [GPUS]])
def test_every_container_has_the_limits_that_a_quota_asks_for(workers: list[WorkerGroup]) -> None:
    """A pod with a container that has none would be refused."""
    cluster = rayservice("llm", StackConfig(workers=workers))["spec"]["rayClusterConfig"]
    groups = (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
    pods = [group["template"]["spec"] for group in groups]
    containers: list[dict[str, Any]] = []
    for pod in pods:
        containers += [*pod.get("initContainers", []), *pod["containers"]]
    containers += [cluster[key] for key in ("autoscalerOptions",) if key in cluster]
    assert all(container["resources"]["limits"].keys() >= {"cpu", "memory"} for container in containers)
