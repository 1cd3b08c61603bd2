"""Changes of a stack under load lose no request and break no stream.

`make e2e-upgrade RUNS=20` makes each kind as often as it says; RESULTS=file has what came of it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from scripts.kubectl import Kubectl
from tests.e2e.conftest import Stack
from tests.e2e.load import keep, keys, loaded, nothing_is_lost, service, serving, until_one_is_left

WHOLE = keys(workers=1)
"""Of each one: two of these Ray clusters and the load share two cores."""
IN_PLACE = {**WHOLE, "serving": serving((1, 0))}


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
    with loaded(service(kubernetes)) as report:
        change(stack, run)
        until_one_is_left(kubernetes)
    keep({"change": change.__name__, "run": run, **report.summary()}, results)
    nothing_is_lost(report)
