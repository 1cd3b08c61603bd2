"""The Pulumi program: config → components → outputs."""

import sys
from pathlib import Path

import pulumi

# Pulumi starts the program inside infra/; app.settings and infra itself are imported from the root.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from infra import config
from infra.aws.config import EksCluster
from infra.aws.stack import Aws
from infra.observability.stack import Monitoring
from infra.platform.entry import LoadBalancerController, binding, curl
from infra.platform.kubeconfig import custom_resource, provider, sign
from infra.platform.kuberay import KubeRay
from infra.platform.nodes import Nodes
from infra.platform.secrets import ExternalSecrets
from infra.serving.rayservice import RayServing

SERVICE = "llm"

stack = config.from_pulumi()
if stack.operator.chart:
    pulumi.runtime.register_resource_transform(sign)
if isinstance(stack.cluster, EksCluster):
    aws = Aws("aws", stack, stack.cluster, SERVICE)
    cluster = aws.kubernetes()
else:
    aws, cluster = None, provider(stack.cluster)
on_cluster = pulumi.ResourceOptions(provider=cluster)
platform: list[pulumi.Resource] = [KubeRay("kuberay", stack.operator, stack.namespace, on_cluster, stack.feature_gates)]
controller = None
if isinstance(stack.cluster, EksCluster) and aws:
    platform.append(Nodes("nodes", stack, stack.cluster, on_cluster))
    platform.append(ExternalSecrets("secrets", stack, stack.cluster, on_cluster))
    if aws.entry:
        controller = LoadBalancerController("entry", stack.cluster, aws.network.vpc_id, on_cluster)
        platform.append(controller)
after = pulumi.ResourceOptions(provider=cluster, depends_on=platform)
serving = RayServing(SERVICE, stack, after, valkey=aws and aws.cache)
if stack.observability:
    Monitoring("monitoring", stack, stack.observability, after)

pulumi.export("namespace", serving.namespace)
pulumi.export("image", serving.image)
if aws and aws.entry and controller:
    manifest = binding(serving.service, serving.namespace, aws.entry.target_group, aws.network.vpc_id)
    # When it goes, the controller must still be there, which then takes the pods out.
    custom_resource(
        serving.service, manifest, pulumi.ResourceOptions(provider=cluster, depends_on=[serving, controller])
    )
    pulumi.export("endpoint", pulumi.Output.concat(aws.entry.url, "/v1"))
    pulumi.export("curl", curl(aws.entry.url, stack.serving.first_model))
else:
    pulumi.export("endpoint", serving.endpoint)
served = (stack.serving.models, stack.serving.embeddings, stack.serving.classifiers, stack.serving.rerankers)
pulumi.export("models", [model.name for models in served for model in models])
for output, value in (aws.outputs if aws else {}).items():
    pulumi.export(output, value)
pulumi.export("commands", [f"make {command} STACK={pulumi.get_stack()}" for command in ("forward", "status", "down")])
