"""The fake AWS as a process of a test's own, and what is in it."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import boto3
from botocore.config import Config

from infra.config import ROOT
from tests.ports import free_port

STARTS_WITHIN = 120


class FakeAws:
    """What it has, asked by AWS' own client."""

    def __init__(self, endpoint: str, region: str) -> None:
        self.endpoint = endpoint
        self.region = region

    def client(self, service: str) -> Any:
        return boto3.client(
            service,  # pyright: ignore[reportArgumentType] - its overloads name every service
            endpoint_url=self.endpoint,
            region_name=self.region,
            aws_access_key_id="fake",
            aws_secret_access_key="fake",  # noqa: S106 - nobody checks it
            config=Config(proxies={}, retries={"max_attempts": 1}, s3={"addressing_style": "path"}),
        )

    def has(self) -> dict[str, list[str]]:
        """What somebody has put into it, by kind; not what every account has."""
        found = {kind: sorted(list_them(self.client(service))) for kind, (service, list_them) in KINDS.items()}
        return {kind: names for kind, names in found.items() if names}


def _listed(operation: str, key: str, name: str, **arguments: Any) -> Callable[[Any], list[str]]:
    def names(client: Any) -> list[str]:
        pages = client.get_paginator(operation).paginate(**arguments) if client.can_paginate(operation) else None
        answers = pages or [getattr(client, operation)(**arguments)]
        return [item[name] if isinstance(item, dict) else item for answer in answers for item in answer.get(key, [])]

    return names


def _living(operation: str, key: str, name: str, state: str) -> Callable[[Any], list[str]]:
    """Of things that AWS lists for a while after they are gone."""

    def names(client: Any) -> list[str]:
        return [item[name] for item in getattr(client, operation)()[key] if item[state].lower() != "deleted"]

    return names


def _own(operation: str, key: str, name: str, default: str) -> Callable[[Any], list[str]]:
    """Without those that every account has in every region."""

    def names(client: Any) -> list[str]:
        vpcs = {
            vpc["VpcId"] for vpc in client.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
        }
        items = getattr(client, operation)()[key]
        return [item[name] for item in items if not item.get(default) and item.get("VpcId") not in vpcs]

    return names


def _keys(client: Any) -> list[str]:
    ids = [key["KeyId"] for key in client.list_keys()["Keys"]]
    keys = [client.describe_key(KeyId=key)["KeyMetadata"] for key in ids]
    return [key["KeyId"] for key in keys if key["KeyState"] != "PendingDeletion" and key["KeyManager"] == "CUSTOMER"]


KINDS: dict[str, tuple[str, Callable[[Any], list[str]]]] = {
    "VPCs": ("ec2", _own("describe_vpcs", "Vpcs", "VpcId", "IsDefault")),
    "subnets": ("ec2", _own("describe_subnets", "Subnets", "SubnetId", "DefaultForAz")),
    "security groups": ("ec2", _own("describe_security_groups", "SecurityGroups", "GroupId", "IsDefault")),
    "route tables": ("ec2", _own("describe_route_tables", "RouteTables", "RouteTableId", "IsDefault")),
    "NAT gateways": ("ec2", _living("describe_nat_gateways", "NatGateways", "NatGatewayId", "State")),
    "VPC endpoints": ("ec2", _living("describe_vpc_endpoints", "VpcEndpoints", "VpcEndpointId", "State")),
    "addresses": ("ec2", _listed("describe_addresses", "Addresses", "AllocationId")),
    "launch templates": ("ec2", _listed("describe_launch_templates", "LaunchTemplates", "LaunchTemplateId")),
    "flow logs": ("ec2", _listed("describe_flow_logs", "FlowLogs", "FlowLogId")),
    "network interfaces": (
        "ec2",
        _listed("describe_network_interfaces", "NetworkInterfaces", "NetworkInterfaceId"),
    ),
    "load balancers": ("elbv2", _listed("describe_load_balancers", "LoadBalancers", "LoadBalancerName")),
    "target groups": ("elbv2", _listed("describe_target_groups", "TargetGroups", "TargetGroupName")),
    "clusters": ("eks", _listed("list_clusters", "clusters", "")),
    "roles": ("iam", _listed("list_roles", "Roles", "RoleName")),
    "policies": ("iam", _listed("list_policies", "Policies", "Arn", Scope="Local")),
    "instance profiles": ("iam", _listed("list_instance_profiles", "InstanceProfiles", "InstanceProfileName")),
    "buckets": ("s3", _listed("list_buckets", "Buckets", "Name")),
    "repositories": ("ecr", _listed("describe_repositories", "repositories", "repositoryName")),
    "keys": ("kms", _keys),
    "log groups": ("logs", _listed("describe_log_groups", "logGroups", "logGroupName")),
    "queues": ("sqs", _listed("list_queues", "QueueUrls", "")),
    "event rules": ("events", _listed("list_rules", "Rules", "Name")),
    "caches": ("elasticache", _listed("describe_replication_groups", "ReplicationGroups", "ReplicationGroupId")),
    "subnet groups of caches": (
        "elasticache",
        _listed("describe_cache_subnet_groups", "CacheSubnetGroups", "CacheSubnetGroupName"),
    ),
    "secrets": ("secretsmanager", _listed("list_secrets", "SecretList", "Name")),
}


@contextmanager
def fake_aws(directory: Path, account: str, region: str) -> Iterator[FakeAws]:
    """An empty one, until the end of the block; its log is in `directory`."""
    port = free_port()
    log = directory / "fake-aws.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.aws.fake_aws", str(port)],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
            | {"MOTO_ACCOUNT_ID": account},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        aws = FakeAws(f"http://127.0.0.1:{port}", region)
        _await(aws, process, log)
        yield aws
    finally:
        process.communicate(timeout=30)


def _await(aws: FakeAws, process: "subprocess.Popen[bytes]", log: Path) -> None:
    ask = build_opener(ProxyHandler({}))
    deadline = time.monotonic() + STARTS_WITHIN
    while process.poll() is None and time.monotonic() < deadline:
        try:
            ask.open(f"{aws.endpoint}/moto-api/", timeout=10).close()
        except URLError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError(f"the fake AWS does not start:\n{log.read_text()[-2000:]}")
