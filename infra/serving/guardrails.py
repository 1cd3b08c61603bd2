"""Limits of the namespace: how many pods may be taken away at once, and how much there may be at most."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from infra.config import StackConfig
from infra.serving import autoscaler
from infra.serving.pods import RAY_PODS, cores, memory


def disruption_budget(service: str, stack: StackConfig) -> dict[str, Any]:
    """The PodDisruptionBudget: of the fewest pods that the stack has, head included, nodes lose one at a time.

    One less than there are, so that a stack of one worker can be drained, too: first the worker, and the head when
    there is another. An integer, and not maxUnavailable, for which Kubernetes must ask the pods' owner how many there
    should be: a RayCluster cannot say, and then no pod may go, ever.
    https://kubernetes.io/docs/tasks/run-application/configure-pdb/#arbitrary-controllers-and-selectors
    """
    head, workers = 1, sum(group.min_replicas for group in stack.workers)
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": service, "namespace": stack.namespace},
        "spec": {
            # Not by the name of the Ray cluster, which changes with every upgrade.
            "selector": RAY_PODS,
            "minAvailable": head + workers - 1,
            # A broken stack loses nothing when its nodes go.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


class Pods(NamedTuple):
    """Pods of one kind, and the limits of each."""

    most: int
    surge: int
    """What an upgrade adds."""
    cpus: float
    memory_gib: float
    gpus: int


def _pods(stack: StackConfig) -> Iterator[Pods]:
    """All pods of the stack."""
    head = Pods(1, int(bool(stack.surge)), stack.head.cpus, stack.head.memory_gib, 0)
    if stack.autoscaling:
        head = head._replace(cpus=head.cpus + autoscaler.CPUS, memory_gib=head.memory_gib + autoscaler.MEMORY_GIB)
    yield head
    for group in stack.workers:
        yield Pods(group.max_replicas, stack.surge.get(group.name, 0), group.cpus, group.memory_gib, group.gpus)
        if group.pool and group.pool.warm:
            # Those of groups without GPUs are larger, and less than the worker that they stand for.
            yield Pods(group.pool.warm, 0, group.cpus / 8, group.memory_gib / 2, group.gpus)


def quota(service: str, stack: StackConfig) -> dict[str, Any]:
    """The ResourceQuota: a Ray cluster of the greatest size, and what an upgrade adds to it.

    And one pod of each kind more, since a pod that ends counts until it is gone, and the next does not wait for that.
    """
    kinds = list(_pods(stack))

    def all_of(amount: str) -> float:
        return sum(number(pods) * getattr(pods, amount) for pods in kinds)

    def number(pods: Pods) -> int:
        return pods.most + pods.surge + 1

    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": service, "namespace": stack.namespace},
        "spec": {
            "hard": {
                "pods": f"{sum(number(pods) for pods in kinds)}",
                # Of the limits; requests are less.
                "limits.cpu": cores(all_of("cpus")),
                "limits.memory": memory(all_of("memory_gib")),
                "requests.nvidia.com/gpu": f"{all_of('gpus'):.0f}",
            }
        },
    }
