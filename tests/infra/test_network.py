"""The namespace is closed but for the flows that have a name.

allowed() reads policies as Kubernetes' documentation says that they are meant. What a network plug-in makes of them, it
does not show.
"""

import ipaddress
from dataclasses import dataclass, field
from typing import Any

import pytest

from app import settings
from infra.clusters import NATIVE_ADDRESS, ExistingCluster
from infra.config import Clients, GcsFaultTolerance, StackConfig, WorkerGroup
from infra.serving.network import policies
from tests.infra import schemas

OWN = StackConfig().namespace
RAY = {"ray.io/is-ray-node": "yes"}
HEAD = {**RAY, "ray.io/node-type": "head"}
WORKER = {**RAY, "ray.io/node-type": "worker"}
CLEANUP = {**RAY, "ray.io/node-type": "redis-cleanup"}


@dataclass(frozen=True)
class End:
    """A pod, or an address outside the cluster."""

    namespace: str = OWN
    labels: dict[str, str] = field(default_factory=dict)
    address: str | None = None


def _matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= labels.items()


def _is_peer(peer: dict[str, Any], end: End) -> bool:
    if end.address is not None:
        return "ipBlock" in peer and ipaddress.ip_address(end.address) in ipaddress.ip_network(peer["ipBlock"]["cidr"])
    if "namespaceSelector" in peer:
        at_home = _matches(peer["namespaceSelector"], {"kubernetes.io/metadata.name": end.namespace})
    else:
        at_home = "podSelector" in peer and end.namespace == OWN
    return at_home and _matches(peer.get("podSelector", {}), end.labels)


def _passes(stack: StackConfig, direction: str, pod: End, other: End, port: int, protocol: str) -> bool:
    if pod.address is not None or pod.namespace != OWN:
        return True
    about = [policy["spec"] for policy in policies(stack) if _matches(policy["spec"]["podSelector"], pod.labels)]
    rules = [
        rule for spec in about if direction.capitalize() in spec["policyTypes"] for rule in spec.get(direction, [])
    ]
    peers = "from" if direction == "ingress" else "to"
    return any(
        (peers not in rule or any(_is_peer(peer, other) for peer in rule[peers]))
        and ("ports" not in rule or {"port": port, "protocol": protocol} in rule["ports"])
        for rule in rules
    )


def allowed(stack: StackConfig, source: End, target: End, port: int, protocol: str = "TCP") -> bool:
    return _passes(stack, "egress", source, target, port, protocol) and _passes(
        stack, "ingress", target, source, port, protocol
    )


head, worker, stranger = End(labels=HEAD), End(labels=WORKER), End(labels={"app": "stranger"})
cleanup = End(labels=CLEANUP)
operator = End("kuberay-system", {"app.kubernetes.io/name": "kuberay"})
dns = End("kube-system", {"k8s-app": "kube-dns"})
prometheus = End("monitoring")
gateway = End("gateway")
internet = End(address="203.0.113.7")
balancer = End(address="10.1.2.3")

node = End(address=NATIVE_ADDRESS)

LOCAL = StackConfig()
EXISTING = StackConfig.model_construct(cluster=ExistingCluster(contexts=["kind"]))
ADAPTER = {"name": "legal", "source": "organisation/adapter"}


def serving(values: dict[str, Any]) -> StackConfig:
    return StackConfig(serving=settings.parse({**settings.NOTHING, **values}))


S3 = serving({"models": [{"variants": [{"source": "s3://weights/llama"}]}]})
HUB = serving({"embeddings": [{"source": "BAAI/bge-m3", "revision": "5617a9f"}]})
HUB_ADAPTER = serving({"models": [{"variants": [{"adapters": [ADAPTER]}]}]})
SCALING = StackConfig(workers=[WorkerGroup(max_replicas=2)])
REDIS = StackConfig(serving=settings.parse({"auth": {"redis_url": "rediss://cache.example.com:6380/0"}}))
TRACES = StackConfig(serving=settings.parse({"tracing": {"endpoint": "http://collector.observe:4318"}}))
STATE = StackConfig(gcs_fault_tolerance=GcsFaultTolerance(redis_address="state.example.com:6381"))
OPEN = StackConfig(clients=Clients(namespaces=["gateway"], cidrs=["10.1.0.0/16"]), monitoring_namespace="observe")


@pytest.mark.parametrize(
    "stack",
    [LOCAL, S3, HUB, SCALING, REDIS, TRACES, STATE, OPEN],
    ids=["local", "s3", "hub", "scaling", "redis", "traces", "state", "open"],
)
def test_every_policy_is_valid_and_has_a_name_of_its_own(stack: StackConfig) -> None:
    found = policies(stack)
    for policy in found:
        schemas.validate(policy)
        assert policy["metadata"]["namespace"] == stack.namespace
        assert policy["spec"]["policyTypes"]
    names = [policy["metadata"]["name"] for policy in found]
    assert len(set(names)) == len(names)


