"""A real Prometheus, by its real operator from our PodMonitors and rules, on a stack that works.

Grafana itself cannot be had here: what its panels ask is asked in its place.
"""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from infra.config import StackConfig, parse
from infra.observability import metrics
from infra.observability.alerts import rule_groups
from infra.observability.dashboards import dashboards, queries
from infra.observability.prometheus import manifests
from scripts import vendor_prometheus
from scripts.forward import PROMETHEUS_PORT
from scripts.kubectl import Kubectl
from scripts.vendor_kuberay import module_dir
from tests.e2e.conftest import Stack, chat, growing

PATIENCE = 300.0
NARROW = {"scaling": {"max_ongoing_requests": 1, "max_queued_requests": 1}}
"""Of a variant that refuses, with 429, what more than two ask at once."""
SEEN: dict[str, Any] = {
    **growing(models=[chat(weights=(1, 1), canary=NARROW)]),
    "observability": {"kind": "manifests", "storage": None, "memory_gib": 1, "external_labels": {"stack": "e2e"}},
}
REFUSED = 60
"""Requests: enough for the alert, and few enough that it ends in minutes when all are answered."""
QUESTION = {"messages": [{"role": "user", "content": "Say hi"}], "max_tokens": 4}


@pytest.fixture(scope="module", autouse=True)
def seen(stack: Stack, kubernetes: Kubectl) -> None:
    stack.require(**SEEN)


@pytest.fixture(scope="module")
def config() -> StackConfig:
    return parse(SEEN, "Pulumi.e2e.yaml")


class Prometheus:
    """Its API, by way of the API server."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def get(self, path: str, **parameters: str) -> Any:
        answer = self._client.get(f"api/v1/{path}", params=parameters)
        assert answer.status_code == 200, (parameters, answer.text)
        return answer.json()["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression gives now; a number is one without labels."""
        found = self.get("query", query=expression)
        return found["result"] if found["resultType"] == "vector" else [{"metric": {}, "value": found["result"]}]

    def firing(self) -> set[tuple[str, str]]:
        """Alerts with their severities."""
        alerts = self.get("alerts")["alerts"]
        return {
            (alert["labels"]["alertname"], alert["labels"]["severity"])
            for alert in alerts
            if alert["state"] == "firing"
        }


@pytest.fixture(scope="module")
def prometheus(kubernetes: Kubectl, config: StackConfig) -> Iterator[Prometheus]:
    namespace = config.monitoring_namespace
    with kubernetes.service(namespace, "prometheus-operated", PROMETHEUS_PORT, "unused") as client:
        yield Prometheus(client)


def until(what: str, lacks: Callable[[], Any], patience: float = PATIENCE) -> float:
    """Seconds until something is so; `lacks` tells what it still lacks."""
    begun = time.monotonic()
    while lacking := lacks():
        assert time.monotonic() - begun < patience, f"{what}: not within {patience:g} s: {lacking}"
        time.sleep(2)
    return time.monotonic() - begun


@contextmanager
def load(client: httpx.Client) -> Iterator[None]:
    """Requests on several routes, one after the other, of many users, with wrong ones among them."""
    over = threading.Event()

    def ask_on() -> None:
        for user in itertools.count():
            if over.is_set():
                return
            for model in ("chat", "chat@stable", "chat@canary"):
                body = {**QUESTION, "model": model, "user": str(user)}
                client.post("v1/chat/completions", json=body, timeout=120)
            for text in ("hi", "hi " * 1000):  # the second is more than the model takes: its replica says so
                client.post("v1/embeddings", json={"model": "embed", "input": text}, timeout=120)
            client.post("v1/embeddings", json={"model": "none", "input": "hi"}, timeout=120)
            over.wait(1)

    thread = threading.Thread(target=ask_on)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_vendored_manifests_are_those_of_the_operators_module() -> None:
    module = module_dir("prometheus-operator", vendor_prometheus.MODULE)
    assert manifests("prometheus-crds") == vendor_prometheus.crds(module)
    assert manifests("prometheus-operator") == vendor_prometheus.operator(module)


def test_prometheus_is_the_operators_and_has_the_rules(prometheus: Prometheus, config: StackConfig) -> None:
    """All of them are evaluated, and none is wrong."""
    wanted = [rule.get("alert") or rule["record"] for group in rule_groups(config) for rule in group["rules"]]

    def not_evaluated() -> Counter[str]:
        rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
        wrong = [(rule["name"], rule["lastError"]) for rule in rules if rule.get("lastError")]
        assert not wrong, wrong
        return Counter(wanted) - Counter(rule["name"] for rule in rules if rule["health"] == "ok")

    until("all rules are evaluated", not_evaluated)


