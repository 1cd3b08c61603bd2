"""What our pods have in common: their label, a port, their containers' security, and how amounts are written."""

from typing import Any

SERVE_PORT = 8000
GCS_PORT = 6379
METRICS_PORTS = {"metrics": 8080, "as-metrics": 44217, "dash-metrics": 44227}
"""By the names that KubeRay gives them: of every Ray pod; of the autoscaler and of the dashboard, both on the head."""

RAY_PODS: dict[str, Any] = {"matchLabels": {"ray.io/is-ray-node": "yes"}}
"""Selector of all pods of a Ray cluster, head included: KubeRay's own label."""

RESTRICTED: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
"""With the pod's own security context, within Pod Security's "restricted"."""


UNPRIVILEGED: dict[str, Any] = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "runAsGroup": 1000,
    "fsGroup": 1000,
    "seccompProfile": {"type": "RuntimeDefault"},
}
"""The pod's own, as the image's user."""


# Quantities as Kubernetes itself writes them. KubeRay stores the object anew, and what reads differently then looks to
# Pulumi like a change, in every `up`.
def cores(amount: float) -> str:
    return f"{amount:.0f}" if amount == int(amount) else f"{amount * 1000:.0f}m"


def memory(gib: float) -> str:
    return f"{gib:.0f}Gi" if gib == int(gib) else f"{gib * 1024:.0f}Mi"
