"""What a namespace shows in one look: RayService, Ray clusters, pods, events, and what Ray Serve says itself."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from infra.platform import kuberay
from scripts.console import Problem
from scripts.kubectl import Kubectl

Object = dict[str, Any]
DASHBOARD_PORT = 8265

# wget is in every Ray image: KubeRay's own probes want it. The token stays in the pod.
_ASK_SERVE = (
    'wget -qO- -T 10 --header "Authorization: Bearer $RAY_AUTH_TOKEN" '
    f"http://127.0.0.1:{DASHBOARD_PORT}/api/serve/applications/"
)


@dataclass(frozen=True)
class View:
    """Kubernetes objects as kubectl prints them; what is not there is empty."""

    services: list[Object]
    clusters: list[Object]
    pods: list[Object]
    """Those of the namespace, and the operator's."""
    events: list[Object]
    applications: dict[str, dict[str, Object]]
    """Ray cluster → Serve application → `status`, `message` and `deployments`, each of them with the same two. From
    Serve they have their replicas, too; from the RayService, when Serve cannot be asked, they are some seconds old."""


def look(kubernetes: Kubectl, namespace: str) -> View:
    """Raises Problem when the cluster does not answer; a namespace or CRDs that do not exist are no problem."""
    try:
        items = _items(kubernetes, "rayservices.ray.io,rayclusters.ray.io,pods,events", namespace)
    except Problem:  # no CRDs
        items = _items(kubernetes, "pods,events", namespace)
    with contextlib.suppress(Problem):  # not everybody may look at the operator
        items += _items(kubernetes, "pods,events", kuberay.NAMESPACE)
    kinds: dict[str, list[Object]] = {kind: [] for kind in ("RayService", "RayCluster", "Pod", "Event")}
    for item in items:
        kinds[item["kind"]].append(item)
    services, clusters, pods, events = kinds.values()
    events = sorted((event for event in events if event.get("reason") and event.get("message")), key=last_seen)
    applications = {name: found for service in services for name, found in _as_kuberay_saw(service)}
    for head in heads(pods):
        applications |= _as_serve_says(kubernetes, head)
    return View(services, clusters, pods, events, applications)


def heads(pods: list[Object]) -> list[Object]:
    """The running Ray heads."""
    return [pod for pod in pods if label(pod, "node-type") == "head" and pod["status"].get("phase") == "Running"]


def label(item: Object, name: str) -> str | None:
    """The value of one of KubeRay's labels."""
    return item["metadata"].get("labels", {}).get(f"ray.io/{name}")


def target(service: Object) -> str | None:
    """The Ray cluster that a RayService is about to serve from: during an upgrade the pending one."""
    status = service.get("status", {})
    states = (status.get(f"{state}ServiceStatus", {}) for state in ("pending", "active"))
    return next((state["rayClusterName"] for state in states if state.get("rayClusterName")), None)


def in_steps(service: Object) -> bool:
    """Whether requests to a RayService come by a Gateway, because of how it is upgraded."""
    return service.get("spec", {}).get("upgradeStrategy", {}).get("type") == "NewClusterWithIncrementalUpgrade"


def entry(service: Object) -> str:
    """The Kubernetes Service that leads to the Ray cluster from which a RayService serves.

    Where a Gateway divides the requests, each Ray cluster has one, and there is none that stays.
    https://github.com/ray-project/kuberay/blob/v1.6.2/ray-operator/controllers/ray/common/service.go
    """
    active = service.get("status", {}).get("activeServiceStatus", {})
    name = active.get("rayClusterName") if in_steps(service) else None
    return f"{name or service['metadata']['name']}-serve-svc"


def conditions(item: Object) -> dict[str, Object]:
    return {condition["type"]: condition for condition in item.get("status", {}).get("conditions", [])}


def last_seen(event: Object) -> str:
    """When an event happened, the last time. As text: all times are UTC and of one format."""
    return event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"]


def _items(kubernetes: Kubectl, kinds: str, namespace: str) -> list[Object]:
    return kubernetes.get(kinds, "--namespace", namespace)["items"]


def _as_kuberay_saw(service: Object) -> Iterator[tuple[str, dict[str, Object]]]:
    for state in ("activeServiceStatus", "pendingServiceStatus"):
        seen = service.get("status", {}).get(state, {})
        if cluster := seen.get("rayClusterName"):
            yield (
                cluster,
                {
                    name: {**application, "deployments": application.get("serveDeploymentStatuses", {})}
                    for name, application in seen.get("applicationStatuses", {}).items()
                },
            )


def _as_serve_says(kubernetes: Kubectl, head: Object) -> dict[str, dict[str, Object]]:
    """Nothing while Serve cannot be asked: it starts, or whoever runs this may not exec."""
    pod = head["metadata"]
    run = ("exec", "--namespace", pod["namespace"], pod["name"], "--", "sh", "-c", _ASK_SERVE)
    try:
        applications = json.loads(kubernetes(*run, timeout=20)).get("applications")
    except (Problem, ValueError):
        return {}
    return {label(head, "cluster") or "": applications} if applications else {}
