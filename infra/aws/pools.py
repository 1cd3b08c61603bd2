"""The nodes of a worker group, whoever starts them: which instances, how many, and what is set on them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from infra.aws.config import POOL, Pool
from infra.aws.instances import Instance, suited

if TYPE_CHECKING:  # whose contract asks here
    from infra.config import StackConfig, WorkerGroup

THROUGHPUT = 600
"""MiB/s of the root volume. With less, pulling layers in parallel is slower than one after the other:
https://awslabs.github.io/amazon-eks-ami/nodeadm/doc/api/#feature"""
IOPS = 3000

GPU_TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
"""As NVIDIA's and EKS's own pods expect it, which have to run there."""


def labels(group: WorkerGroup) -> dict[str, str]:
    """Its own, by which pods find it, and those that tell the device plugin's chart of GPUs, and of their sharing."""
    found = {POOL: group.name, **({"nvidia.com/gpu.present": "true"} if group.gpus else {})}
    if group.pool and group.pool.share:
        found["nvidia.com/device-plugin.config"] = group.name
        if group.pool.share.by == "mps":
            # NVIDIA's feature discovery would set it, which nothing else here needs.
            found["nvidia.com/mps.capable"] = "true"
    return found


def taint(group: WorkerGroup) -> dict[str, str]:
    """What keeps the pods of others away, with which its nodes would never be empty."""
    return GPU_TAINT if group.gpus else {"key": POOL, "value": group.name, "effect": "NoSchedule"}


def instances(group: WorkerGroup) -> list[Instance]:
    """What its nodes may be, the cheapest first: with room for all pods that share a GPU."""
    pool = group.pool or Pool()
    return suited(pool.gpu, group.cpus * pool.to_a_gpu, group.gpus, group.memory_gib * pool.to_a_gpu)


def most_nodes(stack: StackConfig, group: WorkerGroup) -> int:
    """How many nodes hold all its pods, with an upgrade's and placeholders, when each is of the smallest kind."""
    pool = group.pool or Pool()
    kinds = instances(group)
    per_node = min(kind.pods(group.cpus, group.gpus, group.memory_gib, pool.to_a_gpu) for kind in kinds)
    pods = group.max_replicas + stack.surge.get(group.name, 0) + pool.warm
    return math.ceil(pods / per_node)


def user_data(raid: bool) -> str:
    """What nodeadm, which AL2023 boots with, is told beside what EKS or Karpenter tell it.

    `raid` puts images and scratch space on the instance's own disks; Karpenter says that itself.
    """
    storage = ["  instance:", "    localStorage:", "      strategy: RAID0"] if raid else []
    lines = [
        "MIME-Version: 1.0",
        'Content-Type: multipart/mixed; boundary="//"',
        "",
        "--//",
        "Content-Type: application/node.eks.aws",
        "",
        "apiVersion: node.eks.aws/v1alpha1",
        "kind: NodeConfig",
        "spec:",
        *storage,
        # Images of vLLM have 8 GB and more, in few layers.
        "  featureGates:",
        "    FastImagePull: true",
        "",
        "--//--",
        "",
    ]
    return "\n".join(lines)
