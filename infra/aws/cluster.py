"""The EKS cluster: its control plane, who may use it, and EKS's own add-ons."""

import json
from typing import Any

import pulumi
import pulumi_aws as aws

from infra import versions
from infra.aws.config import DISCOVERY, EksCluster
from infra.aws.identity import PodRole
from infra.aws.network import Network
from infra.aws.policy import trusted

# Network policies are enforced by the CNI, and only when it is told to.
BEFORE_NODES: dict[str, dict[str, Any]] = {
    "vpc-cni": {"enableNetworkPolicy": "true"},
    "kube-proxy": {},
    "eks-pod-identity-agent": {},
}
"""Add-ons without which no node becomes ready, with their settings: pods of them run on every node."""
AFTER_NODES = ("coredns", "aws-ebs-csi-driver", "eks-node-monitoring-agent", "metrics-server")
"""Add-ons that are ready when their pods run, for which there must be a node."""


class Cluster(pulumi.ComponentResource):
    """The control plane, up to where nodes can join."""

    name: pulumi.Output[str]
    """Known when the cluster is there."""
    endpoint: pulumi.Output[str]
    certificate: pulumi.Output[str]
    """Of the authority behind the endpoint, in base64."""
    security_group: pulumi.Output[str]
    """Of control plane and nodes, all in one, as EKS makes it."""

    def __init__(self, name: str, eks: EksCluster, network: Network, opts: pulumi.ResourceOptions) -> None:
        super().__init__("blueprint:aws:Cluster", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        keep = pulumi.ResourceOptions(parent=self, protect=eks.deletion_protection)
        key = aws.kms.Key(
            name,
            description=f"Secrets of the Kubernetes API of {eks.name}",
            enable_key_rotation=True,
            deletion_window_in_days=30 if eks.deletion_protection else 7,
            opts=keep,
        )
        aws.kms.Alias(name, name=f"alias/{eks.name}-eks", target_key_id=key.id, opts=child)
        role = aws.iam.Role(name, name=eks.role("cluster"), assume_role_policy=trusted("eks.amazonaws.com"), opts=child)
        rights = aws.iam.RolePolicyAttachment(
            name, role=role.name, policy_arn="arn:aws:iam::aws:policy/AmazonEKSClusterPolicy", opts=child
        )
        # EKS would make it by itself, without an end.
        logs = aws.cloudwatch.LogGroup(
            name,
            name=f"/aws/eks/{eks.name}/cluster",
            retention_in_days=eks.log_days,
            # Who did what outlives the cluster that it was done to.
            opts=pulumi.ResourceOptions(parent=self, retain_on_delete=eks.deletion_protection),
        )
        self._cluster = aws.eks.Cluster(
            name,
            name=eks.name,
            version=versions.EKS,
            role_arn=role.arn,
            vpc_config=aws.eks.ClusterVpcConfigArgs(
                subnet_ids=network.private_subnets,
                endpoint_private_access=True,
                endpoint_public_access=bool(eks.public_cidrs),
                # Left out, and not empty, which AWS takes for everybody.
                public_access_cidrs=eks.public_cidrs or None,
            ),
            # Access entries are the only way in. A creator who is admin for ever would be one that nobody sees.
            access_config={"authentication_mode": "API", "bootstrap_cluster_creator_admin_permissions": False},
            # The add-ons below, and not those that EKS would install and never upgrade.
            bootstrap_self_managed_addons=False,
            encryption_config={"provider": {"key_arn": key.arn}, "resources": ["secrets"]},
            enabled_cluster_log_types=["api", "audit", "authenticator", "controllerManager", "scheduler"],
            deletion_protection=eks.deletion_protection,
            opts=pulumi.ResourceOptions(parent=self, protect=eks.deletion_protection, depends_on=[rights, logs]),
        )
        self.name = self._cluster.name
        self.endpoint = self._cluster.endpoint
        self.certificate = self._cluster.certificate_authority.data
        self.security_group = self._cluster.vpc_config.cluster_security_group_id
        aws.ec2.Tag(f"{name}-discovery", resource_id=self.security_group, key=DISCOVERY, value=eks.name, opts=child)
        self._admins(eks)
        cni = PodRole("vpc-cni", eks, self.name, "kube-system", ["aws-node"], "AmazonEKS_CNI_Policy", opts=child)
        for addon, settings in BEFORE_NODES.items():
            after = pulumi.ResourceOptions(parent=self, depends_on=cni.associations)
            _addon(addon, self.name, json.dumps(settings) if settings else None, after)
        self.register_outputs({"name": self.name, "endpoint": self.endpoint, "security_group": self.security_group})

    def _admins(self, eks: EksCluster) -> None:
        for arn in eks.admins:
            label = arn.rpartition("/")[2]
            entry = aws.eks.AccessEntry(
                f"admin-{label}",
                cluster_name=self.name,
                principal_arn=arn,
                opts=pulumi.ResourceOptions(parent=self),
            )
            aws.eks.AccessPolicyAssociation(
                f"admin-{label}",
                cluster_name=self.name,
                principal_arn=entry.principal_arn,
                policy_arn="arn:aws:eks::aws:cluster-access-policy/AmazonEKSClusterAdminPolicy",
                access_scope={"type": "cluster"},
                opts=pulumi.ResourceOptions(parent=self),
            )


class Addons(pulumi.ComponentResource):
    """The add-ons that run on nodes which are there."""

    def __init__(self, name: str, eks: EksCluster, cluster: Cluster, opts: pulumi.ResourceOptions) -> None:
        super().__init__("blueprint:aws:Addons", name, None, opts)
        disks = PodRole(
            "ebs-csi-driver",
            eks,
            cluster.name,
            "kube-system",
            ["ebs-csi-controller-sa"],
            "service-role/AmazonEBSCSIDriverPolicy",
            opts=pulumi.ResourceOptions(parent=self),
        )
        for addon in AFTER_NODES:
            _addon(addon, cluster.name, None, pulumi.ResourceOptions(parent=self, depends_on=disks.associations))
        self.register_outputs({})


def _addon(addon: str, cluster: pulumi.Output[str], settings: str | None, opts: pulumi.ResourceOptions) -> None:
    """In the ledger's version; what others have changed of it is set back."""
    aws.eks.Addon(
        addon,
        cluster_name=cluster,
        addon_name=addon,
        addon_version=versions.EKS_ADDONS[addon],
        configuration_values=settings,
        resolve_conflicts_on_create="OVERWRITE",
        resolve_conflicts_on_update="OVERWRITE",
        opts=opts,
    )
