"""The bucket and the key for Pulumi's state: an `aws` on PATH that answers from a file stands in for AWS."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts import bootstrap, stack_file
from scripts.console import Problem

FAKE = """\
import json, os, pathlib, sys
state = pathlib.Path(os.environ["FAKE_AWS"])
content = json.loads(state.read_text())
command, given = " ".join(sys.argv[1:3]), sys.argv[3:]
option = lambda name: given[given.index(name) + 1]
content["calls"].append([command, *given])
if command == "sts get-caller-identity":
    print(json.dumps({"Account": content["account"], "Arn": "arn:aws:iam::1:user/me"}))
elif command == "s3api list-buckets":
    print(json.dumps({"Buckets": [{"Name": name} for name in content["buckets"]]}))
elif command == "s3api create-bucket":
    content["buckets"].append(option("--bucket"))
elif command == "kms list-aliases":
    print(json.dumps({"Aliases": [{"AliasName": name} for name in content["aliases"]]}))
elif command == "kms create-key":
    print(json.dumps({"KeyMetadata": {"KeyId": "key-1"}}))
elif command == "kms create-alias":
    content["aliases"].append(option("--alias-name"))
elif command == content.get("fails"):
    sys.exit("An error occurred (AccessDenied)")
state.write_text(json.dumps(content))
"""


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the fake has, and what it was asked."""
    fake, state = tmp_path / "aws", tmp_path / "state.json"
    fake.write_text(f"#!{sys.executable}\n{FAKE}")
    fake.chmod(0o755)
    state.write_text(json.dumps({"account": "123456789012", "buckets": [], "aliases": ["alias/aws/s3"], "calls": []}))
    monkeypatch.setenv("FAKE_AWS", str(state))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return state


def calls(state: Path, of: str) -> list[list[str]]:
    return [call for call in json.loads(state.read_text())["calls"] if call[0] == of]


def changed(state: Path, **values: Any) -> None:
    state.write_text(json.dumps({**json.loads(state.read_text()), **values}))


def test_bucket_and_key_are_made_once(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        bootstrap.bootstrap("dev")
    content = json.loads(state.read_text())
    assert content["buckets"] == ["pulumi-state-123456789012-us-east-1"]
    assert content["aliases"] == ["alias/aws/s3", "alias/pulumi"]
    assert len(calls(state, "kms create-key")) == 1
    (rotation,) = calls(state, "kms enable-key-rotation")
    assert "key-1" in rotation
    said = capsys.readouterr().out
    assert "pulumi login s3://pulumi-state-123456789012-us-east-1" in said
    assert 'pulumi stack init dev --secrets-provider "awskms://alias/pulumi?region=us-east-1"' in said


def test_the_bucket_is_private_and_keeps_versions_whoever_made_it(state: Path) -> None:
    changed(state, buckets=["pulumi-state-123456789012-us-east-1"])
    bootstrap.bootstrap("dev")
    assert calls(state, "s3api create-bucket") == []
    (block,) = calls(state, "s3api put-public-access-block")
    assert any(argument.count("=true") == 4 for argument in block)
    (versioning,) = calls(state, "s3api put-bucket-versioning")
    assert "Status=Enabled" in versioning


def test_only_other_regions_than_the_first_are_named_to_a_bucket(state: Path) -> None:
    cluster = bootstrap.cluster_of("dev", stack_file.read("dev"))
    for region in ("us-east-1", "eu-west-1"):
        bootstrap.make_bucket(f"bucket-{region}", cluster.model_copy(update={"region": region}))
    first, other = calls(state, "s3api create-bucket")
    assert "--create-bucket-configuration" not in first
    assert "LocationConstraint=eu-west-1" in other


def test_another_account_is_refused_before_anything_is_made(state: Path) -> None:
    changed(state, account="210987654321")
    with pytest.raises(Problem, match=r"those of account 210987654321, and stack dev is for 123456789012(.|\n)*fix: "):
        bootstrap.bootstrap("dev")
    assert [call[0] for call in json.loads(state.read_text())["calls"]] == ["sts get-caller-identity"]


def test_what_aws_refuses_is_told_in_its_words(state: Path) -> None:
    changed(state, fails="s3api put-bucket-versioning")
    with pytest.raises(Problem, match=r"aws s3api put-bucket-versioning: An error occurred \(AccessDenied\)"):
        bootstrap.bootstrap("dev")


def test_a_stack_elsewhere_has_nothing_to_do_there() -> None:
    with pytest.raises(Problem, match="stack local has no cluster on AWS"):
        bootstrap.bootstrap("local")
