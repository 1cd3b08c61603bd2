"""Pieces of PromQL that the panels share."""

from infra.observability.dashboards.board import RATE

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def rate(metric: str, where: str, by: str = "") -> str:
    """How much a counter grows in a second."""
    return _sum(f"rate({metric}{{{where}}}[{RATE}])", by)


def quantile(q: float, histogram: str, where: str, by: str = "") -> str:
    """What this share of the observations is below. Nothing, rather than NaN, without any."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, {rate(f'{histogram}_bucket', where, labels)}) >= 0"


def mean(histogram: str, where: str, by: str = "") -> str:
    """Of the observations; nothing where there is none."""
    return ratio(rate(f"{histogram}_sum", where, by), rate(f"{histogram}_count", where, by))


def ratio(part: str, whole: str) -> str:
    """Nothing, rather than NaN, where the whole is 0."""
    return f"{part} / ({whole} > 0)"


def share(part: str, whole: str) -> str:
    """A ratio whose part is counted from its first time on only: 0 before."""
    return ratio(f"({part} or {whole} * 0)", whole)


def total(gauge: str, where: str, by: str = "") -> str:
    """The sum of a gauge."""
    return _sum(f"{gauge}{{{where}}}", by)


def _sum(what: str, by: str) -> str:
    return f"sum by ({by}) ({what})" if by else f"sum({what})"
