"""What the dashboards and alerts are made of is what the server exports."""

from infra.observability import metrics
from scripts.record_metrics import scrapes
from tests.app.conftest import Running

SHAPES = ["cluster"]
ROUNDS = 3
"""Some gauges are there for moments only, which a scrape may miss."""


def test_every_recorded_metric_is_exported(server: Running) -> None:
    """A name that went with a newer Ray or vLLM would leave panels empty, and alerts silent."""
    missing = {metric.name for metric in metrics.known() if metric.where == "scraped"}
    for _ in range(ROUNDS):
        for exported in scrapes(server.http):
            missing -= exported.keys()
        if not missing:
            break
    assert not missing
