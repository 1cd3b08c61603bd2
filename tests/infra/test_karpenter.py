"""NodePools and EC2NodeClasses of worker groups, and which instances they may be."""

from itertools import chain
from typing import Any

import jsonschema
import pytest

from infra import versions
from infra.aws.config import EksCluster
from infra.aws.instances import known, suited
from infra.config import StackConfig, from_file
from infra.platform.karpenter import node_class, node_pool, node_pools
from infra.serving.rayservice import rayservice
from infra.upgrade import NewCluster, NoUpgrade, Upgrade
from tests.infra import schemas
from tests.infra.made_up import FROM_HUB, GPUS, NAME, eks_stack
from tests.infra.test_program import STACKS

CPU = {"name": "cpu", "cpus": 2, "memory_gib": 12}
EKS_STACKS = [stack for stack in STACKS if isinstance(from_file(stack).cluster, EksCluster)]


def requirements(pool: dict[str, Any]) -> dict[str, list[str]]:
    return {item["key"]: item["values"] for item in pool["spec"]["template"]["spec"]["requirements"]}


def pool_of(stack: StackConfig, index: int = 0) -> dict[str, Any]:
    return node_pool(stack, stack.workers[index])


@pytest.mark.parametrize(
    ("gpu", "cpus", "gpus", "memory_gib", "types"),
    [
        ("L4", 3, 1, 13, ["g6.xlarge", "g6.2xlarge", "g6.4xlarge", "g6.8xlarge", "g6.16xlarge"]),
        # All four cores are not the pod's, nor are all 16 GiB.
        ("L4", 4, 1, 13, ["g6.2xlarge", "g6.4xlarge", "g6.8xlarge", "g6.16xlarge"]),
        ("L4", 3, 1, 14, ["g6.2xlarge", "g6.4xlarge", "g6.8xlarge", "g6.16xlarge"]),
        ("L4", 40, 4, 160, ["g6.12xlarge", "g6.24xlarge"]),
        # No machine has two L4s.
        ("L4", 7, 2, 28, ["g6.12xlarge", "g6.24xlarge"]),
        ("A100-40G", 90, 8, 900, ["p4d.24xlarge"]),
        ("A100-80G", 90, 8, 900, ["p4de.24xlarge"]),
        ("H100", 8, 1, 100, ["p5.4xlarge"]),
        ("H100", 80, 4, 800, ["p5.48xlarge"]),
        ("T4", 200, 1, 10, []),
    ],
)
def test_instances_with_room_for_a_pod(gpu: str, cpus: int, gpus: int, memory_gib: int, types: list[str]) -> None:
    assert [instance.type for instance in suited(gpu, cpus, gpus, memory_gib)] == types


def test_all_instances_are_of_our_images_architecture() -> None:
    assert {"m7i.large", "p5.48xlarge", "g6.xlarge"} <= {instance.type for instance in known()}
    assert not any("g." in instance.type.replace("g4dn.", "") for instance in known())


def test_a_pool_names_gpu_types_and_capacity() -> None:
    workers = {**GPUS, "pool": {"gpu": "L4", "capacity": ["spot", "on-demand"]}}
    pool = pool_of(eks_stack(workers))
    assert requirements(pool) == {
        "kubernetes.io/arch": ["amd64"],
        "kubernetes.io/os": ["linux"],
        "karpenter.sh/capacity-type": ["spot", "on-demand"],
        "node.kubernetes.io/instance-type": ["g6.2xlarge", "g6.4xlarge", "g6.8xlarge", "g6.16xlarge"],
        "karpenter.k8s.aws/instance-gpu-name": ["l4"],
        "karpenter.k8s.aws/instance-gpu-count": ["1"],
    }
    # The second is what the device plugin's chart looks for.
    labels = {"blueprint/pool": "l4", "nvidia.com/gpu.present": "true"}
    assert pool["spec"]["template"]["metadata"]["labels"] == labels


@pytest.mark.parametrize(
    ("workers", "upgrade", "limits"),
    [
        # As many again for the second Ray cluster of an upgrade.
        (GPUS, NewCluster(), {"nvidia.com/gpu": 8}),
        (GPUS, NoUpgrade(kind="None"), {"nvidia.com/gpu": 4}),
        # Two pods to a machine of eight, the fifth in a third one.
        (
            {**GPUS, "cpus": 80, "gpus": 4, "memory_gib": 800, "max_replicas": 5, "pool": {"gpu": "H100"}},
            NoUpgrade(kind="None"),
            {"nvidia.com/gpu": 24},
        ),
    ],
)
def test_the_limit_is_what_the_group_may_have(
    workers: dict[str, Any], upgrade: Upgrade, limits: dict[str, int]
) -> None:
    stack = eks_stack(workers, serving=FROM_HUB).model_copy(update={"upgrade": upgrade})
    assert pool_of(stack)["spec"]["limits"] == limits


def test_nodes_go_when_they_are_empty_and_for_no_other_reason() -> None:
    spec = pool_of(eks_stack())["spec"]
    assert spec["disruption"] == {
        "consolidationPolicy": "WhenEmpty",
        "consolidateAfter": "10m",
        "budgets": [{"nodes": "1"}],
    }
    assert spec["template"]["spec"]["expireAfter"] == "Never"


