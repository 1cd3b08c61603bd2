"""The one ledger of versions. tests/unit/test_versions.py holds it against locks, go.mod files and manifests."""

from datetime import date

RAY = "2.60.0"
VLLM = "0.29.0"
"""ray[llm] pins vLLM: a newer one than this does not go with RAY."""
KUBERAY = "1.6.2"
"""1.7.0 is out; 1.6.2 is what the tests here execute."""
TESTED = {("2.60.0", "0.29.0", "1.6.2")}
"""Ray, vLLM and KubeRay that all tests have run with. Another combination is refused until it is here."""
KUBERNETES = "1.35.8"
EKS = "1.35"
"""Of clusters on AWS: the minor version that the tests here execute."""
EKS_STANDARD_SUPPORT_ENDS = date(2027, 3, 27)
"""From then on AWS asks for six times the price: https://docs.aws.amazon.com/eks/latest/userguide/kubernetes-versions.html"""
EKS_ADDONS = {
    "vpc-cni": "v1.22.4-eksbuild.3",
    "kube-proxy": "v1.35.3-eksbuild.21",
    "eks-pod-identity-agent": "v1.3.10-eksbuild.3",
    "coredns": "v1.13.2-eksbuild.21",
    "aws-ebs-csi-driver": "v1.63.1-eksbuild.1",
    "eks-node-monitoring-agent": "v1.6.4-eksbuild.1",
    "metrics-server": "v0.9.0-eksbuild.5",
}
"""What EKS itself takes for a cluster of EKS's version when nothing is said, as published configurations had it from
its API in August 2026. Left out, each cluster would keep what was the default when it was made."""
KARPENTER = "1.14.1"
LOAD_BALANCER_CONTROLLER = "3.2.2"
"""3.5.0 is out; of 3.2.2 the CRDs can be had where this was made."""
NVIDIA_DEVICE_PLUGIN = "0.20.0"
DCGM_EXPORTER = "4.8.2"
EXTERNAL_SECRETS = "2.9.0"
PROMETHEUS = "3.14.0"
PROMETHEUS_OPERATOR = "0.85.0"
"""Newer ones are out; 0.85.0 is what the tests here execute."""
KUBE_PROMETHEUS_STACK = "77.11.1"
"""The chart with this operator, and so with the CRDs in infra/observability/manifests. 88.5.3 is out."""
ALERTMANAGER = "0.28.1"
"""The one that the operator itself would take."""
PULUMI = "3.259.0"
PULUMI_KUBERNETES = "4.25.0"
PULUMI_AWS = "7.51.1"
EKS_AMI = "v20261023"
"""Release of https://github.com/awslabs/amazon-eks-ami, for the nodes that Karpenter starts."""
COREDNS = "1.14.7"
KWOK = "0.8.0"
"""Plays the kubelets of simulated nodes, in tests only."""
