"""`make fuzz`: a short run over all targets, and what it says of an input that breaks one."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.app.conftest import ROOT
from tests.fuzz import __main__ as fuzz


def test_nothing_breaks_our_parsers() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--seconds", "10"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith(tuple(fuzz.NAMES))]
    assert [row[0] for row in rows] == fuzz.NAMES
    assert all(int(row[1].replace(",", "")) > 0 and row[2] == "0" for row in rows), done.stdout


def test_an_input_that_breaks_one_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """libFuzzer itself, with a target of the test's."""

    def run(data: bytes) -> None:
        if data == b"no":
            raise KeyError("broken")

    monkeypatch.setenv("BLUEPRINT_CACHE", str(tmp_path))
    target: Any = SimpleNamespace(SEEDS=[b"yes", b"no"], run=run)
    found = fuzz._fuzz("stand-in", target, 10)
    assert found.crash is not None
    assert found.crash.read_bytes() == b"no"
    assert tmp_path in found.crash.parents
    assert found.reason == "KeyError: 'broken'"
    assert fuzz._fuzz("stand-in", SimpleNamespace(SEEDS=[b"yes"], run=len), 1).crash is None  # pyright: ignore[reportArgumentType]
