"""What is seen of a stack: Prometheus, where the program brings it, what it scrapes, rules, dashboards."""

import base64
import secrets
from typing import Any

import pulumi
import pulumi_kubernetes as kubernetes

from infra.config import StackConfig
from infra.observability.alerts import rule_groups
from infra.observability.chart import ADMIN, chart_values
from infra.observability.config import ObjectsOnly, Observability, PrometheusOperator, PrometheusStack
from infra.observability.dashboards import dashboards
from infra.observability.monitors import pod_monitors
from infra.observability.prometheus import (
    STORAGE_CLASS,
    alertmanager,
    manifests,
    mirrors,
    operator_objects,
    own_storage_class,
    prometheus,
)
from infra.platform.charts import KUBE_PROMETHEUS_STACK, release
from infra.platform.kubeconfig import custom_resource, signed, signed_objects


class Monitoring(pulumi.ComponentResource):
    """All of it in the stack's monitoring_namespace."""

    def __init__(self, name: str, stack: StackConfig, seen: Observability, opts: pulumi.ResourceOptions) -> None:
        super().__init__("blueprint:observability:Monitoring", name, None, opts)
        self._namespace = stack.monitoring_namespace
        after: list[pulumi.Resource] = []
        if not isinstance(seen, ObjectsOnly):
            after = self._collector(name, stack, seen)
        # An operator refuses rules that it cannot read, and so comes before them.
        labels = seen.labels if isinstance(seen, ObjectsOnly) else {}
        for manifest in (*pod_monitors(stack), rules(stack)):
            if labels:  # an empty map is dropped, and would be a change in every `up`
                manifest["metadata"]["labels"] = labels
            self._custom(manifest, after)
        for title, content in dashboards(stack).items():
            kubernetes.core.v1.ConfigMap(
                f"dashboard-{title}",
                metadata=self._metadata(f"dashboard-{title}", labels={"grafana_dashboard": "1"}),
                data={f"{title}.json": content},
                opts=pulumi.ResourceOptions(parent=self, depends_on=after),
            )
        self.register_outputs({})

    def _collector(
        self, name: str, stack: StackConfig, seen: PrometheusStack | PrometheusOperator
    ) -> list[pulumi.Resource]:
        """Namespace, CRDs, the operator and its Prometheus; what comes after all of these, and before rules."""
        namespace = kubernetes.core.v1.Namespace(
            name,
            metadata=signed({"name": self._namespace, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}),
            opts=pulumi.ResourceOptions(parent=self),
        )
        crds = kubernetes.yaml.v2.ConfigGroup(
            "prometheus-crds",
            objs=signed_objects(manifests("prometheus-crds")),
            opts=pulumi.ResourceOptions(parent=self),
        )
        policies = [self._policy(policy, spec, namespace) for policy, spec in flows(seen).items()]
        ready: list[pulumi.Resource] = [namespace, crds, *policies]
        if own_storage_class(stack, seen):
            ready.append(
                kubernetes.storage.v1.StorageClass(
                    STORAGE_CLASS,
                    metadata=signed({"name": STORAGE_CLASS}),
                    provisioner="ebs.csi.aws.com",
                    parameters={"type": "gp3", "encrypted": "true"},
                    volume_binding_mode="WaitForFirstConsumer",
                    allow_volume_expansion=True,
                    opts=pulumi.ResourceOptions(parent=self),
                )
            )
        if isinstance(seen, PrometheusStack):
            if seen.grafana_secret is None:
                ready.append(self._grafana_secret(namespace))
            opts = pulumi.ResourceOptions(parent=self, depends_on=ready)
            values = chart_values(stack, seen)
            return [release(KUBE_PROMETHEUS_STACK, mirrors(stack, seen), self._namespace, values, opts)]
        operator = kubernetes.yaml.v2.ConfigGroup(
            "prometheus-operator",
            objs=signed_objects(operator_objects(stack, seen)),
            opts=pulumi.ResourceOptions(parent=self, depends_on=ready),
        )
        if seen.alertmanager_secret:
            self._custom(alertmanager(stack, seen), [operator])
        self._custom(prometheus(stack, seen), [operator])
        return [operator]

    def _grafana_secret(self, namespace: pulumi.Resource) -> pulumi.Resource:
        """The first password stays: Grafana knows no other."""
        password = base64.b64encode(secrets.token_urlsafe(24).encode()).decode()
        return kubernetes.core.v1.Secret(
            ADMIN,
            metadata=self._metadata(ADMIN),
            data={"admin-user": base64.b64encode(b"admin").decode(), "admin-password": password},
            opts=pulumi.ResourceOptions(parent=self, depends_on=[namespace], ignore_changes=["data"]),
        )

    def _policy(self, name: str, spec: Any, namespace: pulumi.Resource) -> pulumi.Resource:
        return kubernetes.networking.v1.NetworkPolicy(
            f"monitoring-{name}",
            metadata=self._metadata(name),
            spec=spec,
            opts=pulumi.ResourceOptions(parent=self, depends_on=[namespace]),
        )

    def _custom(self, manifest: dict[str, Any], after: list[pulumi.Resource]) -> None:
        name = f"{manifest['metadata']['name']}-{manifest['kind'].lower()}"
        custom_resource(name, manifest, pulumi.ResourceOptions(parent=self, depends_on=after))

    def _metadata(self, name: str, **more: Any) -> Any:
        return signed({"name": name, "namespace": self._namespace, **more})


def rules(stack: StackConfig) -> dict[str, Any]:
    """The PrometheusRule with all recording rules and alerts."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "blueprint", "namespace": stack.monitoring_namespace},
        "spec": {"groups": rule_groups(stack)},
    }


def flows(seen: PrometheusStack | PrometheusOperator) -> dict[str, Any]:
    """The NetworkPolicies' specs, by name: from outside of the namespace nobody comes in.

    Out they go where they must: Prometheus to pods and nodes of the whole cluster, alerts and samples to the internet.
    """
    own = {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": {}}]}]}
    if isinstance(seen, PrometheusOperator):
        return {"own": own}
    # The API server, whose addresses no policy knows, asks the operator about rules.
    operator = {"matchLabels": {"app": f"{KUBE_PROMETHEUS_STACK.name}-operator"}}
    webhook = [{"ports": [{"port": 10250, "protocol": "TCP"}]}]
    return {"own": own, "webhook": {"podSelector": operator, "policyTypes": ["Ingress"], "ingress": webhook}}
