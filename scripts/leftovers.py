"""What of a stack is still on AWS when its cluster is gone, and how to remove it.

By tags, as AWS knows them of everything (resourcegroupstaggingapi); it lists some things for hours after they are gone,
so each is asked for. By name, what that API does not list: IAM, and log groups that AWS has made by itself.
"""

import re
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from infra.aws.config import CLUSTER, DISCOVERY, EksCluster
from scripts.aws_cli import Denied, aws
from scripts.console import Problem

_GONE = ("terminated", "shutting-down", "deleted", "deleting", "pendingdeletion")
"""States in which a thing is still told of, and goes by itself."""


class Left(NamedTuple):
    """Something that is there."""

    what: str
    remove: str
    """A command, or what to do."""


class Kind(NamedTuple):
    """How to ask whether one is there, by id; what of the answer tells; how to remove it."""

    ask: str
    state: str
    """JMESPath of the states of those that were found, or of anything that each has."""
    remove: str


KINDS = {
    "ec2:instance": Kind(
        "ec2 describe-instances --instance-ids {id}",
        "Reservations[].Instances[].State.Name",
        "ec2 terminate-instances --instance-ids {id}",
    ),
    "ec2:volume": Kind(
        "ec2 describe-volumes --volume-ids {id}", "Volumes[].State", "ec2 delete-volume --volume-id {id}"
    ),
    "ec2:snapshot": Kind(
        "ec2 describe-snapshots --snapshot-ids {id}", "Snapshots[].State", "ec2 delete-snapshot --snapshot-id {id}"
    ),
    "ec2:network-interface": Kind(
        "ec2 describe-network-interfaces --network-interface-ids {id}",
        "NetworkInterfaces[].Status",
        "ec2 delete-network-interface --network-interface-id {id}",
    ),
    "ec2:natgateway": Kind(
        "ec2 describe-nat-gateways --nat-gateway-ids {id}",
        "NatGateways[].State",
        "ec2 delete-nat-gateway --nat-gateway-id {id}",
    ),
    "ec2:vpc-endpoint": Kind(
        "ec2 describe-vpc-endpoints --vpc-endpoint-ids {id}",
        "VpcEndpoints[].State",
        "ec2 delete-vpc-endpoints --vpc-endpoint-ids {id}",
    ),
    "ec2:elastic-ip": Kind(
        "ec2 describe-addresses --allocation-ids {id}",
        "Addresses[].AllocationId",
        "ec2 release-address --allocation-id {id}",
    ),
    "ec2:security-group": Kind(
        "ec2 describe-security-groups --group-ids {id}",
        "SecurityGroups[].GroupId",
        "ec2 delete-security-group --group-id {id}",
    ),
    "ec2:subnet": Kind(
        "ec2 describe-subnets --subnet-ids {id}", "Subnets[].SubnetId", "ec2 delete-subnet --subnet-id {id}"
    ),
    "ec2:vpc": Kind("ec2 describe-vpcs --vpc-ids {id}", "Vpcs[].VpcId", "ec2 delete-vpc --vpc-id {id}"),
    "ec2:launch-template": Kind(
        "ec2 describe-launch-templates --launch-template-ids {id}",
        "LaunchTemplates[].LaunchTemplateId",
        "ec2 delete-launch-template --launch-template-id {id}",
    ),
    "elasticloadbalancing:loadbalancer": Kind(
        "elbv2 describe-load-balancers --load-balancer-arns {arn}",
        "LoadBalancers[].LoadBalancerArn",
        "elbv2 delete-load-balancer --load-balancer-arn {arn}",
    ),
    "elasticloadbalancing:targetgroup": Kind(
        "elbv2 describe-target-groups --target-group-arns {arn}",
        "TargetGroups[].TargetGroupArn",
        "elbv2 delete-target-group --target-group-arn {arn}",
    ),
    "kms:key": Kind(
        "kms describe-key --key-id {id}",
        "[KeyMetadata.KeyState]",
        "kms schedule-key-deletion --key-id {id} --pending-window-in-days 7",
    ),
    "ec2:internet-gateway": Kind(
        "ec2 describe-internet-gateways --internet-gateway-ids {id}",
        "InternetGateways[].InternetGatewayId",
        "ec2 delete-internet-gateway --internet-gateway-id {id}",
    ),
    "ec2:route-table": Kind(
        "ec2 describe-route-tables --route-table-ids {id}",
        "RouteTables[].RouteTableId",
        "ec2 delete-route-table --route-table-id {id}",
    ),
    "eks:cluster": Kind("eks describe-cluster --name {id}", "[cluster.status]", "eks delete-cluster --name {id}"),
    "s3:": Kind("s3api get-bucket-location --bucket {id}", "['there']", "s3 rb --force s3://{id}"),
    "ecr:repository": Kind(
        "ecr describe-repositories --repository-names {id}",
        "repositories[].repositoryName",
        "ecr delete-repository --force --repository-name {id}",
    ),
    "secretsmanager:secret": Kind(
        "secretsmanager describe-secret --secret-id {arn}",
        "[DeletedDate && 'deleted' || 'there']",
        "secretsmanager delete-secret --secret-id {arn}",
    ),
    "elasticache:replicationgroup": Kind(
        "elasticache describe-replication-groups --replication-group-id {id}",
        "ReplicationGroups[].Status",
        "elasticache delete-replication-group --replication-group-id {id}",
    ),
    "elasticache:subnetgroup": Kind(
        "elasticache describe-cache-subnet-groups --cache-subnet-group-name {id}",
        "CacheSubnetGroups[].CacheSubnetGroupName",
        "elasticache delete-cache-subnet-group --cache-subnet-group-name {id}",
    ),
    "sqs:": Kind("sqs get-queue-url --queue-name {id}", "[QueueUrl]", "sqs delete-queue --queue-url {id}"),
    "events:rule": Kind("events describe-rule --name {id}", "[State]", "events delete-rule --force --name {id}"),
}
"""By service and kind, as ARNs name them. Of others the tag's word is taken."""


