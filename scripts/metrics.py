"""What a running server exports to Prometheus, read from its endpoints without one."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from scripts.console import Problem

TEMP_DIR = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray")
"""Where the Ray of `make serve` keeps its files."""


def scrape(temp_dir: Path = TEMP_DIR) -> Iterator[Metric]:
    """What the Ray with this directory exports now. Raises Problem when there is none."""
    try:
        # Ray writes the addresses for Prometheus to read.
        discovery = json.loads((temp_dir / "prom_metrics_service_discovery.json").read_text())
        for endpoint in discovery[0]["targets"]:
            text = httpx.get(f"http://{endpoint}/metrics", timeout=30, trust_env=False).text
            yield from text_string_to_metric_families(text)
    except (OSError, httpx.HTTPError) as error:
        raise Problem(f"no server exports metrics on this machine ({error})", "start one with `make serve`") from None
