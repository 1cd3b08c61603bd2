"""Which GPUs may be started, and how many of them."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from infra.aws import instances
from infra.policy.resources import UNKNOWN, Resource, at, objects, strings

GPU = "nvidia.com/gpu"
_COUNTS = {instance.type: instance.gpus for instance in instances.known()}


def allowed_families(resource: Resource, families: Sequence[str]) -> Iterator[str]:
    """Instances with GPUs of other families, and NodePools that leave the family to Karpenter."""
    found = _families(resource)
    for family in sorted({family for family in found if _has_gpus(family)} - {*families}):
        yield (
            f"{family}: is not one of the families that are allowed, {', '.join(families)}; fix: choose another "
            "pool.gpu in the stack file, or add it to allowed-gpu-families in infra/policy/config.json"
        )
    if not found and _is_pool_of_gpus(resource):
        yield (
            "spec.template.spec.requirements: leave the family open, and Karpenter takes any that has such a GPU; "
            "fix: require node.kubernetes.io/instance-type or karpenter.k8s.aws/instance-family"
        )


def _has_gpus(name: str) -> bool:
    """EC2's families with GPUs are its g and p: https://aws.amazon.com/ec2/instance-types/accelerated-computing/"""
    return re.match(r"[gp]\d", name) is not None


def _families(resource: Resource) -> list[str]:
    """What a resource may start."""
    return [name.partition(".")[0] for name in _types(resource)] + _required(
        resource, "karpenter.k8s.aws/instance-family"
    )


def _types(resource: Resource) -> list[str]:
    if resource.kind == "aws:eks/nodeGroup:NodeGroup":
        return strings(resource.at("instanceTypes"))
    if resource.kind.startswith("aws:ec2/"):
        return strings(resource.at("instanceType"))
    return _required(resource, "node.kubernetes.io/instance-type")


def _requirements(resource: Resource) -> list[dict[str, Any]]:
    found = resource.at("spec", "template", "spec", "requirements")
    return objects(found) if resource.is_kubernetes("NodePool") else []


def _required(resource: Resource, key: str) -> list[str]:
    given = [item for item in _requirements(resource) if (item.get("key"), item.get("operator")) == (key, "In")]
    return [value for item in given for value in strings(item.get("values"))]


def _is_pool_of_gpus(resource: Resource) -> bool:
    keys = [str(item.get("key")) for item in _requirements(resource)]
    return any("/instance-gpu-" in key for key in keys) or any(map(_has_gpus, _families(resource)))


def over_cap(resources: Sequence[Resource], most: int, stacks: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """URN and message where a stack may have more GPUs than its cap in `stacks`, or `most`, if it has none there.

    Counted are those of the nodes that it may start, or of its Ray clusters, where others start the nodes.
    """
    stack = resources[0].stack
    cap = int(stacks.get(stack, most))  # Pulumi knows numbers, and no integers.
    nodes = {resource.urn: _of_nodes(resource) for resource in resources}
    found = max(sum(nodes.values()), sum(map(_of_pods, resources)))
    if found <= cap:
        return
    endless = [urn for urn, number in nodes.items() if number == math.inf]
    for urn in endless:
        yield urn, "GPUs = any number: nothing ends what it may start; fix: set spec.limits of a NodePool for " + GPU
    if not endless:
        yield (
            "",
            f"GPUs = {found}: stack {stack} may have {cap}, as everything that may start will, some night; fix: lower "
            "max_replicas, warm, or an upgrade's surge in the stack file, or raise gpu-cap in infra/policy/config.json",
        )


def _of_nodes(resource: Resource) -> float:
    """GPUs of the nodes that a resource starts at most."""
    if resource.is_kubernetes("NodePool"):
        limit = resource.at("spec", "limits", GPU)
        return int(limit) if limit is not None else math.inf if _is_pool_of_gpus(resource) else 0
    number = {
        "aws:eks/nodeGroup:NodeGroup": resource.at("scalingConfig", "maxSize"),
        "aws:ec2/instance:Instance": 1,
    }.get(resource.kind)
    types = [name for name in _types(resource) if _has_gpus(name)]
    # What the table does not know has some number, and eight is the most that there is in one machine.
    return int(number) * max((_COUNTS.get(name, 8) for name in types), default=0) if number else 0


def _of_pods(resource: Resource) -> int:
    """GPUs of a RayService's workers at most, with those of the second Ray cluster of an upgrade."""
    if not resource.is_kubernetes("RayService"):
        return 0
    groups = objects(resource.at("spec", "rayClusterConfig", "workerGroupSpecs"))
    found = sum(int(group["maxReplicas"]) * _of_pod(group["template"]["spec"]) for group in groups)
    return found if resource.at("spec", "upgradeStrategy", "type") == "None" else 2 * found


def _of_pod(spec: dict[str, Any]) -> int:
    given = [at(container, "resources", "limits", GPU) for container in objects(spec["containers"])]
    return sum(int(number) for number in given if number and number is not UNKNOWN)
