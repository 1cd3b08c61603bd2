"""The AWS account of a stack: who asks, the place of Pulumi's state, quotas, zones, images."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import yaml

from infra import image, versions
from infra.aws.config import EksCluster, Pool
from infra.aws.instances import Instance, known
from infra.aws.pools import instances, most_nodes
from infra.config import ROOT, StackConfig, WorkerGroup
from scripts import engine
from scripts.aws_cli import aws, require_account
from scripts.console import Problem
from scripts.doctor import NOTE, OK, UNKNOWN, WRONG, Check, Note, Unknown, check, cluster, unlooked


class Quota(NamedTuple):
    """A quota of EC2 in vCPUs, for a family of instances as one capacity.

    https://docs.aws.amazon.com/ec2/latest/instancetypes/ec2-instance-quotas.html
    """

    code: str
    name: str


_STANDARD = "Standard (A, C, D, H, I, M, R, T, Z)"
_QUOTAS = [
    (r"[acdhimrtz]\d|i[ms]\d", "on-demand", Quota("L-1216C47A", f"Running On-Demand {_STANDARD} instances")),
    (r"[acdhimrtz]\d|i[ms]\d", "spot", Quota("L-34B43A08", f"All {_STANDARD} Spot Instance Requests")),
    (r"gr?\d|vt\d", "on-demand", Quota("L-DB2E81BA", "Running On-Demand G and VT instances")),
    (r"gr?\d|vt\d", "spot", Quota("L-3819A6DF", "All G and VT Spot Instance Requests")),
    (r"p\d", "on-demand", Quota("L-417A185B", "Running On-Demand P instances")),
    (r"p[2-4]", "spot", Quota("L-7212CCBC", "All P4, P3 and P2 Spot Instance Requests")),
    (r"p5", "spot", Quota("L-C4BD4855", "All P5 Spot Instance Requests")),
]


def quota_of(instance_type: str, capacity: str) -> Quota | None:
    """What limits instances of this type as `spot` or `on-demand`; None where AWS documents nothing."""
    for pattern, kind, quota in _QUOTAS:
        if kind == capacity and re.match(pattern, instance_type):
            return quota
    return None


def checks(stack_name: str, stack: StackConfig, eks: EksCluster) -> Iterator[Check]:
    """Nothing else of AWS is looked at as somebody whom AWS does not know, or of another account."""
    caller = check("credentials", lambda: require_account(stack_name, eks))
    if caller.state != OK:
        # Without them `up` fails, while anything else that they keep from us may be in order.
        yield replace(caller, state=WRONG)
        yield from unlooked(["state bucket", "quotas", "zones", "machine images", "image", "Kubernetes"])
        return
    yield caller
    yield check("admins", lambda: is_admin(caller.found, eks))
    yield from state_checks(stack_name, eks)
    yield from quota_checks(stack, eks)
    yield from zone_checks(stack, eks)
    yield from machine_image_checks(stack, eks)
    if any("spot" in pool(group).capacity for group in stack.workers):
        yield check("spot role", lambda: spot_role(eks))
    yield check("image", lambda: pushed(stack_name, image.reference(stack), eks))
    there = check("EKS", lambda: control_plane(eks))
    yield there
    if there.state != NOTE:
        yield from cluster.checks(stack_name, stack)


def pool(group: WorkerGroup) -> Pool:
    return group.pool or Pool()


def is_admin(caller: str, eks: EksCluster) -> str:
    """A session of a role has an ARN of its own, arn:aws:sts::<account>:assumed-role/<role>/<session>."""
    found = re.fullmatch(r"arn:aws:sts::(\d+):assumed-role/([^/]+)/.*", caller)
    for admin in eks.admins:
        if admin == caller or (
            found and admin.startswith(f"arn:aws:iam::{found[1]}:role/") and admin.rpartition("/")[2] == found[2]
        ):
            return f"{admin} is one"
    raise Problem(
        f"{caller} is not in cluster.admins: the second half of `up`, what is on the cluster, would be refused",
        "add the role or user to cluster.admins, or run as one that is there",
    )


def state_checks(stack_name: str, eks: EksCluster) -> Iterator[Check]:
    """Pulumi's bucket and key, where it keeps its state on AWS."""
    backend = engine.backend() or ""
    if backend.startswith("s3://"):
        yield check("state bucket", lambda: bucket(stack_name, urlsplit(backend).netloc, eks))
    content = yaml.safe_load((ROOT / f"Pulumi.{stack_name}.yaml").read_text()) or {}
    if (provider := content.get("secretsprovider", "")).startswith("awskms://"):
        yield check("state key", lambda: key(stack_name, provider, eks))


