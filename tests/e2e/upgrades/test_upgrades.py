"""Changes of a stack under load lose no request and break no stream.

`make e2e-upgrade RUNS=20` makes each kind as often as it says; RESULTS=file has what came of it.
"""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from infra.config import StackConfig
from scripts.kubectl import Kubectl
from tests.e2e.conftest import Stack
from tests.e2e.load import keys, loaded, serving

NAMESPACE = StackConfig().namespace
WHOLE = keys(workers=1)
"""Of each one: two of these Ray clusters and the load share two cores."""
IN_PLACE = {**WHOLE, "serving": serving((1, 0))}


def clusters(kubernetes: Kubectl) -> set[str]:
    return {item["metadata"]["name"] for item in kubernetes.get("rayclusters", "--namespace", NAMESPACE)["items"]}


def eventually(what: str, condition: Callable[[], bool], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(1)


def canary(stack: Stack, run: int) -> None:
    """Another setting of a variant: its replica is replaced in place."""
    up(stack, IN_PLACE, serving=serving((1, 0), canary={"engine": {"seed": 1 + run}}))


def cluster(stack: Stack, run: int) -> None:
    """Another Ray head: a second Ray cluster takes over."""
    up(stack, WHOLE, head={"memory_gib": 5 - run % 2})


def workers(stack: Stack, run: int) -> None:
    """Another size of a worker group, which is another Ray cluster, too."""
    up(stack, keys(workers=2 - run % 2))


def broken_image(stack: Stack, _: int) -> None:
    """An image that cannot be had: `up` fails, and the next good one takes the second Ray cluster away."""
    failed = stack.up_without_its_image(**WHOLE)
    assert failed.returncode != 0
    assert "ErrImagePull" in failed.stderr or "ImagePullBackOff" in failed.stderr
    assert "registry.invalid/none" in failed.stderr
    assert "Traceback" not in failed.stderr
    up(stack, WHOLE)


def up(stack: Stack, before: Mapping[str, Any], **change: Any) -> None:
    assert stack.up(**{**before, **change}).returncode == 0


@pytest.mark.parametrize("change", [broken_image, workers, cluster, canary])
def test_nothing_is_lost(
    change: Callable[[Stack, int], None],
    run: int,
    stack: Stack,
    kubernetes: Kubectl,
    results: Path | None,
) -> None:
    if run == 0:
        stack.require(**(IN_PLACE if change is canary else WHOLE))
    with loaded(kubernetes) as report:
        change(stack, run)
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
