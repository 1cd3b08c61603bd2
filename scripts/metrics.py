"""What a running server exports to Prometheus, read from its endpoints without one."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from scripts.console import Problem

DISCOVERY = Path("/tmp/ray/prom_metrics_service_discovery.json")
"""Where Ray writes its endpoints, for Prometheus to read."""


def scrape() -> Iterator[Sample]:
    """Every sample of the Ray on this machine. Raises Problem when there is none."""
    try:
        endpoints = json.loads(DISCOVERY.read_text())[0]["targets"]
        for endpoint in endpoints:
            text = httpx.get(f"http://{endpoint}/metrics", timeout=30, trust_env=False).text
            for family in text_string_to_metric_families(text):
                yield from family.samples
    except (OSError, httpx.HTTPError) as error:
        raise Problem(f"no server exports metrics on this machine ({error})", "start one with `make serve`") from None
