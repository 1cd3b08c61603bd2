"""What the dashboards and alerts are made of is what the server exports."""

from infra.observability import metrics
from scripts.record_metrics import scraped, traffic
from tests.app.conftest import Running, eventually

SHAPES = ["cluster"]


def test_every_recorded_metric_is_exported(server: Running) -> None:
    """A name that went with a newer Ray or vLLM would leave panels empty, and alerts silent."""
    traffic(server.http)
    missing = {metric.name for metric in metrics.known() if metric.where == "scraped"}

    def none_left() -> bool:
        missing.difference_update(scraped())
        return not missing

    try:
        eventually("every recorded metric is exported", none_left, 60)
    finally:
        assert not missing
