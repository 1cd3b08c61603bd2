"""What `make plan` runs."""

import argparse
import math
from datetime import UTC, datetime
from pathlib import Path

from infra.aws import prices
from scripts import stack_file
from scripts.console import Problem, main, say, step
from scripts.plan import report, traffic
from scripts.plan.report import Result
from scripts.plan.simulation import Deployment, simulate
from scripts.plan.stack import alternatives, choose, deployment, fleet, the_rest

ALONE_S = 10.0
SLOWER = 2.0
"""How many times longer an answer takes on a full replica, when that is not said."""
BUSY = 0.8
"""Part of what all replicas should have at once that the peak of a shape brings, when no rate is given."""


def plan(
    stack_name: str,
    model: str,
    trace: str,
    rate: float | None,
    seconds_alone: float | None,
    seconds_full: float | None,
    plot: Path | None,
) -> None:
    """Say what the traffic does to the stack, and to the same with other settings. Raises Problem."""
    if plot:
        report.require_format(plot)
    planned = choose(stack_name, stack_file.read(stack_name, whatever_it_costs=True), model)
    known = prices.known(planned.eks.region)
    alone = seconds_alone or ALONE_S
    full = seconds_full or alone * SLOWER
    if full < alone:
        raise Problem(f"SECONDS_FULL = {full:g}: is less than SECONDS_ALONE ({alone:g})", "raise it, or lower that")
    if rate and trace not in traffic.SHAPES:
        raise Problem(f"RATE = {rate:g}: is the peak of a shape, and {trace} has rates of its own", "leave it out")
    asked = deployment(planned, alone, full)
    peak = rate or peak_of(asked)
    load = (found := traffic.read(trace, peak)).load()
    settings, refused = alternatives(stack_name, planned)
    results: dict[str, Result] = {}
    with step(f"{len(load.arrivals):,} requests to {planned.name}, simulated for each of {len(settings)} settings"):
        for what, changed in settings.items():
            results[what] = Result(changed, simulate(load, deployment(changed, alone, full), fleet(changed, known)))
    assumed = [
        *([] if rate or trace not in traffic.SHAPES else [f"RATE={peak:g} (at the peak)"]),
        *([] if seconds_alone else [f"SECONDS_ALONE={alone:g}"]),
        *([] if seconds_full else [f"SECONDS_FULL={full:g}"]),
    ]
    say(f"\nstack {stack_name}, {planned.name} on the nodes of {planned.group.name}")
    hours, most = found.seconds / 3600, float(found.rates.max())
    say(f"traffic {found.name}: {hours:g} h, {len(load.arrivals):,} requests, {most:.1f} a second at most")
    say(f"an answer takes {alone:g} s alone, {full:g} s where {asked.max_ongoing_requests} are under way")
    if assumed:
        say(f"assumed, since it was not said: {', '.join(assumed)}")
    say(f"\na cold start, from scripts/plan/stages.csv:\n{report.start(planned)}")
    say(f"\n{report.rows(results, found.seconds)}")
    rest = the_rest(planned, known, datetime.now(UTC).date())
    say(f"\nUSD: nodes of {planned.group.name} on demand; the rest of the stack is {rest:,.2f} an hour in each of them")
    for what, why in refused.items():
        say(f"not simulated: {what}: {why}")
    say(f"\n{report.recommend(results)}")
    if plot:
        chosen = {
            what: result for what, result in results.items() if what in (next(iter(results)), report.best(results))
        }
        report.plot(plot, found, chosen)
        say(f"plot: {plot}")


def peak_of(asked: Deployment) -> float:
    """Requests a second that keep all replicas BUSY."""
    scaling = asked.autoscaling
    replicas = scaling.max_replicas if scaling else asked.replicas
    each = scaling.target_ongoing_requests if scaling else asked.max_ongoing_requests
    takes = asked.alone_s + (asked.full_s - asked.alone_s) * each / asked.max_ongoing_requests
    return BUSY * replicas * each / takes


def positive(key: str, text: str) -> float | None:
    """A number above 0 as the command line has it; None for none. Raises Problem."""
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0 < number < math.inf:
        raise Problem(f"{key} = {text!r}: is no number above 0", f"say {key}=2.5, for instance, or leave it out")
    return number


def ask() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stack")
    for option in ("model", "trace", "rate", "seconds-alone", "seconds-full", "plot"):
        parser.add_argument(f"--{option}", default="")
    given = parser.parse_args()
    plan(
        given.stack,
        given.model,
        given.trace or "daily",
        positive("RATE", given.rate),
        positive("SECONDS_ALONE", given.seconds_alone),
        positive("SECONDS_FULL", given.seconds_full),
        Path(given.plot) if given.plot else None,
    )


if __name__ == "__main__":
    main(ask)
