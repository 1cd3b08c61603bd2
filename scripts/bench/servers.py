"""The servers that are measured, each alone on this machine: how they start, and what they have used.

Those of Ray Serve are `serve run` with a Ray of their own.
"""

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import yaml

from app import keys
from app.builtin import ensure
from app.settings import NOTHING, Settings, Variant, environment, parse
from scripts import serve
from scripts.console import Problem

MODEL = "smollm2-135m-instruct"
NAME = "chat"
START_SECONDS = 300.0
LIMITS = {"requests_per_minute": 10**9, "tokens_per_minute": 10**12, "concurrency": 10**6}
"""Counted, and never reached."""


class Served(NamedTuple):
    """A server that answers."""

    url: str
    key: str
    mark: str

    def processes(self) -> list[tuple[str, psutil.Process]]:
        """All of its processes, each with its role."""
        found: list[tuple[str, psutil.Process]] = []
        for process in serve.marked(serve.MARK, self.mark):
            with contextlib.suppress(psutil.Error):
                found.append((role(" ".join(process.cmdline())), process))
        return found

    def cpu_seconds(self) -> dict[str, float]:
        """What its processes have used so far, by their role."""
        used: defaultdict[str, float] = defaultdict(float)
        for name, process in self.processes():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                used[name] += times.user + times.system
        return used


Start = Callable[[Path], AbstractContextManager[Served]]
"""Takes the file for the server's log. Problem when it does not answer."""


def role(title: str) -> str:
    """What a process is, by its command line."""
    for part, name in (
        ("VLLM::EngineCore", "engine"),
        ("VLLM::Worker", "worker"),
        ("api_server", "frontend"),
        ("one_process", "frontend"),
        ("uvicorn", "frontend"),
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


@contextlib.contextmanager
def started(command: list[str | Path], variables: Mapping[str, str], key: str, log: Path) -> Iterator[Served]:
    """A server on our port, once it answers, with `log` for what it writes. Problem when it does not."""
    serve.require_port()
    mark = uuid.uuid4().hex
    common = {serve.MARK: mark, "HF_HUB_OFFLINE": "1", "RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0"}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=serve.ROOT,
            env={**os.environ, **common, **variables},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait(process, key, log)
        yield Served(serve.URL, key, mark)
    finally:
        serve.end(process, mark)


def _wait(process: subprocess.Popen[bytes], key: str, log: Path) -> None:
    """Return when all models answer."""
    deadline = time.monotonic() + START_SECONDS
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=serve.URL, headers=headers, timeout=30, trust_env=False) as http:
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if _ready(http):
                    return
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.5)
    raise Problem(f"a server has not answered:\n{serve.reason(log)}", f"mend that; all that it wrote is in {log}")


def _ready(http: httpx.Client) -> bool:
    """By our own route, or in servers that have none, by an answer: others list models that do not answer yet."""
    ready = http.get("/ready")
    if ready.status_code != 404:
        return ready.status_code == 200
    body = {"model": NAME, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    return http.post("/v1/chat/completions", json=body).status_code == 200


def engine_arguments(variant: Variant) -> dict[str, Any]:
    """Those of our engine that are not vLLM's defaults, for the others."""
    engine = variant.engine
    return {
        "max_model_len": engine.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "dtype": engine.dtype,
        "enforce_eager": True,
        "seed": engine.seed,
        "kv_cache_memory_bytes": 2**28,
    }


def _vllm(module: str, log: Path) -> AbstractContextManager[Served]:
    arguments = engine_arguments(Settings().models[0].variants[0])
    options: list[str] = []
    for name, value in arguments.items():
        options += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    command: list[str | Path] = [
        *(sys.executable, "-m", module, "--host", "127.0.0.1", "--port", str(serve.PORT)),
        *("--model", ensure(MODEL), "--served-model-name", NAME, "--disable-uvicorn-access-log", *options),
    ]
    # As the replica's engines have it.
    variables = {"VLLM_NO_USAGE_STATS": "1", "TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return started(command, variables | {"OMP_NUM_THREADS": "1"}, "none", log)


VLLM: dict[str, tuple[str, Start]] = {
    "vllm": ("vLLM's own OpenAI server", partial(_vllm, "vllm.entrypoints.openai.api_server")),
    "vllm-uni": ("the same with our engine's processes", partial(_vllm, "scripts.bench.one_process")),
}
"""The peers of our engines: what they are, and how they start."""


def serve_run(
    what: list[str], log: Path, variables: Mapping[str, str] | None = None, key: str = "none"
) -> AbstractContextManager[Served]:
    """A server by `serve run`."""
    command: list[str | Path] = [Path(sys.executable).parent / "serve", "run", *what]
    return started(command, variables or {}, key, log)


def ours(settings: Mapping[str, Any], log: Path, governed: bool = True) -> AbstractContextManager[Served]:
    """Our application with what `settings` name and nothing else; `governed` asks for keys, and counts."""
    key = keys.make()
    values = {**NOTHING, **settings}
    if governed:
        file = log.with_suffix(".keys.yaml")
        file.write_text(yaml.safe_dump({"keys": [{"name": "bench", "sha256": keys.digest(key), **LIMITS}]}))
        values["auth"] = {"keys_file": str(file)}
    file = log.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(values))
    return serve_run(["app.main:app", f"settings={file}"], log, environment(parse(values)), key)
