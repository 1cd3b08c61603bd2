"""Who gets which variant: no server needed, since it is a function of user and weights alone."""

import asyncio
import math
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.deployments.experiment import MOST_SHADOWS, Assignments, Shadows, assign, identity
from app.settings import LiveModel
from tests.app.conftest import ROOT

WEIGHTS = st.dictionaries(
    st.text(min_size=1, max_size=8), st.floats(min_value=0, max_value=1000), min_size=1, max_size=6
).filter(lambda weights: sum(weights.values()) > 1e-3)
USERS = st.text(max_size=40)


@given(st.text(), USERS, WEIGHTS)
def test_a_user_gets_the_same_variant_every_time(experiment: str, user: str, weights: dict[str, float]) -> None:
    assert assign(experiment, user, weights) == assign(experiment, user, dict(weights))


@given(st.text(), st.none() | USERS, WEIGHTS)
def test_a_variant_without_weight_gets_nobody(experiment: str, user: str | None, weights: dict[str, float]) -> None:
    assert weights[assign(experiment, user, weights)] > 0


@given(USERS, st.floats(min_value=0, max_value=1), st.floats(min_value=0, max_value=1))
def test_more_weight_takes_users_and_gives_none(user: str, one: float, other: float) -> None:
    """A canary that grows keeps its users, and the others come from the stable variant only."""
    small, large = sorted((one, other))
    before = assign("chat", user, {"stable": 1 - small, "canary": small})
    after = assign("chat", user, {"stable": 1 - large, "canary": large})
    assert not (before == "canary" and after == "stable")


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01])
@pytest.mark.parametrize("sticky", [True, False])
def test_the_split_is_what_was_asked_for(share: float, sticky: bool) -> None:
    """10,000 assignments within four standard deviations; random ones miss that once in 16,000 runs."""
    number = 10_000
    weights = {"stable": 1 - share, "canary": share}
    got = Counter(assign("chat", f"user-{user}" if sticky else None, weights) for user in range(number))
    assert abs(got["canary"] - number * share) < 4 * math.sqrt(number * share * (1 - share))


def test_experiments_do_not_share_their_users() -> None:
    """Who is in the canary of one model is there by chance in that of another."""
    number = 10_000
    weights = {"stable": 0.5, "canary": 0.5}
    both = sum(assign("one", str(u), weights) == assign("other", str(u), weights) for u in range(number))
    assert abs(both - number / 2) < 4 * math.sqrt(number / 4)


def test_users_of_tenants_differ_and_sessions_are_users() -> None:
    assert identity("", "ann", "s1") == "ann"
    assert identity("", None, "s1") == "s1"
    assert identity("", None, None) is None
    assert identity("team-a", None, None) is None
    assert {identity(tenant, "ann", None) for tenant in ("team-a", "team-b")} == {"team-a/ann", "team-b/ann"}


def test_another_process_assigns_the_same() -> None:
    """So a restart and another replica do; Python's own hash, for one, would not."""
    weights = {"stable": 0.5, "canary": 0.5}
    script = (
        "from app.deployments.experiment import assign;"
        f"print(*(assign('chat', f'user-{{number}}', {weights}) for number in range(100)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [assign("chat", f"user-{number}", weights) for number in range(100)]


@pytest.mark.anyio
async def test_copies_for_the_shadow_are_bounded_and_fail_alone(anyio_backend: str) -> None:
    begun, release = 0, asyncio.Event()

    async def copy() -> None:
        nonlocal begun
        begun += 1
        await release.wait()
        raise RuntimeError("the shadow is broken")

    shadows = Shadows()
    for _ in range(100):
        shadows.maybe(1, copy)
        shadows.maybe(0, copy)
    await asyncio.sleep(0)  # lets them begin
    assert begun == MOST_SHADOWS
    release.set()
    while shadows.under_way:
        await asyncio.sleep(0)
    shadows.maybe(1, copy)
    await asyncio.sleep(0)
    assert begun == MOST_SHADOWS + 1


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class FakeCounter:
    """In place of Ray's, which needs a running Ray."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def inc(self, value: float, labels: dict[str, str]) -> None:
        self.counts[labels["variant"]] += value  # pyright: ignore[reportArgumentType]


class FakeMetrics:
    def __init__(self) -> None:
        self.assigned, self.expected = FakeCounter(), FakeCounter()


def live(stable: float, canary: float, **pins: str) -> LiveModel:
    return LiveModel(weights={"stable": stable, "canary": canary}, shadow={}, pins=pins, guard=None)


def test_a_pin_beats_the_weights_and_is_no_assignment() -> None:
    metrics: Any = FakeMetrics()
    assignments = Assignments(metrics)
    now = live(1, 0, ann="canary")
    assert assignments.choose("chat", "ann", now) == ("canary", "pinned")
    assert assignments.choose("chat", "bob", now) == ("stable", "split")
    assert assignments.choose("chat", None, now) == ("stable", "split")
    assert metrics.assigned.counts == metrics.expected.counts == {"stable": 2}


def test_a_user_is_assigned_once_and_what_is_expected_follows_the_weights() -> None:
    metrics: Any = FakeMetrics()
    assignments = Assignments(metrics)
    for number in range(100):
        for _ in range(3):
            assignments.choose("chat", f"user-{number}", live(3, 1))
    for _ in range(100):
        assignments.choose("chat", None, live(0, 1))
    assert sum(metrics.assigned.counts.values()) == 200
    assert metrics.expected.counts == {"stable": pytest.approx(75), "canary": pytest.approx(125)}
