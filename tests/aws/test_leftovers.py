"""What `make down` finds of a stack that is gone: planted into a fake AWS, looked for by AWS's own command line."""

import shlex
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from infra.aws.config import EksCluster
from scripts import leftovers
from scripts.leftovers import KINDS, Left
from tests.aws.command import use
from tests.aws.running import FakeAws, fake_aws
from tests.infra.made_up import ACCOUNT, NAME, REGION, eks_stack

OWNED = {f"kubernetes.io/cluster/{NAME}": "owned", "karpenter.sh/nodepool": "l4"}
OURS = {"cluster": NAME, "owner": "ml"}
IMAGE = "ami-12c6146b"


@pytest.fixture
def aws(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAws]:
    with fake_aws(tmp_path_factory.mktemp("leftovers"), ACCOUNT, REGION) as aws:
        use(monkeypatch, aws, "fake")
        yield aws


def eks() -> EksCluster:
    cluster = eks_stack().cluster
    assert isinstance(cluster, EksCluster)
    return cluster


def tags(of: dict[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in of.items()]


def specification(kind: str, of: dict[str, str]) -> list[dict[str, Any]]:
    return [{"ResourceType": kind, "Tags": tags(of)}]


def plant(aws: FakeAws) -> dict[str, str]:
    """What a stack leaves when nobody drains it, and beside it what is another's; ids of the former."""
    ec2, balancing, iam = aws.client("ec2"), aws.client("elbv2"), aws.client("iam")
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16", TagSpecifications=specification("vpc", OURS))["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.0.0/24")["Subnet"]["SubnetId"]
    kind = {"ImageId": IMAGE, "MinCount": 1, "MaxCount": 1, "InstanceType": "g5.xlarge", "SubnetId": subnet}
    instances = [
        ec2.run_instances(**kind, TagSpecifications=specification("instance", of))["Instances"][0]["InstanceId"]
        for of in (OWNED, OWNED, {"kubernetes.io/cluster/another": "owned"})
    ]
    ec2.terminate_instances(InstanceIds=[instances[1]])
    zone = {"AvailabilityZone": f"{REGION}a", "Size": 10}
    volume = ec2.create_volume(**zone, TagSpecifications=specification("volume", OWNED))["VolumeId"]
    ec2.create_volume(**zone, TagSpecifications=specification("volume", {"cluster": "another"}))
    cni = {"cluster.k8s.amazonaws.com/name": NAME}
    interface = ec2.create_network_interface(
        SubnetId=subnet, TagSpecifications=specification("network-interface", cni)
    )["NetworkInterface"]["NetworkInterfaceId"]
    controller = {"elbv2.k8s.aws/cluster": NAME}
    balancer = balancing.create_load_balancer(Name="k8s-web", Subnets=[subnet], Type="network", Tags=tags(controller))
    kms = aws.client("kms")
    keys = [kms.create_key(Tags=[{"TagKey": "cluster", "TagValue": NAME}])["KeyMetadata"]["KeyId"] for _ in range(2)]
    kms.schedule_key_deletion(KeyId=keys[1], PendingWindowInDays=7)
    for name in (f"/aws/eks/{NAME}/cluster", "/aws/eks/another/cluster"):
        aws.client("logs").create_log_group(logGroupName=name)
    for name in (eks().role("ray"), "another-role"):
        iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}")
    path = f"/karpenter/{REGION}/{NAME}/0123/"
    iam.create_instance_profile(InstanceProfileName=f"{NAME}_123", Path=path)
    return {
        "vpc": vpc,
        "instance": instances[0],
        "volume": volume,
        "interface": interface,
        "balancer": balancer["LoadBalancers"][0]["LoadBalancerArn"],
        "key": keys[0],
        "log group": f"/aws/eks/{NAME}/cluster",
        "role": eks().role("ray"),
        "profile": f"{NAME}_123",
    }


def ids(left: list[Left]) -> list[str]:
    return [one.what.rpartition(" ")[2] for one in left]


def test_what_is_left_is_found_and_the_commands_remove_it(aws: FakeAws) -> None:
    """Of another cluster nothing is, nor what is about to go by itself."""
    planted = plant(aws)
    found, unknown = leftovers.left(eks())
    assert unknown == []
    for name, id_ in planted.items():
        assert [one for one in found if id_ in one.what], name
    assert len(found) == len(planted), ids(found)
    # What hinders the network from going is told when it does not: the program's own load balancer would not be.
    in_the_way = {
        one.what.rpartition(":")[2].rpartition("network-interface/")[2] for one in leftovers.in_the_way(eks(), [])
    }
    assert in_the_way == {planted["balancer"].rpartition(":")[2], planted["interface"]}
    assert not any(planted["balancer"] in one.what for one in leftovers.in_the_way(eks(), [planted["balancer"]]))
    # In any order but the network's.
    for one in sorted(found, key=lambda one: planted["vpc"] in one.what):
        command = one.remove.partition(", once")[0]
        if planted["vpc"] not in one.what:
            subprocess.run(shlex.split(command), check=True, capture_output=True)
    assert ids(leftovers.left(eks())[0]) == [f"arn:aws:ec2:{REGION}:{ACCOUNT}:vpc/{planted['vpc']}"]


def test_every_question_is_one_that_aws_understands(aws: FakeAws) -> None:
    """Asked for something that is not there, of each kind; any other error would be raised.

    But SQS: version 1 of the command line lets nobody come between it and AWS there.
    """
    for kind in KINDS.keys() - {"sqs:"}:
        service, _, resource = kind.partition(":")
        number = "0123456789abcdef0"
        name = {
            **{
                "elasticloadbalancing:loadbalancer": "net/x/0123456789abcdef",
                "kms:key": "0" * 8 + "-0000" * 3 + "-" + "0" * 12,
            },
            **{"elasticloadbalancing:targetgroup": "x/0123456789abcdef"},
            **{f"ec2:{of}": f"{prefix}-{number}" for of, prefix in PREFIXES.items()},
        }.get(kind, "not-there")
        arn = f"arn:aws:{service}:{REGION}:{ACCOUNT}:{resource}{'/' if resource else ''}{name}"
        assert leftovers._still(eks(), arn) == [], kind


PREFIXES = {
    "instance": "i",
    "volume": "vol",
    "snapshot": "snap",
    "network-interface": "eni",
    "natgateway": "nat",
    "vpc-endpoint": "vpce",
    "elastic-ip": "eipalloc",
    "security-group": "sg",
    "subnet": "subnet",
    "vpc": "vpc",
    "launch-template": "lt",
    "internet-gateway": "igw",
    "route-table": "rtb",
}


def test_of_a_kind_that_is_not_known_the_tags_word_is_taken() -> None:
    arn = f"arn:aws:fsx:{REGION}:{ACCOUNT}:file-system/fs-1"
    assert leftovers._still(eks(), arn) == [Left(arn, "remove it in the console; Tag Editor finds it")]


@pytest.mark.parametrize(
    ("arn", "stays"),
    [
        (f"arn:aws:eks:{REGION}:{ACCOUNT}:cluster/{NAME}", True),
        (f"arn:aws:eks:{REGION}:{ACCOUNT}:nodegroup/{NAME}/system/1", False),
        (f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:/aws/eks/{NAME}/cluster", False),
        (f"arn:aws:sqs:{REGION}:{ACCOUNT}:{NAME}", True),
        (f"arn:aws:s3:::{NAME}-weights", True),
    ],
)
def test_what_goes_with_another_or_is_looked_for_by_name_is_not_asked_for(arn: str, stays: bool) -> None:
    assert leftovers._may_stay(arn) == stays
