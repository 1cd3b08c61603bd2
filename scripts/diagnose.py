"""What a failed deployment leaves to read: pods, events, the operator's log, Ray Serve's own status and logs."""

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
    for pod in _pods(kubernetes, namespace, "ray.io/node-type=head"):
        status = ["serve", "status", "--address", "http://127.0.0.1:8265"]
        sections.append(f"── Ray Serve on {pod}\n{_in_pod(kubernetes, namespace, pod, *status)}")
    for pod in _pods(kubernetes, namespace, "ray.io/is-ray-node=yes"):
        logs = ["sh", "-c", "tail -n 30 /tmp/ray/session_latest/logs/serve/*.log"]
        sections.append(f"── Ray Serve's logs on {pod}\n{_in_pod(kubernetes, namespace, pod, *logs)}")
    return "\n".join(sections)


def _pods(kubernetes: Kubectl, namespace: str, selector: str) -> list[str]:
    found = _try(kubernetes, "get", "pods", "--namespace", namespace, "--selector", selector, "--output", "name")
    return [name for name in found.split() if name.startswith("pod/")]


def _in_pod(kubernetes: Kubectl, namespace: str, pod: str, *command: str) -> str:
    return _try(kubernetes, "exec", "--namespace", namespace, pod, "--", *command)


def _try(kubernetes: Kubectl, *call: str) -> str:
    try:
        return kubernetes(*call)
    except Problem as problem:
        return problem.what
