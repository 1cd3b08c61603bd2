"""The dashboards of every stack: what Grafana takes, and that everything they and the alerts ask for is measured.

That their queries are answered, tests/e2e has a Prometheus say.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from infra import versions
from infra.config import from_file
from infra.observability import metrics
from infra.observability.alerts import PANELS, rule_groups
from infra.observability.dashboards import RAY, boards, dashboards, panels, queries
from infra.observability.links import panel_id, panel_url, uid
from tests.infra.test_program import STACKS

LIMIT = 2**20
"""Bytes of a ConfigMap: https://kubernetes.io/docs/concepts/configuration/configmap/"""
OURS = {"service", "llm", "experiment", "capacity"}
FROM_PODS = {
    "namespace",
    "exported_namespace",
    "pod",
    "ray_io_cluster",
    "ray_io_node_type",
    "ray_io_group",
    "instance",
    "job",
}
"""Labels that Prometheus adds to what it scrapes, the PodMonitors' among them."""

stacks = pytest.mark.parametrize("stack", STACKS)


def rendered(stack: str) -> dict[str, dict[str, Any]]:
    return {name: json.loads(text) for name, text in dashboards(from_file(stack)).items()}


def shown(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in panels(dashboard["panels"]) if panel["type"] != "row"]


def asked(stack: str) -> Iterator[tuple[str, str]]:
    """Every expression that a stack has Prometheus evaluate, with where it comes from."""
    for name, text in dashboards(from_file(stack)).items():
        yield from ((name, query) for query in queries(text))
        for variable in json.loads(text)["templating"]["list"]:
            query = variable.get("query")
            query = query["query"] if isinstance(query, dict) else query
            if found := re.fullmatch(r"label_values\((.+), (\w+)\)", query or ""):
                yield name, re.sub(r"\$\w+", ".*", found[1])
    for group in rule_groups(from_file(stack)):
        yield from ((rule.get("alert") or rule["record"], rule["expr"]) for rule in group["rules"])


@stacks
def test_grafana_takes_them(stack: str) -> None:
    for name, text in dashboards(from_file(stack)).items():
        assert len(text.encode()) < LIMIT, name
        content = json.loads(text)
        ids = [panel["id"] for panel in panels(content["panels"])]
        assert len(ids) == len(set(ids)), f"{name}: two panels of one id"
        assert content["uid"] and len(content["uid"]) <= 40
        if name in OURS:
            # Grafana's own types know every key of it.
            assert json.loads(JSONEncoder().encode(Dashboard.from_json(content))) == content
    uids = [content["uid"] for content in rendered(stack).values()]
    assert len(uids) == len(set(uids))


@stacks
def test_panels_say_what_they_show(stack: str) -> None:
    for board in boards(from_file(stack)):
        for panel in board.panels.values():
            assert panel.title and panel.unit and panel.about.endswith("."), panel
            assert panel.queries and len(set(panel.queries.values())) == len(panel.queries), panel


@stacks
def test_panels_do_not_overlap(stack: str) -> None:
    for name in OURS:
        taken: set[tuple[int, int]] = set()
        for panel in rendered(stack)[name]["panels"]:
            at = defaultdict(int, panel["gridPos"])
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            assert not taken & cells and max(x for x, _ in cells) < 24, f"{name}: {panel['title']}"
            taken |= cells


def test_a_panel_keeps_its_address() -> None:
    """Bookmarks and alerts that fired long ago lead there."""
    assert panel_url("llm", "ttft", "https://grafana.example.com") == (
        "https://grafana.example.com/d/blueprint-llm?viewPanel=21759"
    )
    for board in boards(from_file("local")):
        content = rendered("local")[board.name]
        assert content["uid"] == uid(board.name)
        assert {panel["id"] for panel in shown(content)} == {panel_id(name) for name in board.panels}


@stacks
def test_every_metric_is_recorded(stack: str) -> None:
    known = metrics.series()
    recorded = {
        rule["record"] for group in rule_groups(from_file(stack)) for rule in group["rules"] if "record" in rule
    }
    for where, expression in asked(stack):
        unknown = metrics.names(expression) - known.keys() - recorded
        assert not unknown, (
            f"{where} asks for {unknown}, which nobody has seen: make record-metrics, or correct {expression}"
        )


@stacks
def test_every_label_is_recorded(stack: str) -> None:
    """A label that is not there selects nothing, and says nothing of it."""
    known = metrics.series()
    for where, expression in asked(stack):
        for name, matchers in re.findall(r"([a-zA-Z_:][\w:]*)\{([^{}]*)\}", expression):
            labels = set(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', matchers))
            if name in known and not where.startswith("ray-"):  # whose choice of all is also those without
                unknown = labels - set(known[name].labels.split()) - FROM_PODS - {"le"}
                assert not unknown, f"{where} selects {name} by {unknown}"


def test_the_list_says_where_each_was_seen() -> None:
    found = metrics.known()
    assert {metric.where for metric in found} <= metrics.WHERE.keys()
    assert len({metric.name for metric in found}) == len(found)
    for metric in found:
        assert (metric.source == "make record-metrics") == (metric.where == "scraped"), metric
        assert metric.where == "scraped" or metric.source.startswith("https://"), metric


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ('sum by (le, route) (rate(a_bucket{route=~"/b|c{d}"}[5m])) / (b > 0)', {"a_bucket", "b"}),
        ("histogram_quantile(0.99, sum by (le) (rate(a_bucket[5m])))", {"a_bucket"}),
        ("a - on (model) group_left () (b or c * 0) offset 5m", {"a", "b", "c"}),
        ('slo:burn:5m{a="b"} > 14.4 and ignoring (window) slo:burn:1h unless bool', {"slo:burn:5m", "slo:burn:1h"}),
        ("vector(1) + 1e6 * inf", set()),
        ("count by (x) (avg_over_time(a[15m:1m]) < 5)", {"a"}),
    ],
)
def test_names_of_an_expression(expression: str, names: set[str]) -> None:
    assert metrics.names(expression) == names


def test_rays_own_are_of_the_pinned_ray() -> None:
    found = [json.loads(path.read_text()) for path in RAY.glob("*.json")]
    assert len(found) == 4
    for content in found:
        assert f"rayVersion:{versions.RAY}" in content["tags"], "make vendor-dashboards"
        assert shown(content)


@stacks
def test_alerts_and_panels_lead_to_each_other(stack: str) -> None:
    config = from_file(stack)
    known = {board.name: board.panels for board in boards(config)}
    for alert, (dashboard, panel) in PANELS.items():
        assert panel in known[dashboard], f"{alert} leads to a panel that {dashboard} does not have: {panel}"
    runbooks = {
        rule["annotations"]["runbook_url"]
        for group in rule_groups(config)
        for rule in group["rules"]
        if rule.get("alert") in PANELS
    }
    linked = {link["url"] for name in OURS for panel in shown(rendered(stack)[name]) for link in panel["links"]}
    assert linked == runbooks


def test_costs_are_shown_where_there_are_prices() -> None:
    for stack in STACKS:
        titles = {panel["title"] for panel in shown(rendered(stack)["capacity"])}
        assert ("USD for a million tokens" in titles) == (from_file(stack).cluster.kind == "eks"), stack
