"""The real Pulumi engine on the stacks for AWS. AWS and its provider are a stand-in: stand_in_aws.py.

Of the Kubernetes half, the real provider writes the objects into a directory in place of a cluster.
"""

import base64
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pulumi
import pulumi_kubernetes as kubernetes
import pytest
import yaml
from pulumi import automation

from infra.aws.config import EksCluster, Mirrors
from infra.aws.stack import Aws
from infra.config import StackConfig, from_file
from infra.observability import stack as monitoring
from infra.platform import entry, kuberay, nodes, secrets
from infra.platform.charts import Chart
from scripts import engine
from tests.engine.stand_in_aws import Operation, operations
from tests.infra import schemas

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
    assert isinstance(config.cluster, EksCluster)
    stack = deploy(config)
    planned = stack.preview().change_summary
    assert list(operations(directory)) == []
    first = stack.up()
    made = list(operations(directory))
    assert changes(first) == {"create": planned[automation.OpType.CREATE]}
    assert set(counted(made).values()) == {1}
    assert first.outputs["kubeconfig"].value == config.cluster.update_kubeconfig

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


def pulumi_stack(stack: automation.Stack, verb: str, file: Path) -> None:
    """The plain command: the Automation API's own export shows secrets."""
    where = stack.workspace
    where.pulumi_command.run(
        ["stack", verb, "--stack", stack.name, "--file", str(file)], where.work_dir, dict(where.env_vars)
    )


def test_a_state_that_is_lost_comes_back_from_its_copy(directory: Path, deploy: Deploy) -> None:
    """By what docs/operations/state.md says."""
    stack = deploy(from_file("staging"))
    stack.up()
    made = list(operations(directory))
    (password,) = (operation.inputs["authToken"] for operation in made if "authToken" in operation.inputs)
    copy = directory / "copy.json"
    pulumi_stack(stack, "export", copy)
    assert password not in copy.read_text()
    shutil.rmtree(engine.native_home() / "state")
    stack = deploy(from_file("staging"))
    assert set(stack.preview().change_summary) == {automation.OpType.CREATE}, "all of it would be made again"
    pulumi_stack(stack, "import", copy)
    assert set(changes(stack.up())) == {"same"}
    assert len(list(operations(directory))) == len(made)


def test_what_is_protected_is_not_destroyed_and_nothing_else_then(directory: Path, deploy: Deploy) -> None:
    stack = deploy(from_file("prod"))
    stack.up()
    with pytest.raises(automation.CommandError, match="protected"):
        engine.destroy(stack)
    assert not [operation for operation in operations(directory) if operation.verb == "delete"]


def stand_in_for_a_chart(
    chart: Chart, mirrors: Mirrors, namespace: str, values: dict[str, Any], opts: pulumi.ResourceOptions
) -> kubernetes.core.v1.ConfigMap:
    """Helm installs into a cluster, or not at all."""
    metadata = kubernetes.meta.v1.ObjectMetaArgs(name=chart.name, namespace=namespace)
    return kubernetes.core.v1.ConfigMap(chart.name, metadata=metadata, data={"version": chart.version}, opts=opts)


