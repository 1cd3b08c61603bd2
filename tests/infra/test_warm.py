"""Placeholders that keep nodes warm."""

from typing import Any

from infra import image
from infra.aws.config import EksCluster
from infra.config import StackConfig
from infra.platform.karpenter import node_pool
from infra.serving.guardrails import quota
from infra.serving.rayservice import around, rayservice
from infra.serving.warm import placeholders
from tests.infra import schemas
from tests.infra.made_up import GPUS, eks_stack

WARM = {**GPUS, "pool": {"gpu": "L4", "warm": 2}}


def made(*workers: dict[str, Any]) -> tuple[StackConfig, list[dict[str, Any]]]:
    stack = eks_stack(*workers)
    return stack, placeholders("llm", stack)


def test_a_placeholder_takes_a_workers_place_with_the_workers_image() -> None:
    stack, (priority, deployment) = made(WARM)
    for manifest in (priority, deployment):
        schemas.validate(manifest)
    assert deployment["spec"]["replicas"] == 2
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == image.reference(stack)
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    worker = rayservice("llm", stack)["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]
    for field in ("nodeSelector", "tolerations"):
        assert pod[field] == worker[field]
    assert "priorityClassName" not in worker, "it would have the placeholders' own"
    assert (pod["priorityClassName"], priority["value"]) == (priority["metadata"]["name"], -10)
    assert pod["terminationGracePeriodSeconds"] == 0


def test_without_gpus_it_asks_for_what_a_worker_asks_for() -> None:
    stack, (_, deployment) = made(GPUS, {"name": "cpu", "cpus": 4, "memory_gib": 12, "pool": {"warm": 1}})
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    groups = rayservice("llm", stack)["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert container["resources"]["requests"] == groups[1]["template"]["spec"]["containers"][0]["resources"]["requests"]


def test_nodes_and_quota_have_room_for_them() -> None:
    (warm, _), (cold, none) = made(WARM), made(GPUS)
    assert none == []
    gpus = [node_pool(stack, stack.workers[0])["spec"]["limits"]["nvidia.com/gpu"] for stack in (warm, cold)]
    assert gpus == [10, 8]
    hard = [quota("llm", stack)["spec"]["hard"]["requests.nvidia.com/gpu"] for stack in (warm, cold)]
    # And one that ends while the next is there already.
    assert hard == ["12", "9"]


def test_they_are_part_of_the_stack() -> None:
    stack, manifests = made(WARM)
    assert isinstance(stack.cluster, EksCluster)
    assert all(manifest in around("llm", stack) for manifest in manifests)
