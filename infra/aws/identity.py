"""Who may do what on AWS: a role for each workload, which its pods get by EKS Pod Identity and nobody else does.

Roles of nodes are with the nodes. A pod that has no role here has none: the nodes' metadata answers no pod.
"""

from collections.abc import Sequence
from typing import Any

import pulumi
import pulumi_aws as aws

from infra.aws.config import EksCluster
from infra.aws.policy import allow, document, pods

BALANCER = "aws-load-balancer-controller"
"""Service account of the Load Balancer Controller, in kube-system."""
SECRETS = "external-secrets"
"""Namespace and service account of External Secrets."""


class PodRole(pulumi.ComponentResource):
    """A role, what it may, and the service accounts whose pods take it."""

    associations: list[pulumi.Resource]

    def __init__(
        self,
        purpose: str,
        eks: EksCluster,
        cluster: pulumi.Input[str],
        namespace: str,
        accounts: Sequence[str],
        policy: str | list[dict[str, Any]],
        opts: pulumi.ResourceOptions,
    ) -> None:
        """`policy` is the name of one of AWS's own, or statements; `cluster` the cluster's name, once it is there."""
        super().__init__("blueprint:aws:PodRole", purpose, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        role = aws.iam.Role(purpose, name=eks.role(purpose), assume_role_policy=pods(eks), opts=child)
        if isinstance(policy, str):
            arn = f"arn:aws:iam::aws:policy/{policy}"
            rights = aws.iam.RolePolicyAttachment(purpose, role=role.name, policy_arn=arn, opts=child)
        else:
            rights = aws.iam.RolePolicy(purpose, role=role.name, policy=document(*policy), opts=child)
        self.associations = [
            aws.eks.PodIdentityAssociation(
                f"{purpose}-{account}" if len(accounts) > 1 else purpose,
                cluster_name=cluster,
                namespace=namespace,
                service_account=account,
                role_arn=role.arn,
                # A pod that starts before its role may do anything would begin with errors.
                opts=pulumi.ResourceOptions(parent=self, depends_on=[rights]),
            )
            for account in accounts
        ]
        self.register_outputs({})


def read_weights(sources: Sequence[str], key: pulumi.Input[str]) -> list[dict[str, Any]]:
    """What Ray's pods may: read the models that their stack serves, s3://<bucket>/<prefix>, and nothing else.

    `key` is the ARN of the key that the stack's own bucket is encrypted with.
    """
    places = sorted({tuple(source.removeprefix("s3://").rstrip("/").split("/", 1)) for source in sources})
    return [
        allow(["s3:GetObject"], [f"arn:aws:s3:::{bucket}/{prefix}/*" for bucket, prefix in places]),
        *(
            # vLLM lists the files of a model first.
            allow(["s3:ListBucket"], f"arn:aws:s3:::{bucket}", StringLike={"s3:prefix": [prefix, f"{prefix}/*"]})
            for bucket, prefix in places
        ),
        allow(["kms:Decrypt"], key, StringLike={"kms:ViaService": "s3.*.amazonaws.com"}),
    ]


def read_secrets(eks: EksCluster) -> list[dict[str, Any]]:
    """What External Secrets may: read the secrets whose names begin with the cluster's."""
    secrets = f"arn:aws:secretsmanager:{eks.region}:{eks.account}:secret:{eks.name}/*"
    return [allow(["secretsmanager:GetSecretValue", "secretsmanager:DescribeSecret"], secrets)]


def start_nodes(eks: EksCluster, node_role: pulumi.Input[str], queue: pulumi.Input[str]) -> list[dict[str, Any]]:
    """What Karpenter may: start instances for this cluster, with this role, and end those that it has started.

    After https://karpenter.sh/docs/reference/cloudformation/, of which it is the part that we use. Whatever it makes
    must be tagged as this cluster's; by that tag it may change and delete.
    """
    owner, pool = f"kubernetes.io/cluster/{eks.name}", "karpenter.sh/nodepool"
    ec2 = f"arn:aws:ec2:{eks.region}"
    made = [f"{ec2}:*:{kind}/*" for kind in ("fleet", "instance", "volume", "network-interface", "launch-template")]
    made.append(f"{ec2}:*:spot-instances-request/*")
    ingredients = [f"{ec2}::image/*", f"{ec2}::snapshot/*"]
    ingredients += [f"{ec2}:*:{kind}/*" for kind in ("security-group", "subnet", "capacity-reservation")]
    new = {"StringEquals": {f"aws:RequestTag/{owner}": "owned"}, "StringLike": {f"aws:RequestTag/{pool}": "*"}}
    ours = {"StringEquals": {f"aws:ResourceTag/{owner}": "owned"}, "StringLike": {f"aws:ResourceTag/{pool}": "*"}}
    profiles = f"arn:aws:iam::{eks.account}:instance-profile/*"
    in_region = {"topology.kubernetes.io/region": eks.region, owner: "owned"}
    new_profile = {"StringEquals": {f"aws:RequestTag/{tag}": value for tag, value in in_region.items()}}
    our_profile = {"StringEquals": {f"aws:ResourceTag/{tag}": value for tag, value in in_region.items()}}
    created = ["RunInstances", "CreateFleet", "CreateLaunchTemplate"]
    return [
        allow(["ec2:RunInstances", "ec2:CreateFleet"], ingredients),
        allow(["ec2:RunInstances", "ec2:CreateFleet"], f"{ec2}:*:launch-template/*", **ours),
        allow(["ec2:RunInstances", "ec2:CreateFleet", "ec2:CreateLaunchTemplate"], made, **new),
        allow(
            ["ec2:CreateTags"],
            made,
            StringEquals={**new["StringEquals"], "ec2:CreateAction": created},
            StringLike=new["StringLike"],
        ),
        allow(
            ["ec2:CreateTags"],
            f"{ec2}:*:instance/*",
            **ours,
            **{
                "ForAllValues:StringEquals": {"aws:TagKeys": ["eks:eks-cluster-name", "karpenter.sh/nodeclaim", "Name"]}
            },
        ),
        allow(
            ["ec2:TerminateInstances", "ec2:DeleteLaunchTemplate"],
            [f"{ec2}:*:instance/*", f"{ec2}:*:launch-template/*"],
            **ours,
        ),
        allow(
            [
                *("ec2:DescribeCapacityReservations", "ec2:DescribeImages", "ec2:DescribeInstances"),
                *("ec2:DescribeInstanceStatus", "ec2:DescribeInstanceTypeOfferings", "ec2:DescribeInstanceTypes"),
                *("ec2:DescribeLaunchTemplates", "ec2:DescribePlacementGroups", "ec2:DescribeSecurityGroups"),
                *("ec2:DescribeSpotPriceHistory", "ec2:DescribeSubnets"),
            ],
            StringEquals={"aws:RequestedRegion": eks.region},
        ),
        allow(["ssm:GetParameter"], f"arn:aws:ssm:{eks.region}::parameter/aws/service/*"),
        allow(["pricing:GetProducts"]),
        allow(["sqs:DeleteMessage", "sqs:GetQueueUrl", "sqs:ReceiveMessage"], queue),
        allow(["iam:PassRole"], node_role, StringEquals={"iam:PassedToService": "ec2.amazonaws.com"}),
        allow(["iam:CreateInstanceProfile"], profiles, **new_profile),
        # Of its own only: a tag of ours on another's profile would make that one ours.
        allow(
            ["iam:TagInstanceProfile"],
            profiles,
            StringEquals={**new_profile["StringEquals"], **our_profile["StringEquals"]},
        ),
        allow(
            ["iam:AddRoleToInstanceProfile", "iam:RemoveRoleFromInstanceProfile", "iam:DeleteInstanceProfile"],
            profiles,
            **our_profile,
        ),
        allow(["iam:GetInstanceProfile"], profiles),
        allow(["iam:ListInstanceProfiles"]),
        allow(["eks:DescribeCluster"], eks.arn),
    ]


def register_pods(target_group: pulumi.Input[str]) -> list[dict[str, Any]]:
    """What the Load Balancer Controller may: look around, and register pods with the entry's target group.

    Load balancers are Pulumi's. Of the project's docs/install/iam_policy.json the part that a TargetGroupBinding takes.
    https://github.com/kubernetes-sigs/aws-load-balancer-controller/blob/v3.2.2/docs/install/iam_policy.json
    """
    around = ["AvailabilityZones", "Instances", "NetworkInterfaces", "SecurityGroups", "Subnets", "Tags", "Vpcs"]
    balancing = "elasticloadbalancing"
    return [
        allow([*(f"ec2:Describe{kind}" for kind in around), f"{balancing}:Describe*"]),
        allow([f"{balancing}:RegisterTargets", f"{balancing}:DeregisterTargets"], target_group),
    ]
