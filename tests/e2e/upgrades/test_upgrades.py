"""Changes of a stack under load lose no request and break no stream.

`make e2e-upgrade RUNS=20` makes each kind as often as it says; RESULTS=file has what came of it.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.config import StackConfig
from scripts.kubectl import Kubectl
from tests.e2e.conftest import Stack
from tests.e2e.load import STACK, loaded, serving

NAMESPACE = StackConfig().namespace


@pytest.fixture(scope="module")
def keys(stack: Stack, deployed: Any) -> dict[str, Any]:
    """Of the stack as it is up; a change puts its own into them."""
    stack.require(**STACK)
    return dict(STACK)


def clusters(kubernetes: Kubectl) -> set[str]:
    return {item["metadata"]["name"] for item in kubernetes.get("rayclusters", "--namespace", NAMESPACE)["items"]}


def eventually(what: str, condition: Callable[[], bool], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(1)


def up(stack: Stack, keys: dict[str, Any], **change: Any) -> None:
    keys |= change
    assert stack.up(**keys).returncode == 0


def canary(stack: Stack, keys: dict[str, Any], run: int) -> None:
    """Another setting of a variant: its replica is replaced in place."""
    up(stack, keys, serving=serving(seed=1 + run))


def cluster(stack: Stack, keys: dict[str, Any], run: int) -> None:
    """Another Ray head: a second Ray cluster takes over."""
    up(stack, keys, head={"memory_gib": 5 - run % 2})


def workers(stack: Stack, keys: dict[str, Any], run: int) -> None:
    """Another size of a worker group, which is another Ray cluster, too."""
    up(stack, keys, workers=[{**STACK["workers"][0], "max_replicas": 3 - run % 2}])


def broken_image(stack: Stack, keys: dict[str, Any], _: int) -> None:
    """An image that cannot be had: `up` fails, and the next good one takes the second Ray cluster away."""
    failed = stack.up_without_its_image(**keys)
    assert failed.returncode != 0
    assert "ErrImagePull" in failed.stderr or "ImagePullBackOff" in failed.stderr
    assert "registry.invalid/none" in failed.stderr
    assert "Traceback" not in failed.stderr
    up(stack, keys)


@pytest.mark.parametrize("change", [canary, broken_image, workers, cluster])
def test_nothing_is_lost(
    change: Callable[[Stack, dict[str, Any], int], None],
    run: int,
    stack: Stack,
    keys: dict[str, Any],
    kubernetes: Kubectl,
    results: Path | None,
) -> None:
    with loaded(kubernetes) as report:
        change(stack, keys, run)
        # Requests that are under way on the Ray cluster that goes are part of it.
        eventually("one Ray cluster is left", lambda: len(clusters(kubernetes)) == 1)
    said = {"change": change.__name__, "run": run, **report.summary()}
    print(json.dumps(said, indent=1))
    if results:
        with results.open("a") as file:
            file.write(f"{json.dumps(said)}\n")
    assert report.requests > 5 * report.seconds
    assert report.streams > 0
    assert (report.lost, report.broken) == ([], [])
