"""What a failed deployment leaves to read: pods, events, the operator's log and what Ray Serve itself says."""

from scripts.console import Problem
from scripts.kubectl import Kubectl


def report(kubernetes: Kubectl, namespace: str) -> str:
    """A text for a person; a part that cannot be had says why."""
    parts = {
        "pods": ["get", "pods", "--all-namespaces", "--output", "wide"],
        "RayService": ["get", "rayservices", "--namespace", namespace, "--output", "yaml"],
        "events": ["get", "events", "--namespace", namespace, "--sort-by", ".lastTimestamp"],
        "KubeRay's log": [*("logs", "--namespace", "kuberay-system", "deployment/kuberay-operator", "--tail", "30")],
    }
    sections = [f"── {title}\n{_try(kubernetes, *call)}" for title, call in parts.items()]
    for head in _heads(kubernetes, namespace):
        serve = _try(
            kubernetes,
            *("exec", "--namespace", namespace, head, "--container", "ray-head", "--"),
            *("serve", "status", "--address", "http://127.0.0.1:8265"),
        )
        sections.append(f"── Ray Serve on {head}\n{serve}")
    return "\n".join(sections)


def _heads(kubernetes: Kubectl, namespace: str) -> list[str]:
    selector = ["--namespace", namespace, "--selector", "ray.io/node-type=head"]
    return _try(kubernetes, "get", "pods", *selector, "--output", "name").split()


def _try(kubernetes: Kubectl, *call: str) -> str:
    try:
        return kubernetes(*call)
    except Problem as problem:
        return problem.what
