"""The Pulumi program: config → components → outputs."""

import sys
from pathlib import Path

import pulumi

# Pulumi starts the program inside infra/; app.settings and infra itself are imported from the root.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from infra import config
from infra.platform.kubeconfig import provider
from infra.platform.kuberay import KubeRay
from infra.serving.rayservice import RayServing

stack = config.from_pulumi()
cluster = provider(stack.cluster)
operator = KubeRay("kuberay", opts=pulumi.ResourceOptions(provider=cluster))
serving = RayServing("llm", stack, opts=pulumi.ResourceOptions(provider=cluster, depends_on=[operator]))

pulumi.export("namespace", serving.namespace)
pulumi.export("service", serving.service)
pulumi.export("image", serving.image)
