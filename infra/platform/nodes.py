"""What the nodes of worker groups need on the cluster.

Karpenter starts them, NVIDIA's device plugin offers their GPUs, and its DCGM exporter says what these do.
"""

from typing import Any

import pulumi
import pulumi_kubernetes as kubernetes
import yaml

from infra.aws.config import POOL, SYSTEM, EksCluster
from infra.aws.nodes import KARPENTER_ACCOUNT
from infra.aws.pools import GPU_TAINT
from infra.config import StackConfig
from infra.platform.charts import DCGM_EXPORTER, DEVICE_PLUGIN, KARPENTER, image, release
from infra.platform.karpenter import node_pools
from infra.platform.kubeconfig import custom_resource, signed_objects
from infra.platform.kuberay import manifests

NAMESPACE = "kube-system"


class Nodes(pulumi.ComponentResource):
    """Each of them in a stack that has something for it to do."""

    def __init__(self, name: str, stack: StackConfig, eks: EksCluster, opts: pulumi.ResourceOptions) -> None:
        super().__init__("blueprint:platform:Nodes", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        if any(group.gpus for group in stack.workers):
            # On nodes with the label that the chart looks for (infra/aws/pools.py), whose machine image has the driver.
            release(DEVICE_PLUGIN, eks.mirrors, NAMESPACE, plugin_values(stack, eks), child)
            release(DCGM_EXPORTER, eks.mirrors, NAMESPACE, exporter_values(eks), child)
        if pools := list(node_pools(stack, eks)):
            crds = kubernetes.yaml.v2.ConfigGroup(
                "karpenter-crds",
                objs=signed_objects(manifests("karpenter-crds")),
                opts=child,
            )
            after = pulumi.ResourceOptions(parent=self, depends_on=[crds])
            controller = release(KARPENTER, eks.mirrors, NAMESPACE, karpenter_values(eks), after)
            for node_class, node_pool in pools:
                # In the other direction a pool goes before its class and the controller, which ends its nodes.
                made = self._create(node_class, controller)
                self._create(node_pool, made)
        self.register_outputs({})

    def _create(self, manifest: dict[str, Any], after: pulumi.Resource) -> pulumi.Resource:
        name = f"{manifest['metadata']['name']}-{manifest['kind'].lower()}"
        return custom_resource(name, manifest, pulumi.ResourceOptions(parent=self, depends_on=[after]))


def plugin_values(stack: StackConfig, eks: EksCluster) -> dict[str, Any]:
    """Values of the device plugin's chart; where groups share GPUs, with a configuration by the name of each.

    https://github.com/NVIDIA/k8s-device-plugin#shared-access-to-gpus
    """
    known = {"default": yaml.safe_dump({"version": "v1"})}
    for group in stack.workers:
        if group.pool and (share := group.pool.share):
            resources = {"resources": [{"name": "nvidia.com/gpu", "replicas": share.replicas}]}
            sharing = {"mps" if share.by == "mps" else "timeSlicing": resources}
            known[group.name] = yaml.safe_dump({"version": "v1", "sharing": sharing})
    shared = {"config": {"map": known, "default": "default"}} if len(known) > 1 else {}
    return {"image": {"repository": image(DEVICE_PLUGIN, eks.mirrors)}, **shared}


def exporter_values(eks: EksCluster) -> dict[str, Any]:
    """Values of the DCGM exporter's chart, which by itself would run on all nodes but those with GPUs."""
    return {
        "image": {"repository": image(DCGM_EXPORTER, eks.mirrors)},
        "nodeSelector": {"nvidia.com/gpu.present": "true"},
        "tolerations": [{"key": GPU_TAINT["key"], "operator": "Exists", "effect": GPU_TAINT["effect"]}],
        # A kind that a cluster without Prometheus' operator does not know.
        "serviceMonitor": {"enabled": False},
    }


def karpenter_values(eks: EksCluster) -> dict[str, Any]:
    """Values of its chart."""
    memory = "1Gi"
    return {
        "settings": {"clusterName": eks.name, "interruptionQueue": eks.name},
        "serviceAccount": {"name": KARPENTER_ACCOUNT},
        # The chart wants each replica on a node of its own.
        "replicas": min(2, eks.nodes.min),
        "nodeSelector": {POOL: SYSTEM},
        "controller": {
            "image": {"repository": image(KARPENTER, eks.mirrors)},
            "resources": {"requests": {"cpu": "250m", "memory": memory}, "limits": {"memory": memory}},
        },
    }
