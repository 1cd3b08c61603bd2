"""Grafana's dashboards of a stack, as code, and what they ask Prometheus.

In a cluster the PodMonitors add the labels namespace, pod, ray_io_cluster, ray_io_node_type and ray_io_group to Ray's
metrics. `make serve` has none of them, and a dashboard's choice of all namespaces is also those without one.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from infra.config import StackConfig
from infra.observability.alerts import PANELS, rule_groups
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
    runbooks = _runbooks(stack)
    ours = {board.name: board.json(runbooks[board.name]) for board in boards(stack)}
    return {**ours, **{path.stem: path.read_text() for path in sorted(RAY.glob("*.json"))}}


def _runbooks(stack: StackConfig) -> dict[str, dict[str, dict[str, str]]]:
    """Dashboard → panel → title → address of what to do when there is an alert about it."""
    found: dict[str, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for rule in (rule for group in rule_groups(stack) for rule in group["rules"]):
        if rule.get("alert") in PANELS:
            dashboard, panel = PANELS[rule["alert"]]
            found[dashboard][panel][f"Runbook: {rule['alert']}"] = rule["annotations"]["runbook_url"]
    return found


def queries(dashboard: str) -> list[str]:
    """What the panels of a dashboard ask, given as JSON, with everything chosen in its variables."""
    content = json.loads(dashboard)
    windows = {
        variable["name"]: variable["current"]["value"]
        for variable in content["templating"]["list"]
        if variable["name"] == "interval"
    }
    return [
        everything(target["expr"], windows)
        for panel in panels(content["panels"])
        for target in panel.get("targets", [])
    ]


def everything(expression: str, windows: Mapping[str, str] | None = None) -> str:
    """A panel's query with all chosen in its variables; `windows` are those that stand for a time."""
    known = {**_WINDOWS, **(windows or {})}
    return re.sub(r"\$\{?(\w+)(?::\w+)?\}?", lambda found: known.get(found[1], ".*"), expression)


def panels(items: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Panels in JSON, with those in rows that are folded."""
    for item in items:
        yield item
        yield from panels(item.get("panels", []))
