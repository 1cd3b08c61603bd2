"""The metrics that dashboards and alerts may ask for: metrics.csv, which says of each where it was seen.

What a running server exports, `make record-metrics` writes there; what it exports only in a cluster or with a GPU, and
what others export there, is added by hand with the source that was read.
"""

import csv
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("metrics.csv")
WHERE = {
    "scraped": "every running server exports it",
    "event": "the same, once something has happened that a recording does not bring about",
    "cluster": "in every Kubernetes cluster of ours",
    "others": "where somebody else exports it: kube-state-metrics, which comes with the chart, Karpenter, a probe",
    "gpu": "with a GPU only",
}


class Metric(NamedTuple):
    name: str
    """Of a histogram or summary without the suffixes of its series."""
    type: str
    labels: str
    """Sorted, a space between; without `le` and `quantile`."""
    where: str
    """A key of WHERE."""
    source: str
    """What was scraped, or the source that was read."""

    @property
    def series(self) -> list[str]:
        """The names that PromQL knows."""
        if self.type == "histogram":
            return [f"{self.name}{suffix}" for suffix in ("_bucket", "_sum", "_count")]
        if self.type == "summary":
            return [self.name, f"{self.name}_sum", f"{self.name}_count"]
        return [self.name]


def known() -> list[Metric]:
    """All that are in the file."""
    with FILE.open() as file:
        return [Metric(**row) for row in csv.DictReader(file)]


def series() -> dict[str, Metric]:
    """By the names that PromQL knows."""
    return {name: metric for metric in known() for name in metric.series}


def write(metrics: Iterable[Metric]) -> None:
    """Replace the file."""
    order = list(WHERE)
    rows = sorted(metrics, key=lambda one: (order.index(one.where), one.name))
    with FILE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Metric._fields)
        writer.writerows(rows)


_NO_NAMES = re.compile(
    r'"(?:[^"\\]|\\.)*"'  # strings
    r"|\{[^{}]*\}|\[[^][]*\]"  # matchers and windows
    r"|\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^()]*\)"
)
_NAME = re.compile(r"(?<![\w.:])[a-zA-Z_:][\w:]*(?!\s*\(|[\w:])")
_WORDS = {
    "and",
    "or",
    "unless",
    "bool",
    "offset",
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
    "inf",
    "nan",
}


def names(expression: str) -> set[str]:
    """The series that a PromQL expression asks for."""
    while (bare := _NO_NAMES.sub(" ", expression)) != expression:  # a string may be in a matcher
        expression = bare
    return {name for name in _NAME.findall(expression) if name.lower() not in _WORDS}
