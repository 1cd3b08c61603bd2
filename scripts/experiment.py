"""`make experiment`: the variants of each model side by side, since the server's start.

Differences are to the variant with the most users, with 95 % intervals: Wald's for error rates, Welch's for times,
whose means and variances are those of the histograms' buckets.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from prometheus_client.samples import Sample
from scipy.stats import chisquare

from scripts.console import main, say
from scripts.metrics import scrape

Z = 1.96
"""Standard deviations on both sides that hold 95 % of a normal distribution."""
SUSPICIOUS = 0.001
"""A split this improbable was not made by the weights: https://doi.org/10.1145/3292500.3330722"""


@dataclass
class Times:
    """A histogram: upper bounds in seconds → how many were that fast or faster."""

    buckets: dict[float, float] = field(default_factory=lambda: defaultdict(float))

    def quantile(self, q: float) -> float:
        """As Prometheus' histogram_quantile: linear within the bucket; NaN without observations."""
        bounds = sorted(self.buckets)
        total = self.buckets[bounds[-1]] if bounds else 0
        below, before = 0.0, 0.0
        for bound in bounds:
            count = self.buckets[bound]
            if total and count >= q * total:
                if math.isinf(bound):
                    return below
                return below + (bound - below) * (q * total - before) / max(count - before, 1)
            below, before = bound, count
        return math.nan

    def moments(self) -> tuple[float, float, float]:
        """Number, mean and variance, with each observation in the middle of its bucket."""
        number = mean = squares = 0.0
        below, before = 0.0, 0.0
        for bound in sorted(self.buckets):
            here = self.buckets[bound] - before
            middle = below if math.isinf(bound) else (below + bound) / 2
            number, mean, squares = number + here, mean + here * middle, squares + here * middle**2
            below, before = bound, self.buckets[bound]
        if not number:
            return 0, math.nan, math.nan
        return number, mean / number, max(squares / number - (mean / number) ** 2, 0)


@dataclass
class Variant:
    """What was measured of one variant: requests of users whom the weights have given it, or its shadow's copies."""

    outcomes: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    assigned: float = 0
    expected: float = 0
    tokens: float = 0
    latency: Times = field(default_factory=Times)
    first: Times = field(default_factory=Times)

    @property
    def answered(self) -> float:
        return self.outcomes["ok"] + self.outcomes["error"]

    @property
    def error_rate(self) -> float:
        return self.outcomes["error"] / self.answered if self.answered else math.nan


def collect(samples: Iterable[Sample]) -> dict[str, dict[str, Variant]]:
    """Model → variant → what was measured."""
    found: dict[str, dict[str, Variant]] = defaultdict(lambda: defaultdict(Variant))
    for sample in samples:
        name = sample.name.removeprefix("ray_blueprint_variant_")
        if name == sample.name:
            continue
        how = sample.labels.get("how")
        if how == "pinned":  # they are there by choice, and choice compares nothing
            continue
        suffix = " (shadow)" if how == "shadow" else ""
        variant = found[sample.labels["model"]][sample.labels["variant"] + suffix]
        if name == "requests_total":
            variant.outcomes[sample.labels["outcome"]] += sample.value
        elif name == "tokens_total":
            variant.tokens += sample.value
        elif name == "assigned_total":
            variant.assigned += sample.value
        elif name == "expected_total":
            variant.expected += sample.value
        elif name in ("latency_seconds_bucket", "ttft_seconds_bucket"):
            times = variant.latency if name.startswith("latency") else variant.first
            times.buckets[float(sample.labels["le"])] += sample.value
    return found


def difference(one: tuple[float, float, float], other: tuple[float, float, float]) -> str:
    """Difference of two means (number, mean, variance) with its 95 % interval."""
    (n, mean, variance), (m, base, base_variance) = one, other
    if not n or not m:
        return "–"
    half = Z * math.sqrt(variance / n + base_variance / m)
    return f"{mean - base:+.3f} ± {half:.3f}"


def rates(variant: Variant) -> tuple[float, float, float]:
    """Errors as a mean: number, rate, variance."""
    rate = variant.error_rate
    return variant.answered, rate, rate * (1 - rate)


def ratio_check(variants: dict[str, Variant]) -> str:
    """Whether the split that was observed is the one that was asked for."""
    asked = {name: variant for name, variant in variants.items() if variant.expected}
    total = sum(variant.expected for variant in asked.values())
    if len(asked) < 2:
        return "split: nothing to check"
    observed = [variant.assigned for variant in asked.values()]
    p = chisquare(observed, [variant.expected * sum(observed) / total for variant in asked.values()]).pvalue
    verdict = "NOT the split that was asked for" if p < SUSPICIOUS else "as asked for"
    shares = ", ".join(
        f"{name} {variant.assigned:.0f} users, {variant.expected:.1f} expected" for name, variant in asked.items()
    )
    return f"split: {shares}; {verdict} (χ² p = {p:.3g})"


def table(variants: dict[str, Variant]) -> list[str]:
    """Lines of the comparison."""
    header = (
        "variant",
        "n",
        "errors",
        "p50 s",
        "p95 s",
        "TTFT p50",
        "TTFT p95",
        "tokens/s",
        "Δ latency s",
        "Δ TTFT s",
        "Δ errors",
    )
    rows: list[tuple[str, ...]] = [header]
    base = max(variants.values(), key=lambda variant: variant.expected)
    for name, variant in variants.items():
        number, mean, _ = variant.latency.moments()
        same = variant is base
        rows.append(
            (
                name,
                f"{variant.answered:.0f}",
                f"{variant.error_rate:.2%}",
                f"{variant.latency.quantile(0.5):.2f}",
                f"{variant.latency.quantile(0.95):.2f}",
                f"{variant.first.quantile(0.5):.2f}",
                f"{variant.first.quantile(0.95):.2f}",
                f"{variant.tokens / (number * mean):.1f}" if number else "–",
                "–" if same else difference(variant.latency.moments(), base.latency.moments()),
                "–" if same else difference(variant.first.moments(), base.first.moments()),
                "–" if same else difference(rates(variant), rates(base)),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def experiment() -> None:
    """Print the comparison for every model."""
    models = collect(sample for metric in scrape() for sample in metric.samples)
    if not models:
        say("no request has been answered yet")
    for model, variants in sorted(models.items()):
        say("\n".join([f"\n{model}", *table(dict(variants)), ratio_check(dict(variants))]))


if __name__ == "__main__":
    main(experiment)
