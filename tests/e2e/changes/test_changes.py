"""Every kind of change that a team makes, by `make up`, on a stack that serves meanwhile.

The steps build on each other.
"""

from typing import Any

import httpx
import pytest

from infra.config import StackConfig
from scripts.kubectl import Kubectl
from scripts.observe import look
from tests.e2e.conftest import Stack, growing
from tests.e2e.load import clusters, keep, loaded, nothing_is_lost, service, serving, until_one_is_left

NAMESPACE = StackConfig().namespace
CHAT = {"model": "chat", "messages": [{"role": "user", "content": "Say hi"}], "max_tokens": 2}


@pytest.fixture(scope="module", autouse=True)
def two_variants(stack: Stack, kubernetes: Kubectl) -> None:
    stack.require(serving=serving((1, 0)))


def pods(kubernetes: Kubectl) -> set[str]:
    """Names of the Ray pods with the number of restarts of each container."""
    found = kubernetes.get("pods", "--namespace", NAMESPACE, "--selector", "ray.io/is-ray-node=yes")["items"]
    return {
        f"{pod['metadata']['name']} {[container['restartCount'] for container in pod['status']['containerStatuses']]}"
        for pod in found
        if "deletionTimestamp" not in pod["metadata"]
    }


def replicas(kubernetes: Kubectl) -> dict[str, set[str]]:
    """Ids of the running replicas of each deployment, of all Ray clusters."""
    found: dict[str, set[str]] = {}
    for applications in look(kubernetes, NAMESPACE).applications.values():
        for application in applications.values():
            for name, deployment in application["deployments"].items():
                running = {one["replica_id"] for one in deployment["replicas"] if one["state"] == "RUNNING"}
                found[name] = found.get(name, set()) | running
    return found


def variant(client: httpx.Client, **more: Any) -> str:
    answered = client.post("v1/chat/completions", json={**CHAT, **more}).raise_for_status()
    return answered.headers["x-variant"]


def test_what_was_changed_by_hand_is_repaired(stack: Stack, kubernetes: Kubectl) -> None:
    label = "pod-security.kubernetes.io/enforce"
    kubernetes("label", "namespace", NAMESPACE, f"{label}=privileged", "--overwrite")
    kubernetes("delete", "poddisruptionbudget,networkpolicy", "--all", "--namespace", NAMESPACE)
    before = pods(kubernetes)
    done = stack.make("up")
    assert done.returncode == 0
    assert "\nunchanged\n" not in done.stdout
    assert kubernetes.get("namespace", NAMESPACE)["metadata"]["labels"][label] == "restricted"
    for kind in ("poddisruptionbudget", "networkpolicy"):
        assert kubernetes.get(kind, "--namespace", NAMESPACE)["items"]
    assert pods(kubernetes) == before


def test_the_split_moves_and_nothing_restarts(stack: Stack, kubernetes: Kubectl, client: httpx.Client) -> None:
    before = pods(kubernetes), replicas(kubernetes)
    assert {variant(client) for _ in range(4)} == {"chat@stable"}
    assert stack.up(serving=serving((0, 1))).returncode == 0
    assert {variant(client) for _ in range(4)} == {"chat@canary"}
    assert (pods(kubernetes), replicas(kubernetes)) == before


def test_only_the_canary_restarts_when_only_it_changes(stack: Stack, kubernetes: Kubectl, client: httpx.Client) -> None:
    before = pods(kubernetes), replicas(kubernetes)
    with loaded(service(kubernetes)) as report:
        assert stack.up(serving=serving((1, 0), canary={"engine": {"seed": 7}})).returncode == 0
    keep(report.summary())
    nothing_is_lost(report)
    assert pods(kubernetes) == before[0]
    after = replicas(kubernetes)
    assert {name for name in after if after[name] != before[1][name]} == {"LLM:chat@canary"}
    assert variant(client, model="chat@canary") == "chat@canary"


def test_a_change_of_the_cluster_is_a_new_one_and_nothing_is_lost(stack: Stack, kubernetes: Kubectl) -> None:
    (old,) = clusters(kubernetes)
    with loaded(service(kubernetes)) as report:
        # Another head, other workers, and one variant, since two clusters run for a while.
        assert stack.up(**growing()).returncode == 0
        until_one_is_left(kubernetes)
    keep(report.summary())
    nothing_is_lost(report)
    assert max(report.latencies) < 15
    (new,) = clusters(kubernetes)
    assert new != old
    status = kubernetes.get("rayservice", "llm", "--namespace", NAMESPACE)["status"]
    assert status["activeServiceStatus"]["rayClusterName"] == new
