"""Kubernetes objects as kubectl prints them, made up after what KubeRay 1.6 and Kubernetes 1.35 write, not recorded."""

from datetime import UTC, datetime
from typing import Any

from scripts.observe import Object, View

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
OLD, NEW = "llm-aaaaa", "llm-bbbbb"
"""Ray clusters: the one that serves, and the one that an upgrade makes."""


def pod(name: str, container: Object | None = None, cluster: str = NEW, **status: Any) -> Object:
    """A Ray worker; `container` is the status of its one container."""
    state = {"name": "ray-worker", "ready": False, "restartCount": 0, "state": {}, **(container or {})}
    return {
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "serving",
            "uid": f"uid-{name}",
            "labels": {"ray.io/cluster": cluster, "ray.io/node-type": "worker", "ray.io/is-ray-node": "yes"},
        },
        "spec": {"containers": [{"name": "ray-worker", "resources": {"limits": {"memory": "12Gi"}}}]},
        "status": {"phase": "Running", "containerStatuses": [state], **status},
    }


def service(**status: Any) -> Object:
    """A RayService in an upgrade from OLD to NEW, which KubeRay has taken up."""
    return {
        "kind": "RayService",
        "metadata": {"name": "llm", "namespace": "serving", "uid": "uid-llm", "generation": 2},
        "status": {
            "observedGeneration": 2,
            "numServeEndpoints": 1,
            "activeServiceStatus": {"rayClusterName": OLD},
            "pendingServiceStatus": {"rayClusterName": NEW},
            "conditions": [
                condition("Ready", "True", "NonZeroServeEndpoints"),
                condition("UpgradeInProgress", "True", "BothActivePendingClustersExist"),
            ],
            **status,
        },
    }


def condition(kind: str, status: str, reason: str = "", message: str = "") -> Object:
    since = "2026-11-21T11:48:00Z"
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since}


def event(about: Object, reason: str, message: str, last: str = "2026-11-21T11:59:30Z") -> Object:
    return {
        "kind": "Event",
        "metadata": {"creationTimestamp": last},
        "involvedObject": {"uid": about["metadata"]["uid"]},
        "reason": reason,
        "message": message,
        "lastTimestamp": last,
    }


def view(
    *pods: Object,
    services: list[Object] | None = None,
    clusters: list[Object] | None = None,
    events: list[Object] | None = None,
    applications: dict[str, dict[str, Object]] | None = None,
) -> View:
    return View(
        services=[service()] if services is None else services,
        clusters=clusters or [],
        pods=list(pods),
        events=events or [],
        applications=applications or {},
    )


def application(status: str, deployments: dict[str, tuple[str, str]], message: str = "") -> Object:
    """As Ray Serve describes it; of each deployment status and message."""
    return {
        "status": status,
        "message": message,
        "deployments": {
            name: {"status": one[0], "message": one[1], "target_num_replicas": 2, "replicas": []}
            for name, one in deployments.items()
        },
    }


FAILED_CONSTRUCTOR = """\
The deployment failed to start 3 times in a row. This may be due to a problem with its constructor or initial health \
check failing. See controller logs for details. Error:
\x1b[36mray::ServeReplica:chat@canary:LLM:chat@canary.initialize_and_get_metadata()\x1b[39m (pid=812, ip=10.219.1.9)
  File "/usr/lib/python3.11/concurrent/futures/_base.py", line 456, in result
    return self.__get_result()
RuntimeError: Traceback (most recent call last):
  File "/opt/app/app/deployments/llm.py", line 40, in __init__
    raise ValueError(f"no model of this name: {name}")
ValueError: no model of this name: llama-9
"""