def test_the_class_pins_the_image_and_hides_the_nodes_role() -> None:
    stack = eks_stack({**GPUS, "pool": {"gpu": "L4", "disk_gib": 300}})
    assert isinstance(stack.cluster, EksCluster)
    spec = node_class(stack.cluster, stack.workers[0])["spec"]
    assert spec["amiSelectorTerms"] == [{"alias": f"al2023@{versions.EKS_AMI}"}]
    assert spec["metadataOptions"]["httpTokens"] == "required"
    assert spec["metadataOptions"]["httpPutResponseHopLimit"] == 1
    assert spec["role"] == stack.cluster.role("karpenter-nodes")
    assert spec["subnetSelectorTerms"] == [{"tags": {"karpenter.sh/discovery": NAME}}]
    assert spec["instanceStorePolicy"] == "RAID0"
    (disk,) = spec["blockDeviceMappings"]
    assert (disk["ebs"]["volumeSize"], disk["ebs"]["encrypted"], disk["ebs"]["throughput"]) == ("300Gi", True, 600)
    assert spec["tags"]["owner"] == "ml"
    assert "FastImagePull: true" in spec["userData"]
    assert "capacityReservationSelectorTerms" not in spec


def test_managed_groups_are_not_karpenters() -> None:
    managed = {**GPUS, "name": "other", "pool": {"gpu": "L4", "nodes": "managed"}}
    stack = eks_stack(GPUS, managed, CPU)
    assert isinstance(stack.cluster, EksCluster)
    made = [[item["metadata"]["name"] for item in both] for both in node_pools(stack, stack.cluster)]
    assert made == [["l4", "l4"], ["cpu", "cpu"]]


def test_reservations_are_taken_by_their_ids() -> None:
    pool = {"gpu": "L4", "capacity": ["reserved", "on-demand"], "reservations": ["cr-0123456789abcdef0"]}
    stack = eks_stack({**GPUS, "pool": pool})
    assert isinstance(stack.cluster, EksCluster)
    spec = node_class(stack.cluster, stack.workers[0])["spec"]
    assert spec["capacityReservationSelectorTerms"] == [{"id": "cr-0123456789abcdef0"}]
    assert requirements(pool_of(stack))["karpenter.sh/capacity-type"] == ["reserved", "on-demand"]


def test_a_group_without_gpus_has_a_pool_of_its_own() -> None:
    stack = eks_stack(GPUS, CPU)
    pool = pool_of(stack, 1)
    assert "karpenter.k8s.aws/instance-gpu-name" not in requirements(pool)
    assert requirements(pool)["karpenter.sh/capacity-type"] == ["on-demand"]
    assert "m7i.xlarge" in requirements(pool)["node.kubernetes.io/instance-type"]
    assert not any(name.startswith(("g", "p")) for name in requirements(pool)["node.kubernetes.io/instance-type"])
    assert set(pool["spec"]["limits"]) == {"cpu"}


def test_pods_go_to_their_own_nodes_and_tolerate_what_keeps_others_away() -> None:
    stack = eks_stack(GPUS, CPU)
    cluster = rayservice("llm", stack)["spec"]["rayClusterConfig"]
    head = cluster["headGroupSpec"]["template"]["spec"]
    assert head["nodeSelector"] == {"blueprint/pool": "system"}
    assert "tolerations" not in head
    for index, group in enumerate(cluster["workerGroupSpecs"]):
        pod, (taint,) = group["template"]["spec"], pool_of(stack, index)["spec"]["template"]["spec"]["taints"]
        labels = pool_of(stack, index)["spec"]["template"]["metadata"]["labels"]
        assert pod["nodeSelector"].items() <= labels.items()
        assert pod["tolerations"] == [{**taint, "operator": "Equal"}]


def test_elsewhere_pods_go_where_the_scheduler_puts_them() -> None:
    cluster = rayservice("llm", StackConfig())["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert not {"nodeSelector", "tolerations"} & set(group["template"]["spec"])


@pytest.mark.parametrize("name", EKS_STACKS)
def test_karpenter_takes_the_nodes_of_every_stack(name: str) -> None:
    stack = from_file(name)
    assert isinstance(stack.cluster, EksCluster)
    manifests = list(chain(*node_pools(stack, stack.cluster)))
    assert len(manifests) == 2 * len(stack.workers)
    for manifest in manifests:
        schemas.validate(manifest)


def test_karpenter_takes_everything_that_a_pool_may_say() -> None:
    pool = {"gpu": "L4", "capacity": ["reserved", "spot"], "reservations": ["cr-0123456789abcdef0"], "warm": 1}
    stack = eks_stack({**GPUS, "pool": pool}, CPU)
    assert isinstance(stack.cluster, EksCluster)
    for manifest in chain(*node_pools(stack, stack.cluster)):
        schemas.validate(manifest)


def test_the_check_finds_a_misspelt_field() -> None:
    pool = pool_of(eks_stack())
    pool["spec"]["template"]["spec"]["expiresAfter"] = "Never"
    with pytest.raises(jsonschema.ValidationError, match="expiresAfter"):
        schemas.validate(pool)
