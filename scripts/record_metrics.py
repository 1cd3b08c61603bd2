"""`make record-metrics`: write what a server of `make serve` exports into infra/observability/metrics.csv.

It starts the built-in models twice, as one application and as a cluster would, asks every route, also for what cannot
be, and keeps what it finds in the file of metrics that no laptop has.
"""

import time
from collections import defaultdict

import httpx

from app.builtin import cache_dir
from app.settings import Settings
from infra.observability import metrics
from infra.observability.metrics import Metric
from scripts import serve
from scripts.console import main, say, step
from scripts.demo import tour
from scripts.metrics import scrape

SECONDS = 30
"""Ray exports what it counts every ten seconds, and its autoscaler and dashboard at paces of their own."""
WRONG = {"/v1/chat/completions": {"model": "nobody", "messages": []}, "/v1/embeddings": {"input": 1}, "/nowhere": {}}


def traffic(http: httpx.Client) -> None:
    """A request to each route as its documentation shows it, and some that fail."""
    asked: set[tuple[str, str]] = set()
    for visit in tour(http.get("/openapi.json").raise_for_status().json()):
        if (visit.method, visit.path) not in asked:
            asked.add((visit.method, visit.path))
            http.request(visit.method, visit.path, json=visit.body)
    for path, body in WRONG.items():
        http.post(path, json=body)


def scraped() -> dict[str, Metric]:
    """What is exported now, by name. Raises Problem when no server runs."""
    types: dict[str, str] = {}
    labels: dict[str, set[str]] = defaultdict(set)
    for metric in scrape():
        for sample in metric.samples:
            # The parser takes _total off counters; PromQL does not.
            name = metric.name if metric.type in ("histogram", "summary") else sample.name
            types[name] = metric.type
            labels[name] |= sample.labels.keys() - {"le", "quantile"}
    return {
        name: Metric(name, kind, " ".join(sorted(labels[name])), "scraped", "make record-metrics")
        for name, kind in types.items()
    }


def record() -> None:
    serve.require_port()
    found: dict[str, Metric] = {}
    for shape in ("local", "cluster"):
        with serve.running(cache_dir() / "serve.log", *serve.what(shape, Settings())):
            with (
                step(f"asking every route of the shape {shape}"),
                httpx.Client(base_url=serve.URL, timeout=300, trust_env=False) as http,
            ):
                traffic(http)
            until = time.monotonic() + SECONDS
            while time.monotonic() < until:
                found |= scraped()
                time.sleep(1)
    by_hand = [metric for metric in metrics.known() if metric.where != "scraped" and metric.name not in found]
    metrics.write([*found.values(), *by_hand])
    say(f"{len(found)} metrics scraped, {len(by_hand)} kept in {metrics.FILE}")


if __name__ == "__main__":
    main(record)
