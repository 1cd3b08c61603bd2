"""The KubeRay operator: from its project's own manifests, or from its Helm chart.

manifests/ holds what KubeRay publishes for the pinned version (scripts/vendor_kuberay.py). The same files serve
every stack, offline too. The CRDs always come from there, with the chart as well, and are upgraded with the rest, which
Helm would not do: https://helm.sh/docs/chart_best_practices/custom_resource_definitions/

The operator looks at the stack's namespace only, and has its rights nowhere else: it may read Secrets, and make pods.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pulumi
import pulumi_kubernetes as kubernetes

from infra import versions
from infra.config import ROOT, Operator
from infra.platform.kubeconfig import signed, signed_objects

NAMESPACE = "kuberay-system"
MANIFESTS = Path(__file__).parent / "manifests"
RESOURCES = {
    "requests": {"cpu": "100m", "memory": "512Mi"},
    "limits": {"cpu": "1", "memory": "512Mi"},
}
"""Room to work in: with KubeRay's own limit, 0.1 CPU, every reconciliation crawls."""
ENVIRONMENT = [{"name": "ENABLE_INIT_CONTAINER_INJECTION", "value": "false"}]
"""Workers wait for their head in an init container of ours: infra/serving/rayservice.py."""


def manifests(name: str) -> list[dict[str, Any]]:
    """The objects in manifests/<name>.json (as YAML, the CRDs would take seconds to read)."""
    return json.loads((MANIFESTS / f"{name}.json").read_text())["items"]


def operator_objects(operator: Operator, namespace: str, gates: Sequence[str] = ()) -> list[dict[str, Any]]:
    """KubeRay's manifests with the stack's image and namespace, RESOURCES, and the feature gates that it opens.

    Without the rights in the whole cluster: see `rights`.
    """
    objects = [item for item in manifests("kuberay-operator") if not item["kind"].startswith("Cluster")]
    for item in objects:
        if item["kind"] == "Deployment":
            container = item["spec"]["template"]["spec"]["containers"][0]
            (known,) = container["args"]
            container |= {
                "image": operator.reference,
                "resources": RESOURCES,
                "env": ENVIRONMENT,
                "args": [
                    # Its own metrics, of RayServices and RayClusters, are off by default.
                    "--enable-metrics",
                    ",".join([known, *(f"{gate}=true" for gate in gates)]),
                    f"--watch-namespace={namespace}",
                ],
            }
    return objects


def rights(operator: Operator, namespace: str) -> list[dict[str, Any]]:
    """What KubeRay wants to do in a whole cluster, as a Role in the stack's namespace."""
    (wanted,) = (item for item in manifests("kuberay-operator") if item["kind"] == "ClusterRole")
    metadata = {"name": wanted["metadata"]["name"], "namespace": namespace}
    account = _CHART if operator.chart else wanted["metadata"]["name"]
    group = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": wanted["apiVersion"], "kind": "Role", "metadata": metadata, "rules": wanted["rules"]},
        {
            "apiVersion": wanted["apiVersion"],
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": group, "kind": "Role", "name": metadata["name"]},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}],
        },
    ]


_CHART = "kuberay-chart"
"""The chart's objects have other names than the manifests', or a stack that changes from one to the other would in the
end delete what it has just taken over."""


def chart_arguments(chart: str, image: str, namespace: str, gates: Sequence[str] = ()) -> dict[str, Any]:
    """What helm.v4.Chart is told to render the pinned version from `chart`, for an operator of `namespace`."""
    if chart.startswith("https://"):
        source = {"chart": "kuberay-operator", "repository_opts": {"repo": chart}}
    else:
        source = {"chart": chart if chart.startswith("oci://") else str(ROOT / chart)}
    return {
        **source,
        "version": versions.KUBERAY,
        "name": _CHART,
        "namespace": NAMESPACE,
        "skip_crds": True,
        "values": {
            "fullnameOverride": _CHART,
            "serviceAccount": {"name": _CHART},
            "watchNamespace": [namespace],
            # With no role of the chart's but that for the election of a leader: it would go into a namespace that is
            # not there yet. The others are `rights`.
            "singleNamespaceInstall": True,
            "crNamespacedRbacEnable": False,
            "image": {"repository": image, "tag": f"v{versions.KUBERAY}"},
            "resources": RESOURCES,
            "env": ENVIRONMENT,
            # In place of the chart's list: the gates that it does not name are as KubeRay itself has them.
            **({"featureGates": [{"name": gate, "enabled": True} for gate in gates]} if gates else {}),
        },
    }


def is_operator(deployment: dict[str, Any]) -> bool:
    """Whether a Deployment runs a KubeRay operator: ours, a chart's, or one of a mirror under another name."""
    template = deployment["spec"]["template"]
    labels = template["metadata"].get("labels", {})
    images = [container["image"] for container in template["spec"]["containers"]]
    return labels.get("app.kubernetes.io/component") == "kuberay-operator" or any(
        "kuberay/operator" in image for image in images
    )


class KubeRay(pulumi.ComponentResource):
    """Namespace, CRDs and operator, and the stack's namespace `watched`, of which alone it takes care.

    That one is here since the operator must have its rights there when it starts: its probes ask for its metrics, which
    wait until it has seen all Ray clusters.
    """

    def __init__(
        self,
        name: str,
        operator: Operator,
        watched: str,
        opts: pulumi.ResourceOptions,
        gates: Sequence[str] = (),
    ) -> None:
        super().__init__("blueprint:platform:KubeRay", name, None, opts)
        namespace = kubernetes.core.v1.Namespace(
            name,
            metadata=signed({"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}),
            opts=pulumi.ResourceOptions(parent=self),
        )
        crds = kubernetes.yaml.v2.ConfigGroup(
            f"{name}-crds",
            objs=signed_objects(manifests("kuberay-crds")),
            opts=pulumi.ResourceOptions(parent=self),
        )
        # Where it was, and what would else be deleted with all that is in it.
        formerly = f"urn:pulumi:{pulumi.get_stack()}::{pulumi.get_project()}::blueprint:serving:RayServing$"
        of_stack = kubernetes.core.v1.Namespace(
            watched,
            metadata=signed({"name": watched, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}),
            opts=pulumi.ResourceOptions(parent=self, aliases=[f"{formerly}kubernetes:core/v1:Namespace::llm"]),
        )
        may = kubernetes.yaml.v2.ConfigGroup(
            f"{name}-rights",
            objs=signed_objects(rights(operator, watched)),
            opts=pulumi.ResourceOptions(parent=self, depends_on=[of_stack]),
        )
        after = pulumi.ResourceOptions(parent=self, depends_on=[namespace, crds, may])
        if operator.chart:
            arguments = chart_arguments(operator.chart, operator.image, watched, gates)
            kubernetes.helm.v4.Chart(f"{name}-operator", **arguments, opts=after)
        else:
            objects = signed_objects(operator_objects(operator, watched, gates))
            kubernetes.yaml.v2.ConfigGroup(f"{name}-operator", objs=objects, opts=after)
        self.register_outputs({})
