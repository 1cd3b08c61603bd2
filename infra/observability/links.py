"""Addresses of dashboards and panels, which stay the same whatever else changes on them."""

import zlib


def uid(dashboard: str) -> str:
    """What Grafana knows a dashboard of ours by."""
    return f"blueprint-{dashboard}"


def panel_id(panel: str) -> int:
    """What Grafana knows a panel by, which has one name wherever it is on its dashboard."""
    return zlib.crc32(panel.encode()) % 100_000


def panel_url(dashboard: str, panel: str, grafana: str = "") -> str:
    """Where Grafana, whose address is `grafana`, shows one panel of ours, by the names in its module."""
    return f"{grafana}/d/{uid(dashboard)}?viewPanel={panel_id(panel)}"