def test_another_up_changes_nothing(stack: Stack) -> None:
    done = stack.make("up")
    assert done.returncode == 0
    assert "\nunchanged\n" in done.stdout


def test_every_target_is_scraped(prometheus: Prometheus, kubernetes: Kubectl, config: StackConfig) -> None:
    def up() -> Counter[str]:
        targets = prometheus.get("targets", state="active")["activeTargets"]
        return Counter(target["labels"]["job"].partition("/")[2] for target in targets if target["health"] == "up")

    pods = kubernetes.get("pods", "--namespace", config.namespace, "--selector", "ray.io/is-ray-node=yes")["items"]
    heads = [pod for pod in pods if pod["metadata"]["labels"]["ray.io/node-type"] == "head"]
    # Three ports of a head, one of a worker.
    wanted = {"ray": len(pods) + 2 * len(heads), "kuberay-operator": 1, "prometheus": 1, "prometheus-operator": 1}
    until("all targets are up", lambda: Counter(wanted) - up())
    labels = prometheus.query('ray_serve_num_http_requests_total{namespace!=""}')[0]["metric"]
    assert {"namespace", "pod", "ray_io_cluster", "ray_io_node_type", "ray_io_group"} <= labels.keys()


def test_every_panel_and_every_rule_finds_what_it_asks_for(
    prometheus: Prometheus, client: httpx.Client, config: StackConfig
) -> None:
    """Or it asks for a metric that is not there without a GPU, without AWS, or before something has happened.

    Ray's own panels ask for much that is there at times only; that Prometheus understands them must do.
    """
    elsewhere = {name for name, metric in metrics.series().items() if metric.where not in ("scraped", "cluster")}
    asks = {name: set(queries(board)) for name, board in dashboards(config).items()}
    panels = {expression for name, asked in asks.items() if not name.startswith("ray-") for expression in asked}
    asked = {name for group in rule_groups(config) for rule in group["rules"] for name in metrics.names(rule["expr"])}

    def without_data() -> list[str]:
        empty = [expression for expression in panels if not prometheus.query(expression)]
        empty += [name for name in asked if not prometheus.query(name)]
        return [expression for expression in empty if not metrics.names(expression) & elsewhere]

    with load(client):
        took = until("all panels have data", without_data)
        for expression in set().union(*asks.values()) - panels:
            prometheus.query(expression)
    print(f"{len(panels)} queries of panels, {len(asked)} series of rules: all have data after {took:.0f} s of load")


def test_an_error_budget_that_burns_is_told_and_no_longer_when_it_stops(
    prometheus: Prometheus, client: httpx.Client
) -> None:
    """The alert as it is in production, with its windows of minutes and hours."""
    alert = ("ModelErrorBudgetBurn", "critical")
    assert alert not in prometheus.firing()
    statuses: Counter[int] = Counter()

    def ask_at_once(model: str) -> None:
        body = {**QUESTION, "model": model, "max_tokens": 1}
        with ThreadPoolExecutor(8) as together:
            for answer in together.map(lambda _: client.post("v1/chat/completions", json=body, timeout=120), range(8)):
                statuses[answer.status_code] += 1

    def not_firing() -> set[Any]:
        if statuses[429] < REFUSED:
            ask_at_once("chat@canary")
        return {alert} - prometheus.firing()

    fired = until("the alert fires", not_firing)
    refused = statuses.pop(429)
    assert statuses.keys() == {200}
    statuses.clear()

    def still_firing() -> set[Any]:
        for _ in range(10):
            ask_at_once("chat@stable")
        return {alert} & prometheus.firing()

    resolved = until("it is over", still_firing, 600)
    assert statuses.keys() == {200}
    print(f"fired after {fired:.0f} s, {refused} refused; over after {resolved:.0f} s, {statuses[200]} answered")


def test_it_goes_without_a_trace(stack: Stack, kubernetes: Kubectl, config: StackConfig) -> None:
    assert stack.up(**growing()).returncode == 0
    names = kubernetes("get", "namespaces,customresourcedefinitions", "--output", "name")
    assert f"namespace/{config.monitoring_namespace}\n" not in names
    assert "monitoring.coreos.com" not in names
