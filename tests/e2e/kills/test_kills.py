"""What dies under load, what its clients see of it, and how long it takes to come back.

A request that a client may just send again is one that was refused with Retry-After, or whose connection broke before
an answer; a stream ends with an error event, unless whoever would send it is what dies. Anything else is a fault of
ours.
"""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.config import StackConfig
from infra.platform import kuberay
from scripts.kubectl import Kubectl
from scripts.observe import look
from tests.e2e.conftest import Stack
from tests.e2e.load import STACK, STREAMS, Lost, loaded

NAMESPACE = StackConfig().namespace
CALM_S = 45
"""After so long without a loss, all is well again: Serve replaces a replica after three health checks in 30 s."""


@pytest.fixture(scope="module", autouse=True)
def up(stack: Stack, kubernetes: Kubectl) -> None:
    stack.require(**STACK)


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


def wait_until_all_runs(kubernetes: Kubectl) -> None:
    """Both workers, and every deployment as healthy as Serve says after it has noticed."""
    deadline = time.monotonic() + 600
    calm = time.monotonic()
    while time.monotonic() - calm < CALM_S:
        found = look(kubernetes, NAMESPACE).applications.values()
        deployments = [one for apps in found for app in apps.values() for one in app["deployments"].values()]
        states = {deployment["status"] for deployment in deployments}
        if states != {"HEALTHY"} or len(workers(kubernetes)) != 2:
            calm = time.monotonic()
        assert time.monotonic() < deadline, states
        time.sleep(1)


def retriable(lost: Lost) -> bool:
    status = re.match(r"(\d+): ", lost.seen)
    return lost.events == 0 and (not status or status[1] in ("429", "503"))


@pytest.mark.parametrize("victim", [operator, replica, gateway, engine, worker])
def test_it_comes_back(
    victim: Callable[[Kubectl], None], stack: Stack, kubernetes: Kubectl, results: Path | None
) -> None:
    with loaded(kubernetes) as report:
        time.sleep(10)  # of a steady load before
        killed = time.time()
        victim(kubernetes)
        wait_until_all_runs(kubernetes)
    since = killed - report.begun
    losses = [*report.lost, *report.broken]
    last = max((one.ended for one in losses), default=since)
    said: dict[str, Any] = {"killed": victim.__name__, "last_loss_s": round(last - since, 1), **report.summary()}
    print(json.dumps(said, indent=1))
    if results:
        with results.open("a") as file:
            file.write(f"{json.dumps(said)}\n")
    assert report.seconds - last > CALM_S / 2
    assert [one for one in report.lost if not retriable(one)] == []
    silent = [one for one in report.broken if one.events and '"error"' not in one.seen]
    # Those whose connection ended in the pod's own proxy.
    assert len(silent) <= (STREAMS if victim is worker else 0), silent
