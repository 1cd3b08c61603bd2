"""What a run has found: a file with all of it, and tables of medians beside the peer's."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from scripts.bench.kind import Kind
from scripts.bench.load import Measured, Point
from scripts.console import table


class Run(NamedTuple):
    """One Point of one round, by one client."""

    contender: str
    round: int
    client: str
    point: Point
    measured: Measured
    cpu_ms: dict[str, float]
    """Of the server's processes, by their role, for each token, text or request."""


class Report(NamedTuple):
    """All of a run."""

    versions: dict[str, str]
    machine: dict[str, Any]
    golden: dict[str, list[str]]
    runs: list[Run]

    def text(self) -> str:
        """As JSON, a line for each run."""
        head = {"versions": self.versions, "machine": self.machine, "golden": self.golden}
        return text(head, [_plain(run) for run in self.runs])

    def of(self, contender: str, client: str, point: Point) -> list[Run]:
        wanted = (contender, client, point)
        return [run for run in self.runs if (run.contender, run.client, run.point) == wanted]


def text(head: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> str:
    """As JSON: the head, and a line for each run."""
    lines = ",\n".join(f"  {json.dumps(run)}" for run in runs)
    return f'{json.dumps(head, indent=1)[:-2]},\n "runs": [\n{lines}\n ]\n}}\n'


def _plain(run: Run) -> dict[str, Any]:
    point = {key: value for key, value in run.point._asdict().items() if value}
    measured = {key: round(value, 2) for key, value in run.measured._asdict().items()}
    return {**run._asdict(), "point": point, "measured": measured}


def _keys(runs: Iterable[Run], key: Callable[[Run], Any]) -> list[Any]:
    return list(dict.fromkeys(map(key, runs)))


def _peers(found: Report, kind: Kind) -> list[str]:
    """Those that were measured."""
    return [peer for peer in kind.peers if any(run.contender == peer for run in found.runs)]


def ratios(found: Report, kind: Kind) -> str:
    """Medians over the rounds, as parts of the peers', with the least and the greatest."""
    peers = _peers(found, kind)
    speeds, waits = ([f"{what} of {peer}'s" for peer in peers] for what in ("part", "times"))
    rows: list[tuple[str, ...]] = [("client", "load", "contender", f"{kind.unit}/s", *speeds, "p95 wait", *waits)]
    for client in _keys(found.runs, lambda run: run.client):
        for point in _keys(found.runs, lambda run: run.point):

            def medians(name: str, client: str = client, point: Point = point) -> tuple[float, float, list[float]]:
                runs = [run.measured for run in found.of(name, client, point)]
                speed = [run.per_second for run in runs]
                return median(speed), median(run.p95 for run in runs), speed

            for name in _keys(found.runs, lambda run: run.contender):
                speed, wait, every = medians(name)
                parts: list[str] = []
                times: list[str] = []
                for peer in peers:
                    base, base_wait, _ = medians(peer)
                    parts.append(f"{speed / base:.2f} ({min(every) / base:.2f}–{max(every) / base:.2f})")
                    times.append(f"{wait / base_wait:.2f}" if wait and base_wait else "")
                said = f"{wait:.0f} ms" if wait else ""
                rows.append((client, str(point), name, f"{speed:.1f}", *parts, said, *times))
    return table(rows)


def costs(found: Report, kind: Kind) -> str:
    """CPU of the servers' processes, in ms for each token, text or request: medians over the rounds."""
    roles = sorted({role for run in found.runs for role in run.cpu_ms})
    rows: list[tuple[str, ...]] = [(f"CPU, ms a {kind.unit[:-1]}", "client", "load", *roles, "all")]
    for client in _keys(found.runs, lambda run: run.client):
        for point in _keys(found.runs, lambda run: run.point):
            for name in _keys(found.runs, lambda run: run.contender):
                runs = found.of(name, client, point)
                used = [median(run.cpu_ms.get(role, 0) for run in runs) for role in roles]
                if any(used):
                    rows.append((name, client, str(point), *(f"{ms:.2f}" for ms in used), f"{sum(used):.2f}"))
    return table(rows)


def plot(found: Report, kind: Kind, path: Path) -> None:
    """Throughput and time to the first token, by how many requests there are at once.

    As parts of the last peer's, or where no peer was measured of the first contender's.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    # Text stays text, and the same input makes the same file.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bench"})
    measured = _keys(found.runs, lambda run: run.contender)
    peer = [measured[0], *_peers(found, kind)][-1]
    names = [name for name in measured if name != peer]
    points = _keys(found.runs, lambda run: run.point)
    width = 1 / (len(names) + 1)
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for axis, what, value in (
        (axes[0], f"{kind.unit}/s, as a part of {peer}'s", lambda one: one.per_second),
        (axes[1], f"p95 to the first token, times {peer}'s", lambda one: one.p95),
    ):
        for place, name in enumerate(names):
            parts = [_typical(found, name, point, value) / _typical(found, peer, point, value) for point in points]
            axis.bar([x + place * width for x in range(len(points))], parts, width, label=name)
        axis.axhline(1, color="grey", linewidth=0.8)
        axis.set_xticks([x + 0.4 for x in range(len(points))], [f"{point.concurrency} at once" for point in points])
        axis.set_title(what, fontsize=10)
    axes[1].legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _typical(found: Report, name: str, point: Point, value: Callable[[Measured], float]) -> float:
    """The median over rounds and clients."""
    return median(value(run.measured) for run in found.runs if (run.contender, run.point) == (name, point))
