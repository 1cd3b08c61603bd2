"""The RayService: a Ray cluster on Kubernetes that runs the application of app/.

`rayservice()` is a pure function from config to manifest, so tests hold it against KubeRay's CRD; RayServing puts it
on a cluster and waits until it serves.
"""

import re
from pathlib import PurePosixPath
from typing import Any, Protocol

import pulumi
import pulumi_kubernetes as kubernetes
import yaml

from app.settings import Settings, environment, serve_config
from infra import image, versions
from infra.config import KEYS_FILE, GcsFaultTolerance, StackConfig, WorkerGroup
from infra.platform.karpenter import place
from infra.platform.kubeconfig import custom_resource, signed
from infra.secret_key import SecretKey
from infra.serving import access, guardrails, network
from infra.serving.autoscaler import add_api_token, autoscaling
from infra.serving.drain import deletion_delay_seconds, drain
from infra.serving.models import model_volume, mount_models
from infra.serving.pods import GCS_PORT, METRICS_PORTS, RESTRICTED, SERVE_PORT, UNPRIVILEGED, cores, memory
from infra.serving.warm import placeholders
from infra.upgrade import Incremental, Upgrade

_HOME = "/home/ray"
_HEAD_READINESS = {
    **{"httpGet": {"path": "/api/healthz", "port": 52365}, "timeoutSeconds": 5},
    **{"initialDelaySeconds": 1, "periodSeconds": 2, "failureThreshold": 25},
}
"""As KubeRay's own, which asks after 10 s and then every 5 s. Until a yes, Serve has no applications.
https://github.com/ray-project/kuberay/blob/v1.6.2/ray-operator/controllers/ray/common/pod.go
"""
_WAIT_FOR_HEAD = f"""\
trap 'exit 143' TERM
echo "waiting for the head at $FQ_RAY_IP:{GCS_PORT}"
until timeout 2 bash -c ': > /dev/tcp/$FQ_RAY_IP/{GCS_PORT}' 2> /dev/null; do sleep 0.2; done
"""
"""In place of KubeRay's own, which infra/platform/kuberay.py turns off: on a fifth of a core that imports Ray to look,
every 5 s. Of a head that runs after 7 s a worker knew after 16."""


def rayservice(name: str, stack: StackConfig) -> dict[str, Any]:
    """The RayService manifest for `stack`, as KubeRay's ray.io/v1 wants it."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {
            "name": name,
            "namespace": stack.namespace,
            "annotations": {
                # Ready alone stays true on the old cluster while an upgrade is under way. KubeRay sets both whatever
                # the strategy; during a rollback, and only then, there is RollbackInProgress, beside UpgradeInProgress.
                "pulumi.com/waitFor": '["condition=Ready","condition=UpgradeInProgress=False"]',
                "pulumi.com/timeoutSeconds": str(stack.patience_seconds),
                # KubeRay writes the object back with its defaults and so becomes an owner of parts of the spec, which
                # are ours all the same: without it, the next change ends in a conflict of field managers.
                "pulumi.com/patchForce": "true",
            },
        },
        "spec": {
            "serveConfigV2": yaml.safe_dump(serve_config(_with_keys(stack.serving)), sort_keys=False),
            "upgradeStrategy": _strategy(stack.upgrade),
            "rayClusterDeletionDelaySeconds": deletion_delay_seconds(stack),
            "excludeHeadPodFromServeSvc": True,
            "rayClusterConfig": {
                "rayVersion": versions.RAY,
                # Without it, whoever reaches the dashboard runs code in the cluster (CVE-2023-48022).
                "authOptions": {"mode": "token", "secretName": access.token_name(name)},
                **autoscaling(stack),
                **_fault_tolerance(stack.gcs_fault_tolerance),
                "headGroupSpec": {
                    # num-cpus 0: replicas would compete with the GCS for memory.
                    "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
                    "template": _head(name, stack),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": group.name,
                        "replicas": group.min_replicas,
                        "minReplicas": group.min_replicas,
                        "maxReplicas": group.max_replicas,
                        "rayStartParams": {"num-cpus": str(group.cpus), "num-gpus": str(group.gpus)},
                        "template": _worker(name, stack, group),
                    }
                    for group in stack.workers
                ],
            },
        },
    }


def _strategy(upgrade: Upgrade) -> dict[str, Any]:
    if not isinstance(upgrade, Incremental):
        return {"type": upgrade.kind}
    options = {
        "gatewayClassName": upgrade.gateway_class_name,
        "maxSurgePercent": upgrade.max_surge_percent,
        "stepSizePercent": upgrade.step_size_percent,
        "intervalSeconds": upgrade.interval_seconds,
    }
    return {"type": upgrade.kind, "clusterUpgradeOptions": options}


def _fault_tolerance(options: GcsFaultTolerance | None) -> dict[str, Any]:
    """The part of a RayCluster's spec that keeps its head's state in Redis.

    Without externalStorageNamespace: then it is the RayCluster's UID. The second Ray cluster of an upgrade would find
    the first one's state in a common one, and lose its own when KubeRay cleans up after the first.
    https://github.com/ray-project/kuberay/blob/v1.6.2/ray-operator/controllers/ray/common/pod.go
    """
    if options is None:
        return {}
    found: dict[str, Any] = {"redisAddress": options.redis_address}
    if options.redis_password:
        found["redisPassword"] = {"valueFrom": {"secretKeyRef": options.redis_password.model_dump()}}
    return {"gcsFaultToleranceOptions": found}


class Valkey(Protocol):
    """A Redis that the program makes, for the head's state and the gateway's counts."""

    @property
    def address(self) -> pulumi.Output[str]:
        """rediss://<host>:<port>, known when it is there."""
        ...

    @property
    def password(self) -> pulumi.Output[str]: ...


