"""What leads from the load balancer to the models: the Load Balancer Controller, and which pods it registers."""

import json
from typing import Any

import pulumi
import pulumi_kubernetes as kubernetes

from infra.aws.config import POOL, SYSTEM, EksCluster
from infra.aws.identity import BALANCER
from infra.platform.charts import LOAD_BALANCER_CONTROLLER, image, release
from infra.platform.kubeconfig import signed_objects
from infra.platform.kuberay import manifests
from infra.serving.pods import SERVE_PORT

NAMESPACE = "kube-system"


class LoadBalancerController(pulumi.ComponentResource):
    """CRDs and controller."""

    def __init__(self, name: str, eks: EksCluster, vpc: pulumi.Input[str], opts: pulumi.ResourceOptions) -> None:
        super().__init__("blueprint:platform:LoadBalancerController", name, None, opts)
        crds = kubernetes.yaml.v2.ConfigGroup(
            f"{name}-crds",
            objs=signed_objects(manifests("load-balancer-controller-crds")),
            opts=pulumi.ResourceOptions(parent=self),
        )
        after = pulumi.ResourceOptions(parent=self, depends_on=[crds])
        release(LOAD_BALANCER_CONTROLLER, eks.mirrors, NAMESPACE, controller_values(eks, vpc), after)
        self.register_outputs({})


def controller_values(eks: EksCluster, vpc: pulumi.Input[str]) -> dict[str, Any]:
    """Values of its chart."""
    return {
        "image": {"repository": image(LOAD_BALANCER_CONTROLLER, eks.mirrors)},
        "clusterName": eks.name,
        # It would ask the nodes' metadata, which answers no pod.
        "region": eks.region,
        "vpcId": vpc,
        "serviceAccount": {"name": BALANCER},
        # The chart wants each replica on a node of its own.
        "replicaCount": min(2, eks.nodes.min),
        "nodeSelector": {POOL: SYSTEM},
        # It has no right to make load balancers, so it is nobody's default for that.
        "enableServiceMutatorWebhook": False,
        "createIngressClassResource": False,
        "ingressClassParams": {"create": False},
        # Else every upgrade of the chart changes the webhooks' certificate under the controller that runs.
        "keepTLSSecret": True,
    }


def binding(service: str, namespace: str, target_group: Any, vpc: Any) -> dict[str, Any]:
    """The TargetGroupBinding: the ready pods of KubeRay's Service, whichever Ray cluster that leads to, are targets."""
    return {
        "apiVersion": "elbv2.k8s.aws/v1beta1",
        "kind": "TargetGroupBinding",
        "metadata": {"name": service, "namespace": namespace},
        "spec": {
            "targetGroupARN": target_group,
            "targetType": "ip",
            "ipAddressType": "ipv4",
            "vpcID": vpc,
            "serviceRef": {"name": service, "port": SERVE_PORT},
        },
    }


def curl(url: pulumi.Input[str], model: str) -> pulumi.Output[str]:
    """A command that asks the model something, or, without a language model, for the names of all."""
    authorization = '-H "Authorization: Bearer $BLUEPRINT_API_KEY"'
    if not model:
        return pulumi.Output.concat("curl ", url, f"/v1/models {authorization}")
    question = {"model": model, "messages": [{"role": "user", "content": "What is the capital of France?"}]}
    body = f"-H 'Content-Type: application/json' -d '{json.dumps(question)}'"
    return pulumi.Output.concat("curl ", url, f"/v1/chat/completions {authorization} {body}")
