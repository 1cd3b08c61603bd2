"""The RayService: a Ray cluster on Kubernetes that runs the application of app/.

`rayservice()` is a pure function from config to manifest, so tests hold it against KubeRay's CRD; RayServing puts it
on a cluster and waits until it serves.
"""

from pathlib import PurePosixPath
from typing import Any

import pulumi
import pulumi_kubernetes as kubernetes
import yaml

from app.settings import Settings, serve_config
from infra import image, versions
from infra.config import KEYS_FILE, Head, StackConfig, WorkerGroup

SERVE_PORT = 8000
_HOME = "/home/ray"


def rayservice(name: str, stack: StackConfig) -> dict[str, Any]:
    """The RayService manifest for `stack`, as KubeRay's ray.io/v1 wants it."""
    reference = image.reference(stack.image)
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {
            "name": name,
            "namespace": stack.namespace,
            "annotations": {
                # Ready alone stays true on the old cluster while an upgrade is under way.
                "pulumi.com/waitFor": '["condition=Ready","condition=UpgradeInProgress=False"]',
                "pulumi.com/timeoutSeconds": str(stack.ready_timeout_seconds),
                # KubeRay writes the object back with its defaults and so becomes an owner of parts of the spec, which
                # are ours all the same: without it, the next change ends in a conflict of field managers.
                "pulumi.com/patchForce": "true",
            },
        },
        "spec": {
            "serveConfigV2": yaml.safe_dump(serve_config(_with_keys(stack.serving)), sort_keys=False),
            "upgradeStrategy": {"type": "NewCluster"},
            "excludeHeadPodFromServeSvc": True,
            "rayClusterConfig": {
                "rayVersion": versions.RAY,
                # Without it, whoever reaches the dashboard runs code in the cluster (CVE-2023-48022). KubeRay makes
                # the token and keeps it in a Secret named after the Ray cluster.
                "authOptions": {"mode": "token"},
                "headGroupSpec": {
                    # num-cpus 0: replicas would compete with the GCS for memory.
                    "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
                    "template": _head(stack.head, reference),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": group.name,
                        "replicas": group.replicas,
                        "minReplicas": group.replicas,
                        "maxReplicas": group.replicas,
                        "rayStartParams": {"num-cpus": str(group.cpus), "num-gpus": str(group.gpus)},
                        "template": _worker(group, reference, keys_name(name)),
                    }
                    for group in stack.workers
                ],
            },
        },
    }


def _head(head: Head, reference: str) -> dict[str, Any]:
    ports = {"gcs": 6379, "dashboard": 8265, "client": 10001, "serve": SERVE_PORT, "metrics": 8080}
    return _pod("ray-head", reference, head.cpus, head.memory_gib, ports)


def _worker(group: WorkerGroup, reference: str, keys: str) -> dict[str, Any]:
    ports = {"serve": SERVE_PORT, "metrics": 8080}
    pod = _pod("ray-worker", reference, group.cpus, group.memory_gib, ports, group.gpus)
    # The gateway is on a worker, and reads the file again when the Secret changes.
    pod["spec"]["volumes"].append({"name": "keys", "secret": {"secretName": keys}})
    mount = {"name": "keys", "mountPath": str(PurePosixPath(KEYS_FILE).parent), "readOnly": True}
    pod["spec"]["containers"][0]["volumeMounts"].append(mount)
    return pod


def keys_name(service: str) -> str:
    """Name of the Secret with the API keys of a RayService."""
    return f"{service}-keys"


def keys_secret(name: str, stack: StackConfig) -> dict[str, Any]:
    """The Secret with the file of API keys: SHA-256 only, and still nobody's business."""
    content = {"keys": [key.model_dump(exclude_none=True) for key in stack.api_keys]}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": keys_name(name), "namespace": stack.namespace},
        "stringData": {PurePosixPath(KEYS_FILE).name: yaml.safe_dump(content, sort_keys=False)},
    }


def _with_keys(serving: Settings) -> Settings:
    return serving.model_copy(update={"auth": serving.auth.model_copy(update={"keys_file": KEYS_FILE})})


def _pod(
    name: str, reference: str, cpus: float, memory_gib: int, ports: dict[str, int], gpus: int = 0
) -> dict[str, Any]:
    """A Ray pod within Pod Security's "restricted", with nothing writable but scratch space."""
    return {
        "spec": {
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 1000,
                "runAsGroup": 1000,
                "fsGroup": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "home", "emptyDir": {}}],
            "containers": [
                {
                    "name": name,
                    "image": reference,
                    "imagePullPolicy": "IfNotPresent",
                    "env": [
                        {"name": "HOME", "value": _HOME},
                        {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
                    ],
                    "ports": [{"name": port, "containerPort": number} for port, number in ports.items()],
                    "resources": {
                        # Ray plans with all its cores; what it must share on a small node is waiting time, not memory.
                        "requests": {"cpu": _cores(cpus / 4), "memory": _memory(memory_gib / 2)},
                        "limits": {
                            "cpu": _cores(cpus),
                            "memory": _memory(memory_gib),
                            **({"nvidia.com/gpu": str(gpus)} if gpus else {}),
                        },
                    },
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                        "readOnlyRootFilesystem": True,
                    },
                    "volumeMounts": [
                        {"name": "tmp", "mountPath": "/tmp"},
                        {"name": "home", "mountPath": _HOME},
                    ],
                }
            ],
        }
    }


# Quantities as Kubernetes itself writes them. KubeRay stores the object anew, and what reads differently then looks to
# Pulumi like a change, in every `up`.
def _cores(cores: float) -> str:
    return f"{cores:.0f}" if cores == int(cores) else f"{cores * 1000:.0f}m"


def _memory(gib: float) -> str:
    return f"{gib:.0f}Gi" if gib == int(gib) else f"{gib * 1024:.0f}Mi"


class RayServing(pulumi.ComponentResource):
    """Namespace and RayService, awaited until the application answers."""

    namespace: str
    service: str
    """The Kubernetes Service in front of the replicas, port 8000."""
    image: str

    def __init__(self, name: str, stack: StackConfig, opts: pulumi.ResourceOptions) -> None:
        super().__init__("blueprint:serving:RayServing", name, None, opts)
        namespace = kubernetes.core.v1.Namespace(
            name,
            metadata={
                "name": stack.namespace,
                "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
            },
            opts=pulumi.ResourceOptions(parent=self),
        )
        secret = keys_secret(name, stack)
        keys = kubernetes.core.v1.Secret(
            f"{name}-keys",
            metadata=secret["metadata"],
            string_data=secret["stringData"],
            opts=pulumi.ResourceOptions(parent=self, depends_on=[namespace]),
        )
        manifest = rayservice(name, stack)
        kubernetes.apiextensions.CustomResource(
            name,
            api_version=manifest["apiVersion"],
            kind=manifest["kind"],
            metadata=manifest["metadata"],
            spec=manifest["spec"],
            opts=pulumi.ResourceOptions(parent=self, depends_on=[keys]),
        )
        self.namespace = stack.namespace
        self.service = f"{name}-serve-svc"
        self.image = image.reference(stack.image)
        self.register_outputs({})
