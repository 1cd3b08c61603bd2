"""Nodes: the managed group for system pods and Ray heads, and what Karpenter needs to start the others."""

import base64
import json
from collections.abc import Sequence

import pulumi
import pulumi_aws as aws
from pulumi import ResourceOptions

from infra import versions
from infra.aws.cluster import Cluster
from infra.aws.config import POOL, SYSTEM, EksCluster, Pool
from infra.aws.network import Network
from infra.aws.policy import document, trusted
from infra.aws.pools import IOPS, THROUGHPUT, instances, labels, most_nodes, taint, user_data
from infra.config import StackConfig, WorkerGroup

KARPENTER_ACCOUNT = "karpenter"
"""Karpenter's service account, in kube-system."""

# Neither CNI nor storage: those pods have roles of their own. Pull only: a node pushes nothing.
_RIGHTS = ("AmazonEKSWorkerNodePolicy", "AmazonEC2ContainerRegistryPullOnly")

# https://karpenter.sh/docs/concepts/disruption/#interruption
_INTERRUPTIONS = {
    "health": ("aws.health", "AWS Health Event"),
    "spot": ("aws.ec2", "EC2 Spot Instance Interruption Warning"),
    "rebalance": ("aws.ec2", "EC2 Instance Rebalance Recommendation"),
    "state": ("aws.ec2", "EC2 Instance State-change Notification"),
    "reservation": ("aws.ec2", "EC2 Capacity Reservation Instance Interruption Warning"),
}
"""Events by which AWS says that an instance will go: source and kind."""


class NodeRole(pulumi.ComponentResource):
    """What the nodes themselves may: join the cluster, pull images."""

    name: pulumi.Output[str]
    arn: pulumi.Output[str]
    rights: list[pulumi.Resource]

    def __init__(self, purpose: str, eks: EksCluster, opts: ResourceOptions) -> None:
        super().__init__("blueprint:aws:NodeRole", purpose, None, opts)
        child = ResourceOptions(parent=self)
        role = aws.iam.Role(
            purpose, name=eks.role(purpose), assume_role_policy=trusted("ec2.amazonaws.com"), opts=child
        )
        self.rights = [
            aws.iam.RolePolicyAttachment(
                f"{purpose}-{policy}",
                role=role.name,
                policy_arn=f"arn:aws:iam::aws:policy/{policy}",
                opts=child,
            )
            for policy in _RIGHTS
        ]
        self.name, self.arn = role.name, role.arn
        self.register_outputs({"name": self.name, "arn": self.arn})


class SystemNodes(pulumi.ComponentResource):
    """The managed node group: on demand, without GPUs, and there before anything that Karpenter could need."""

    def __init__(self, name: str, eks: EksCluster, network: Network, cluster: Cluster, opts: ResourceOptions) -> None:
        super().__init__("blueprint:aws:SystemNodes", name, None, opts)
        child = ResourceOptions(parent=self)
        # Not Karpenter's: EKS makes the access entry for the role of a managed group, and a role has one.
        role = NodeRole("system-nodes", eks, child)
        disk = aws.ec2.LaunchTemplateBlockDeviceMappingEbsArgs(
            volume_type="gp3", volume_size=eks.nodes.disk_gib, encrypted="true"
        )
        aws.eks.NodeGroup(
            name,
            cluster_name=cluster.name,
            node_group_name=SYSTEM,
            node_role_arn=role.arn,
            subnet_ids=network.private_subnets,
            version=versions.EKS,
            ami_type="AL2023_x86_64_STANDARD",
            instance_types=eks.nodes.instance_types,
            capacity_type="ON_DEMAND",
            launch_template=_template(name, SYSTEM, eks, disk, child),
            scaling_config={"min_size": eks.nodes.min, "max_size": eks.nodes.max, "desired_size": eks.nodes.min},
            # One at a time: of two nodes, one has the pods of both meanwhile.
            update_config={"max_unavailable": 1},
            node_repair_config={"enabled": True},
            labels={POOL: SYSTEM},
            opts=ResourceOptions(
                parent=self,
                depends_on=role.rights,
                # What scales the group is right about how many there are.
                ignore_changes=["scalingConfig.desiredSize"],
            ),
        )
        self.register_outputs({})


