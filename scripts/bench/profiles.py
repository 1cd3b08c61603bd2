"""`make bench PROFILE=1`: in which functions the processes of a server spend their time, by py-spy, as text."""

import contextlib
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from app.builtin import cache_dir
from scripts.bench.kind import Kind
from scripts.console import Problem, say, step, table

PY_SPY = Path(sys.executable).parent / "py-spy"
ROLES = ("frontend", "proxy", "gateway", "replica", "engine", "worker")
"""Whose time it is; the rest of Ray is C++, or idle."""
PER_SECOND = 100
MOST = 40
"""Lines of a table."""


class Stacks(NamedTuple):
    """What py-spy has seen of a role's processes at work: the stack, from its root, and how often."""

    processes: int
    seen: Counter[tuple[str, ...]]


def profile(kind: Kind, results: Path) -> None:
    """Start each contender once, ask it for all points by all of its clients, and write a file for each role."""
    results.mkdir(parents=True, exist_ok=True)
    for name, contender in kind.contenders.items():
        with (
            step(f"{name} ({contender.what}), under py-spy"),
            contender.start(cache_dir() / f"bench-{name}.log") as served,
        ):
            for client in contender.clients.values():
                client(served, kind.warm, 0)
            watched = [(role, process) for role, process in served.processes() if role in ROLES]
            with recording(watched) as found:
                for point in kind.points:
                    for index, client in enumerate(contender.clients.values()):
                        client(served, point, 1000 + point.concurrency * 2 + index)
            load = "; ".join(map(str, kind.points))
            for role, stacks in found.items():
                file = results / f"{name}-{role}.txt"
                file.write_text(f"{name}, {role}: {load}, by {', '.join(contender.clients)}\n{told(stacks)}\n")
                say(f"    {file}")


@contextlib.contextmanager
def recording(processes: Iterable[tuple[str, psutil.Process]]) -> Iterator[dict[str, Stacks]]:
    """Record all of them, each with its role; at the end what was seen is there, by role. Problem when it cannot be."""
    found: dict[str, Stacks] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as directory, contextlib.ExitStack() as started:
        recorders = [
            (role, process.pid, started.enter_context(_recorder(process.pid, Path(directory))))
            for role, process in processes
        ]
        yield found
        for _, _, recorder in recorders:
            recorder.send_signal(signal.SIGINT)
        for role, pid, recorder in recorders:
            recorder.communicate()
            before = found.get(role, Stacks(0, Counter()))
            raw = (Path(directory) / str(pid)).read_text()
            found[role] = Stacks(before.processes + 1, before.seen + collapsed(raw))


@contextlib.contextmanager
def _recorder(pid: int, directory: Path) -> Iterator[subprocess.Popen[str]]:
    """A py-spy that has begun, and at its end writes a file with the process's number into the directory."""
    raw = directory / str(pid)
    # Whoever has the interpreter's lock is at work; threads that wait in C look as if they were, too.
    command = [PY_SPY, "record", "--gil", "--pid", str(pid), "--format", "raw", "--output", raw, "--function"]
    with subprocess.Popen(
        [*command, "--rate", str(PER_SECOND)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as recorder:
        assert recorder.stdout
        try:
            if "Sampling" not in (said := recorder.stdout.readline()):
                raise Problem(
                    f"py-spy cannot record process {pid}: {said.strip()}",
                    "run this as root, or set kernel.yama.ptrace_scope to 0 (sysctl)",
                )
            yield recorder
        finally:
            recorder.kill()


def collapsed(raw: str) -> Counter[tuple[str, ...]]:
    """py-spy's raw format: a line for each stack, `root;…;function count`."""
    found: Counter[tuple[str, ...]] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        found[tuple(stack.split(";"))] += int(count)
    return found


def told(stacks: Stacks) -> str:
    """Two tables of functions: where the time is spent, and on whose behalf."""
    itself: Counter[str] = Counter()
    within: Counter[str] = Counter()
    for stack, count in stacks.seen.items():
        itself[stack[-1]] += count
        within.update(dict.fromkeys(stack, count))
    every = stacks.seen.total()
    parts = [f"{stacks.processes} processes, {every} samples of one at work in Python, {PER_SECOND} a second from each"]
    for by in (itself, within):
        rows = [("self", "total", "function")]
        for function, _ in by.most_common(MOST):
            rows.append((_percent(itself[function], every), _percent(within[function], every), function))
        parts.append(table(rows))
    return "\n\n".join(parts)


def _percent(part: int, every: int) -> str:
    return f"{100 * part / every:5.1f} %"
