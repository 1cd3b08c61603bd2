"""`make serve [SETTINGS=file] [SHAPE=cluster]`: the application on 127.0.0.1:8000 until Ctrl-C."""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import psutil
import yaml

from app.builtin import cache_dir
from app.settings import Settings, SettingsError, environment, load, serve_config
from scripts import models, packages, ports
from scripts.console import Problem, main, say, step

ROOT = Path(__file__).parent.parent
PORT = 8000
URL = f"http://127.0.0.1:{PORT}"
QUESTION = "What is the capital of France?"
NEEDED_BYTES = 2 << 30  # the model, Ray's object store on disk, and logs
START_SECONDS = 900.0
STOP_SECONDS = 60.0
MARK = "BLUEPRINT_SERVER"
"""Environment variable that all processes of one server inherit, and no other process has."""


def marked(variable: str, value: str) -> list[psutil.Process]:
    """The processes that have the variable in their environment, and all that they have started.

    Replicas and engines give themselves a name, which is written over their environment.
    """
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(variable) == value:
                found |= {process, *process.children(recursive=True)}
    return list(found)


def end(process: subprocess.Popen[bytes], mark: str) -> None:
    """End the process and every one that it started with this MARK."""
    ours = marked(MARK, mark)  # before: the environment of a dying process cannot be read
    # TERM, not INT: a child in the background ignores INT.
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=STOP_SECONDS)
    _, alive = psutil.wait_procs({*ours, *marked(MARK, mark)}, timeout=STOP_SECONDS)
    for one in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(alive)


class Server:
    """`serve run` as a child process, with a Ray of its own; `what` is its arguments, `variables` its environment.

    `log` gets all it writes. Whatever else runs on this machine, Ray included, is left alone.
    """

    def __init__(self, log: Path, variables: Mapping[str, str], *what: str) -> None:
        self.log = log
        self._mark = uuid.uuid4().hex
        self._started = time.monotonic()
        environment = {
            **os.environ,
            **variables,
            MARK: self._mark,
            # Building the application makes Ray start, or join whatever Ray it finds: --address
            # would come too late.
            "RAY_ADDRESS": "local",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [Path(sys.executable).parent / "serve", "run", *what],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                # A session of its own, so that Ctrl-C reaches us alone and we stop it in order.
                start_new_session=True,
            )

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def wait_until_ready(self) -> None:
        """Return when every model has answered; Problem when that will not happen."""
        phase = ""
        while self.elapsed < START_SECONDS:
            self._check_alive()
            status = self._status()
            if status == 200:
                return
            now = "loading models" if status == 503 else "starting Ray"
            if now != phase:
                say(f"  {self.elapsed:4.0f} s  {now}")
                phase = now
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=0.5)
        raise Problem(
            f"no model has answered after {START_SECONDS:.0f} s (last: {phase})",
            f"read {self.log}; a slow machine may need another try, now that its caches are warm",
        )

    def wait(self) -> None:
        """Return never; Problem when the server ends by itself."""
        self.process.wait()
        self._check_alive()

    def stop(self) -> None:
        """End the server and every process that it started."""
        end(self.process, self._mark)

    def _check_alive(self) -> None:
        if self.process.poll() is not None:
            raise Problem(
                f"the server ended (status {self.process.returncode}):\n{reason(self.log)}",
                f"mend that; all that it wrote is in {self.log}",
            )

    def _status(self) -> int | None:
        # Without the environment's proxies, which do not know this machine's 127.0.0.1.
        with contextlib.suppress(httpx.HTTPError):
            answered = httpx.get(f"{URL}/ready", timeout=10, trust_env=False)
            if "failed to deploy" in answered.text:
                raise Problem(
                    f"an application failed to deploy:\n{reason(self.log)}", f"mend that; more is in {self.log}"
                )
            return answered.status_code
        return None


@contextlib.contextmanager
def running(log: Path, variables: Mapping[str, str], *what: str) -> Iterator[Server]:
    """A server that answers, stopped at the end. Problem when it does not come up."""
    server = Server(log, variables, *what)
    try:
        server.wait_until_ready()
        yield server
    finally:
        # From here on a second Ctrl-C would leave processes behind.
        stopping = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, signal.SIG_IGN) for number in stopping}
        with step("stopping"):
            server.stop()
        for number, handler in before.items():
            signal.signal(number, handler)


