"""`make fuzz`: atheris on our parsers of what comes from outside, each module here for its share of the time.

A module has SEEDS, inputs to begin with, and `run(data)`, which raises when a property does not hold, and runs in a
directory of its own. What it imports of ours is instrumented, so that libFuzzer knows which inputs lead where no other
has led.
"""

import argparse
import contextlib
import ctypes
import importlib
import io
import math
import multiprocessing
import os
import pkgutil
import re
import tempfile
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import atheris

from app.builtin import cache_dir
from scripts.console import Problem, main, say, step, table
from tests import fuzz

OURS = ["app", "scripts.plan"]
NAMES = sorted(module.name for module in pkgutil.iter_modules(fuzz.__path__) if not module.name.startswith("_"))
INPUT_SECONDS = 10
"""How long one input may take; more is a way to stop the server."""
LONGEST = 8192
"""Bytes of an input."""


class Found(NamedTuple):
    """What libFuzzer says of one target."""

    name: str
    executions: int
    peak_mib: int
    """Of its process, with all that is imported."""
    crash: Path | None
    """The input that crashed it."""
    reason: str


def main_of_fuzz() -> None:
    """Raises Problem with the inputs that crashed a target."""
    parser = argparse.ArgumentParser(prog="make fuzz")
    parser.add_argument("--seconds", type=float, default=60, help="for all targets together")
    parser.add_argument("--target", choices=NAMES, help="all when left out")
    parser.add_argument("--input", type=Path, help="a file, to run once with the target and without libFuzzer")
    chosen = parser.parse_args()
    names = [chosen.target] if chosen.target else NAMES
    # Atheris names each module that it instruments.
    with (
        step("importing what is fuzzed"),
        contextlib.redirect_stderr(io.StringIO()),
        atheris.instrument_imports(include=OURS),  # pyright: ignore[reportAttributeAccessIssue]
    ):
        targets = {name: importlib.import_module(f"tests.fuzz.{name}") for name in names}
    if chosen.input:
        data = chosen.input.read_bytes()
        with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
            targets[names[0]].run(data)
        say("nothing is wrong with this input")
        return
    found: list[Found] = []
    for name, target in targets.items():
        with step(name):
            found.append(_fuzz(name, target, math.ceil(chosen.seconds / len(targets))))
    rows = [(one.name, f"{one.executions:,}", "1" if one.crash else "0", f"{one.peak_mib} MiB") for one in found]
    say("\n" + table([("TARGET", "EXECUTIONS", "CRASHES", "PEAK MEMORY"), *rows]) + "\n")
    if crashed := [one for one in found if one.crash]:
        raise Problem(
            "\n".join(f"{one.name}: {one.reason}\n  input: {_shown(one.crash)}" for one in crashed if one.crash),
            "\n  ".join(f"make fuzz TARGET={one.name} INPUT={one.crash}  # runs it again" for one in crashed),
        )


def _fuzz(name: str, target: ModuleType, seconds: int) -> Found:
    """Run one target, in a process of its own: libFuzzer ends it with the first crash."""
    crashes = cache_dir() / "fuzz"
    crashes.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        log, corpus = Path(directory, "log"), Path(directory, "corpus")
        corpus.mkdir()
        for index, seed in enumerate(target.SEEDS):
            (corpus / str(index)).write_bytes(seed)
        options = {
            "max_total_time": seconds,
            "timeout": INPUT_SECONDS,
            "max_len": LONGEST,
            "rss_limit_mb": 0,  # what is imported counts, and that is most of it
            "artifact_prefix": f"{crashes}/{name}-",
            "print_final_stats": 1,
        }
        arguments = [name, *(f"-{option}={value}" for option, value in options.items()), str(corpus)]
        process = multiprocessing.get_context("fork").Process(target=_child, args=(directory, log, arguments, target))
        process.start()
        process.join()
        said = log.read_text(errors="replace")
    statistics = dict(re.findall(r"stat::(\w+):\s+(\d+)", said))
    artifact = re.search(r"Test unit written to (.+)", said)
    if not artifact and process.exitcode:
        raise Problem(f"{name}: libFuzzer ended with {process.exitcode}:\n{said[-2000:]}", "mend that")
    return Found(
        name,
        int(statistics.get("number_of_executed_units", 0)),
        int(statistics.get("peak_rss_mb", 0)),
        Path(artifact[1]) if artifact else None,
        _reason(said),
    )


def _child(directory: str, log: Path, arguments: list[str], target: ModuleType) -> None:
    os.chdir(directory)
    with log.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    atheris.Setup(arguments, target.run)
    try:
        atheris.Fuzz()
    finally:
        # libFuzzer writes down the input when the process exits, which multiprocessing would do without C's handlers.
        ctypes.CDLL(None).exit(1)


def _reason(said: str) -> str:
    """The exception, or what libFuzzer calls it."""
    exception = re.search(r"Uncaught Python exception: ===\n(.+)", said)
    summary = re.search(r"SUMMARY: (.+)", said)
    return exception[1] if exception else summary[1] if summary else ""


def _shown(path: Path) -> str:
    shown = repr(path.read_bytes())
    return shown if len(shown) <= 300 else f"{shown[:300]}… ({path.stat().st_size} bytes)"


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main(main_of_fuzz)
