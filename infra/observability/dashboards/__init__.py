"""Grafana's dashboards of a stack, as code, and what they ask Prometheus.

In a cluster the PodMonitors add the labels namespace, pod, ray_io_cluster, ray_io_node_type and ray_io_group to Ray's
metrics. `make serve` has none of them, and a dashboard's choice of all namespaces is also those without one.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infra.config import StackConfig
from infra.observability.dashboards import capacity, experiment, llm, service
from infra.observability.dashboards.board import Board

RAY = Path(__file__).parent / "ray"
"""Those that the pinned Ray generates: `make vendor-dashboards`."""
_WINDOWS = {"__rate_interval": "5m", "__interval": "1m", "__range": "1h"}
"""What Grafana would put in their place for an hour."""


def boards(stack: StackConfig) -> list[Board]:
    """Those that are ours."""
    return [module.board(stack) for module in (service, llm, experiment, capacity)]


def dashboards(stack: StackConfig) -> dict[str, str]:
    """Name → JSON that Grafana imports: ours, and Ray's own."""
    ours = {board.name: board.json({}) for board in boards(stack)}
    return {**ours, **{path.stem: path.read_text() for path in sorted(RAY.glob("*.json"))}}


def queries(dashboard: str) -> list[str]:
    """What the panels of a dashboard ask, given as JSON, with everything chosen in its variables."""
    content = json.loads(dashboard)
    values = _WINDOWS | {name: str(value) for name, value in _values(content["templating"]["list"])}
    return [
        re.sub(r"\$\{?(\w+)(?::\w+)?\}?", lambda found: values[found[1]], target["expr"])
        for panel in panels(content["panels"])
        for target in panel.get("targets", [])
    ]


def panels(items: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Panels in JSON, with those in rows that are folded."""
    for item in items:
        yield item
        yield from panels(item.get("panels", []))


def _values(variables: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    for variable in variables:
        fixed = variable["type"] in ("custom", "interval")
        yield variable["name"], variable["current"]["value"] if fixed else ".*"
