"""`make vendor-dashboards`: the dashboards that the pinned Ray generates, into infra/observability/dashboards/ray/.

Without the panels that would stay empty: those that ask for a metric which is not in infra/observability/metrics.csv,
since this vLLM does not have it, or this blueprint does not run what does (TPUs).
"""

import json
import re
from typing import Any

from ray.dashboard.modules.metrics import grafana_dashboard_factory as factory

from infra.observability import metrics
from scripts.console import main, say

DIRECTORY = metrics.FILE.parent / "dashboards" / "ray"
GENERATED = ("default", "serve", "serve_deployment", "serve_llm")


def _corrected(text: str, known: set[str]) -> str:
    """With _total where Ray's queries leave it off a counter, as they do in some places."""

    def name(found: re.Match[str]) -> str:
        total = f"{found[0]}_total"
        return total if found[0] not in known and total in known else found[0]

    return re.sub(r"\bray_\w+", name, text)


def _asks(target: dict[str, Any]) -> set[str]:
    return metrics.names(re.sub(r"\$\{?\w+\}?", "1m", target["expr"]))


def _values_of(variable: dict[str, Any]) -> set[str]:
    """Of which metrics a variable has labels to choose from."""
    found = re.fullmatch(r"label_values\((\w+)\{.*", variable.get("definition") or "")
    return {found[1]} if found else set()


def _kept(panels: list[dict[str, Any]], known: set[str]) -> list[dict[str, Any]]:
    """Panels with what of their queries can be answered; rows with the panels that are left."""
    kept: list[dict[str, Any]] = []
    for panel in panels:
        if "panels" in panel:
            panel = {**panel, "panels": _kept(panel["panels"], known)}
        if panel["type"] != "row":
            asked = panel["targets"]
            panel = {**panel, "targets": [target for target in asked if _asks(target) <= known]}
            unknown = set[str]().union(*map(_asks, asked)) - known
            if unknown:
                say(f"  {panel['title']}: nobody exports {', '.join(sorted(unknown))}")
            if not panel["targets"]:
                continue
        kept.append(panel)
    return kept


def vendor() -> None:
    known = set(metrics.series())
    DIRECTORY.mkdir(exist_ok=True)
    for name in GENERATED:
        generated, _ = getattr(factory, f"generate_{name}_grafana_dashboard")()
        content = json.loads(_corrected(generated, known))
        say(content["title"])
        variables = content["templating"]["list"]
        content["templating"]["list"] = [one for one in variables if _values_of(one) <= known]
        # A panel a line: what a newer Ray changes can be read.
        panels = _kept(content.pop("panels"), known)
        lines = ",\n".join(json.dumps(panel, separators=(",", ":")) for panel in panels)
        head = json.dumps(content, separators=(",", ":"))[:-1]
        (DIRECTORY / f"ray-{name.replace('_', '-')}.json").write_text(f'{head},"panels":[\n{lines}\n]}}\n')


if __name__ == "__main__":
    main(vendor)
