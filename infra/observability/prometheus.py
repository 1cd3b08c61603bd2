"""Prometheus: what it is told wherever it comes from, and its operator from its project's own manifests.

manifests/ holds what that project publishes for the pinned version (scripts/vendor_prometheus.py). The CRDs come from
there with the chart as well, as KubeRay's do (infra/platform/kuberay.py).
"""

import json
from pathlib import Path
from typing import Any

from infra import versions
from infra.aws.config import POOL, SYSTEM, EksCluster, Mirrors
from infra.config import StackConfig
from infra.observability.config import PrometheusOperator, PrometheusStack, RemoteWrite
from infra.platform.charts import mirrored
from infra.serving.pods import memory

MANIFESTS = Path(__file__).parent / "manifests"
SCRAPE_EVERY = "15s"
USER: dict[str, Any] = {
    "runAsNonRoot": True,
    "runAsUser": 65534,
    "runAsGroup": 65534,
    "fsGroup": 65534,
    "seccompProfile": {"type": "RuntimeDefault"},
}
"""nobody, as in the published images."""

_OPERATOR = "quay.io/prometheus-operator"
IMAGES = {
    "prometheus-operator": f"{_OPERATOR}/prometheus-operator:v{versions.PROMETHEUS_OPERATOR}",
    "prometheus-config-reloader": f"{_OPERATOR}/prometheus-config-reloader:v{versions.PROMETHEUS_OPERATOR}",
    "prometheus": f"quay.io/prometheus/prometheus:v{versions.PROMETHEUS}",
    "alertmanager": f"quay.io/prometheus/alertmanager:v{versions.ALERTMANAGER}",
}


def manifests(name: str) -> list[dict[str, Any]]:
    """The objects in manifests/<name>.json."""
    return json.loads((MANIFESTS / f"{name}.json").read_text())["items"]


def mirrors(stack: StackConfig, seen: PrometheusStack | PrometheusOperator) -> Mirrors:
    """Those of the stack's cluster, where it has any."""
    return stack.cluster.mirrors if isinstance(stack.cluster, EksCluster) else seen.mirrors


def image(name: str, stack: StackConfig, seen: PrometheusStack | PrometheusOperator) -> str:
    """One of IMAGES, from where the stack has it."""
    return mirrored(IMAGES[name], mirrors(stack, seen))


def node_selector(stack: StackConfig) -> dict[str, str]:
    """On EKS the nodes that stay: those of workers go when these have nothing to do."""
    return {POOL: SYSTEM} if isinstance(stack.cluster, EksCluster) else {}


def prometheus_spec(stack: StackConfig, seen: PrometheusStack | PrometheusOperator) -> dict[str, Any]:
    """What the specs of a Prometheus and the chart's `prometheusSpec` have in common."""
    amount = {"memory": memory(seen.memory_gib)}
    return {
        "replicas": 1,
        "scrapeInterval": SCRAPE_EVERY,
        "evaluationInterval": SCRAPE_EVERY,
        "retention": seen.retention,
        # A full disk ends Prometheus: https://prometheus.io/docs/prometheus/latest/storage/#operational-aspects
        **({"retentionSize": f"{seen.storage.gib * 0.8:.1f}GiB"} if seen.storage else {}),
        "externalLabels": seen.external_labels,
        "remoteWrite": [_remote_write(target) for target in seen.remote_write],
        "resources": {"requests": {"cpu": "100m", "memory": memory(seen.memory_gib / 2)}, "limits": amount},
        "nodeSelector": node_selector(stack),
        "securityContext": USER,
    }


STORAGE_CLASS = "prometheus"
"""Of its volume on EKS, where nothing is the default since 1.30."""


def own_storage_class(stack: StackConfig, seen: PrometheusStack | PrometheusOperator) -> bool:
    """Whether the volume is of STORAGE_CLASS."""
    return isinstance(stack.cluster, EksCluster) and seen.storage is not None and seen.storage.class_name is None


def volume_claim(stack: StackConfig, seen: PrometheusStack | PrometheusOperator) -> dict[str, Any]:
    """Where Prometheus' samples are: the template of its volume, or in the pod, which the operator must be told."""
    if not seen.storage:
        return {"emptyDir": {}}
    spec: dict[str, Any] = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": memory(seen.storage.gib)}},
    }
    if name := STORAGE_CLASS if own_storage_class(stack, seen) else seen.storage.class_name:
        spec["storageClassName"] = name
    return {"volumeClaimTemplate": {"spec": spec}}


def _remote_write(target: RemoteWrite) -> dict[str, Any]:
    basic = {"username": target.username, "password": target.password}
    by: dict[str, Any] = {}
    if target.token:
        by = {"authorization": {"credentials": target.token.model_dump()}}
    elif target.username:
        by = {"basicAuth": {part: key.model_dump() for part, key in basic.items() if key}}
    return {"url": target.url, **by}


def operator_objects(stack: StackConfig, seen: PrometheusOperator) -> list[dict[str, Any]]:
    """The operator's manifests, in the stack's namespace and with images from where it has them."""
    objects = manifests("prometheus-operator")
    for item in objects:
        if not item["kind"].startswith("Cluster"):
            item["metadata"]["namespace"] = stack.monitoring_namespace
        for subject in item.get("subjects", []):
            subject["namespace"] = stack.monitoring_namespace
        if item["kind"] == "Deployment":
            pod = item["spec"]["template"]["spec"]
            pod["nodeSelector"] |= node_selector(stack)
            (container,) = pod["containers"]
            container["image"] = image("prometheus-operator", stack, seen)
            # Without what it would write of kubelets, whom nobody asks here.
            container["args"] = [
                "--kubelet-endpoints=false",
                f"--prometheus-config-reloader={image('prometheus-config-reloader', stack, seen)}",
                # Of its own accord a hundredth of a core, by which every start and change of rules waits.
                "--config-reloader-cpu-limit=100m",
                f"--namespaces={stack.monitoring_namespace}",
            ]
    return objects


def prometheus(stack: StackConfig, seen: PrometheusOperator) -> dict[str, Any]:
    """The Prometheus, which takes all monitors, probes and rules of its namespace."""
    everything: dict[str, Any] = {}
    alerting = [{"namespace": stack.monitoring_namespace, "name": "alertmanager-operated", "port": "web"}]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "Prometheus",
        "metadata": {
            "name": "prometheus",
            "namespace": stack.monitoring_namespace,
            "annotations": {
                "pulumi.com/waitFor": '["condition=Available","condition=Reconciled"]',
                "pulumi.com/timeoutSeconds": "300",
            },
        },
        "spec": {
            **prometheus_spec(stack, seen),
            "image": image("prometheus", stack, seen),
            "version": f"v{versions.PROMETHEUS}",
            "serviceAccountName": "prometheus",
            "podMonitorSelector": everything,
            "serviceMonitorSelector": everything,
            "probeSelector": everything,
            "ruleSelector": everything,
            "storage": volume_claim(stack, seen),
            **({"alerting": {"alertmanagers": alerting}} if seen.alertmanager_secret else {}),
        },
    }


def alertmanager(stack: StackConfig, seen: PrometheusOperator) -> dict[str, Any]:
    """The Alertmanager, with the configuration in the stack's Secret."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "Alertmanager",
        "metadata": {"name": "alertmanager", "namespace": stack.monitoring_namespace},
        "spec": {
            "replicas": 1,
            "image": image("alertmanager", stack, seen),
            "version": f"v{versions.ALERTMANAGER}",
            "configSecret": seen.alertmanager_secret,
            "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "128Mi"}},
            "nodeSelector": node_selector(stack),
            "securityContext": USER,
        },
    }
