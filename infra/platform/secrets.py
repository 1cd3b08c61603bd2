"""External Secrets: brings values of AWS Secrets Manager into Secrets of the cluster, whose names stack files say."""

from typing import Any

import pulumi
import pulumi_kubernetes as kubernetes

from infra.aws.config import POOL, SYSTEM, EksCluster
from infra.aws.identity import SECRETS
from infra.config import StackConfig
from infra.platform.charts import EXTERNAL_SECRETS, image, release
from infra.platform.kubeconfig import custom_resource, signed


class ExternalSecrets(pulumi.ComponentResource):
    """Its namespace, the operator from its chart, and where it finds values."""

    def __init__(self, name: str, stack: StackConfig, eks: EksCluster, opts: pulumi.ResourceOptions) -> None:
        super().__init__("blueprint:platform:ExternalSecrets", name, None, opts)
        namespace = kubernetes.core.v1.Namespace(
            SECRETS,
            metadata=signed({"name": SECRETS, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}),
            opts=pulumi.ResourceOptions(parent=self),
        )
        own = {"image": {"repository": image(EXTERNAL_SECRETS, eks.mirrors)}}
        values = {
            # Unlike others, this chart has its CRDs among its templates, and so upgrades them.
            "installCRDs": True,
            "serviceAccount": {"name": SECRETS},
            "global": {"nodeSelector": {POOL: SYSTEM}},
            **own,
            "webhook": own,
            "certController": own,
        }
        after = pulumi.ResourceOptions(parent=self, depends_on=[namespace])
        operator = release(EXTERNAL_SECRETS, eks.mirrors, SECRETS, values, after)
        manifest = store(stack, eks)
        custom_resource(f"{name}-store", manifest, pulumi.ResourceOptions(parent=self, depends_on=[operator]))
        self.register_outputs({})


def store(stack: StackConfig, eks: EksCluster) -> dict[str, Any]:
    """The ClusterSecretStore `aws`, which the operator opens by its own role, for the namespaces of the stack file.

    In others, whoever may make an ExternalSecret could read what is meant for these.
    """
    return {
        "apiVersion": "external-secrets.io/v1",
        "kind": "ClusterSecretStore",
        "metadata": {"name": "aws"},
        "spec": {
            "provider": {"aws": {"service": "SecretsManager", "region": eks.region}},
            "conditions": [{"namespaces": [stack.namespace, stack.monitoring_namespace]}],
        },
    }