_TO_BE_KNOWN = "rediss://valkey:6379"
"""In the place of its address."""


def _with_valkey(service: str, stack: StackConfig) -> StackConfig:
    password = SecretKey(name=access.valkey_name(service), key="password")
    auth = stack.serving.auth.model_copy(update={"redis_url": _TO_BE_KNOWN})
    return stack.model_copy(
        update={
            "gcs_fault_tolerance": GcsFaultTolerance(redis_address=_TO_BE_KNOWN, redis_password=password),
            "serving": stack.serving.model_copy(update={"auth": auth}),
            "redis_password": password,
        }
    )


def _know(manifest: dict[str, Any], address: pulumi.Output[str]) -> None:
    """Put the address where _with_valkey has none."""
    spec = manifest["spec"]
    before, after = spec["serveConfigV2"].split(_TO_BE_KNOWN)
    spec["serveConfigV2"] = pulumi.Output.concat(before, address, after)
    spec["rayClusterConfig"]["gcsFaultToleranceOptions"]["redisAddress"] = address


def _head(service: str, stack: StackConfig) -> dict[str, Any]:
    ports = {"gcs": GCS_PORT, "dashboard": 8265, "client": 10001, "serve": SERVE_PORT, **METRICS_PORTS}
    pod = _pod(service, "head", stack, stack.head.cpus, stack.head.memory_gib, ports)
    # It runs no model, but it builds the applications, which look where theirs are.
    mount_models(pod, service, stack)
    place(pod, stack, None)
    if stack.autoscaling:
        add_api_token(pod)
    (container,) = pod["spec"]["containers"]
    container["readinessProbe"] = _HEAD_READINESS
    return pod


def _worker(service: str, stack: StackConfig, group: WorkerGroup) -> dict[str, Any]:
    ports = {"serve": SERVE_PORT, "metrics": METRICS_PORTS["metrics"]}
    pod = _pod(service, "worker", stack, group.cpus, group.memory_gib, ports, group.gpus)
    # The gateway is on a worker, and reads the file again when the Secret changes.
    pod["spec"]["volumes"].append({"name": "keys", "secret": {"secretName": access.keys_name(service)}})
    mount = {"name": "keys", "mountPath": str(PurePosixPath(KEYS_FILE).parent), "readOnly": True}
    (container,) = pod["spec"]["containers"]
    container["volumeMounts"].append(mount)
    if stack.redis_password:
        reference = {"secretKeyRef": stack.redis_password.model_dump()}
        container["env"].append({"name": "REDIS_PASSWORD", "valueFrom": reference})
    mount_models(pod, service, stack)
    _wait_for_head(pod)
    drain(pod, stack)
    place(pod, stack, group)
    # KubeRay looks at all of a group but its bounds to see whether a new Ray cluster is due, and gives new ones to no
    # other: without this, a change of them would change nothing. https://github.com/ray-project/kuberay/issues/2331
    bounds = f"{group.min_replicas}-{group.max_replicas}"
    return {"metadata": {"annotations": {"blueprint/replicas": bounds}}, **pod}


def _wait_for_head(worker: dict[str, Any]) -> None:
    (container,) = worker["spec"]["containers"]
    amounts = {"cpu": "100m", "memory": "64Mi"}
    worker["spec"]["initContainers"] = [
        {
            "name": "wait-for-head",
            **{key: container[key] for key in ("image", "imagePullPolicy", "securityContext")},
            "command": ["bash", "-c", _WAIT_FOR_HEAD],
            "resources": {"requests": amounts, "limits": amounts},
        }
    ]


def _with_keys(serving: Settings) -> Settings:
    return serving.model_copy(update={"auth": serving.auth.model_copy(update={"keys_file": KEYS_FILE})})


