"""Traffic: requests a second over time, by a shape or from a CSV, and the requests that come of it."""

import csv
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.validation import nearest
from scripts.console import Problem
from scripts.plan.simulation import Load

SEED = 0
MOST = 5_000_000
"""Requests that a trace may bring: each takes the simulation some 5 µs, for each setting."""
COLUMNS = ("second", "rate")
FIX = "two columns, `second,rate`: from that second on, so many requests a second; the last row ends the trace"


class Traffic(NamedTuple):
    """A rate for each span between two edges."""

    name: str
    edges: NDArray[np.floating[Any]]
    """Seconds, ascending from 0; one more than there are rates."""
    rates: NDArray[np.floating[Any]]
    """Requests a second."""

    @property
    def seconds(self) -> float:
        return float(self.edges[-1])

    def load(self, seed: int = SEED) -> Load:
        """Requests that come independently of each other at these rates (a Poisson process), of exponential work.

        Raises Problem for too many.
        """
        expected = np.concatenate(([0.0], np.cumsum(self.rates * np.diff(self.edges))))
        if expected[-1] > MOST:
            raise Problem(
                f"TRACE = {self.name!r}: is of {expected[-1]:,.0f} requests, and {MOST:,} are simulated at most",
                "take a shorter one, or a lower RATE",
            )
        rng = np.random.default_rng(seed)
        number = rng.poisson(expected[-1])
        arrivals = np.interp(np.sort(rng.uniform(0, expected[-1], number)), expected, self.edges)
        return Load(arrivals, rng.exponential(1.0, number), self.seconds)


def daily(peak: float) -> Traffic:
    """A day in minutes: a tenth of the peak at four in the morning, the peak at four in the afternoon."""
    hours = np.arange(24 * 60) / 60
    share = (1 - np.cos(2 * math.pi * (hours - 4) / 24)) / 2
    return Traffic("daily", np.arange(24 * 60 + 1) * 60.0, peak * (0.1 + 0.9 * share))


def burst(peak: float) -> Traffic:
    """Three hours at a fifth of the peak, and at the peak for five minutes of each half hour."""
    rates = np.where(np.arange(180) % 30 >= 25, peak, peak / 5)
    return Traffic("burst", np.arange(181) * 60.0, rates)


def step(peak: float) -> Traffic:
    """Twenty minutes at a fifth of the peak, then an hour at the peak, then forty minutes at a fifth."""
    rates = np.repeat([peak / 5, peak, peak / 5], [20, 60, 40])
    return Traffic("step", np.arange(121) * 60.0, rates)


SHAPES = {"daily": daily, "burst": burst, "step": step}


def read(trace: str, peak: float) -> Traffic:
    """The shape of this name with this peak, or the CSV at this path. Raises Problem."""
    if trace in SHAPES:
        return SHAPES[trace](peak)
    if not trace.endswith(".csv"):
        known = list(SHAPES)
        raise Problem(f"TRACE = {trace!r}: there is no such shape", f"use {nearest(trace, known)}, or a file *.csv")
    return _from_csv(Path(trace))


def _from_csv(path: Path) -> Traffic:
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file, restkey="", strict=True)
            columns, rows = tuple(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Problem(f"TRACE = {str(path)!r}: cannot be read ({error})", f"name a CSV file of {FIX}") from None
    if set(columns) != set(COLUMNS) or len(columns) != len(COLUMNS):
        raise Problem(f"TRACE = {str(path)!r}: its columns are {', '.join(columns) or 'none'}", FIX)
    if len(rows) < 2:
        raise Problem(
            f"TRACE = {str(path)!r}: has {len(rows)} row{'' if rows else 's'}, and a span is between two", FIX
        )
    values = np.array([_numbers(path, number, row) for number, row in enumerate(rows, 2)])
    edges, rates = values[:, 0], values[:, 1]
    falls = np.flatnonzero(np.diff(edges) <= 0)
    if falls.size:
        line = int(falls[0]) + 3
        raise Problem(
            f"TRACE = {str(path)!r}: line {line}: second = {edges[line - 2]:g} is not after the one before", FIX
        )
    return Traffic(path.stem, edges - edges[0], rates[:-1])


def _numbers(path: Path, line: int, row: dict[str, str | None]) -> tuple[float, float]:
    if "" in row:
        raise Problem(f"TRACE = {str(path)!r}: line {line}: has more than two values", FIX)
    second, rate = (_number(path, line, column, row[column]) for column in COLUMNS)
    return second, rate


def _number(path: Path, line: int, column: str, text: str | None) -> float:
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise Problem(f"TRACE = {str(path)!r}: line {line}: {column} = {text!r} is no number of 0 or more", FIX)
    return number
