"""*Experiment*: the variants of a model side by side, and how far each is from the one that users had before.

As `make experiment`, which has confidence intervals besides.
"""

import re
from collections import defaultdict
from collections.abc import Callable

from app.settings import Model, Settings
from infra.config import StackConfig
from infra.observability.dashboards.board import Board, Panel, Row, Variable
from infra.observability.dashboards.promql import mean, quantile, rate, share

BY = "model, variant"
REQUESTS = "ray_blueprint_variant_requests_total"
LATENCY, TTFT = "ray_blueprint_variant_latency_seconds", "ray_blueprint_variant_ttft_seconds"
OF = 'namespace=~"$namespace", model=~"$model", variant=~"$variant"'
SPLIT = f'{OF}, how="split"'
"""Who was pinned to a variant chose it, and what one chooses compares nothing; nobody waits for a shadow."""
LEGEND = "{{model}} {{variant}}"


def board(stack: StackConfig) -> Board:
    return Board(
        "experiment",
        "Experiment",
        "The variants of each model side by side, by the requests that their weights have given them, and the "
        f"difference of each to {_names(stack)}. Confidence intervals: make experiment.",
        [
            Variable("namespace", REQUESTS, "namespace"),
            Variable("model", REQUESTS, "model"),
            Variable("variant", REQUESTS, "variant"),
        ],
        [Row("Who gets what", _split()), Row("Side by side", _sides()), Row("Difference", _differences(stack.serving))],
    )


def _stable(model: Model) -> str:
    """The variant with the most weight: the one to beat."""
    return max(model.variants, key=lambda variant: variant.weight).name


def _names(stack: StackConfig) -> str:
    return ", ".join(f"{model.name}@{_stable(model)}" for model in stack.serving.models) or "the one with most weight"


def _split() -> list[Panel]:
    assigned, expected = (
        f"sum by ({BY}) (increase(ray_blueprint_variant_{what}_total{{{OF}}}[$__range]))"
        for what in ("assigned", "expected")
    )
    return [
        Panel(
            "variant-throughput",
            "Requests",
            "reqps",
            "Requests that are over, by how they came to the variant: by the weights, pinned, or copied to a shadow.",
            {f"{LEGEND} {{{{how}}}}": rate(REQUESTS, OF, f"{BY}, how")},
            "stacked",
        ),
        Panel(
            "split",
            "Users, for each that the weights let expect",
            "percentunit",
            "Near 1 once there are some hundreds. Far from it, the split is broken, and so is what the rest of this "
            "dashboard says: users that fail to come back are a common cause.",
            {LEGEND: f"{assigned} / ({expected} > 0)"},
        ),
        Panel(
            "variant-tokens",
            "Tokens generated",
            "tokens/s",
            "In a second, by variant.",
            {LEGEND: rate("ray_blueprint_variant_tokens_total", SPLIT, BY)},
        ),
    ]


def _errors(where: str, by: str) -> str:
    failed = rate(REQUESTS, f'{where}, outcome="error"', by)
    return share(failed, rate(REQUESTS, f'{where}, outcome=~"ok|error"', by))


def _sides() -> list[Panel]:
    return [
        Panel(
            "variant-latency",
            "p95 latency",
            "s",
            "To the end of the answer, of requests that were answered.",
            {LEGEND: quantile(0.95, LATENCY, SPLIT, BY)},
        ),
        Panel(
            "variant-ttft",
            "p95 time to first token",
            "s",
            "To the first output, as the gateway sees it.",
            {LEGEND: quantile(0.95, TTFT, SPLIT, BY)},
        ),
        Panel(
            "variant-errors",
            "Error rate",
            "percentunit",
            "Of requests that were answered or failed; those that were wrong, or whose client left, count for neither.",
            {LEGEND: _errors(SPLIT, BY)},
        ),
    ]


def _differences(serving: Settings) -> list[Panel]:
    by_stable: dict[str, list[str]] = defaultdict(list)
    for model in serving.models:
        by_stable[_stable(model)].append(re.escape(model.name))

    def to_stable(measure: Callable[[str, str], str]) -> str:
        """`measure` of every variant, less that of its model's stable one."""
        stable = (
            measure(f'namespace=~"$namespace", model=~"{"|".join(names)}", variant="{variant}", how="split"', "model")
            for variant, names in by_stable.items()
        )
        return f"{measure(SPLIT, BY)} - on (model) group_left () ({' or '.join(stable)})"

    if not by_stable:
        return []
    return [
        Panel(
            "latency-difference",
            "Mean latency, difference",
            "s",
            "Above 0: slower than the stable variant.",
            {LEGEND: to_stable(lambda where, by: mean(LATENCY, where, by))},
        ),
        Panel(
            "ttft-difference",
            "Mean time to first token, difference",
            "s",
            "Above 0: slower than the stable variant.",
            {LEGEND: to_stable(lambda where, by: mean(TTFT, where, by))},
        ),
        Panel(
            "error-difference",
            "Error rate, difference",
            "percentunit",
            "Above 0: fails more often than the stable variant.",
            {LEGEND: to_stable(_errors)},
        ),
    ]
