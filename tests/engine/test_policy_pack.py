"""The policy pack run by the real engine. AWS is a stand-in, and Kubernetes objects are written to files."""

import json
from collections.abc import Callable
from pathlib import Path

import pulumi
import pulumi_aws as aws
import pulumi_kubernetes as kubernetes
import pytest
from pulumi import automation

from infra.aws.config import Tags
from infra.config import StackConfig
from infra.policy.pack import POLICIES
from scripts import engine
from scripts.console import Problem
from tests.engine.stand_in_aws import operations

TAGS = Tags(owner="ml", cost_center="4711", environment="prod").all


def opened(
    monkeypatch: pytest.MonkeyPatch, stack: str, program: Callable[[], object] | None = None
) -> automation.Stack:
    """A stack with its own stack file and program, or with another program, and with a state of the test's own."""
    monkeypatch.setattr(engine, "has_python_host", lambda: False)
    if program:
        monkeypatch.setattr(engine, "_program", program)
    # Of another kind of cluster, its state would be where the user has it.
    return engine.open_stack(stack, StackConfig())


@pytest.mark.parametrize("stack", ["dev", "staging", "prod"])
@pytest.mark.usefixtures("directory")
def test_the_stacks_pass(stack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The local one needs its cluster; up/ takes it through `make up`."""
    planned = engine.policed(opened(monkeypatch, stack).preview).change_summary
    assert planned[automation.OpType.CREATE] > 20


@pytest.mark.usefixtures("directory")
def test_the_whole_program_is_seen_and_a_config_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the stacks would pass because nobody looks."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"gpu-cap": {"stacks": {"dev": 1}}}))
    with pytest.raises(Problem, match=r"GPUs = 2: stack dev may have 1, .*\(gpu-cap\)"):
        engine.policed(opened(monkeypatch, "dev").preview, policy_pack_configs=[str(config)])


def of_aws(tags: dict[str, str] = TAGS) -> pulumi.ResourceOptions:
    return pulumi.ResourceOptions(provider=aws.Provider("aws", region="eu-west-1", default_tags={"tags": tags}))


def of_kubernetes() -> pulumi.ResourceOptions:
    written = kubernetes.Provider("cluster", render_yaml_to_directory="never")  # a preview writes nothing
    return pulumi.ResourceOptions(provider=written)


def group(kind: str, most: int) -> aws.eks.NodeGroup:
    return aws.eks.NodeGroup(
        "nodes",
        cluster_name="c",
        node_role_arn="arn",
        subnet_ids=["subnet"],
        instance_types=[kind],
        scaling_config={"min_size": 0, "max_size": most, "desired_size": 0},
        opts=of_aws(),
    )


def cluster() -> aws.eks.Cluster:
    return aws.eks.Cluster(
        "eks",
        role_arn="arn",
        vpc_config={"subnet_ids": ["subnet"], "endpoint_public_access": True},
        encryption_config={"provider": {"key_arn": "arn"}, "resources": ["secrets"]},
        opts=of_aws(),
    )


def pod() -> kubernetes.core.v1.Pod:
    container = kubernetes.core.v1.ContainerArgs(name="app", image="registry.example.com/app:latest")
    spec = kubernetes.core.v1.PodSpecArgs(containers=[container])
    return kubernetes.core.v1.Pod("pod", spec=spec, opts=of_kubernetes())


def rayservice() -> kubernetes.apiextensions.CustomResource:
    config = "applications: [{name: a, runtime_env: {pip: [left-pad]}}]"
    return kubernetes.apiextensions.CustomResource(
        "llm", api_version="ray.io/v1", kind="RayService", spec={"serveConfigV2": config}, opts=of_kubernetes()
    )


def entry() -> aws.lb.Listener:
    opts = of_aws()
    balancer = aws.lb.LoadBalancer("entry", load_balancer_type="network", opts=opts)
    action = aws.lb.ListenerDefaultActionArgs(type="forward", target_group_arn="arn")
    return aws.lb.Listener(
        "entry", load_balancer_arn=balancer.arn, port=80, protocol="TCP", default_actions=[action], opts=opts
    )


def queue() -> aws.sqs.Queue:
    return aws.sqs.Queue("queue", opts=of_aws())


VIOLATIONS: dict[str, tuple[Callable[[], object], str]] = {
    "required-tags": (lambda: of_aws({"owner": "ml"}), "aws aws: defaultTags.tags: has no cost-center and no env"),
    "no-public-endpoint-in-production": (cluster, "Cluster eks: vpcConfig.endpointPublicAccess = true: "),
    "allowed-gpu-families": (lambda: group("g4dn.xlarge", 1), "NodeGroup nodes: g4dn: is not one of the families"),
    "gpu-cap": (lambda: group("p5.48xlarge", 5), "GPUs = 40: stack prod may have 32, "),
    "no-mutable-images": (pod, "Pod pod: spec.containers.0.image = registry.example.com/app:latest: "),
    "no-foreign-code": (
        rayservice,
        "RayService llm: spec.serveConfigV2: applications.0.runtime_env.pip = ['left-pad']",
    ),
    "public-load-balancers": (entry, "Listener entry: protocol: has no TLS"),
    "encryption": (queue, "Queue queue: sqsManagedSseEnabled = None: "),
}


@pytest.mark.parametrize("policy", [policy.name for policy in POLICIES])
@pytest.mark.usefixtures("directory")
def test_a_violation_stops_a_preview(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program, says = VIOLATIONS[policy]
    stack = opened(monkeypatch, "prod", program)
    with pytest.raises(Problem) as raised:
        engine.policed(stack.preview)
    lines = raised.value.what.splitlines()[1:]
    assert {line.rpartition(" (")[2] for line in lines} == {f"{policy})"}
    assert any(says in line and "; fix: " in line for line in lines), lines


def test_in_an_up_it_is_stopped_before_it_is_made(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Problem, match=r"Queue queue: sqsManagedSseEnabled = None: .*\(encryption\)"):
        engine.policed(opened(monkeypatch, "prod", queue).up)
    assert list(operations(directory)) == []