def marks(eks: EksCluster) -> dict[str, str]:
    """Tags that make a thing this cluster's: ours, and those of Karpenter, EKS, its CNI, the CSI driver, and the Load
    Balancer Controller."""
    return {
        CLUSTER: eks.name,
        DISCOVERY: eks.name,
        f"kubernetes.io/cluster/{eks.name}": "owned",
        "eks:cluster-name": eks.name,
        "cluster.k8s.amazonaws.com/name": eks.name,
        "elbv2.k8s.aws/cluster": eks.name,
    }


def left(eks: EksCluster) -> tuple[list[Left], list[str]]:
    """What is still there, and what could not be looked for. Raises Problem when AWS does not answer."""
    unknown: list[str] = []

    def look(find: Callable[[], list[Any]]) -> list[Any]:
        try:
            return find()
        except Denied as problem:
            unknown.append(problem.what)
            return []

    with ThreadPoolExecutor(4) as threads:
        listed = threads.map(look, [partial(_tagged, eks, *mark) for mark in marks(eks).items()])
        arns = sorted({arn for some in listed for arn in some if _may_stay(arn)})
        looks = [partial(find, eks) for find in (_log_groups, _roles, _profiles)]
        looks += [partial(_still, eks, arn) for arn in arns]
        found = {one for some in threads.map(look, looks) for one in some}
    return sorted(found), sorted({*unknown})


def _tagged(eks: EksCluster, key: str, value: str) -> list[str]:
    """ARNs."""
    tag = ("--tag-filters", f"Key={key},Values={value}")
    found = aws("resourcegroupstaggingapi", "get-resources", "--region", eks.region, *tag)
    return [one["ResourceARN"] for one in found["ResourceTagMappingList"]]


def _parts(arn: str) -> tuple[str, str]:
    """Service and kind, and the id: arn:aws:<service>:<region>:<account>:<kind>/<id>, <kind>:<id> or <id>."""
    _, _, service, _, _, rest = arn.split(":", 5)
    kind, _, name = rest.replace(":", "/", 1).partition("/") if re.search("[:/]", rest) else ("", "", rest)
    return f"{service}:{kind}", name