def _pod(
    service: str, role: str, stack: StackConfig, cpus: float, memory_gib: int, ports: dict[str, int], gpus: int = 0
) -> dict[str, Any]:
    """A Ray pod within Pod Security's "restricted", with nothing writable but scratch space."""
    return {
        "spec": {
            "serviceAccountName": access.account_name(service, role),
            "automountServiceAccountToken": False,
            "securityContext": UNPRIVILEGED,
            "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "home", "emptyDir": {}}],
            "containers": [
                {
                    "name": f"ray-{role}",
                    "image": image.reference(stack),
                    "imagePullPolicy": "IfNotPresent",
                    "env": [
                        {"name": "HOME", "value": _HOME},
                        {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
                        *({"name": name, "value": value} for name, value in environment(stack.serving).items()),
                    ],
                    "ports": [{"name": port, "containerPort": number} for port, number in ports.items()],
                    "resources": {
                        # Ray plans with all its cores; what it must share on a small node is waiting time, not memory.
                        # An eighth leaves room for the second Ray cluster of an upgrade on a node of two cores.
                        "requests": {"cpu": cores(cpus / 8), "memory": memory(memory_gib / 2)},
                        "limits": {
                            "cpu": cores(cpus),
                            "memory": memory(memory_gib),
                            **({"nvidia.com/gpu": str(gpus)} if gpus else {}),
                        },
                    },
                    "securityContext": RESTRICTED,
                    "volumeMounts": [
                        {"name": "tmp", "mountPath": "/tmp"},
                        {"name": "home", "mountPath": _HOME},
                    ],
                }
            ],
        }
    }


def around(name: str, stack: StackConfig) -> list[dict[str, Any]]:
    """What must be there before the RayService `name`, but for Ray's token."""
    return [
        access.keys_secret(name, stack),
        *access.accounts(name, stack),
        *model_volume(name, stack),
        guardrails.disruption_budget(name, stack),
        guardrails.quota(name, stack),
        *network.policies(stack),
        *placeholders(name, stack),
    ]


_KINDS = {
    "Deployment": kubernetes.apps.v1.Deployment,
    "NetworkPolicy": kubernetes.networking.v1.NetworkPolicy,
    "PersistentVolume": kubernetes.core.v1.PersistentVolume,
    "PersistentVolumeClaim": kubernetes.core.v1.PersistentVolumeClaim,
    "PodDisruptionBudget": kubernetes.policy.v1.PodDisruptionBudget,
    "PriorityClass": kubernetes.scheduling.v1.PriorityClass,
    "ResourceQuota": kubernetes.core.v1.ResourceQuota,
    "Secret": kubernetes.core.v1.Secret,
    "ServiceAccount": kubernetes.core.v1.ServiceAccount,
}


class RayServing(pulumi.ComponentResource):
    """The RayService, awaited until the application answers, and what is around it."""

    namespace: str
    service: str
    """The Kubernetes Service in front of the replicas, port 8000. With upgrades in steps there is none that stays."""
    endpoint: str
    """Where clients in the cluster find the models."""
    image: str

    def __init__(
        self, name: str, stack: StackConfig, opts: pulumi.ResourceOptions, valkey: Valkey | None = None
    ) -> None:
        super().__init__("blueprint:serving:RayServing", name, None, opts)
        if valkey:
            stack = _with_valkey(name, stack)
        # The first token stays: the pods that run know no other.
        token = self._create(access.token_secret(name, stack), ignore_changes=["data"])
        others = [self._create(manifest) for manifest in around(name, stack)]
        manifest = rayservice(name, stack)
        if valkey:
            _know(manifest, valkey.address)
            others.append(self._create(access.valkey_secret(name, stack, valkey.password)))
        custom_resource(name, manifest, pulumi.ResourceOptions(parent=self, depends_on=[token, *others]))
        self.namespace = stack.namespace
        self.service = f"{name}-serve-svc"
        self.endpoint = f"http://{self.service}.{stack.namespace}.svc:{SERVE_PORT}/v1"
        if isinstance(stack.upgrade, Incremental):
            self.endpoint = f"the Gateway {name}-gateway in {stack.namespace}, port 80"
        self.image = image.reference(stack)
        self.register_outputs({})

    def _create(self, manifest: dict[str, Any], **options: Any) -> pulumi.Resource:
        """The Pulumi resource of a manifest."""
        fields = {_snake(key): value for key, value in manifest.items() if key not in ("apiVersion", "kind")}
        fields["metadata"] = signed(manifest["metadata"])
        opts = pulumi.ResourceOptions(parent=self, **options)
        return _KINDS[manifest["kind"]](manifest["metadata"]["name"], **fields, opts=opts)


def _snake(key: str) -> str:
    """Kubernetes' stringData as Pulumi's string_data."""
    return re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", key)
