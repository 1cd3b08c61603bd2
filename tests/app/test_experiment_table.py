"""What `make experiment` says of known samples."""

import math
import random

import pytest
from prometheus_client.samples import Sample

from scripts.experiment import Times, collect, difference, ratio_check, table

BOUNDS = [0.1, 0.2, 0.5, 1, 2, 5, math.inf]


def samples(name: str, seconds: list[float], errors: int = 0, how: str = "split", expected: float = 0) -> list[Sample]:
    """What a gateway exports after requests that took so long."""
    labels = {"model": "chat", "variant": name, "how": how}
    prefix = "ray_blueprint_variant_"
    found = [
        Sample(f"{prefix}requests_total", {**labels, "outcome": "ok"}, len(seconds)),
        Sample(f"{prefix}requests_total", {**labels, "outcome": "error"}, errors),
        Sample(f"{prefix}requests_total", {**labels, "outcome": "cancelled"}, 7),
        Sample(f"{prefix}tokens_total", labels, 10.0 * len(seconds)),
        Sample(f"{prefix}assigned_total", {"model": "chat", "variant": name}, len(seconds)),
        Sample(f"{prefix}expected_total", {"model": "chat", "variant": name}, expected),
    ]
    for bound in BOUNDS:
        within = sum(one <= bound for one in seconds)
        found.append(Sample(f"{prefix}latency_seconds_bucket", {**labels, "le": str(bound)}, within))
        found.append(Sample(f"{prefix}ttft_seconds_bucket", {**labels, "le": str(bound)}, within))
    return found


def test_a_split_as_asked_for() -> None:
    found = collect([*samples("stable", [1.0] * 905, expected=900), *samples("canary", [1.0] * 95, expected=100)])
    assert "as asked for" in ratio_check(found["chat"])
    assert "NOT" not in ratio_check(found["chat"])


def test_a_split_that_was_not_asked_for() -> None:
    found = collect([*samples("stable", [1.0] * 850, expected=900), *samples("canary", [1.0] * 150, expected=100)])
    assert "NOT the split that was asked for" in ratio_check(found["chat"])


def test_a_slower_variant_and_its_errors() -> None:
    chance = random.Random(7)  # noqa: S311
    fast = [chance.uniform(0.2, 0.5) for _ in range(500)]
    slow = [chance.uniform(1, 2) for _ in range(500)]
    found = collect([*samples("stable", fast, expected=900), *samples("canary", slow, errors=100, expected=600)])
    header, stable, canary = (line.split() for line in table(found["chat"]))
    assert header[:3] == ["variant", "n", "errors"]
    assert stable[:3] == ["stable", "500", "0.00%"]
    assert canary[:3] == ["canary", "600", "16.67%"]
    assert 1.4 < float(canary[3]) < 1.6
    assert "+1.150" in canary
    assert "+0.167" in canary


def test_requests_that_chose_their_variant_do_not_count_and_copies_count_apart() -> None:
    found = collect([*samples("canary", [1.0] * 5, how="pinned"), *samples("canary", [1.0] * 3, how="shadow")])
    assert found["chat"]["canary (shadow)"].answered == 3
    assert "canary" not in found["chat"] or not found["chat"]["canary"].answered


def test_quantiles_are_prometheus_own() -> None:
    times = Times()
    for bound, count in zip(BOUNDS, [0, 0, 10, 20, 20, 20, 20], strict=True):
        times.buckets[bound] = count
    assert times.quantile(0.25) == pytest.approx(0.35)
    assert times.quantile(0.5) == pytest.approx(0.5)
    assert times.quantile(1) == pytest.approx(1)
    assert math.isnan(Times().quantile(0.5))


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Of 400 comparisons of equals, 95 % of intervals should hold 0; fewer than 92 % happen once in 300 runs."""
    chance = random.Random(11)  # noqa: S311
    held = 0
    for _ in range(400):
        (n, mean, variance), (m, base, base_variance) = (
            (len(ones), sum(ones) / len(ones), sum((one - sum(ones) / len(ones)) ** 2 for one in ones) / len(ones))
            for ones in ([chance.gauss(1, 0.3) for _ in range(100)] for _ in range(2))
        )
        delta, _, half = difference((n, mean, variance), (m, base, base_variance)).split()
        held += abs(float(delta)) <= float(half)
    assert held / 400 > 0.92