def bucket(stack_name: str, name: str, eks: EksCluster) -> str:
    there = ("--bucket", name, "--region", eks.region)
    try:
        aws("s3api", "head-bucket", *there)
    except Problem as problem:
        if "404" not in problem.what and "Not Found" not in problem.what:
            raise
        raise Problem(f"there is no bucket {name}", f"make bootstrap STACK={stack_name}") from None
    versioning = aws("s3api", "get-bucket-versioning", *there) or {}
    if versioning.get("Status") != "Enabled":
        fix = f"make bootstrap STACK={stack_name}"
        raise Note(f"{name} keeps no versions: a state that a bad run has written cannot be had back", fix)
    return f"{name}, with versions"


def key(stack_name: str, provider: str, eks: EksCluster) -> str:
    address = urlsplit(provider)
    name = f"{address.netloc}{address.path}"
    (region, *_) = parse_qs(address.query).get("region", [eks.region])
    try:
        state = aws("kms", "describe-key", "--key-id", name, "--region", region)["KeyMetadata"]["KeyState"]
    except Problem as problem:
        if "NotFound" not in problem.what:
            raise
        raise Problem(f"there is no key {name}", f"make bootstrap STACK={stack_name}") from None
    if state != "Enabled":
        raise Problem(
            f"{name} is {state}: nobody reads the secrets in the state", f"aws kms enable-key --key-id {name}"
        )
    return name


@dataclass
class Need:
    """vCPUs that a stack takes of a quota."""

    first: int = 0
    """What it cannot begin without: of groups that have no other capacity."""
    most: int = 0
    """With all nodes that it may have."""
    of: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Choice:
    """Quotas of which one must do: those of a group with several capacities."""

    group: str
    first: int
    quotas: list[Quota]


def needs(stack: StackConfig, eks: EksCluster) -> tuple[dict[Quota, Need], list[Choice], list[str]]:
    """By quota, what all nodes take of it; where there is a choice; and of what no quota is known."""
    found: dict[Quota, Need] = defaultdict(Need)
    choices, unknown = [], []
    cpus = {instance.type: instance.cpus for instance in known()}
    types = eks.nodes.instance_types
    if types[0] in cpus and (quota := quota_of(types[0], "on-demand")):
        need = found[quota]
        need.first += eks.nodes.min * cpus[types[0]]
        need.most += eks.nodes.max * cpus[types[0]]
        need.of.append("system")
    else:
        unknown.append(f"system's {types[0]}")
    for group in stack.workers:
        first, most, kinds = vcpus(stack, group)
        quotas = []
        for capacity in pool(group).capacity:
            if capacity == "reserved":
                continue
            if quota := quota_of(kinds[0].type, capacity):
                quotas.append(quota)
            else:
                unknown.append(f"{group.name}'s {kinds[0].type}, {capacity}")
        for quota in quotas:
            found[quota].most += most
            found[quota].of.append(group.name)
        if len(pool(group).capacity) == 1 and quotas:
            found[quotas[0]].first += first
        elif len(pool(group).capacity) == len(quotas):  # nothing reserved, nothing unknown
            choices.append(Choice(group.name, first, quotas))
    return dict(found), choices, unknown


def vcpus(stack: StackConfig, group: WorkerGroup) -> tuple[int, int, list[Instance]]:
    """Of a group's nodes at first and at most, when each is of the smallest kind; and its kinds."""
    kinds, most = instances(group), most_nodes(stack, group)
    smallest = min(kinds, key=lambda kind: kind.cpus)
    per_node = smallest.pods(group.cpus, group.gpus, group.memory_gib, pool(group).to_a_gpu)
    pods = group.min_replicas + pool(group).warm
    first = most if pool(group).nodes == "managed" else math.ceil(pods / per_node)
    return first * smallest.cpus, most * smallest.cpus, kinds


