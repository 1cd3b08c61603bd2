"""`make metrics [PORT=9090]`: a Prometheus with the stack's rules beside the server of `make serve`, until Ctrl-C.

Enter shows what each panel of the dashboards would now. Prometheus' own pages are linked where it has them: one that is
built here, without a browser's half, has its API only.
"""

import argparse
import contextlib
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import yaml

from infra.config import StackConfig
from infra.observability.alerts import rule_groups
from infra.observability.dashboards import boards, everything
from scripts import ports, stack_file, tools
from scripts.console import Problem, main, say, step, table

DISCOVERY = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "prom_metrics_service_discovery.json")
"""Which addresses there are to scrape: Ray writes it, and again when they change."""
SCRAPE_SECONDS = 5
START_SECONDS = 60.0
RANGE = "15m"


def require_server() -> None:
    """Problem unless a Ray of this machine exports metrics."""
    with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
        for target in json.loads(DISCOVERY.read_text())[0]["targets"]:
            host, _, port = target.rpartition(":")
            with socket.create_connection((host, int(port)), timeout=5):
                return
    raise Problem("no server exports metrics on this machine", "start one with `make serve`, in another terminal")


def write_config(directory: Path, groups: list[dict[str, Any]]) -> Path:
    """Prometheus' configuration, with the rules beside it."""
    (directory / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    config = {
        "global": {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": f"{SCRAPE_SECONDS}s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            {"job_name": "ray", "file_sd_configs": [{"files": [str(DISCOVERY)], "refresh_interval": "5s"}]}
        ],
    }
    path = directory / "prometheus.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@contextlib.contextmanager
def running(groups: list[dict[str, Any]], port: int) -> Iterator[httpx.Client]:
    """A client of a Prometheus that scrapes the local server. It and all it has stored are gone afterwards."""
    binary = shutil.which("prometheus") or tools.ensure("prometheus") / "prometheus"
    with tempfile.TemporaryDirectory(prefix="prometheus-") as scratch:
        directory = Path(scratch)
        log = directory / "log"
        command = [
            *(binary, f"--config.file={write_config(directory, groups)}", f"--storage.tsdb.path={directory / 'data'}"),
            *(f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"),
        ]
        with log.open("wb") as output:
            # In a session of its own, so that Ctrl-C reaches us alone.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as http:
                with step("starting Prometheus"):
                    _await(http, process, log)
                yield http
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await(http: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until it has rules and samples."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            raise Problem(
                f"Prometheus ended (status {process.returncode}):\n{log.read_text()[-2000:]}", "mend that; see above"
            )
        with contextlib.suppress(httpx.HTTPError, KeyError):
            if http.get("/-/ready").status_code == 200 and ask(http, "count(up == 1) > 0"):
                return
        time.sleep(0.5)
    raise Problem(f"Prometheus has no samples after {START_SECONDS:.0f} s", "see whether `make serve` still runs")


def ask(http: httpx.Client, expression: str) -> list[dict[str, Any]]:
    """The series that an expression has now. Raises Problem for one that Prometheus does not take."""
    answered = http.get("/api/v1/query", params={"query": expression}).json()
    if answered["status"] != "success":
        raise Problem(f"{expression}: {answered['error']}", "correct the query")
    return answered["data"]["result"]


def values(http: httpx.Client, stack: StackConfig) -> Iterator[tuple[str, str, str]]:
    """Dashboard and panel, what is measured, and its value now; panels without one say so."""
    for board in boards(stack):
        for panel in board.panels.values():
            title, found = f"{board.title}: {panel.title}", False
            for legend, expression in panel.queries.items():
                for series in ask(http, everything(expression)):
                    found = True
                    of = re.sub(
                        r"\{\{(\w+)\}\}", lambda label, series=series: series["metric"].get(label[1], ""), legend
                    )
                    yield title, of, readable(float(series["value"][1]), panel.unit)
                    title = ""
            if not found:
                yield title, "–", "nothing"


def readable(value: float, unit: str) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.1%}" if unit == "percentunit" else f"{value:,.4g} {UNITS.get(unit, unit)}".rstrip()


UNITS = {"short": "", "percent": "%", "reqps": "requests/s", "cps": "/s", "currencyUSD": "USD"}


def links(stack: StackConfig, url: str) -> Iterator[tuple[str, str]]:
    """Title and address of Prometheus' page with all queries of a dashboard."""
    for board in boards(stack):
        expressions = [query for panel in board.panels.values() for query in panel.queries.values()]
        parameters = {
            f"g{index}.{key}": value
            for index, expression in enumerate(expressions)
            for key, value in (("expr", everything(expression)), ("tab", "0"), ("range_input", RANGE))
        }
        yield board.title, f"{url}/graph?{urlencode(parameters)}"


def metrics() -> None:
    """Run it, show what it measures, and take it away again."""
    parser = argparse.ArgumentParser(prog="make metrics")
    parser.add_argument("stack", nargs="?", default="local", help="whose objectives the rules have")
    parser.add_argument("--port", default="", help="of Prometheus on 127.0.0.1")
    chosen = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))
    stack = stack_file.read(chosen.stack)
    port = ports.number("PORT", chosen.port or "9090")
    require_server()
    if ports.is_taken(port):
        raise Problem(f"port {port} on 127.0.0.1 is taken", "stop what listens there, or set PORT")
    with running(rule_groups(stack), port) as http:
        url = str(http.base_url)
        say(f"\nPrometheus: {url}, every {SCRAPE_SECONDS} s, with the rules of stack {chosen.stack}")
        if http.get("/graph", follow_redirects=True).is_success:
            pages = list(links(stack, url))
            say("\n".join([f"  {title}: {address}\n" for title, address in pages] + [f"  Alerts: {url}/alerts"]))
            if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
                webbrowser.open(pages[0][1])
        else:
            say(f"  it has no pages; ask its API: curl '{url}/api/v1/query?query=up'; alerts: {url}/api/v1/alerts")
        say("Enter shows what the panels show now; Ctrl-C ends it.")
        while sys.stdin.readline():
            say(table([("panel", "of", "now"), *values(http, stack)]))
        signal.pause()  # no terminal to press Enter at


if __name__ == "__main__":
    main(metrics)