class WorkerNodes(pulumi.ComponentResource):
    """Managed node groups for the worker groups that want them: as many nodes as these may ever need, at all times.

    Nothing scales them. They are for GPUs that one has anyway, or for those who do not want Karpenter.
    """

    def __init__(
        self,
        name: str,
        stack: StackConfig,
        groups: Sequence[WorkerGroup],
        eks: EksCluster,
        network: Network,
        cluster: Cluster,
        opts: ResourceOptions,
    ) -> None:
        super().__init__("blueprint:aws:WorkerNodes", name, None, opts)
        child = ResourceOptions(parent=self)
        role = NodeRole("worker-nodes", eks, child)
        for group in groups:
            pool = group.pool or Pool()
            number = most_nodes(stack, group)
            disk = aws.ec2.LaunchTemplateBlockDeviceMappingEbsArgs(
                volume_type="gp3", volume_size=pool.disk_gib, throughput=THROUGHPUT, iops=IOPS, encrypted="true"
            )
            label = f"{name}-{group.name}"
            key, value = taint(group)["key"], taint(group)["value"]
            aws.eks.NodeGroup(
                label,
                cluster_name=cluster.name,
                node_group_name=group.name,
                node_role_arn=role.arn,
                subnet_ids=network.private_subnets,
                version=versions.EKS,
                ami_type="AL2023_x86_64_NVIDIA" if group.gpus else "AL2023_x86_64_STANDARD",
                instance_types=[instance.type for instance in instances(group)],
                capacity_type=pool.capacity[0].upper().replace("-", "_"),
                launch_template=_template(label, group.name, eks, disk, child, user_data(raid=True)),
                scaling_config={"min_size": 0, "max_size": number, "desired_size": number},
                update_config={"max_unavailable": 1},
                node_repair_config={"enabled": True},
                labels=labels(group),
                taints=[aws.eks.NodeGroupTaintArgs(key=key, value=value, effect="NO_SCHEDULE")],
                opts=ResourceOptions(parent=self, depends_on=role.rights),
            )
        self.register_outputs({})


def _template(
    label: str,
    nodes: str,
    eks: EksCluster,
    disk: aws.ec2.LaunchTemplateBlockDeviceMappingEbsArgs,
    opts: ResourceOptions,
    data: str | None = None,
) -> aws.eks.NodeGroupLaunchTemplateArgs:
    """The launch template of a managed group, as the group refers to it."""
    tags = {"Name": f"{eks.name}-{nodes}", **eks.all_tags}
    template = aws.ec2.LaunchTemplate(
        label,
        name=f"{eks.name}-{nodes}",
        update_default_version=True,
        # One hop ends in the node: a pod cannot take the node's role.
        metadata_options={"http_endpoint": "enabled", "http_tokens": "required", "http_put_response_hop_limit": 1},
        block_device_mappings=[aws.ec2.LaunchTemplateBlockDeviceMappingArgs(device_name="/dev/xvda", ebs=disk)],
        user_data=data and base64.b64encode(data.encode()).decode(),
        # The provider's tags stop at the template.
        tag_specifications=[{"resource_type": kind, "tags": tags} for kind in ("instance", "volume")],
        opts=opts,
    )
    return aws.eks.NodeGroupLaunchTemplateArgs(id=template.id, version=template.latest_version.apply(str))


class Karpenter(pulumi.ComponentResource):
    """What Karpenter finds on AWS: the role of its nodes, and a queue in which AWS says which of them will go."""

    node_role: NodeRole
    queue: aws.sqs.Queue

    def __init__(self, name: str, eks: EksCluster, cluster: Cluster, opts: ResourceOptions) -> None:
        super().__init__("blueprint:aws:Karpenter", name, None, opts)
        child = ResourceOptions(parent=self)
        self.node_role = NodeRole("karpenter-nodes", eks, child)
        aws.eks.AccessEntry(
            name, cluster_name=cluster.name, principal_arn=self.node_role.arn, type="EC2_LINUX", opts=child
        )
        self.queue = aws.sqs.Queue(
            name,
            name=eks.name,
            # What is older than five minutes is over: a spot instance has two.
            message_retention_seconds=300,
            sqs_managed_sse_enabled=True,
            opts=child,
        )
        aws.sqs.QueuePolicy(name, queue_url=self.queue.url, policy=_only_events(eks, self.queue.arn), opts=child)
        for label, (source, kind) in _INTERRUPTIONS.items():
            rule = aws.cloudwatch.EventRule(
                f"{name}-{label}",
                name=f"{eks.name}-{label}",
                event_pattern=json.dumps({"source": [source], "detail-type": [kind]}),
                opts=child,
            )
            aws.cloudwatch.EventTarget(f"{name}-{label}", rule=rule.name, arn=self.queue.arn, opts=child)
        self.register_outputs({"queue": self.queue.name, "node_role": self.node_role.name})


def _only_events(eks: EksCluster, queue: pulumi.Output[str]) -> pulumi.Output[str]:
    """Of the account's EventBridge, by TLS."""
    common = {"Action": "sqs:SendMessage", "Resource": queue}
    return document(
        {
            **common,
            "Effect": "Allow",
            "Principal": {"Service": "events.amazonaws.com"},
            "Condition": {"StringEquals": {"aws:SourceAccount": eks.account}},
        },
        {
            **common,
            "Action": "sqs:*",
            "Effect": "Deny",
            "Principal": "*",
            "Condition": {"Bool": {"aws:SecureTransport": "false"}},
        },
    )