FLOWS = [
    ("Ray's pods among each other", LOCAL, head, worker, 6379),
    ("Ray's pods among each other", LOCAL, worker, worker, 34567),
    ("the operator to the dashboard", LOCAL, operator, head, 8265),
    ("a pod of the namespace to the models", StackConfig(), End(labels=WORKER), worker, 8000),
    ("metrics of workers", LOCAL, prometheus, worker, 8080),
    ("metrics of the head", LOCAL, prometheus, head, 8080),
    ("metrics of the autoscaler", SCALING, prometheus, head, 44217),
    ("metrics, from a namespace of another name", OPEN, End("observe"), worker, 8080),
    ("a gateway's namespace", OPEN, gateway, worker, 8000),
    ("a load balancer's network", OPEN, balancer, worker, 8000),
    ("the autoscaler to the API server's Service", SCALING, head, End(address="10.100.0.1"), 443),
    ("the autoscaler to the API server itself", SCALING, head, End(address="10.0.0.9"), 6443),
    ("weights from S3", S3, worker, internet, 443),
    ("… and credentials for it", S3, worker, End(address="169.254.170.23"), 80),
    ("weights from a hub", HUB, worker, internet, 443),
    ("an adapter from a hub", HUB_ADAPTER, worker, internet, 443),
    ("counts in Redis", REDIS, worker, internet, 6380),
    ("a replica's traces", TRACES, worker, internet, 4318),
    ("the head's traces", TRACES, head, internet, 4318),
    ("the head's state in Redis", STATE, head, internet, 6381),
    ("… which is deleted after it", STATE, cleanup, internet, 6381),
]


@pytest.mark.parametrize(("stack", "source", "target", "port"), [flow[1:] for flow in FLOWS], ids=[f[0] for f in FLOWS])
def test_what_is_needed_may_flow(stack: StackConfig, source: End, target: End, port: int) -> None:
    assert allowed(stack, source, target, port)


@pytest.mark.parametrize("protocol", ["UDP", "TCP"])
def test_names_are_resolved(protocol: str) -> None:
    assert allowed(EXISTING, worker, dns, 53, protocol)
    assert allowed(STATE, cleanup, node, 53, protocol)
    assert allowed(LOCAL, worker, node, 53, protocol)


CLOSED = [
    ("a namespace that is not listed, to the models", LOCAL, gateway, worker, 8000),
    ("the internet to the models", OPEN, internet, worker, 8000),
    ("a client to the head", OPEN, gateway, head, 8000),
    ("a client to the dashboard", OPEN, gateway, head, 8265),
    ("a client to a worker's metrics", OPEN, gateway, worker, 8080),
    ("a stranger in the namespace to the GCS", LOCAL, stranger, head, 6379),
    ("a stranger in the namespace to anywhere", LOCAL, stranger, internet, 443),
    ("the operator to anything but the dashboard", LOCAL, operator, worker, 8000),
    ("Prometheus to the dashboard", LOCAL, prometheus, head, 8265),
    ("built-in models to the internet", LOCAL, worker, internet, 443),
    ("a head without autoscaler to the API server", LOCAL, head, End(address="10.100.0.1"), 443),
    ("a worker to the API server", SCALING, worker, End(address="10.0.0.9"), 6443),
    ("weights from a hub, to AWS credentials", HUB, worker, End(address="169.254.170.23"), 80),
    ("weights from S3, to the node's own credentials", S3, worker, End(address="169.254.169.254"), 80),
    ("a worker to the head's state", STATE, worker, internet, 6381),
    ("what deletes that state to anything else", STATE, cleanup, internet, 443),
    ("the head to Redis without any", LOCAL, head, internet, 6381),
    ("traces where none are made", LOCAL, worker, internet, 4318),
    ("Ray's pods to anything else in kube-system", EXISTING, worker, End("kube-system"), 443),
    ("Ray's pods to anything else on a native node", LOCAL, worker, node, 6443),
    ("Ray's pods to DNS elsewhere", LOCAL, worker, internet, 53),
]


@pytest.mark.parametrize(
    ("stack", "source", "target", "port"), [flow[1:] for flow in CLOSED], ids=[flow[0] for flow in CLOSED]
)
def test_nothing_else_flows(stack: StackConfig, source: End, target: End, port: int) -> None:
    assert not allowed(stack, source, target, port)
