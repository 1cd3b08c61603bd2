"""External Secrets: brings values of AWS Secrets Manager into Secrets of the cluster, whose names stack files say."""

import pulumi
import pulumi_kubernetes as kubernetes

from infra.aws.config import POOL, SYSTEM, EksCluster
from infra.aws.identity import SECRETS
from infra.platform.charts import EXTERNAL_SECRETS, image, release
from infra.platform.kubeconfig import signed


class ExternalSecrets(pulumi.ComponentResource):
    """Its namespace, and the operator from its chart."""

    def __init__(self, name: str, eks: EksCluster, opts: pulumi.ResourceOptions) -> None:
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
        release(EXTERNAL_SECRETS, eks.mirrors, SECRETS, values, after)
        self.register_outputs({})
