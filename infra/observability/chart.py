"""Values of the chart kube-prometheus-stack."""

from typing import Any

from infra import versions
from infra.config import StackConfig
from infra.observability.config import PrometheusStack
from infra.observability.prometheus import mirrors, node_selector, prometheus_spec, volume_claim
from infra.platform.charts import KUBE_PROMETHEUS_STACK

GRAFANA = f"{KUBE_PROMETHEUS_STACK.name}-grafana"
"""Name of Grafana's Service."""
ADMIN = "grafana-admin"
"""Name of the Secret with its password, where the stack file names none."""
OURS = ("PrometheusRuleFailures", "TargetDown", "Watchdog")
"""Alerts of the chart's that are ours by the same names."""


def chart_values(stack: StackConfig, seen: PrometheusStack) -> dict[str, Any]:
    """What of the chart is other than its default."""
    on = {"nodeSelector": node_selector(stack)}
    off = {"enabled": False}
    all_of_it = {"podMonitor": False, "serviceMonitor": False, "probe": False, "rule": False, "scrapeConfig": False}
    registry = mirrors(stack, seen).images
    return {
        "fullnameOverride": KUBE_PROMETHEUS_STACK.name,
        # With Helm they would stay as they are for ever; ours are upgraded with the rest.
        "crds": off,
        **({"global": {"imageRegistry": registry}} if registry else {}),
        # Ours have runbooks.
        "defaultRules": {"disabled": {alert: True for alert in OURS}},
        "prometheusOperator": {**on, "admissionWebhooks": {"patch": on}},
        "prometheus": {
            "prometheusSpec": {
                **prometheus_spec(stack, seen),
                "image": {"tag": f"v{versions.PROMETHEUS}"},
                "storageSpec": volume_claim(stack, seen),
                # Else it takes only what has the label of the chart's release.
                **{f"{kind}SelectorNilUsesHelmValues": only for kind, only in all_of_it.items()},
            }
        },
        "alertmanager": (
            {
                "alertmanagerSpec": {
                    **on,
                    "useExistingSecret": True,
                    "configSecret": seen.alertmanager_secret,
                }
            }
            if seen.alertmanager_secret
            else off
        ),
        "grafana": {
            **on,
            "admin": {"existingSecret": seen.grafana_secret or ADMIN},
            "sidecar": {
                "dashboards": {"label": "grafana_dashboard", "labelValue": "1", "searchNamespace": "ALL"},
            },
            # A pod of a test suite, whose image no mirror needs to have.
            "testFramework": off,
        },
        "kube-state-metrics": on,
        # It wants the node's own network, processes and files, which a namespace of restricted pods has not.
        "nodeExporter": off,
        # Of a control plane that AWS, or somebody else, runs and nobody else can ask.
        **{part: off for part in ("kubeEtcd", "kubeScheduler", "kubeControllerManager", "kubeProxy")},
    }