def quota_checks(stack: StackConfig, eks: EksCluster) -> Iterator[Check]:
    found, choices, unknown = needs(stack, eks)
    used, free = _used_by_others(eks), {}
    for quota, need in found.items():
        yield check(f"quota {quota.code}", lambda quota=quota, need=need: _enough(quota, need, used[quota], free, eks))
    for choice in choices:
        if all(quota in free for quota in choice.quotas):
            yield check(f"quotas of {choice.group}", lambda choice=choice: _one_is_enough(choice, used, free, eks))
    if unknown:
        yield Check("quotas", UNKNOWN, f"of {', '.join(unknown)}: none that we know of", "ask AWS before `make up`")


def _used_by_others(eks: EksCluster) -> dict[Quota, int]:
    """vCPUs that instances of somebody else take of each quota. None where one may not look: then it is not told."""
    running = ("--filters", "Name=instance-state-name,Values=pending,running")
    cpus = {instance.type: instance.cpus for instance in known()}
    try:
        reservations = aws("ec2", "describe-instances", "--region", eks.region, *running)["Reservations"]
    except Problem:
        reservations = []
    used: dict[Quota, int] = defaultdict(int)
    for instance in (instance for reservation in reservations for instance in reservation["Instances"]):
        tags = [tag["Key"] for tag in instance.get("Tags", [])]
        quota = quota_of(instance["InstanceType"], instance.get("InstanceLifecycle", "on-demand"))
        if quota and f"kubernetes.io/cluster/{eks.name}" not in tags:
            cores = instance.get("CpuOptions", {})
            counted = cores.get("CoreCount", 0) * cores.get("ThreadsPerCore", 1)
            used[quota] += cpus.get(instance["InstanceType"]) or counted
    return used


def _enough(quota: Quota, need: Need, used: int, free: dict[Quota, float], eks: EksCluster) -> str:
    """Notes down in `free` what the stack may take."""
    value = _value(quota, eks)
    free[quota] = value - used
    of_others = f", {used} of them in use by others" if used else ""
    what = f"{quota.name}: {value:g} vCPUs{of_others}; {' and '.join(need.of)} take {need.most} at most"
    if free[quota] < need.first:
        raise Problem(f"{what}, and {need.first} to begin with", _raise(quota, need.most + used, eks))
    if free[quota] < need.most:
        raise Note(f"{what}: some nodes will not come", _raise(quota, need.most + used, eks))
    return what


def _one_is_enough(choice: Choice, used: dict[Quota, int], free: dict[Quota, float], eks: EksCluster) -> str:
    if any(free[quota] >= choice.first for quota in choice.quotas):
        return f"one of its capacities has the {choice.first} vCPUs that it takes to begin with"
    last = choice.quotas[-1]
    raise Problem(
        f"none of its capacities has the {choice.first} vCPUs that it takes to begin with",
        _raise(last, choice.first + used[last], eks),
    )


def _raise(quota: Quota, vcpus: int, eks: EksCluster) -> str:
    return (
        "aws service-quotas request-service-quota-increase --service-code ec2 "
        f"--quota-code {quota.code} --desired-value {vcpus} --region {eks.region}; AWS may take days"
    )


def _value(quota: Quota, eks: EksCluster) -> float:
    """The account's, or AWS's default, for as long as nobody has asked for another."""
    of = ("--service-code", "ec2", "--quota-code", quota.code, "--region", eks.region)
    try:
        return aws("service-quotas", "get-service-quota", *of)["Quota"]["Value"]
    except Problem as problem:
        if "NoSuchResource" not in problem.what:
            raise
    return aws("service-quotas", "get-aws-default-service-quota", *of)["Quota"]["Value"]


def zone_checks(stack: StackConfig, eks: EksCluster) -> Iterator[Check]:
    """Which zones offer an instance of each group."""
    wanted = {"system": eks.nodes.instance_types}
    wanted |= {group.name: [kind.type for kind in instances(group)] for group in stack.workers}
    for name, types in wanted.items():
        yield check(f"zones of {name}", lambda types=types: _zones(types, eks))


