"""`serve run` and `make serve` when something is wrong, before any server is up."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from app.builtin import MANIFEST, WEIGHTS, ensure
from scripts import serve
from scripts.console import Problem
from tests.app.conftest import BINARIES, ROOT


def _serve_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [BINARIES / "serve", "run", "app.main:app", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_wrong_settings_are_one_message(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("models:\n- variants:\n  - engine: {kv_cache: 2}\n")
    done = _serve_run(f"settings={file}")
    assert done.returncode == 1
    assert "models.0.variants.0.engine.kv_cache = 2: there is no such key" in done.stderr
    assert "did you mean kv_cache_gib?" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_make_serve_tells_wrong_settings_before_it_starts_anything(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("models:\n- variants:\n  - scaling: {smoothing_factor: 1}\n")
    command = [sys.executable, "-m", "scripts.serve", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (1, "")
    assert "scaling.smoothing_factor = 1: Ray has renamed it; fix: use upscaling_factor" in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_settings_are_one_message() -> None:
    done = _serve_run("settings=no-such-file.yaml")
    assert done.returncode == 1
    assert "no-such-file.yaml: cannot be read" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_taken_port_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(serve, "PORT", taken.getsockname()[1])
        with pytest.raises(Problem, match=f"is taken by .* \\(pid {os.getpid()}\\)"):
            serve.require_port()


LOG = """\
INFO starting
\x1b[36m(ServeReplica:default:LLMServer:chat pid=77)\x1b[0m ray.exceptions.RayTaskError(OSError): ray::R
\x1b[36m(ServeReplica:default:LLMServer:chat pid=77)\x1b[0m RuntimeError: Traceback (most recent call last):
\x1b[36m(ServeReplica:default:LLMServer:chat pid=77)\x1b[0m   File "x.py", line 1, in load
\x1b[36m(ServeReplica:default:LLMServer:chat pid=77)\x1b[0m OSError: /weights has no config.json
INFO retrying
"""


def test_why_a_server_ended(tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    log.write_text(LOG)
    assert serve.reason(log) == "  OSError: /weights has no config.json"
    log.write_text("one\ntwo\n")
    assert serve.reason(log) == "  one\n  two"


def test_the_built_in_models_are_the_same_every_time_they_are_made(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app.builtin"],
        cwd=ROOT,
        env={**os.environ, "BLUEPRINT_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    for name, line in zip(WEIGHTS, done.stdout.splitlines(), strict=True):
        made = Path(line)
        assert made.parent == tmp_path / "models"
        assert json.loads((made / MANIFEST).read_text()) == json.loads((ensure(name) / MANIFEST).read_text())
