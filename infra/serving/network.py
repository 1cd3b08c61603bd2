"""Network policies: the namespace is closed, and each flow that Ray's pods need has a policy of its name.

The cluster's network plug-in enforces them, or nobody does, as in the native cluster. What a node sends to its own pods
no policy stops: probes, and `kubectl port-forward`, which the kubelet carries into the pod.
"""

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from app.settings import Variant, weights
from infra.aws.config import EksCluster
from infra.clusters import NATIVE_ADDRESS, NativeCluster
from infra.config import StackConfig
from infra.platform import kuberay
from infra.serving.pods import METRICS_PORTS, RAY_PODS, SERVE_PORT

HEAD = {"matchLabels": {**RAY_PODS["matchLabels"], "ray.io/node-type": "head"}}
WORKERS = {"matchLabels": {**RAY_PODS["matchLabels"], "ray.io/node-type": "worker"}}
CLEANUP = {"matchLabels": {**RAY_PODS["matchLabels"], "ray.io/node-type": "redis-cleanup"}}
"""The pod by which KubeRay deletes a Ray cluster's state from Redis: a head without Ray.
https://github.com/ray-project/kuberay/blob/v1.6.2/ray-operator/controllers/ray/raycluster_controller.go"""

DASHBOARD_PORT = 8265
POD_IDENTITY = "169.254.170.23/32"
"""Where EKS hands out a pod's AWS credentials: https://docs.aws.amazon.com/eks/latest/userguide/pod-id-how-it-works.html"""


def policies(stack: StackConfig) -> list[dict[str, Any]]:
    """The NetworkPolicies of the stack's namespace."""
    return [_policy(stack, "deny-all", {}, {}), *(_policy(stack, *flow) for flow in _flows(stack))]


def _flows(stack: StackConfig) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, selector of the pods and rules of each flow."""
    # Ray's processes choose their ports as they come.
    ray = [{"podSelector": RAY_PODS}]
    yield "ray", RAY_PODS, {"ingress": [{"from": ray}], "egress": [{"to": ray}]}
    yield "dns", RAY_PODS, _egress([53], _dns(stack), protocols=("UDP", "TCP"))
    # Not the Serve port: KubeRay asks that of heads that serve, and ours does not.
    yield "operator", HEAD, _ingress([DASHBOARD_PORT], _namespace(kuberay.NAMESPACE))
    others = [*map(_namespace, stack.clients.namespaces), *map(_network, [*stack.clients.cidrs, *_balancers(stack)])]
    yield "clients", WORKERS, _ingress([SERVE_PORT], {"podSelector": {}}, *others)
    yield "metrics", RAY_PODS, _ingress([*METRICS_PORTS.values()], _namespace(stack.monitoring_namespace))
    if stack.autoscaling:
        # Of the API server only the port is sure: some plug-ins see the address of its Service, others those behind.
        yield "api-server", HEAD, _egress([443, 6443])
    sources = list(_remote_sources(stack))
    if sources:
        # Neither S3 nor a hub has addresses that stay.
        yield "weights", RAY_PODS, _egress([443])
    if any(source.startswith("s3://") for source in sources):
        yield "aws-credentials", RAY_PODS, _egress([80], _network(POD_IDENTITY))
    if stack.gcs_fault_tolerance:
        redis = _egress([stack.gcs_fault_tolerance.port])
        yield "gcs-state", HEAD, redis
        yield "gcs-cleanup", CLEANUP, redis
    if stack.serving.auth.redis_url:
        yield "redis", WORKERS, _egress([urlsplit(stack.serving.auth.redis_url).port or 6379])
    if stack.serving.tracing:
        yield "traces", RAY_PODS, _egress([stack.serving.tracing.port])


def _dns(stack: StackConfig) -> dict[str, Any]:
    """Pods on every cluster but the native one, where CoreDNS is a process of the node."""
    native = isinstance(stack.cluster, NativeCluster)
    return _network(f"{NATIVE_ADDRESS}/32") if native else _namespace("kube-system")


def _balancers(stack: StackConfig) -> list[str]:
    """The subnets of the stack's load balancer, by whose addresses its requests come."""
    return stack.cluster.network.public if isinstance(stack.cluster, EksCluster) and stack.cluster.entry else []


def _remote_sources(stack: StackConfig) -> Iterator[str]:
    """The sources of all weights that replicas load over the network."""
    for _, model in weights(stack.serving):
        if model.remote:
            yield model.source
        if isinstance(model, Variant):
            yield from (adapter.source for adapter in model.adapters if not adapter.source.startswith("/"))


def _policy(stack: StackConfig, name: str, pods: dict[str, Any], rules: dict[str, Any]) -> dict[str, Any]:
    """A policy without rules closes both directions."""
    both = ["Ingress", "Egress"]
    directions = [direction for direction in both if direction.lower() in rules] or both
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": stack.namespace},
        "spec": {"podSelector": pods, "policyTypes": directions, **rules},
    }


def _ingress(ports: list[int], *peers: dict[str, Any]) -> dict[str, Any]:
    return {"ingress": [{"from": [*peers], "ports": _ports(ports)}]}


def _egress(ports: list[int], *peers: dict[str, Any], protocols: tuple[str, ...] = ("TCP",)) -> dict[str, Any]:
    """To the peers; without any, to everywhere."""
    return {"egress": [{**({"to": [*peers]} if peers else {}), "ports": _ports(ports, protocols)}]}


def _ports(ports: list[int], protocols: tuple[str, ...] = ("TCP",)) -> list[dict[str, Any]]:
    return [{"port": port, "protocol": protocol} for port in ports for protocol in protocols]


def _namespace(name: str) -> dict[str, Any]:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def _network(cidr: str) -> dict[str, Any]:
    return {"ipBlock": {"cidr": cidr}}
