"""What the simulations say: a table, a recommendation with its reason, a plot."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scripts.console import Problem, table
from scripts.plan.simulation import Outcome
from scripts.plan.stack import Planned, a_month, cold_start, deployment
from scripts.plan.traffic import Traffic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WAIT_S = 1.0
"""What is aimed at: the 95th percentile of the waits is no longer, and no request is lost."""
SAME = 0.02
"""Costs that differ by less are the same: one day of random requests is not another."""
FORMATS = (".png", ".svg")


class Result(NamedTuple):
    """One setting under the traffic."""

    planned: Planned
    outcome: Outcome

    @property
    def good(self) -> bool:
        return not self.outcome.lost and self.outcome.wait(0.95) <= WAIT_S


def rows(results: Mapping[str, Result], seconds: float) -> str:
    header = (
        "setting",
        "replicas",
        "waited",
        "p95 wait",
        "p95 answer",
        "429",
        "cut off",
        "GPU hours",
        "USD",
        "a month",
    )
    return table([header, *(_row(what, result.outcome, seconds) for what, result in results.items())])


def _row(what: str, one: Outcome, seconds: float) -> tuple[str, ...]:
    mean, most = running(one, seconds)
    waited = (one.waits > 0).mean() if one.waits.size else 0.0
    return (
        what,
        f"{mean:.1f}, at most {most}",
        f"{waited:.1%}",
        f"{one.wait(0.95):.1f} s",
        f"{one.answer(0.95):.1f} s",
        f"{one.refused:,}",
        f"{one.cut_off:,}",
        f"{one.gpu_hours:.1f}",
        f"{one.usd:.2f}",
        f"{a_month(one.usd, seconds):,.0f}",
    )


def running(outcome: Outcome, seconds: float) -> tuple[float, int]:
    """Replicas that ran, in the mean over time, and at most."""
    edges = np.array([*(moment.second for moment in outcome.moments), seconds])
    counts = np.array([moment.running for moment in outcome.moments])
    return float((counts * np.diff(edges)).sum() / seconds), int(counts.max())


def start(planned: Planned) -> str:
    """The cold start of a replica, stage by stage."""
    stages = cold_start().values()
    lines = [(stage.name, f"{stage.takes(planned.gib):.0f} s", stage.mark, stage.source) for stage in stages]
    total = sum(stage.takes(planned.gib) for stage in stages)
    of_it = deployment(planned, 1, 1).start_s
    return table(
        [*lines, ("together", f"{total:.0f} s", "", f"{of_it:.0f} s on a node that is there and has the image")]
    )


def best(results: Mapping[str, Result]) -> str:
    """The cheapest setting that loses nothing and keeps the wait, or else the one that loses and waits least.

    The first, which is the one that there is, where no other is better by more than SAME.
    """
    given, *_ = results
    good = {what: one.outcome for what, one in results.items() if one.good}
    if not good:
        return min(results, key=lambda what: (results[what].outcome.lost, results[what].outcome.wait(0.95)))
    cheapest = min(good, key=lambda what: (good[what].usd, good[what].wait(0.95)))
    return given if given in good and good[given].usd <= good[cheapest].usd * (1 + SAME) else cheapest


def recommend(results: Mapping[str, Result]) -> str:
    """Which setting to take, and why."""
    given, *_ = results
    chosen = best(results)
    now, then = results[given].outcome, results[chosen].outcome
    what = "leave it as it is" if chosen == given else chosen
    if not results[chosen].good:
        return (
            f"recommended: {what}, which is not enough: {_sentence(then)}. No single setting here keeps the p95 wait "
            f"under {WAIT_S:g} s and loses no request; change several, or allow more replicas"
        )
    if chosen == given:
        return f"recommended: {what}: {_sentence(now)}, and no other setting here does as well for {SAME:.0%} less"
    more = f"{then.usd - now.usd:+.2f} USD ({then.usd / now.usd - 1:+.0%})"
    return f"recommended: {what}, {more}: {_sentence(then)}; as it is, {_sentence(now)}"


def _sentence(one: Outcome) -> str:
    lost = f"{one.lost:,} of {one.arrived:,} requests are lost" if one.lost else "no request is lost"
    return f"{lost}, p95 wait {one.wait(0.95):.1f} s, p95 answer {one.answer(0.95):.1f} s"


def require_format(path: Path) -> None:
    """Problem unless a plot can be written to a file of this name."""
    if path.suffix not in FORMATS:
        raise Problem(
            f"PLOT = {str(path)!r}: is no file that a plot goes to", f"name one that ends in {' or '.join(FORMATS)}"
        )
    if not path.parent.is_dir():
        raise Problem(f"PLOT = {str(path)!r}: there is no directory {path.parent}", "make it, or name another")


def plot(path: Path, traffic: Traffic, results: Mapping[str, Result]) -> None:
    """Rate, replicas, waiting requests and p95 wait over time, of each of the results."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    # Text stays text, and the same input makes the same file.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "plan"})
    figure, axes = pyplot.subplots(4, 1, figsize=(10, 9), sharex=True, layout="constrained")
    axes[0].stairs(traffic.rates, traffic.edges / 3600, label="requests a second", color="black")
    for number, (what, result) in enumerate(results.items()):
        _draw(axes[1:], what, result.outcome, traffic.seconds, f"C{number}")
    for one, label in zip(axes, ("requests/s", "replicas", "waiting", "p95 wait, s"), strict=True):
        one.set_ylabel(label)
        one.set_ylim(bottom=0)
        one.grid(alpha=0.3)
    axes[1].legend()
    axes[-1].set_xlabel("hours")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def _draw(axes: "list[Axes]", what: str, one: Outcome, seconds: float, color: str) -> None:
    replicas, waiting, wait = axes
    hours = [moment.second / 3600 for moment in one.moments]
    running = [moment.running for moment in one.moments]
    target = [moment.target for moment in one.moments]
    replicas.step(hours, running, where="post", color=color, label=what)
    replicas.step(hours, target, where="post", color=color, alpha=0.4, linestyle=":")
    waiting.step(hours, [moment.waiting for moment in one.moments], where="post", color=color)
    edges = np.linspace(0, seconds, 145)
    spans = np.digitize(one.began, edges) - 1
    p95 = [float(np.quantile(waits, 0.95)) if (waits := one.waits[spans == span]).size else 0.0 for span in range(144)]
    wait.stairs(p95, edges / 3600, color=color)
