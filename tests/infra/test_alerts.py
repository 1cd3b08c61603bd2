"""The rules of every stack by promtool, and what each alert does with series that are written out in alerts/."""

import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import GENERATE, Settings
from app.validation import validate
from infra.config import ROOT, StackConfig, from_file
from infra.observability.alerts import PANELS, rule_groups
from infra.observability.dashboards import boards
from infra.observability.links import panel_url
from infra.observability.objectives import model_labels
from scripts import tools
from tests.unit.contract_stacks import ACCOUNT, L4, NOTHING, REGION, values, variant

STACKS = sorted(path.name.split(".")[1] for path in ROOT.glob("Pulumi.*.yaml"))
SERIES = Path(__file__).parent / "alerts"
RUNBOOKS = ROOT / "docs" / "runbooks"
SECTIONS = ["What users feel", "Look here", "Likely causes", "Do this", "Afterwards"]
PROMISED = {
    "time_to_first_token": {"within_s": 1.0, "target": 0.99},
    "inter_token_latency": {"within_s": 0.1, "target": 0.99},
}


def everything() -> StackConfig:
    """A stack that has a use for every alert."""
    certificate = f"arn:aws:acm:{REGION}:{ACCOUNT}:certificate/0123-abcd"
    objectives = {
        "models": {"chat": PROMISED},
        "runbooks_url": "https://git.example.com/runbooks",
        "grafana_url": "https://grafana.example.com",
    }
    generate = variant(engine={"load_format": "runai_streamer"})
    stack = values(
        {**L4, "max_replicas": 3, "pool": {"gpu": "L4", "capacity": ["spot"]}},
        serving={**NOTHING, "models": [{"variants": [variant()]}], "generate": generate},
        cluster={"entry": {"host": "llm.example.com", "certificate": certificate}},
        observability={"kind": "chart", "objectives": objectives},
    )
    return validate(StackConfig, stack, "everything")


@cache
def groups(name: str) -> list[dict[str, Any]]:
    return rule_groups(everything() if name == "everything" else from_file(name))


def alerts(name: str) -> list[dict[str, Any]]:
    return [rule for group in groups(name) for rule in group["rules"] if "alert" in rule]


def names(name: str) -> set[str]:
    return {rule["alert"] for rule in alerts(name)}


