"""What Prometheus scrapes: a PodMonitor for each kind of pod that has something to say."""

from collections.abc import Iterator
from typing import Any

from infra.aws.config import EksCluster
from infra.config import StackConfig
from infra.observability.config import PrometheusOperator
from infra.platform import karpenter, kuberay, nodes
from infra.serving.pods import METRICS_PORTS, RAY_PODS


def pod_monitors(stack: StackConfig) -> Iterator[dict[str, Any]]:
    """The PodMonitors of a stack, all in its monitoring_namespace."""
    # A pod that has no port of a name is not asked at it: only the head has the last two.
    labels = ["ray.io/cluster", "ray.io/node-type", "ray.io/group"]
    yield _monitor(stack, "ray", stack.namespace, RAY_PODS, [*METRICS_PORTS], labels)
    yield _monitor(stack, "kuberay-operator", kuberay.NAMESPACE, _labels("component", "kuberay-operator"), ["http"])
    if isinstance(stack.cluster, EksCluster):
        if any(group.gpus for group in stack.workers):
            exporter = _labels("name", "dcgm-exporter")
            yield _monitor(stack, "dcgm-exporter", nodes.NAMESPACE, exporter, ["metrics"])
        if any(karpenter.node_pools(stack, stack.cluster)):
            yield _monitor(stack, "karpenter", nodes.NAMESPACE, _labels("name", "karpenter"), ["http-metrics"])
    if isinstance(stack.observability, PrometheusOperator):
        # The chart has its own.
        for name, port in (("prometheus", "web"), ("prometheus-operator", "http")):
            yield _monitor(stack, name, stack.monitoring_namespace, _labels("name", name), [port])


def _labels(label: str, value: str) -> dict[str, Any]:
    return {"matchLabels": {f"app.kubernetes.io/{label}": value}}


def _monitor(
    stack: StackConfig,
    name: str,
    namespace: str,
    pods: dict[str, Any],
    ports: list[str],
    labels: list[str] | None = None,
) -> dict[str, Any]:
    """`labels` of the pods become labels of all that they say, as Prometheus writes them: ray_io_cluster."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": {"name": name, "namespace": stack.monitoring_namespace},
        "spec": {
            "namespaceSelector": {"matchNames": [namespace]},
            "selector": pods,
            **({"podTargetLabels": labels} if labels else {}),
            "podMetricsEndpoints": [{"port": port} for port in ports],
        },
    }
