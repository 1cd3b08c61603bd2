"""What is compared: servers of one model on this machine, each alone, with one and the same engine.

All but vLLM's own are `serve run` with a Ray of their own.
"""

import contextlib
import os
import subprocess
import sys
import time
import uuid
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

    def processes(self) -> list[psutil.Process]:
        return serve.marked(serve.MARK, self.mark)


class Contender(NamedTuple):
    """A server that can be started; `what` says which."""

    what: str
    start: Callable[[Path], AbstractContextManager[Served]]
    """Takes the file for its log. Problem when it does not answer."""


@contextlib.contextmanager
def _started(command: list[str | Path], variables: Mapping[str, str], key: str, log: Path) -> Iterator[Served]:
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
    return _started(command, variables | {"OMP_NUM_THREADS": "1"}, "none", log)


def _serve_run(what: list[str], variables: Mapping[str, str], key: str, log: Path) -> AbstractContextManager[Served]:
    command: list[str | Path] = [Path(sys.executable).parent / "serve", "run", *what]
    return _started(command, variables, key, log)


def _stock(log: Path) -> AbstractContextManager[Served]:
    return _serve_run(["scripts.bench.stock:app"], {}, "none", log)


def ours(
    settings: Mapping[str, Any], log: Path, governed: bool = True, **variables: str
) -> AbstractContextManager[Served]:
    """Our application with what `settings` name and nothing else; `governed` asks for keys, and counts."""
    key = keys.make()
    values = {**NOTHING, **settings}
    if governed:
        file = log.with_suffix(".keys.yaml")
        file.write_text(yaml.safe_dump({"keys": [{"name": "bench", "sha256": keys.digest(key), **LIMITS}]}))
        values["auth"] = {"keys_file": str(file)}
    file = log.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(values))
    return _serve_run(["app.main:app", f"settings={file}"], environment(parse(values)), key, log)


def _chat(**more: Any) -> dict[str, Any]:
    """Two variants, of which one has all the weight: the choice is made, and one engine does the work."""
    idle = {"name": "canary", "weight": 0, "placement": {"num_cpus": 0.25}}
    return {"models": [{"name": NAME, "variants": [{"name": "stable", "weight": 1}, idle], **more}]}


SAFETY = {"name": "safety", "source": "builtin:profanity", "unsafe": ["offensive"]}
CONTENDERS = {
    "vllm": Contender("vLLM's own OpenAI server", partial(_vllm, "vllm.entrypoints.openai.api_server")),
    "vllm-uni": Contender("the same with our engine's processes", partial(_vllm, "scripts.bench.one_process")),
    "ray-llm": Contender("ray.serve.llm, build_openai_app as its documentation has it", _stock),
    "bare": Contender(
        "ours without keys, limits, second variant and guard",
        partial(ours, {"models": [{"name": NAME}]}, governed=False),
    ),
    "fast": Contender(
        "ours with keys and limits, its gateway in the model's replica",
        partial(ours, {"models": [{"name": NAME}], "gateway": {"fast": True}}),
    ),
    "governed": Contender("ours with keys, limits and two variants", partial(ours, _chat())),
    "guarded": Contender(
        "the same, and a guard", partial(ours, {**_chat(guard={"classifier": "safety"}), "classifiers": [SAFETY]})
    ),
}
