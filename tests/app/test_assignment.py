"""Who gets which variant: no server needed, since it is a function of user and weights alone."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.deployments.experiment import assign, choose
from app.settings import LiveModel

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


def test_a_pin_beats_the_weights() -> None:
    now = LiveModel(weights={"stable": 1, "canary": 0}, shadow={}, pins={"ann": "canary"}, guard=None)
    assert choose("chat", "ann", now) == "canary"
    assert choose("chat", "bob", now) == "stable"
    assert choose("chat", None, now) == "stable"
