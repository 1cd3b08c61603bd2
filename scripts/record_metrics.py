"""`make record-metrics`: write what a server of `make serve` exports into infra/observability/metrics.csv.

It starts the built-in models twice, as one application and as a cluster would, asks every route, also for what cannot
be, and keeps of the file what no laptop exports.
"""

import math
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

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
WRONG = {
    "/v1/chat/completions": {"model": "nobody", "messages": []},
    "/v1/embeddings": {"input": "word " * 9000},
    "/nowhere": {},
}
AT_TIMES = {
    "ray_serve_reserved_slots_active",
    "ray_vllm_cache_config_info",
    "ray_vllm_engine_sleep_state",
}
"""Said once when an engine starts, or under load only, and forgotten soon."""


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
            # Not the exporter's own: of its Python, and when each of its metrics was made.
            if name.startswith(("ray_", "autoscaler_")) and not name.endswith("_created"):
                types[name] = metric.type
                labels[name] |= {label for label in sample.labels if not label.startswith("otel_")} - {"le", "quantile"}
    return {
        name: Metric(name, kind, " ".join(sorted(labels[name])), "scraped", "make record-metrics")
        for name, kind in types.items()
        if name not in AT_TIMES
    }


def scrapes(http: httpx.Client) -> Iterator[dict[str, Metric]]:
    """What is exported while every route is asked, and for a while after: what nobody sets goes away again."""
    with ThreadPoolExecutor(1) as other:
        asking, until = other.submit(traffic, http), math.inf
        while time.monotonic() < until:
            yield scraped()
            time.sleep(0.5)
            if asking.done() and until == math.inf:
                asking.result()
                until = time.monotonic() + SECONDS


def of(shape: str) -> dict[str, Metric]:
    """What a server of this shape exports once it has been asked everything."""
    found: dict[str, Metric] = {}
    with (
        serve.running(cache_dir() / "serve.log", serve.environment(Settings()), *serve.what(shape, Settings())),
        step(f"asking every route of the shape {shape}"),
        httpx.Client(base_url=serve.URL, timeout=300, trust_env=False) as http,
    ):
        for exported in scrapes(http):
            found |= exported
    return found


def record() -> None:
    serve.require_port()
    local, cluster = of("local"), of("cluster")
    found = {name: metric for name, metric in cluster.items() if name in local}
    by_hand = [metric for metric in metrics.known() if metric.where != "scraped" and metric.name not in found]
    metrics.write([*found.values(), *by_hand])
    say(f"{len(found)} metrics scraped, {len(by_hand)} kept in {metrics.FILE}")


if __name__ == "__main__":
    main(record)
