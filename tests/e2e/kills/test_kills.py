"""What dies under load, what its clients see of it, and how long it takes to come back.

A request that a client may just send again is one that was refused with Retry-After, or whose connection broke before
an answer; a stream ends with an error event, unless whoever would send it is what dies. Anything else is a fault of
ours.
"""

import json
import re
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.clusters import NATIVE_ADDRESS
from infra.platform import kuberay
from scripts import packages
from scripts.kubectl import Kubectl
from scripts.observe import look
from tests.e2e.conftest import Stack
from tests.e2e.load import NAMESPACE, STREAMS, TWO, Lost, inside, keep, keys, loaded, service, until_one_is_left

CALM_S = 45
"""After so long without a loss, all is well again: Serve replaces a replica after three health checks in 30 s."""
PASSWORD = uuid.uuid4().hex
KEPT: dict[str, Any] = {
    **keys(workers=2, weights=(1, 0), **TWO),
    "gcs_fault_tolerance": {
        "redis_address": f"{NATIVE_ADDRESS}:6379",
        "redis_password": {"name": "ray-redis", "key": "password"},
    },
}
"""Keys of a stack with two of each but the language model, so that one can go, and the head's state in Redis."""


@pytest.fixture(scope="module")
def redis(deployed: Any) -> Iterator[None]:
    """A Redis that asks for a password and keeps nothing on the disk."""
    packages.ensure({"redis-server": "redis-server"})
    with inside("redis-server", "-") as process:
        assert process.stdin and process.stdout
        process.stdin.write(f'bind {NATIVE_ADDRESS}\nsave ""\nrequirepass {PASSWORD}\n')
        process.stdin.close()
        try:
            assert any("Ready to accept connections" in line for line in process.stdout)
            yield
        finally:
            process.kill()


def states() -> set[str]:
    """Ray clusters that have something in Redis, by their UIDs."""
    command = "redis-cli -h $0 --scan --pattern 'RAY*'"
    environment = {"PATH": "/usr/bin:/bin", "REDISCLI_AUTH": PASSWORD}
    with inside("sh", "-c", command, NATIVE_ADDRESS, env=environment) as process:
        keys, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return {key.removeprefix("RAY").partition("@")[0] for key in keys.split()}


