"""Helm charts of others, in the versions of the ledger, each from its project or from the stack's mirrors.

By a real `helm install`: what a chart makes by hooks, or only once, it makes. Their CRDs are not Helm's, which would
never upgrade them: https://helm.sh/docs/chart_best_practices/custom_resource_definitions/
"""

from typing import Any, NamedTuple

import pulumi
import pulumi_kubernetes as kubernetes

from infra import versions
from infra.aws.config import Mirrors


class Chart(NamedTuple):
    name: str
    version: str
    repository: str
    """https:// of a repository, or oci:// of what has the chart in it."""
    image: str = ""
    """Of its one image, without tag; empty where there are several."""


KARPENTER = Chart(
    "karpenter", versions.KARPENTER, "oci://public.ecr.aws/karpenter", "public.ecr.aws/karpenter/controller"
)
DEVICE_PLUGIN = Chart(
    "nvidia-device-plugin",
    versions.NVIDIA_DEVICE_PLUGIN,
    "https://nvidia.github.io/k8s-device-plugin",
    "nvcr.io/nvidia/k8s-device-plugin",
)
DCGM_EXPORTER = Chart(
    "dcgm-exporter",
    versions.DCGM_EXPORTER,
    "https://nvidia.github.io/dcgm-exporter/helm-charts",
    "nvcr.io/nvidia/k8s/dcgm-exporter",
)
LOAD_BALANCER_CONTROLLER = Chart(
    "aws-load-balancer-controller",
    versions.LOAD_BALANCER_CONTROLLER,
    "https://aws.github.io/eks-charts",
    "public.ecr.aws/eks/aws-load-balancer-controller",
)
KUBE_PROMETHEUS_STACK = Chart(
    "kube-prometheus-stack",
    versions.KUBE_PROMETHEUS_STACK,
    "https://prometheus-community.github.io/helm-charts",
)
EXTERNAL_SECRETS = Chart(
    "external-secrets",
    versions.EXTERNAL_SECRETS,
    "https://charts.external-secrets.io",
    "ghcr.io/external-secrets/external-secrets",
)


def mirrored(image: str, mirrors: Mirrors) -> str:
    """An image, by its own name in the mirror."""
    return f"{mirrors.images}/{image.partition('/')[2]}" if mirrors.images else image


def image(chart: Chart, mirrors: Mirrors) -> str:
    """The chart's image."""
    return mirrored(chart.image, mirrors)


def release(
    chart: Chart, mirrors: Mirrors, namespace: str, values: dict[str, Any], opts: pulumi.ResourceOptions
) -> kubernetes.helm.v3.Release:
    """The chart, installed under its own name and awaited."""
    repository = mirrors.charts or chart.repository
    source: dict[str, Any] = {"chart": chart.name, "repository_opts": {"repo": repository}}
    if repository.startswith("oci://"):
        source = {"chart": f"{repository}/{chart.name}"}
    return kubernetes.helm.v3.Release(
        chart.name,
        name=chart.name,
        version=chart.version,
        namespace=namespace,
        skip_crds=True,
        values=values,
        opts=opts,
        **source,
    )
