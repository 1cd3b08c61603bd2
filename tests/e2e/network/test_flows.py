"""Each flow of infra/serving/network.py is open by its policy, and nothing else is.

Sleeping pods with the labels of Ray's have all policies that a stack may have; an enforcer of ours puts them in force.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest

from app import settings
from infra.clusters import NATIVE_ADDRESS, NativeCluster
from infra.config import Clients, GcsFaultTolerance, StackConfig, WorkerGroup
from infra.platform import kuberay
from infra.serving.network import policies
from infra.serving.pods import RAY_PODS
from scripts import cluster, tools
from scripts.cluster.layout import API_SERVICE_IP
from scripts.kubectl import Kubectl, connect
from tests.e2e.conftest import Stack
from tests.e2e.network.enforcer import enforced
from tests.e2e.network.probes import Node, Place, apply, namespace, place, pod, until, until_there

NAMESPACE = "closed"
IDENTITY, METADATA = "169.254.170.23", "169.254.169.254"
"""Where AWS hands out a pod's credentials, and the node's own."""
CONFIG = StackConfig(
    namespace=NAMESPACE,
    clients=Clients(namespaces=["gateway"]),
    workers=[WorkerGroup(max_replicas=2)],
    gcs_fault_tolerance=GcsFaultTolerance(redis_address="state.example.com:6381"),
    serving=settings.parse(
        {
            "models": [{"name": "chat", "variants": [{"source": "s3://weights/llama"}]}],
            "auth": {"redis_url": "rediss://counts.example.com:6380/0"},
        }
    ),
)
POLICIES = {policy["metadata"]["name"]: policy for policy in policies(CONFIG)}


def ray(kind: str) -> dict[str, str]:
    return {**RAY_PODS["matchLabels"], "ray.io/node-type": kind}


PODS = {
    "head": (NAMESPACE, ray("head")),
    "worker": (NAMESPACE, ray("worker")),
    "cleanup": (NAMESPACE, ray("redis-cleanup")),
    "stranger": (NAMESPACE, {}),
    "gateway": ("gateway", {}),
    "prometheus": (CONFIG.monitoring_namespace, {}),
    "operator": (kuberay.NAMESPACE, {}),
    "outside": ("elsewhere", {}),
}
LISTENING = {
    "head": (6379, 8000, 8080, 8265, 34567, 44217, 44227),
    "worker": (8000, 8080, 8265, 34567),
    "outside": (80, 443, 5432, 6380, 6381),
    "identity": (80,),
    "metadata": (80,),
}
ADDED = {"identity": IDENTITY, "metadata": METADATA}
ADDRESSES = {"dns": NATIVE_ADDRESS, "api-server": API_SERVICE_IP}


class Flow(NamedTuple):
    policy: str
    source: str
    target: str
    port: int
    protocol: str = "TCP"


FLOWS = [
    Flow("ray", "worker", "head", 6379),
    Flow("ray", "head", "worker", 34567),
    Flow("dns", "worker", "dns", 53, "UDP"),
    Flow("dns", "cleanup", "dns", 53),
    Flow("operator", "operator", "head", 8265),
    Flow("clients", "gateway", "worker", 8000),
    Flow("metrics", "prometheus", "worker", 8080),
    Flow("metrics", "prometheus", "head", 44217),
    Flow("api-server", "head", "api-server", 443),
    Flow("weights", "worker", "outside", 443),
    Flow("aws-credentials", "worker", "identity", 80),
    Flow("gcs-state", "head", "outside", 6381),
    Flow("gcs-cleanup", "cleanup", "outside", 6381),
    Flow("redis", "worker", "outside", 6380),
]
CLOSED: list[tuple[str, str, int]] = [
    ("outside", "worker", 8000),
    ("outside", "head", 8265),
    ("gateway", "head", 8000),
    ("gateway", "head", 8265),
    ("gateway", "worker", 8080),
    ("prometheus", "worker", 8000),
    ("prometheus", "head", 8265),
    ("operator", "head", 6379),
    ("operator", "worker", 8000),
    ("stranger", "worker", 8000),
    ("stranger", "head", 6379),
    ("stranger", "outside", 443),
    ("stranger", "dns", 53),
    ("worker", "api-server", 443),
    ("worker", "outside", 5432),
    ("worker", "outside", 6381),
    ("worker", "metadata", 80),
    ("head", "outside", 6380),
    ("cleanup", "outside", 80),
]


@pytest.fixture(scope="module")
def kubernetes(stack: Stack) -> Kubectl:
    """Any native cluster will do; what runs on it besides goes on."""
    del stack  # whose state directory it has
    cluster.start(tools.ensure("kubernetes", "coredns", "pause"))
    return connect(NativeCluster())


@pytest.fixture(scope="module")
def places(kubernetes: Kubectl) -> Iterator[dict[str, Place]]:
    """Those who listen, do; policies are enforced."""
    homes = {home for home, _ in PODS.values()}
    homes -= {item["metadata"]["name"] for item in kubernetes.get("namespaces")["items"]}
    pods = [pod(home, name, labels) for name, (home, labels) in PODS.items()]
    apply(kubernetes, *map(namespace, sorted(homes)))
    until_there(kubernetes, homes)
    apply(kubernetes, *POLICIES.values(), *pods)
    node = Node()
    with ExitStack() as end:
        end.callback(kubernetes, "delete", "namespace", *sorted(homes), "--ignore-not-found", timeout=120)
        for item in pods:
            home, name = item["metadata"]["namespace"], item["metadata"]["name"]
            end.callback(kubernetes, "delete", "pod", name, "--namespace", home, "--ignore-not-found")
        places = {name: place(kubernetes, home, name) for name, (home, _) in PODS.items()}
        places |= {name: node.place(address) for name, address in ADDRESSES.items()}
        for name, address in ADDED.items():
            places[name] = end.enter_context(node.with_address(address))
        for name, ports in LISTENING.items():
            end.enter_context(places[name].listening(*ports))
        end.enter_context(enforced(kubernetes))
        yield places


def test_every_policy_has_a_flow_here() -> None:
    assert {flow.policy for flow in FLOWS} == POLICIES.keys() - {"deny-all"}


@pytest.mark.parametrize("flow", FLOWS, ids=[" ".join(map(str, flow)) for flow in FLOWS])
def test_a_flow_is_open_by_its_policy_alone(places: dict[str, Place], kubernetes: Kubectl, flow: Flow) -> None:
    source, target = places[flow.source], places[flow.target].address
    until(f"{flow} with its policy", source, "open", target, flow.port, flow.protocol)
    kubernetes("delete", "networkpolicy", flow.policy, "--namespace", NAMESPACE)
    try:
        until(f"{flow} without it", source, "refused", target, flow.port, flow.protocol)
    finally:
        apply(kubernetes, POLICIES[flow.policy])
    until(f"{flow} with it again", source, "open", target, flow.port, flow.protocol)


@pytest.mark.parametrize(("source", "target", "port"), CLOSED)
def test_nothing_else_flows(places: dict[str, Place], source: str, target: str, port: int) -> None:
    assert places[source].asks(places[target].address, port) == "refused"


def test_without_policies_all_of_it_would(places: dict[str, Place], kubernetes: Kubectl) -> None:
    """What is refused above is so by the policies, and not because nobody listens."""
    kubernetes("delete", "networkpolicy", "--all", "--namespace", NAMESPACE)
    try:
        for source, target, port in CLOSED:
            until(f"{source} to {target}", places[source], "open", places[target].address, port)
    finally:
        apply(kubernetes, *POLICIES.values())