def reason(log: Path) -> str:
    """Why a server ended: the last exceptions in its log, or else its last lines."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(errors="replace"))  # colours
    text = re.sub(r"^\(.* pid=\d+\) ", "", text, flags=re.MULTILINE)  # which of Ray's processes
    lines = [line for line in text.splitlines() if line.strip()]
    # Not what only carries the trace of another exception.
    errors = [
        line for line in lines if re.match(r"(?!.*(Traceback|RayTask))[\w.]*(Error|Exception)\b.*: |Error: ", line)
    ]
    chosen = list(dict.fromkeys(errors))[-3:] or lines[-10:]
    return "\n".join(f"  {line[:500]}" for line in chosen)


def require_port() -> None:
    """Problem when something else listens where we will."""
    if ports.is_taken(PORT):
        raise Problem(f"port {PORT} on 127.0.0.1 is taken{_holder()}", "stop that, then run this again")


def _holder() -> str:
    """Who listens on our port, as far as this user may know."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and PORT in connection.laddr
            if listens and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""


def _require_disk() -> None:
    directory = cache_dir()
    directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory).free
    if free < NEEDED_BYTES:
        raise Problem(
            f"{free >> 20} MiB are free on the disk of {directory}, and 2 GiB are needed",
            "free some space, or set BLUEPRINT_CACHE to a directory on another disk",
        )


def _settings(file: str | None) -> Settings:
    try:
        return load(file) if file else Settings()
    except SettingsError as error:
        raise Problem(str(error), "correct the settings; app/settings.py describes every key") from None


def what(shape: str, settings: Settings, file: str | None = None) -> list[str]:
    """Arguments of `serve run` for the settings, which came from `file` unless they are the defaults."""
    if shape == "local":
        return ["app.main:app", *([f"settings={Path(file).absolute()}"] if file else [])]
    config = cache_dir() / "serve-config.yaml"
    # Said here, since the default of a config is all addresses of the machine.
    http = {"host": "127.0.0.1", "port": PORT}
    config.write_text(yaml.safe_dump({**serve_config(settings), "http_options": http}, sort_keys=False))
    return [str(config)]


def _ask(model: str, question: str) -> str:
    """The model's answer."""
    body = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 64}
    answer = httpx.post(f"{URL}/v1/chat/completions", json=body, timeout=120, trust_env=False)
    return answer.raise_for_status().json()["choices"][0]["message"]["content"]


def _say_how_to_use(server: Server, settings: Settings) -> None:
    say(f"\nready after {server.elapsed:.1f} s")
    for model in settings.models[:1] if settings.auth.keys_file is None else []:
        body = json.dumps({"model": model.name, "messages": [{"role": "user", "content": QUESTION}]})
        say(
            f"""  {QUESTION}
  {_ask(model.name, QUESTION)}

try it:
  curl {URL}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'

or in Python (any API key will do):
  from openai import OpenAI
  client = OpenAI(base_url="{URL}/v1", api_key="none")
  messages = [{{"role": "user", "content": "{QUESTION}"}}]
  print(client.chat.completions.create(model="{model.name}", messages=messages).choices[0].message.content)
"""
        )
    say(f"models: {URL}/v1/models\nlog: {server.log}\nCtrl-C stops it.")


def serve() -> None:
    """Serve the settings in a file, or the defaults, until a signal says stop or the server fails."""
    parser = argparse.ArgumentParser(prog="make serve")
    parser.add_argument("settings", nargs="?", help="a YAML file; app/settings.py describes every key")
    parser.add_argument("--shape", choices=("local", "cluster"), default="local", help="one application, or one a part")
    chosen = parser.parse_args()
    file: str | None = chosen.settings
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))
    settings = _settings(file)
    packages.ensure(packages.LAPTOP)
    require_port()
    _require_disk()
    models.ensure(settings)
    say("… Ray and vLLM")
    command = what(chosen.shape, settings, file)
    with running(cache_dir() / "serve.log", environment(settings), *command) as server:
        _say_how_to_use(server, settings)
        server.wait()


if __name__ == "__main__":
    main(serve)
