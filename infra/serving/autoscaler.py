"""Ray's autoscaler, version 2: a container beside the Ray head that adds and removes workers.

It runs where a worker group has room to grow (`min_replicas` < `max_replicas`), and asks the Kubernetes API for pods.
KubeRay makes the container, and a Role for the head's service account:
https://github.com/ray-project/kuberay/blob/v1.6.2/ray-operator/controllers/ray/common/pod.go
"""

from typing import Any

from infra.config import StackConfig
from infra.serving.pods import RESTRICTED, cores, memory

CPUS = 0.5
MEMORY_GIB = 0.5
"""Limits of the container: KubeRay's own."""

_TOKEN = "api-token"  # noqa: S105


def autoscaling(stack: StackConfig) -> dict[str, Any]:
    """The part of a RayCluster's spec that switches it on; nothing in a stack of fixed size."""
    if not stack.autoscaling:
        return {}
    return {
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": stack.idle_timeout_seconds,
            "resources": {
                # KubeRay's half a core would not fit beside head and workers on two, and it sleeps nearly always.
                "requests": {"cpu": "100m", "memory": memory(MEMORY_GIB)},
                "limits": {"cpu": cores(CPUS), "memory": memory(MEMORY_GIB)},
            },
            "securityContext": RESTRICTED,
            "volumeMounts": [
                {"name": "tmp", "mountPath": "/tmp"},
                {"name": _TOKEN, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": True},
            ],
        },
    }


def add_api_token(head: dict[str, Any]) -> None:
    """Add to the head's pod template what the autoscaler alone mounts: a token of the Kubernetes API.

    What Kubernetes would mount by itself, it would mount into the Ray head as well, which runs the applications' code.
    """
    namespace = {"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}
    sources = [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [namespace]}},
    ]
    head["spec"]["volumes"].append({"name": _TOKEN, "projected": {"sources": sources}})