def promtool(*arguments: str, cwd: Path) -> str:
    """What it prints; fails the test with that when promtool does."""
    tool = tools.ensure("promtool") / "promtool"
    done = subprocess.run([tool, *arguments], cwd=cwd, capture_output=True, text=True)
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", [*STACKS, "everything"])
def test_prometheus_takes_the_rules_of_every_stack(name: str, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": groups(name)}))
    said = promtool("check", "rules", "--lint=all", "--lint-fatal", "rules.yaml", cwd=tmp_path)
    assert f"SUCCESS: {sum(len(group['rules']) for group in groups(name))} rules found" in said


def test_the_check_finds_an_expression_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(
        yaml.safe_dump({"groups": [{"name": "a", "rules": [{"record": "a:b", "expr": "1 +"}]}]})
    )
    with pytest.raises(AssertionError, match="parse error"):
        promtool("check", "rules", "rules.yaml", cwd=tmp_path)


def _summary_only(rule: dict[str, Any]) -> dict[str, Any]:
    return {"annotations": {"summary": rule["annotations"]["summary"]}} if "alert" in rule else {}


@pytest.mark.parametrize("path", sorted(SERIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_an_alert_fires_when_it_should_and_then_only(path: Path, tmp_path: Path) -> None:
    # What is expected is written out for the summary alone: the other annotations say nothing of the series.
    own = [
        {**group, "rules": [{**rule, **_summary_only(rule)} for rule in group["rules"]]}
        for group in groups("everything")
        if any(rule.get("alert") == path.stem for rule in group["rules"])
    ]
    (tmp_path / "everything.yaml").write_text(yaml.safe_dump({"groups": own}))
    (tmp_path / "test.yaml").write_text(path.read_text())
    promtool("test", "rules", "test.yaml", cwd=tmp_path)


def test_every_alert_is_tested_firing_silent_and_without_traffic() -> None:
    assert {path.stem for path in SERIES.glob("*.yaml")} == names("everything")
    for path in SERIES.glob("*.yaml"):
        fires: list[bool] = []
        kinds = set()
        for case in yaml.safe_load(path.read_text())["tests"]:
            kinds.update(re.findall("^fires|^does not fire|no traffic", case["name"]))
            asked = [test for test in case["alert_rule_test"] if test["alertname"] == path.stem]
            assert asked == case["alert_rule_test"], path
            fires.append(any(test.get("exp_alerts") for test in asked))
            assert fires[-1] == case["name"].startswith("fires"), (path, case["name"])
        # That one always fires: it says that the others could.
        assert kinds == {"fires", "no traffic"} | (set() if path.stem == "Watchdog" else {"does not fire"}), path
        assert any(fires)


def test_every_alert_says_how_urgent_it_is_and_what_to_do() -> None:
    for alert in alerts("everything"):
        assert alert["labels"]["severity"] in ("critical", "warning", "info", "none")
        said = alert["annotations"]
        assert said["summary"].endswith(".") and said["description"].endswith(".")
        assert said["runbook_url"] == f"https://git.example.com/runbooks/{alert['alert']}.md"


def test_an_alert_leads_to_a_panel_that_there_is() -> None:
    panels = {board.name: board.panels for board in boards(everything())}
    for name, (dashboard, panel) in PANELS.items():
        assert panel in panels[dashboard], name
    led = {alert["alert"]: alert["annotations"].get("dashboard_url") for alert in alerts("everything")}
    assert {name for name, url in led.items() if url} == PANELS.keys()
    assert led["QueueGrowing"] == panel_url("service", "queue", "https://grafana.example.com")


def test_without_an_address_alerts_name_the_runbook_in_this_repository() -> None:
    for alert in alerts("local"):
        assert (ROOT / alert["annotations"]["runbook_url"]).exists()
        assert "dashboard_url" not in alert["annotations"]


def test_a_stack_has_the_alerts_that_it_has_a_use_for() -> None:
    assert {"GpuIdle", "GpuError", "SpotInterruption"} <= names("dev") & names("staging") & names("prod")
    assert names("everything") - names("prod") == {"CertificateExpiring"}  # its load balancer has no TLS
    assert names("everything") - names("local") == {
        *("GpuIdle", "GpuError", "SpotInterruption", "CertificateExpiring"),
    }
    nodes = values({**L4, "pool": {"gpu": "L4", "nodes": "managed", "capacity": ["spot"]}})
    managed = rule_groups(validate(StackConfig, nodes, "managed"))
    assert "SpotInterruption" not in str(managed)  # it is Karpenter's metric


def test_a_head_whose_state_is_lost_with_it_wakes_somebody() -> None:
    severity = {
        name: alert["labels"]["severity"]
        for name in ("dev", "prod")
        for alert in alerts(name)
        if alert["alert"] == "HeadMemoryHigh"
    }
    assert severity == {"dev": "critical", "prod": "warning"}  # with cluster.cache


def test_objectives_are_about_the_names_that_the_metrics_have() -> None:
    assert model_labels(Settings()) == {"chat": "chat", "generate": GENERATE}


def test_burn_rates_follow_the_window() -> None:
    """https://sre.google/workbook/alerting-on-slos/, table 5-8, and the same parts of a week's budget."""
    for days, expected in ((30, {"14.4", "6", "3", "1"}), (7, {"3.36", "1.4", "0.7", "0.233"})):
        stack = StackConfig.model_validate(
            {"observability": {"kind": "manifests", "storage": None, "objectives": {"window_days": days}}}
        )
        expressions = [
            rule["expr"] for group in rule_groups(stack) for rule in group["rules"] if "BudgetBurn" in str(rule)
        ]
        assert {
            found for expr in expressions for found in re.findall(r"slo:burn_rate:\w+\{[^}]*\} > ([\d.]+)", expr)
        } == expected


def test_every_alert_has_its_runbook_and_every_runbook_its_alert() -> None:
    assert {path.stem for path in RUNBOOKS.glob("*.md")} == names("everything") | {"README"}


@pytest.mark.parametrize("path", sorted(RUNBOOKS.glob("[A-Z]*[a-z].md")), ids=lambda path: path.stem)
def test_a_runbook_is_whole(path: Path) -> None:
    text = path.read_text()
    assert text.startswith(f"# {path.stem}\n")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS
    assert all(part.strip() for part in re.split(r"^## .+$", text, flags=re.MULTILINE))
    made = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {*re.findall(r"(?:`|^\$ )make ([a-z-]+)", text, re.MULTILINE)} <= made
    for linked in re.findall(r"\]\(([^)#:]+)[^):]*\)", text):
        assert (path.parent / linked).exists(), linked


def test_the_index_has_every_runbook_with_its_severity() -> None:
    rows = re.findall(
        r"^\| \[(\w+)\]\((\w+)\.md\) \| ([a-z, ]+) \|", (RUNBOOKS / "README.md").read_text(), re.MULTILINE
    )
    severities: dict[str, set[str]] = {}
    for name in (*STACKS, "everything"):
        for alert in alerts(name):
            severities.setdefault(alert["alert"], set()).add(alert["labels"]["severity"])
    assert {name: {*said.split(", ")} for name, linked, said in rows if name == linked} == severities
