"""The real Pulumi engine on the AWS half of the stacks. AWS and its provider are a stand-in: stand_in_aws.py."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pulumi
import pytest
from pulumi import automation

from infra.aws.config import EksCluster
from infra.aws.stack import Aws
from infra.config import StackConfig, from_file
from scripts import engine
from tests.e2e.engine.stand_in_aws import Operation, operations

Deploy = Callable[[StackConfig], automation.Stack]
KINDS = ["aws:eks/nodeGroup:NodeGroup", "aws:eks/cluster:Cluster", "aws:ec2/subnet:Subnet", "aws:ec2/vpc:Vpc"]
"""In the order in which they go."""


@pytest.fixture
def deploy(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Deploy:
    """A Pulumi stack, always the same one, whose program is the AWS half of a config."""
    monkeypatch.setattr(engine, "has_python_host", lambda: False)

    def opened(config: StackConfig) -> automation.Stack:
        def program() -> None:
            assert isinstance(config.cluster, EksCluster)
            made = Aws("aws", config, config.cluster, "llm")
            for name, value in made.outputs.items():
                pulumi.export(name, value)

        monkeypatch.setattr(engine, "_program", program)
        return engine.open_stack("local", StackConfig())

    return opened


def counted(found: list[Operation]) -> Counter[tuple[str, str, str]]:
    return Counter((operation.verb, operation.kind, operation.name) for operation in found)


def changes(result: automation.UpResult) -> dict[str, int]:
    return {str(change): count for change, count in (result.summary.resource_changes or {}).items() if count}


def other_network(config: StackConfig) -> StackConfig:
    assert isinstance(config.cluster, EksCluster)
    network = config.cluster.network.model_copy(update={"cidr": "10.99.0.0/16"})
    return config.model_copy(update={"cluster": config.cluster.model_copy(update={"network": network})})


def test_from_nothing_to_nothing(directory: Path, deploy: Deploy) -> None:
    """Preview, up, up again, another network, destroy."""
    config = from_file("staging")
    stack = deploy(config)
    planned = stack.preview().change_summary
    assert list(operations(directory)) == []
    first = stack.up()
    made = list(operations(directory))
    assert changes(first) == {"create": planned[automation.OpType.CREATE]}
    assert set(counted(made).values()) == {1}
    assert first.outputs["kubeconfig"].value == "aws eks update-kubeconfig --region us-east-1 --name blueprint-staging"

    # Secrets: in the state as ciphertext only.
    (password,) = (operation.inputs["authToken"] for operation in made if "authToken" in operation.inputs)
    (file,) = (directory / "state").rglob("local.json")
    assert password not in file.read_text()
    assert password not in json.dumps(_outputs(first))

    again = stack.up()
    assert set(changes(again)) == {"same"}
    assert len(list(operations(directory))) == len(made)

    # What cannot be changed is made anew, the new one first; and what is in it follows.
    deploy(other_network(config)).up()
    changed = list(operations(directory))[len(made) :]
    vpc = [operation.verb for operation in changed if operation.kind == "aws:ec2/vpc:Vpc"]
    assert vpc == ["create", "delete"]
    subnets = Counter(operation.verb for operation in changed if operation.kind == "aws:ec2/subnet:Subnet")
    assert subnets == {"create": 6, "delete": 6}
    assert {operation.verb for operation in changed if operation.kind == "aws:eks/cluster:Cluster"} == {"update"}

    engine.destroy(stack)
    gone = list(operations(directory))[len(made) + len(changed) :]
    assert {operation.verb for operation in gone} == {"delete"}
    order = [next(i for i, operation in enumerate(reversed(gone)) if operation.kind == kind) for kind in KINDS]
    assert order == sorted(order, reverse=True)


def _outputs(result: automation.UpResult) -> dict[str, Any]:
    return {name: output.value for name, output in result.outputs.items()}


def test_an_up_that_failed_in_the_middle_is_gone_on_with(directory: Path, deploy: Deploy) -> None:
    stack = deploy(from_file("dev"))
    (directory / "fails").write_text("system")
    with pytest.raises(automation.CommandError, match="the stand-in was told not to create system"):
        stack.up()
    half = list(operations(directory))
    names = {operation.name for operation in half if operation.kind == "aws:eks/addon:Addon"}
    assert "vpc-cni" in names
    assert "coredns" not in names, "it needs a node, and there is none"
    (directory / "fails").unlink()
    stack.up()
    assert set(counted(list(operations(directory))).values()) == {1}
    assert set(changes(stack.up())) == {"same"}


def test_what_is_protected_is_not_destroyed_and_nothing_else_then(directory: Path, deploy: Deploy) -> None:
    stack = deploy(from_file("prod"))
    stack.up()
    with pytest.raises(automation.CommandError, match="protected"):
        engine.destroy(stack)
    assert not [operation for operation in operations(directory) if operation.verb == "delete"]
