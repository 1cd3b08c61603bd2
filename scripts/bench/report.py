"""What a run has found: a file with all of it, and tables of medians beside the peer's."""

import json
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any, NamedTuple

from scripts.bench.load import Measured, Point
from scripts.console import table

PEER = "vllm"
"""Ratios are to it."""


class Run(NamedTuple):
    """One Point of one round, by one client."""

    contender: str
    round: int
    client: str
    point: Point
    measured: Measured
    cpu_ms_per_token: dict[str, float]
    """Of the server's processes, by what they are."""


class Report(NamedTuple):
    """All of a run."""

    versions: dict[str, str]
    machine: dict[str, Any]
    golden: dict[str, list[str]]
    runs: list[Run]

    def text(self) -> str:
        """As JSON, a line for each run."""
        head = {"versions": self.versions, "machine": self.machine, "golden": self.golden}
        runs = ",\n".join(f"  {json.dumps(_plain(run))}" for run in self.runs)
        return f'{json.dumps(head, indent=1)[:-2]},\n "runs": [\n{runs}\n ]\n}}\n'

    def of(self, contender: str, client: str, point: Point) -> list[Run]:
        wanted = (contender, client, point)
        return [run for run in self.runs if (run.contender, run.client, run.point) == wanted]


def _plain(run: Run) -> dict[str, Any]:
    measured = {key: round(value, 2) for key, value in run.measured._asdict().items()}
    return {**run._asdict(), "point": run.point._asdict(), "measured": measured}


def _keys(runs: Iterable[Run], key: Callable[[Run], Any]) -> list[Any]:
    return list(dict.fromkeys(map(key, runs)))


def ratios(found: Report) -> str:
    """Medians over the rounds, as parts of the peer's, with the least and the greatest."""
    rows: list[tuple[str, ...]] = [
        ("client", "at once", "contender", "tokens/s", "of the peer's", "p95 to first token", "of the peer's")
    ]
    for client in _keys(found.runs, lambda run: run.client):
        for point in _keys(found.runs, lambda run: run.point):
            peer = found.of(PEER, client, point)
            for name in _keys(found.runs, lambda run: run.contender):
                runs = found.of(name, client, point)
                speed, first = ([run.measured[index] for run in runs] for index in (0, 2))
                cells = [f"{median(speed):.1f}", "", f"{median(first):.0f} ms", ""]
                if peer:
                    base = [median(run.measured[index] for run in peer) for index in (0, 2)]
                    cells[1] = f"{median(speed) / base[0]:.2f} ({min(speed) / base[0]:.2f}–{max(speed) / base[0]:.2f})"
                    cells[3] = f"{median(first) / base[1]:.2f}"
                rows.append((client, str(point.concurrency), name, *cells))
    return table(rows)


def costs(found: Report) -> str:
    """CPU of the server's processes, in ms a token: medians over rounds and clients."""
    roles = sorted({role for run in found.runs for role in run.cpu_ms_per_token})
    rows: list[tuple[str, ...]] = [("CPU, ms a token", "at once", *roles, "all")]
    for point in _keys(found.runs, lambda run: run.point):
        for name in _keys(found.runs, lambda run: run.contender):
            runs = [run for run in found.runs if (run.contender, run.point) == (name, point)]
            used = [median(run.cpu_ms_per_token.get(role, 0) for run in runs) for role in roles]
            rows.append((name, str(point.concurrency), *(f"{ms:.2f}" for ms in used), f"{sum(used):.2f}"))
    return table(rows)