def _may_stay(arn: str) -> bool:
    """Not what goes with its cluster, network or cache, nor what is looked for by name."""
    kind, _ = _parts(arn)
    if kind.startswith("eks:"):
        return kind == "eks:cluster"
    return kind not in ("ec2:vpc-flow-log", "ec2:security-group-rule", "elasticache:cluster", "logs:log-group")


def _still(eks: EksCluster, arn: str) -> list[Left]:
    """Nothing where it is gone, or about to go."""
    kind, name = _parts(arn)
    known = KINDS.get(kind)
    if known is None:
        return [Left(arn, "remove it in the console; Tag Editor finds it")]
    at = ["--region", eks.region]
    try:
        states = aws(*known.ask.format(id=name, arn=arn).split(), *at, "--query", known.state)
    except Denied:
        raise
    except Problem as problem:
        if re.search("NotFound|NoSuch|NonExistent|not exist|404", problem.what):
            return []
        raise
    if all(str(state).lower() in _GONE for state in states or []):
        return []
    return [Left(arn, f"aws {known.remove.format(id=name, arn=arn)} {' '.join(at)}")]


def _log_groups(eks: EksCluster) -> list[Left]:
    """EKS makes its own anew when it still has something to say after ours is gone."""
    at, found = ("--region", eks.region), []
    for prefix in (f"/aws/eks/{eks.name}/", f"/aws/vpc/{eks.name}/", f"/aws/containerinsights/{eks.name}/"):
        groups = aws("logs", "describe-log-groups", *at, "--log-group-name-prefix", prefix)["logGroups"]
        found += [
            Left(f"log group {name}", f"aws logs delete-log-group --log-group-name {name} --region {eks.region}")
            for name in (group["logGroupName"] for group in groups)
        ]
    return found


def _roles(eks: EksCluster) -> list[Left]:
    names = [role["RoleName"] for role in aws("iam", "list-roles", "--region", eks.region)["Roles"]]
    return [
        Left(
            f"role {name}",
            f"aws iam delete-role --role-name {name} --region {eks.region}, once its policies are detached and deleted",
        )
        for name in names
        if name.startswith(eks.role(""))
    ]


def _profiles(eks: EksCluster) -> list[Left]:
    """Karpenter's: https://github.com/aws/karpenter-provider-aws/blob/v1.14.1/pkg/providers/instanceprofile"""
    path = ("--path-prefix", f"/karpenter/{eks.region}/{eks.name}/")
    profiles = aws("iam", "list-instance-profiles", "--region", eks.region, *path)["InstanceProfiles"]
    return [
        Left(
            f"instance profile {name}",
            f"aws iam delete-instance-profile --instance-profile-name {name} --region {eks.region}",
        )
        for name in (profile["InstanceProfileName"] for profile in profiles)
    ]


def in_the_way(eks: EksCluster, known: Collection[str]) -> list[Left]:
    """What keeps the network from going: load balancers in it that are not among the `known` ids, and interfaces that
    nothing uses any more."""
    at = ["--region", eks.region]
    found: list[Left] = []
    for vpc in aws("ec2", "describe-vpcs", *at, "--filters", f"Name=tag:{CLUSTER},Values={eks.name}")["Vpcs"]:
        balancers = f"LoadBalancers[?VpcId=='{vpc['VpcId']}'].LoadBalancerArn"
        arns = aws("elbv2", "describe-load-balancers", *at, "--query", balancers) or []
        unused = [f"Name=vpc-id,Values={vpc['VpcId']}", "Name=status,Values=available"]
        interfaces = aws("ec2", "describe-network-interfaces", *at, "--filters", *unused)["NetworkInterfaces"]
        arns += [
            f"arn:aws:ec2:{eks.region}:{eks.account}:network-interface/{one['NetworkInterfaceId']}"
            for one in interfaces
        ]
        found += [one for arn in arns if arn not in known for one in _still(eks, arn)]
    return found
