"""Ray's autoscaler: load wants a replica that finds no room, so a second worker pod comes; idleness takes it away."""

import threading
import time

import httpx
import pytest

from infra.config import StackConfig
from scripts.kubectl import Kubectl
from tests.e2e.conftest import Stack, growing

CLIENTS = 8


@pytest.fixture(scope="module", autouse=True)
def one_worker(stack: Stack, kubernetes: Kubectl) -> None:
    stack.require(**growing())
    until("the worker of a former scenario is gone", kubernetes, 1)


def workers(kubernetes: Kubectl) -> list[str]:
    """Names of the worker pods that run."""
    selector = ("--selector", "ray.io/node-type=worker")
    pods = kubernetes.get("pods", "--namespace", StackConfig().namespace, *selector)["items"]
    return [
        pod["metadata"]["name"]
        for pod in pods
        if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]
    ]


def until(what: str, kubernetes: Kubectl, number: int) -> float:
    """Seconds until there are so many worker pods."""
    begun = time.monotonic()
    while len(found := workers(kubernetes)) != number:
        assert time.monotonic() - begun < 300, f"{what}: {found}"
        time.sleep(1)
    return time.monotonic() - begun


def test_a_pod_comes_with_the_load_and_goes_with_it(client: httpx.Client, kubernetes: Kubectl) -> None:
    over, statuses = threading.Event(), list[int]()

    def ask_on() -> None:
        while not over.is_set():
            statuses.append(client.post("v1/embeddings", json={"input": "hi"}, timeout=120).status_code)

    threads = [threading.Thread(target=ask_on) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        came = until("a second worker pod comes", kubernetes, 2)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    went = until("it goes", kubernetes, 1)
    print(f"second worker pod: came after {came:.0f} s of load, went {went:.0f} s after it; {len(statuses)} requests")
    assert set(statuses) == {200}
