"""What the way itself costs: requests for next to nothing, by our gateway, a bare Ray Serve and a bare FastAPI."""

import sys
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from scripts import serve
from scripts.bench.kind import Contender, Kind
from scripts.bench.load import Measured, Point, answered, ask
from scripts.bench.servers import Served, Start, ours, serve_run, started

CLASSIFIER = {"name": "nothing", "source": "builtin:vader-sentiment"}
"""The least that a replica of ours can do: a lexicon looks up one word."""
SETTINGS = {"classifiers": [CLASSIFIER]}
NOOP = "scripts.bench.noop_app"


def _fastapi(log: Path) -> AbstractContextManager[Served]:
    options = ("--host", "127.0.0.1", "--port", str(serve.PORT), "--no-access-log")
    return started([sys.executable, "-m", "uvicorn", f"{NOOP}:api", *options], {}, "none", log)


def _measured(path: str, body: dict[str, Any] | None, served: Served, point: Point, salt: int) -> Measured:
    return answered(served, [partial(ask, path, body)] * point.requests, point.concurrency)[0]


CLIENTS = {
    "way in": partial(_measured, "/v1/models", None),
    "and a replica": partial(_measured, "/v1/classify", {"model": CLASSIFIER["name"], "input": "ok"}),
}


def _contender(what: str, start: Start) -> Contender:
    return Contender(what, start, CLIENTS)


KIND = Kind(
    "requests",
    {
        "fastapi": _contender("FastAPI on uvicorn, one process", _fastapi),
        "serve": _contender("a FastAPI ingress and a deployment in Ray Serve", partial(serve_run, [f"{NOOP}:app"])),
        "bare": _contender("ours without keys and limits", partial(ours, SETTINGS, governed=False)),
        "governed": _contender("ours with keys and limits", partial(ours, SETTINGS)),
    },
    peers=("fastapi", "serve"),
    points=(Point(1, 200), Point(8, 600), Point(32, 1200), Point(128, 1200)),
    warm=Point(8, 200),
)