@pytest.fixture
def cluster(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the objects of the whole program go."""
    written = directory / "cluster"

    def writes(aws: Aws) -> kubernetes.Provider:
        after = pulumi.ResourceOptions(depends_on=[aws])
        return kubernetes.Provider("cluster", render_yaml_to_directory=str(written), opts=after)

    monkeypatch.setattr(Aws, "kubernetes", writes)
    for module in (entry, monitoring, nodes, secrets):
        monkeypatch.setattr(module, "release", stand_in_for_a_chart)
    # KubeRay's four take the engine half a minute, each time, and Prometheus' ten a part of that.
    real = kuberay.manifests
    monkeypatch.setattr(kuberay, "manifests", lambda name: [] if name == "kuberay-crds" else real(name))
    monkeypatch.setattr(monitoring, "manifests", lambda name: [])
    monkeypatch.setattr(engine, "has_python_host", lambda: False)
    return written


def objects(cluster: Path) -> dict[str, dict[str, Any]]:
    """By kind and name."""
    found = [yaml.load(path.read_text(), Loader=yaml.CSafeLoader) for path in cluster.rglob("*.yaml") if path.is_file()]
    return {f"{item['kind']}/{item['metadata']['name']}": item for item in found}


def test_the_whole_program_from_nothing_to_nothing(directory: Path, cluster: Path) -> None:
    """An `up` that fails in the middle of the Kubernetes half, the next, another, destroy."""
    stack = engine.open_stack("staging", StackConfig())
    # A directory where a NodePool's file would be.
    in_the_way = cluster / "1-manifest" / "karpenter.sh_v1-nodepool-default-l4.yaml"
    in_the_way.mkdir(parents=True)
    with pytest.raises(automation.CommandError, match="is a directory"):
        stack.up()
    half = objects(cluster)
    assert "EC2NodeClass/l4" in half
    assert "RayService/llm" not in half, "before the nodes that it runs on"
    in_the_way.rmdir()
    again = changes(stack.up())
    assert again.keys() == {"create", "same"}
    assert again["same"] > len(half)
    assert set(changes(stack.up())) == {"same"}

    made = objects(cluster)
    assert {
        "NodePool/l4",
        "NodePool/l4x4",
        "ClusterSecretStore/aws",
        "TargetGroupBinding/llm-serve-svc",
        "PodMonitor/ray",
    } <= made.keys()
    for item in made.values():
        if item["kind"] != "CustomResourceDefinition":
            schemas.validate(item)
    # What AWS says only when it is there.
    service = made["RayService/llm"]["spec"]
    assert service["rayClusterConfig"]["gcsFaultToleranceOptions"]["redisAddress"] == VALKEY
    assert f"redis_url: {VALKEY}\n" in service["serveConfigV2"]
    (file,) = (directory / "state").rglob("staging.json")
    state = file.read_text()
    assert "gcsFaultToleranceOptions" in state
    secrets_made = {"llm-ray-token": "auth_token", "llm-valkey": "password", "grafana-admin": "admin-password"}
    for secret, key in secrets_made.items():
        encoded = made[f"Secret/{secret}"]["data"][key]
        hidden = base64.b64decode(encoded).decode()
        assert len(hidden) >= 32
        assert not [form for form in (encoded, hidden) if form in state], secret

    gone: list[str] = []

    def note(event: automation.EngineEvent) -> None:
        if event.res_outputs_event and event.res_outputs_event.metadata.op == automation.OpType.DELETE:
            kind, name = event.res_outputs_event.metadata.urn.split("::")[2:]
            gone.append(f"{kind.rpartition('$')[2].rpartition(':')[2]}/{name}")

    stack.destroy(on_event=note)
    for order in GO_BEFORE:
        assert [name for name in gone if name in order] == order
    assert objects(cluster) == {}


VALKEY = "rediss://valkey.example.com:6379"
GO_BEFORE = [
    # The pods leave the load balancer, whose controller is still there; the nodes go when nothing runs on them.
    ["TargetGroupBinding/llm-serve-svc", "RayService/llm", "NodePool/l4-nodepool"],
    ["NodePool/l4-nodepool", "EC2NodeClass/l4-ec2nodeclass", "ConfigMap/karpenter"],
    ["TargetGroupBinding/llm-serve-svc", "ConfigMap/aws-load-balancer-controller", "TargetGroup/entry"],
    ["RayService/llm", "Secret/llm-valkey", "Namespace/serving"],
    ["RayService/llm", "Secret/llm-valkey", "ReplicationGroup/valkey"],
    ["ClusterSecretStore/secrets-store", "ConfigMap/external-secrets", "Namespace/external-secrets"],
    ["PodMonitor/ray-podmonitor", "ConfigMap/kube-prometheus-stack", "Namespace/monitoring"],
    ["ConfigMap/karpenter", "NodeGroup/system", "Vpc/network"],
]
"""Kind and Pulumi's name, each before the next."""