def _zones(types: list[str], eks: EksCluster) -> str:
    offered = aws(
        *("ec2", "describe-instance-type-offerings", "--region", eks.region),
        *("--location-type", "availability-zone"),
        *("--filters", f"Name=instance-type,Values={','.join(types)}"),
    )["InstanceTypeOfferings"]
    zones = {zone: sorted({one["InstanceType"] for one in offered if one["Location"] == zone}) for zone in eks.zones}
    without = [zone for zone, found in zones.items() if not found]
    what = _few(types)
    elsewhere = sorted({one["Location"] for one in offered} - {*eks.zones})
    fix = "set cluster.zones to zones that have it" + (
        f": {', '.join(elsewhere)}" if elsewhere else ", in another region"
    )
    if len(without) == len(zones):
        raise Problem(f"none of {', '.join(eks.zones)} has {what}", fix)
    if without:
        raise Note(f"{', '.join(without)} do not have {what}, the others do", fix)
    return f"all have {what}"


def _few(types: list[str]) -> str:
    return " or ".join(types[:2]) + (f" or one of {len(types) - 2} more" if len(types) > 2 else "")


def machine_image_checks(stack: StackConfig, eks: EksCluster) -> Iterator[Check]:
    """The release of EKS's images that Karpenter is told to take, where Karpenter looks it up.

    https://github.com/aws/karpenter-provider-aws/blob/v1.14.1/pkg/providers/amifamily/al2023.go
    """
    started = [group for group in stack.workers if pool(group).nodes == "karpenter"]
    kinds = {"nvidia" if group.gpus else "standard" for group in started}
    for kind in sorted(kinds):
        yield check(f"machine image, {kind}", lambda kind=kind: _machine_image(kind, eks))


def _machine_image(kind: str, eks: EksCluster) -> str:
    name = f"amazon-eks-node-al2023-x86_64-{kind}-{versions.EKS}-{versions.EKS_AMI}"
    path = f"/aws/service/eks/optimized-ami/{versions.EKS}/amazon-linux-2023/x86_64/{kind}/{name}/image_id"
    try:
        return f"{name}: {aws('ssm', 'get-parameter', '--region', eks.region, '--name', path)['Parameter']['Value']}"
    except Problem as problem:
        if "ParameterNotFound" not in problem.what:
            raise
    raise Problem(
        f"{eks.region} has no {name}",
        "set EKS_AMI in infra/versions.py to a release that it has: https://github.com/awslabs/amazon-eks-ami/releases",
    )


def control_plane(eks: EksCluster) -> str:
    try:
        found: Any = aws("eks", "describe-cluster", "--region", eks.region, "--name", eks.name)["cluster"]
    except Problem as problem:
        if "ResourceNotFound" not in problem.what:
            raise
        raise Note(f"there is no cluster {eks.name} yet", "nothing: make up makes it") from None
    if found["status"] != "ACTIVE":
        raise Problem(f"{eks.name} is {found['status']}", f"aws eks describe-cluster --name {eks.name}: see its health")
    return f"{eks.name}, {found['version']}; the ledger says {versions.EKS}"


def spot_role(eks: EksCluster) -> str:
    prefix = "/aws-service-role/spot.amazonaws.com/"
    found = aws("iam", "list-roles", "--path-prefix", prefix, "--region", eks.region)["Roles"]
    if not found:
        raise Problem(
            "the account has no role for spot instances, and Karpenter may not make it",
            f"aws iam create-service-linked-role --aws-service-name spot.amazonaws.com --region {eks.region}",
        )
    return found[0]["RoleName"]


def pushed(stack_name: str, reference: str, eks: EksCluster) -> str:
    """Whether the application's image is in the stack's own repository."""
    repository, _, tag = reference.rpartition(":")
    if repository != eks.registry:
        raise Unknown(f"{reference} is in a registry of yours", f"docker manifest inspect {reference}")
    try:
        found: Any = aws("ecr", "list-images", "--region", eks.region, "--repository-name", eks.name)["imageIds"]
    except Problem as problem:
        if "RepositoryNotFound" not in problem.what:
            raise
        raise Note(
            f"{repository} is not there yet", f"nothing: make up makes it; then make push STACK={stack_name}"
        ) from None
    if not any(one.get("imageTag") == tag for one in found):
        raise Problem(f"{repository} has no {tag}", f"make push STACK={stack_name}")
    return reference
