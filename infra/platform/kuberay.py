"""The KubeRay operator, from its project's own manifests.

manifests/ holds what KubeRay publishes for the pinned version (scripts/vendor_kuberay.py). The same files serve
every stack, offline too; and CRDs are upgraded with the rest, which Helm would not do:
https://helm.sh/docs/chart_best_practices/custom_resource_definitions/
"""

import json
from pathlib import Path
from typing import Any

import pulumi
import pulumi_kubernetes as kubernetes

from infra import versions

NAMESPACE = "kuberay-system"
IMAGE = f"quay.io/kuberay/operator:v{versions.KUBERAY}"
MANIFESTS = Path(__file__).parent / "manifests"


def manifests(name: str) -> list[dict[str, Any]]:
    """The objects in manifests/<name>.json (as YAML, the CRDs would take seconds to read)."""
    return json.loads((MANIFESTS / f"{name}.json").read_text())["items"]


def operator_objects() -> list[dict[str, Any]]:
    """KubeRay's manifests with room to work in: its 0.1 CPU makes every reconciliation crawl."""
    objects = manifests("kuberay-operator")
    for item in objects:
        if item["kind"] == "Deployment":
            item["spec"]["template"]["spec"]["containers"][0]["resources"] = {
                "requests": {"cpu": "100m", "memory": "512Mi"},
                "limits": {"cpu": "1", "memory": "512Mi"},
            }
    return objects


class KubeRay(pulumi.ComponentResource):
    """Namespace, CRDs and operator."""

    def __init__(self, name: str, opts: pulumi.ResourceOptions) -> None:
        super().__init__("blueprint:platform:KubeRay", name, None, opts)
        namespace = kubernetes.core.v1.Namespace(
            name,
            metadata={
                "name": NAMESPACE,
                "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
            },
            opts=pulumi.ResourceOptions(parent=self),
        )
        crds = kubernetes.yaml.v2.ConfigGroup(
            f"{name}-crds",
            objs=manifests("kuberay-crds"),
            opts=pulumi.ResourceOptions(parent=self),
        )
        kubernetes.yaml.v2.ConfigGroup(
            f"{name}-operator",
            objs=operator_objects(),
            opts=pulumi.ResourceOptions(parent=self, depends_on=[namespace, crds]),
        )
        self.register_outputs({})
