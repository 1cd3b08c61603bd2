"""The stack as it is under its own policies: a whole Ray cluster comes up and serves, and others stay outside."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from infra.clusters import LOCAL_KEY, NativeCluster
from infra.config import StackConfig
from infra.platform import kuberay
from infra.serving.network import DASHBOARD_PORT
from infra.serving.pods import SERVE_PORT
from scripts.cluster.layout import API_SERVICE_IP
from scripts.console import Problem
from scripts.kubectl import Kubectl, connect
from tests.e2e.conftest import Stack, growing
from tests.e2e.network.enforcer import enforced
from tests.e2e.network.probes import Place, apply, namespace, place, pod, until_there

NAMESPACE = StackConfig().namespace
CLIENTS = "gateway"
_ASK = """\
import json, sys, time, urllib.request
url, key = sys.argv[1:]
headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
request = urllib.request.Request(url, json.dumps({"input": "hi"}).encode(), headers)
deadline = time.monotonic() + 240  # of its first replicas
while True:
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            print(len(json.load(reply)["data"][0]["embedding"]))
            break
    except OSError:
        if time.monotonic() > deadline:
            raise
        time.sleep(1)
"""


def ray_pods(kubernetes: Kubectl) -> dict[str, dict[str, Any]]:
    """Head and worker that are ready, by their kind."""
    return {
        item["metadata"]["labels"]["ray.io/node-type"]: item
        for item in kubernetes.get("pods", "--namespace", NAMESPACE, "--selector=ray.io/is-ray-node=yes")["items"]
        if "deletionTimestamp" not in item["metadata"]
        and any(
            found["type"] == "Ready" and found["status"] == "True" for found in item["status"].get("conditions", [])
        )
    }


@pytest.fixture(scope="module")
def kubernetes(stack: Stack) -> Kubectl:
    stack.require(**growing(), clients={"namespaces": [CLIENTS]})
    return connect(NativeCluster())


@pytest.fixture(scope="module")
def places(kubernetes: Kubectl) -> Iterator[dict[str, Place]]:
    """The networks of a Ray cluster that has come up under its policies, of a client and of somebody else."""
    with enforced(kubernetes), ExitStack() as end:
        where = ("--namespace", NAMESPACE)
        # With its pods: until they are gone, they look ready.
        kubernetes("delete", "rayclusters", "--all", *where, "--cascade=foreground", timeout=300)
        begun = time.monotonic()
        while (pods := ray_pods(kubernetes)).keys() != {"head", "worker"}:
            assert time.monotonic() - begun < 400, kubernetes("get", "pods", *where)
            time.sleep(1)
        print(f"another Ray cluster, under its policies: ready after {time.monotonic() - begun:.0f} s")
        homes = [CLIENTS, "elsewhere"]
        apply(kubernetes, *map(namespace, homes))
        end.callback(kubernetes, "delete", "namespace", *homes, timeout=120)
        until_there(kubernetes, homes)
        apply(kubernetes, *(pod(home, "probe") for home in homes))
        places = {kind: place(kubernetes, NAMESPACE, item["metadata"]["name"]) for kind, item in pods.items()}
        yield places | {home: place(kubernetes, home, "probe") for home in homes}


def test_a_client_is_served_through_the_service(places: dict[str, Place], kubernetes: Kubectl) -> None:
    service = kubernetes.get("service", "llm-serve-svc", "--namespace", NAMESPACE)["spec"]["clusterIP"]
    assert places[CLIENTS].run(_ASK, f"http://{service}:{SERVE_PORT}/v1/embeddings", LOCAL_KEY) == "384"


def test_the_operator_has_rights_in_the_stacks_namespace_only(kubernetes: Kubectl) -> None:
    operator = f"--as=system:serviceaccount:{kuberay.NAMESPACE}:kuberay-operator"
    mine = kubernetes("auth", "can-i", "list", "secrets", "--namespace", NAMESPACE, operator)
    assert mine.strip() == "yes"
    for what in (("list", "secrets", "--all-namespaces"), ("create", "pods", "--namespace", "default")):
        with pytest.raises(Problem):  # by its exit status
            kubernetes("auth", "can-i", *what, operator)


def test_the_autoscaler_reaches_the_api_server(places: dict[str, Place]) -> None:
    assert places["head"].asks(API_SERVICE_IP, 443) == "open"


@pytest.mark.parametrize(
    ("source", "target", "port"),
    [
        ("elsewhere", "worker", SERVE_PORT),
        ("elsewhere", "head", 6379),
        (CLIENTS, "head", SERVE_PORT),
        (CLIENTS, "head", DASHBOARD_PORT),
        (CLIENTS, "worker", 8080),
    ],
)
def test_others_stay_outside(places: dict[str, Place], source: str, target: str, port: int) -> None:
    assert places[source].asks(places[target].address, port) == "refused"


def test_a_worker_does_not_reach_the_api_server(places: dict[str, Place]) -> None:
    assert places["worker"].asks(API_SERVICE_IP, 443) == "refused"
