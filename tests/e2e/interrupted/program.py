"""A Pulumi program that never gets done, or that does: an object whose pods lack their image."""

from typing import Any

import pulumi
import pulumi_kubernetes as kubernetes

from infra.clusters import NativeCluster
from infra.platform.kubeconfig import provider, signed

NAMESPACE = "interrupted"


def program(replicas: int) -> None:
    """With replicas Pulumi waits for a pod that cannot start."""
    opts = pulumi.ResourceOptions(provider=provider(NativeCluster()))
    namespace = kubernetes.core.v1.Namespace("namespace", metadata=signed({"name": NAMESPACE}), opts=opts)
    labels = {"app": "never"}
    container = {"name": "never", "image": "localhost/never:1", "imagePullPolicy": "Never"}
    spec: Any = {
        "replicas": replicas,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
    }
    annotations = {} if replicas else {"pulumi.com/skipAwait": "true"}
    kubernetes.apps.v1.Deployment(
        "never",
        metadata=signed({"name": "never", "namespace": NAMESPACE, "annotations": annotations}),
        spec=spec,
        opts=pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(depends_on=[namespace])),
    )
