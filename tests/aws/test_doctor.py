"""What `make doctor` finds in an AWS account: AWS's own command line, at a fake AWS."""

import json
import shlex
import subprocess
from collections.abc import Iterable, Iterator
from typing import Any

import httpx
import pytest

from infra import versions
from infra.aws.config import EksCluster
from infra.config import StackConfig
from scripts import engine
from scripts.doctor import NOTE, OK, UNKNOWN, WRONG, Check, account, check
from tests.aws.command import use, use_role
from tests.aws.fake_account import EXPIRED
from tests.aws.running import FakeAws, fake_aws
from tests.infra.made_up import ACCOUNT, ADMIN, FROM_HUB, GPUS, eks_stack

REGION = "us-east-1"
"""Whose zone e has no G instances."""
G_ON_DEMAND, G_SPOT, STANDARD = "L-DB2E81BA", "L-3819A6DF", "L-1216C47A"


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeAws]:
    with fake_aws(tmp_path_factory.mktemp("doctor"), ACCOUNT, REGION) as aws:
        yield aws


@pytest.fixture(autouse=True)
def admin(aws: FakeAws, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks is the stack's admin, and Pulumi's state is not on AWS."""
    monkeypatch.setattr(engine, "backend", lambda: "file:///nowhere")
    use_role(monkeypatch, aws, ADMIN)


def made_up(*workers: dict[str, Any], zones: str = "abc", **more: Any) -> tuple[StackConfig, EksCluster]:
    stack = eks_stack(*workers, region=REGION, zones=[f"{REGION}{zone}" for zone in zones], **more)
    assert isinstance(stack.cluster, EksCluster)
    return stack, stack.cluster


def by_name(checks: Iterable[Check]) -> dict[str, Check]:
    return {check.about: check for check in checks}


def do(found: Check) -> None:
    """What the fix says."""
    command, _, _ = found.fix.partition(";")
    subprocess.run(shlex.split(command), check=True, capture_output=True)


def test_quotas_that_are_too_low_and_what_raises_them(aws: FakeAws) -> None:
    """Those of a new account: 5 vCPUs of the Standard family, none with GPUs."""
    stack, eks = made_up()
    found = by_name(account.quota_checks(stack, eks))
    assert [one.state for one in found.values()] == [WRONG, WRONG]
    low = found[f"quota {G_ON_DEMAND}"]
    assert low.found == "Running On-Demand G and VT instances: 0 vCPUs; l4 take 64 at most, and 8 to begin with"
    assert f"--quota-code {G_ON_DEMAND} --desired-value 64 --region {REGION}" in low.fix
    assert "system take 16 at most, and 8 to begin with" in found[f"quota {STANDARD}"].found
    for one in found.values():
        do(one)
    found = by_name(account.quota_checks(stack, eks))
    assert {one.state for one in found.values()} == {OK}
    # What others use is gone from it.
    aws.client("ec2").run_instances(ImageId="ami-12c6146b", InstanceType="g5.2xlarge", MinCount=1, MaxCount=1)
    less = by_name(account.quota_checks(stack, eks))[f"quota {G_ON_DEMAND}"]
    assert less.state == NOTE
    assert "64 vCPUs, 8 of them in use by others; l4 take 64 at most: some nodes will not come" in less.found
    assert "--desired-value 72" in less.fix


def test_one_of_several_capacities_is_enough() -> None:
    pool = {"gpu": "L4", "capacity": ["spot", "on-demand"]}
    stack, eks = made_up({**GPUS, "pool": pool})
    enough = by_name(account.quota_checks(stack, eks))
    # On demand there are those of the test before.
    assert (enough[f"quota {G_SPOT}"].state, enough["quotas of l4"].state) == (NOTE, OK)
    stack, eks = made_up({**GPUS, "min_replicas": 20, "max_replicas": 20, "pool": pool})
    none = by_name(account.quota_checks(stack, eks))["quotas of l4"]
    assert none.state == WRONG
    assert none.found == "none of its capacities has the 160 vCPUs that it takes to begin with"
    assert f"--quota-code {G_ON_DEMAND} --desired-value 168" in none.fix


@pytest.mark.parametrize(
    ("kind", "capacity", "code"),
    [
        ("m7i.xlarge", "on-demand", "L-1216C47A"),
        ("im4gn.large", "spot", "L-34B43A08"),
        ("gr6.4xlarge", "on-demand", "L-DB2E81BA"),
        ("p4d.24xlarge", "spot", "L-7212CCBC"),
        ("p5en.48xlarge", "spot", "L-C4BD4855"),
        ("p5en.48xlarge", "on-demand", "L-417A185B"),
        ("p6-b200.48xlarge", "spot", None),
        ("inf2.xlarge", "on-demand", None),
        ("trn1.2xlarge", "spot", None),
    ],
)
def test_each_family_has_its_quota(kind: str, capacity: str, code: str | None) -> None:
    quota = account.quota_of(kind, capacity)
    assert (quota.code if quota else None) == code


def test_zones_without_the_instance() -> None:
    """Some of the region's have no L40S, as AWS says."""
    stack, eks = made_up({**GPUS, "pool": {"gpu": "L40S"}}, zones="abf", serving=FROM_HUB)
    found = by_name(account.zone_checks(stack, eks))
    assert found["zones of system"].state == OK
    assert found["zones of l4"].state == NOTE
    assert found["zones of l4"].found.startswith(f"{REGION}f do not have g6e.2xlarge or g6e.4xlarge or one of 2 more")
    assert found["zones of l4"].fix.endswith(f"that have it: {REGION}c, {REGION}d")
    nowhere = eks.model_copy(update={"zones": [f"{REGION}e"]})
    found = by_name(account.zone_checks(stack, nowhere))
    assert found["zones of l4"].state == WRONG
    assert found["zones of l4"].found.startswith(f"none of {REGION}e has g6e.2xlarge")


def test_the_pinned_machine_image(monkeypatch: pytest.MonkeyPatch) -> None:
    stack, eks = made_up()
    (there,) = account.machine_image_checks(stack, eks)
    assert there.state == OK
    assert f"amazon-eks-node-al2023-x86_64-nvidia-{versions.EKS}-{versions.EKS_AMI}: ami-" in there.found
    monkeypatch.setattr(versions, "EKS_AMI", "v19990101")
    (gone,) = account.machine_image_checks(stack, eks)
    assert (gone.state, gone.fix.partition(" ")[0]) == (WRONG, "set")
    assert gone.found == f"{REGION} has no amazon-eks-node-al2023-x86_64-nvidia-{versions.EKS}-v19990101"


def test_the_role_for_spot_instances() -> None:
    _, eks = made_up()
    missing = check("spot role", lambda: account.spot_role(eks))
    assert missing.state == WRONG
    do(missing)
    assert check("spot role", lambda: account.spot_role(eks)).state == OK


def test_the_place_of_pulumis_state(aws: FakeAws, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    _, eks = made_up()
    monkeypatch.setattr(engine, "backend", lambda: "s3://pulumi-state")
    monkeypatch.setattr(account, "ROOT", tmp_path)
    (tmp_path / "Pulumi.dev.yaml").write_text(f"secretsprovider: awskms://alias/pulumi?region={REGION}\n")
    found = by_name(account.state_checks("dev", eks))
    assert {one.state for one in found.values()} == {WRONG}
    assert found["state bucket"].found == "there is no bucket pulumi-state"
    assert {one.fix for one in found.values()} == {"make bootstrap STACK=dev"}
    s3, kms = aws.client("s3"), aws.client("kms")
    s3.create_bucket(Bucket="pulumi-state")
    key = kms.create_key()["KeyMetadata"]["KeyId"]
    kms.create_alias(AliasName="alias/pulumi", TargetKeyId=key)
    found = by_name(account.state_checks("dev", eks))
    assert [one.state for one in found.values()] == [NOTE, OK]
    kms.disable_key(KeyId=key)
    s3.put_bucket_versioning(Bucket="pulumi-state", VersioningConfiguration={"Status": "Enabled"})
    found = by_name(account.state_checks("dev", eks))
    assert [one.state for one in found.values()] == [OK, WRONG]
    assert found["state key"].found.startswith("alias/pulumi is Disabled")


def test_credentials_that_have_expired(aws: FakeAws, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, aws, EXPIRED)
    stack, eks = made_up()
    (first, *others) = account.checks("dev", stack, eks)
    assert (first.about, first.state) == ("credentials", WRONG)
    assert "The security token included in the request is expired" in first.found
    assert first.fix == "log in again (aws sso login), or set AWS_PROFILE to one that works"
    assert {check.state for check in others} == {UNKNOWN}
    assert {"quotas", "zones", "machine images"} <= {check.about for check in others}


def test_somebody_who_is_no_admin_of_the_cluster(aws: FakeAws, monkeypatch: pytest.MonkeyPatch) -> None:
    _, eks = made_up()
    for arn, admin in {
        f"arn:aws:sts::{ACCOUNT}:assumed-role/platform-admin/me": True,
        ADMIN: True,
        f"arn:aws:sts::{ACCOUNT}:assumed-role/admin/me": False,
        f"arn:aws:iam::{ACCOUNT}:user/platform-admin": False,
    }.items():
        assert (check("admins", lambda arn=arn: account.is_admin(arn, eks)).state == OK) == admin


@pytest.fixture
def limited(aws: FakeAws, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Who asks may know who they are and which zones offer what, by an IAM policy, and nothing else."""
    iam = aws.client("iam")
    iam.create_user(UserName="reader")
    actions = ["sts:GetCallerIdentity", "ec2:DescribeInstanceTypeOfferings"]
    statement = {"Effect": "Allow", "Action": actions, "Resource": "*"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    iam.put_user_policy(UserName="reader", PolicyName="zones", PolicyDocument=document)
    key = iam.create_access_key(UserName="reader")["AccessKey"]
    use(monkeypatch, aws, key["AccessKeyId"], key["SecretAccessKey"])
    _enforce(aws, "0")
    yield
    _enforce(aws, "inf")


def _enforce(aws: FakeAws, after: str) -> None:
    """moto looks at policies after so many calls."""
    with httpx.Client(trust_env=False, timeout=60) as client:
        client.post(f"{aws.endpoint}/moto-api/reset-auth", content=after).raise_for_status()


@pytest.mark.usefixtures("limited")
def test_what_one_may_not_look_at_is_said_and_the_rest_is_looked_at() -> None:
    pool = {"gpu": "L4", "capacity": ["spot"]}
    stack, eks = made_up({**GPUS, "pool": pool})
    found = by_name(account.checks("dev", stack, eks))
    states = {about: check.state for about, check in found.items()}
    assert (states["credentials"], states["admins"]) == (OK, WRONG)
    assert (states["zones of system"], states["zones of l4"]) == (OK, OK)
    assert states["EKS"] == UNKNOWN
    for about in (f"quota {G_SPOT}", "machine image, nvidia", "spot role"):
        assert states[about] == UNKNOWN
        assert "AccessDenied" in found[about].found or "not authorized" in found[about].found
    assert found[f"quota {G_SPOT}"].fix.startswith("let whoever runs this call `service-quotas get-service-quota`")
