"""What a run has found: a file with all of it, and tables of medians beside the peer's."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from scripts.bench.load import Measured, Point
from scripts.console import table

PEERS = ("vllm", "vllm-uni")
"""Ratios are to them: vLLM's own server as it is, and with the engine's processes as ours are."""


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
    """Medians over the rounds, as parts of the peers', with the least and the greatest."""
    peers = [peer for peer in PEERS if any(run.contender == peer for run in found.runs)]
    speeds, firsts = ([f"{what} of {peer}'s" for peer in peers] for what in ("part", "times"))
    rows: list[tuple[str, ...]] = [("client", "at once", "contender", "tokens/s", *speeds, "p95 to first", *firsts)]
    for client in _keys(found.runs, lambda run: run.client):
        for point in _keys(found.runs, lambda run: run.point):

            def medians(name: str, client: str = client, point: Point = point) -> tuple[float, float, list[float]]:
                runs = [run.measured for run in found.of(name, client, point)]
                speed = [run.tokens_per_second for run in runs]
                return median(speed), median(run.ttft_p95 for run in runs), speed

            for name in _keys(found.runs, lambda run: run.contender):
                speed, first, every = medians(name)
                parts: list[str] = []
                times: list[str] = []
                for peer in peers:
                    base, base_first, _ = medians(peer)
                    parts.append(f"{speed / base:.2f} ({min(every) / base:.2f}–{max(every) / base:.2f})")
                    times.append(f"{first / base_first:.2f}")
                cells = (client, str(point.concurrency), name, f"{speed:.1f}", *parts, f"{first:.0f} ms", *times)
                rows.append(cells)
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


def plot(found: Report, path: Path) -> None:
    """Throughput and time to the first token, by how many requests there are at once.

    As parts of the last peer's, or where no peer was measured of the first contender's.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    # Text stays text, and the same input makes the same file.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bench"})
    measured = _keys(found.runs, lambda run: run.contender)
    peer = next((name for name in reversed(PEERS) if name in measured), measured[0])
    names = [name for name in measured if name != peer]
    points = _keys(found.runs, lambda run: run.point)
    width = 1 / (len(names) + 1)
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for axis, what, value in (
        (axes[0], f"tokens/s, as a part of {peer}'s", lambda one: one.tokens_per_second),
        (axes[1], f"p95 to the first token, times {peer}'s", lambda one: one.ttft_p95),
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
