"""`make cost`: what a stack costs, before anything of it exists.

With AWS credentials by AWS's prices of now, else by those in infra/aws; each with its date and where it is from.
"""

import argparse
import json
from datetime import UTC, datetime
from typing import Any

from infra import contract, cost
from infra.aws import prices
from infra.aws.prices import HOURS_PER_MONTH
from infra.cost import BY_USE, Estimate, Line, Range
from scripts import stack_file
from scripts.console import Problem, main, say, table
from scripts.prices import live

USE = "make cost STACK=prod TOKENS_PER_SECOND=2500"


def report(stack_name: str, tokens_per_second: float | None, as_json: bool) -> None:
    """Say what it costs. Raises Problem at the end where that is more than the stack file allows."""
    stack = stack_file.read(stack_name, whatever_it_costs=True)
    eks = stack_file.eks_cluster(stack_name, stack)
    known = prices.known(eks.region)
    try:
        now = live(stack, eks)
        asked = f"asked AWS for {len(now)} of the prices"
    except Problem as problem:
        now, asked = {}, f"did not ask AWS for its prices of now: {problem.what}"
    found = cost.estimate(stack, datetime.now(UTC).date(), {**known, **now})
    if as_json:
        say(json.dumps(_data(stack_name, found, stack.max_hourly_usd, tokens_per_second, asked), indent=2))
    else:
        say(_text(stack_name, found, tokens_per_second, asked))
    try:
        contract.cost_is_within_limits(stack, found)
    except ValueError as error:
        raise Problem(f"Pulumi.{stack_name}.yaml: {error}", "nothing was created; correct the stack file") from None


def _text(stack_name: str, found: Estimate, tokens_per_second: float | None, asked: str) -> str:
    rows = [("", "", "at least", "at most", "worst", "price of one")]
    for line in found.lines:
        rows.append((line.component, _quantity(line), *_usd(line), _price(line)))
        if line.may_be_spot:
            rows.append(("  by spot", "", *_spot(line)))
    total, month = found.total, [usd * HOURS_PER_MONTH for usd in found.total]
    rows += [
        ("USD an hour", "", *(f"{usd:,.4f}" for usd in total), ""),
        ("USD a month", "", *(f"{usd:,.2f}" for usd in month), f"{HOURS_PER_MONTH} hours"),
    ]
    if tokens_per_second:
        each = (f"{cost.per_million_tokens(usd, tokens_per_second):,.4f}" for usd in total)
        rows.append(("USD a million tokens", "", *each, f"at {tokens_per_second:g} tokens a second, all the time"))
    missing = [f"not in the sums, as their price is unknown: {', '.join(found.unknown)}"] if found.unknown else []
    by_use = [(what, _of(found, item)) for what, item in BY_USE.items()]
    return "\n".join(
        [
            f"stack {stack_name} in {found.region}, USD an hour before taxes and discounts\n",
            table(rows),
            "",
            *missing,
            "at least: min_replicas; at most: max_replicas, an upgrade's second Ray cluster and warm nodes;",
            "worst: these on the dearest instances that hold the pods, which are started when there are no others",
            asked,
            "\npaid for by use, and in no sum:",
            table(by_use),
        ]
    )


def _quantity(line: Line) -> str:
    least, most = f"{line.least:g}", f"{line.most:g}"
    return f"{least if least == most else f'{least} to {most}'} × {line.item}"


def _usd(line: Line) -> tuple[str, str, str]:
    if not line.known:
        return "unknown", "unknown", "unknown"
    least, most, worst = line.usd
    return f"{least:,.4f}", f"{most:,.4f}", f"{worst:,.4f}"


def _price(line: Line) -> str:
    if line.price is None:
        return "unknown"
    usd, unit, read, source = line.price
    upto = f" to {line.dearest.usd:g}" if line.dearest and line.dearest.usd > usd else ""
    return f"{usd:g}{upto} {_per(unit)}, {read}: {source}"


def _per(unit: str) -> str:
    return f"{'an' if unit == 'hour' else 'a'} {unit}"


def _spot(line: Line) -> tuple[str, str, str, str]:
    if line.spot is None:
        return "", "", "", "at most that; there is no list price"
    usd, unit, read, source = line.spot
    return f"{line.least * usd:,.4f}", f"{line.most * usd:,.4f}", "", f"{usd:g} {_per(unit)}, {read}: {source}"


def _of(found: Estimate, item: str | None) -> str:
    price = found.prices.get(item) if item else None
    return f"{price.usd:g} {_per(price.unit)}, {price.date}: {price.source}" if price else "unknown"


def _data(
    stack_name: str, found: Estimate, limit: float | None, tokens_per_second: float | None, asked: str
) -> dict[str, Any]:
    total = found.total
    tokens = Range(*(cost.per_million_tokens(usd, tokens_per_second) for usd in total)) if tokens_per_second else None
    return {
        "stack": stack_name,
        "region": found.region,
        "currency": "USD",
        "hours_per_month": HOURS_PER_MONTH,
        "prices": asked,
        "lines": [
            {
                "component": line.component,
                "item": line.item,
                "quantity": {"least": line.least, "most": line.most},
                "price": line.price and line.price._asdict(),
                "dearest": line.dearest and line.dearest._asdict(),
                "spot": line.spot and line.spot._asdict(),
                "may_be_spot": line.may_be_spot,
                "hourly": line.usd._asdict() if line.known else None,
                "monthly": _monthly(line.usd) if line.known else None,
            }
            for line in found.lines
        ],
        "hourly": total._asdict(),
        "monthly": _monthly(total),
        "unknown": found.unknown,
        "by_use": {
            what: (found.prices[item]._asdict() if item in found.prices else None) for what, item in BY_USE.items()
        },
        "max_hourly_usd": limit,
        "tokens_per_second": tokens_per_second,
        "per_million_tokens": tokens and tokens._asdict(),
    }


def _monthly(hourly: Range) -> dict[str, float]:
    return Range(*(usd * HOURS_PER_MONTH for usd in hourly))._asdict()


def throughput(text: str) -> float | None:
    """Tokens per second as the command line has them; None for none."""
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0 < number < float("inf"):
        raise Problem(f"TOKENS_PER_SECOND = {text!r} is no number of tokens", f"say {USE}")
    return number


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stack")
    parser.add_argument("--tokens-per-second", default="")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    main(lambda: report(given.stack, throughput(given.tokens_per_second), given.json))
