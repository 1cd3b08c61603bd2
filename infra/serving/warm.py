"""Warm capacity: pods that do nothing but keep nodes for those that will come.

Where a worker group's pool says `warm`, so many placeholders of its pods' size run. They have the lowest priority: a
worker that finds no other room takes the place of one at once, which then waits, and Karpenter starts the next node for
it. They run the workers' image, so that it is on the node already.
"""

from typing import Any

from infra import image
from infra.config import StackConfig, WorkerGroup
from infra.platform.karpenter import place
from infra.serving.pods import RESTRICTED, UNPRIVILEGED, cores, memory

CPUS = 0.1
MEMORY_GIB = 0.125


def placeholders(service: str, stack: StackConfig) -> list[dict[str, Any]]:
    """A Deployment for each group that has warm capacity, and their priority; nothing where none has."""
    groups = [(group, group.pool.warm) for group in stack.workers if group.pool and group.pool.warm]
    if not groups:
        return []
    return [_priority(service, stack), *(_deployment(service, stack, group, warm) for group, warm in groups)]


def _name(service: str, stack: StackConfig) -> str:
    """Of the PriorityClass, which has no namespace."""
    return f"{stack.namespace}-{service}-warm"


def _priority(service: str, stack: StackConfig) -> dict[str, Any]:
    return {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": _name(service, stack)},
        # Below all that names none, which has 0.
        "value": -10,
        "preemptionPolicy": "Never",
        "description": "Placeholders for workers",
    }


def _deployment(service: str, stack: StackConfig, group: WorkerGroup, number: int) -> dict[str, Any]:
    labels = {"blueprint/warm": group.name}
    # What makes the room is the GPU, or the worker's request of cores and memory (infra/serving/rayservice.py).
    limits = {"cpu": cores(CPUS), "memory": memory(MEMORY_GIB)}
    if group.gpus:
        limits["nvidia.com/gpu"] = str(group.gpus)
    else:
        limits |= {"cpu": cores(group.cpus / 8), "memory": memory(group.memory_gib / 2)}
    pod: dict[str, Any] = {
        "metadata": {"labels": labels},
        "spec": {
            "priorityClassName": _name(service, stack),
            "automountServiceAccountToken": False,
            # Who takes its place does not wait for it.
            "terminationGracePeriodSeconds": 0,
            "securityContext": UNPRIVILEGED,
            "containers": [
                {
                    "name": "placeholder",
                    "image": image.reference(stack),
                    "command": ["sleep", "infinity"],
                    "resources": {"requests": limits, "limits": limits},
                    "securityContext": RESTRICTED,
                }
            ],
        },
    }
    place(pod, stack, group)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": f"{service}-warm-{group.name}",
            "namespace": stack.namespace,
            # A GPU that is not to be had just now must not fail `up`.
            "annotations": {"pulumi.com/skipAwait": "true"},
        },
        "spec": {"replicas": number, "selector": {"matchLabels": labels}, "template": pod},
    }