@pytest.fixture(scope="module", autouse=True)
def up(stack: Stack, kubernetes: Kubectl, redis: None) -> None:
    # As a user who has a Redis puts it there.
    secret = {"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "ray-redis", "namespace": NAMESPACE}}
    kubernetes("apply", "--filename=-", stdin=json.dumps({**secret, "stringData": {"password": PASSWORD}}))
    stack.require(**KEPT)
    until_one_is_left(kubernetes)  # else what dies is the other one's


def workers(kubernetes: Kubectl) -> list[str]:
    selector = ("--selector", "ray.io/node-type=worker")
    items = kubernetes.get("pods", "--namespace", NAMESPACE, *selector)["items"]
    return [pod["metadata"]["name"] for pod in items if "deletionTimestamp" not in pod["metadata"]]


def kill(kubernetes: Kubectl, process: str, child: str = "") -> None:
    """The oldest process of this name, or its child of that name, on the first worker that has one."""
    which = f"--parent $(pgrep --oldest --full '{process}') --full '{child}'" if child else f"--full '{process}'"
    for pod in workers(kubernetes):
        run = ("exec", "--namespace", NAMESPACE, pod, "--", "sh", "-c")
        if kubernetes(*run, f"pkill --signal KILL --oldest {which} && echo killed || true"):
            return
    raise AssertionError(f"no {process} runs")


def replica(kubernetes: Kubectl) -> None:
    """One of the two replicas of the classifier."""
    kill(kubernetes, "^ray::ServeReplica:.*:Classifier:sentiment")


def gateway(kubernetes: Kubectl) -> None:
    """One of the two replicas of the gateway."""
    kill(kubernetes, "^ray::ServeReplica:.*:Gateway")


def engine(kubernetes: Kubectl) -> None:
    """vLLM's own process in the only replica of the variant that answers."""
    kill(kubernetes, "^ray::ServeReplica:.*:LLM:chat@stable", "^VLLM::EngineCore")


def worker(kubernetes: Kubectl) -> None:
    """The pod of a worker, at once."""
    kubernetes("delete", "pod", workers(kubernetes)[0], "--namespace", NAMESPACE, "--grace-period=0", "--force")


def operator(kubernetes: Kubectl) -> None:
    """KubeRay's."""
    kubernetes("delete", "pod", "--all", "--namespace", kuberay.NAMESPACE, "--grace-period=0", "--force")


def head(kubernetes: Kubectl) -> None:
    """The pod of the Ray head, at once."""
    selector = ("--selector", "ray.io/node-type=head")
    kubernetes("delete", "pod", *selector, "--namespace", NAMESPACE, "--grace-period=0", "--force")


def runtime(_: Kubectl) -> None:
    """The node's container runtime."""
    with inside("pkill", "--signal", "KILL", "--exact", "containerd", namespaces=("pid", "mount")) as process:
        assert process.wait() == 0


def deployments(kubernetes: Kubectl) -> list[dict[str, Any]]:
    """As Serve says itself; none while it cannot be asked."""
    found = look(kubernetes, NAMESPACE).applications.values()
    every = [deployment for apps in found for app in apps.values() for deployment in app["deployments"].values()]
    return [deployment for deployment in every if "replicas" in deployment]


def replicas(kubernetes: Kubectl) -> set[str]:
    return {replica["replica_id"] for deployment in deployments(kubernetes) for replica in deployment["replicas"]}


def wait_until_all_runs(kubernetes: Kubectl) -> None:
    """Both workers, and every deployment as healthy as Serve says after it has noticed."""
    deadline = time.monotonic() + 600
    calm = time.monotonic()
    while time.monotonic() - calm < CALM_S:
        found = {deployment["status"] for deployment in deployments(kubernetes)}
        if found != {"HEALTHY"} or len(workers(kubernetes)) != 2:
            calm = time.monotonic()
        assert time.monotonic() < deadline, found
        time.sleep(1)


def retriable(lost: Lost) -> bool:
    status = re.match(r"(\d+): ", lost.seen)
    return lost.events == 0 and (not status or status[1] in ("429", "503"))


@pytest.mark.parametrize("victim", [operator, replica, gateway, engine, worker, head, runtime])
def test_it_comes_back(
    victim: Callable[[Kubectl], None], stack: Stack, kubernetes: Kubectl, results: Path | None
) -> None:
    before = replicas(kubernetes)
    with loaded(service(kubernetes)) as report:
        time.sleep(10)  # of a steady load before
        killed = time.time()
        victim(kubernetes)
        wait_until_all_runs(kubernetes)
    since = killed - report.begun
    losses = [*report.lost, *report.broken]
    last = max((one.ended for one in losses), default=since)
    said: dict[str, Any] = {"killed": victim.__name__, "last_loss_s": round(last - since, 1), **report.summary()}
    keep(said, results)
    assert report.seconds - last > CALM_S / 2
    assert [one for one in report.lost if not retriable(one)] == []
    silent = [one for one in report.broken if one.events and '"error"' not in one.seen]
    # Those whose connection ended in the pod's own proxy.
    assert len(silent) <= (STREAMS if victim is worker else 0), silent
    if victim in (operator, head, runtime):  # no replica is in them
        assert replicas(kubernetes) == before


def test_a_ray_cluster_that_goes_leaves_nothing_in_redis(stack: Stack) -> None:
    (before,) = states()
    assert stack.up(**{**KEPT, "head": {"memory_gib": 5}}).returncode == 0
    deadline = time.monotonic() + 600
    while before in (found := states()) or len(found) != 1:
        assert time.monotonic() < deadline, found
        time.sleep(1)
