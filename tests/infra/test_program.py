"""infra/ under Pulumi's mocks: what the program registers for each stack, without an engine."""

import functools
import json
import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import jsonschema
import pulumi
import pytest
import yaml
from pulumi.runtime import mocks, rpc

from app.keys import digest
from infra import versions
from infra.aws.config import EksCluster
from infra.clusters import native_kubeconfig
from infra.config import PROJECT, ROOT, Operator, from_file
from infra.platform import kuberay
from infra.platform.kubeconfig import sign
from tests.infra import schemas
from tests.infra.aws_outputs import outputs
from tests.infra.made_up import registering

STACKS = sorted(path.name.split(".")[1] for path in ROOT.glob("Pulumi.*.yaml"))


class Recorder(mocks.Mocks):
    """Stands in for engine and provider: remembers what it is asked to create."""

    def __init__(self) -> None:
        self.resources: dict[str, tuple[str, dict[str, Any]]] = {}
        self.outputs: dict[str, Any] = {}
        self.transforms: list[Any] = []

    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str | None, dict[str, Any]]:
        self.resources[f"{args.typ}::{args.name}"] = (args.typ, args.inputs)
        return f"{args.name}-id", outputs(args.typ, args.name, args.inputs)

    def call(self, args: mocks.MockCallArgs) -> NoReturn:
        raise AssertionError(f"the program calls nothing on a provider, but it did: {args.token}")


def record(
    stack: str, values: dict[str, Any] | None = None, monitor: Callable[[Recorder], mocks.MockMonitor] | None = None
) -> Recorder:
    """Run the program with the stack file's values, or with others."""
    recorder = Recorder()
    engine = monitor and monitor(recorder)
    pulumi.runtime.set_mocks(recorder, project=PROJECT, stack=stack, preview=False, monitor=engine)
    if values is None:
        values = yaml.safe_load((ROOT / f"Pulumi.{stack}.yaml").read_text())["config"]
    given = {key: value if isinstance(value, str) else json.dumps(value) for key, value in (values or {}).items()}
    pulumi.runtime.set_all_config(given)

    @pulumi.runtime.test
    def program() -> None:
        with pytest.MonkeyPatch.context() as patch:
            # The mocks have neither.
            patch.setattr(pulumi, "export", recorder.outputs.__setitem__)
            patch.setattr(pulumi.runtime, "register_resource_transform", recorder.transforms.append)
            runpy.run_path(str(ROOT / "infra" / "__main__.py"))

    program()
    return recorder


def run(stack: str, values: dict[str, Any] | None = None) -> dict[str, tuple[str, dict[str, Any]]]:
    """What the program registers."""
    return record(stack, values).resources


recorded_once = functools.cache(record)


@pytest.fixture(scope="module")
def local() -> Recorder:
    return recorded_once("local")


@pytest.mark.parametrize("stack", STACKS)
def test_every_stack_registers_operator_and_rayservice(stack: str) -> None:
    recorded = recorded_once(stack)
    types = {kind for kind, _ in recorded.resources.values()}
    assert "kubernetes:ray.io/v1:RayService" in types
    cluster = from_file(stack).cluster
    entry = isinstance(cluster, EksCluster) and cluster.entry is not None
    assert ("kubernetes:elbv2.k8s.aws/v1beta1:TargetGroupBinding" in types) is entry
    assert ({"curl", "load_balancer"} <= recorded.outputs.keys()) is entry
    assert "blueprint:platform:KubeRay" in types
    assert "pulumi:providers:kubernetes" in types


def objects(recorder: Recorder) -> Iterator[dict[str, Any]]:
    """All that goes to the API server, but for others' charts and CRDs."""
    for kind, inputs in recorder.resources.values():
        if kind.startswith("kubernetes:yaml/"):
            yield from (item for item in inputs["objs"] if item["kind"] != "CustomResourceDefinition")
        elif kind.startswith("kubernetes:") and not kind.startswith("kubernetes:helm.sh/"):
            yield {field: rpc.unwrap_rpc_secret(value) for field, value in inputs.items()}


@pytest.mark.parametrize("stack", STACKS)
def test_every_object_of_every_stack_is_of_its_kind(stack: str) -> None:
    found = list(objects(recorded_once(stack)))
    for manifest in found:
        schemas.validate(manifest)
    kinds = {manifest["kind"] for manifest in found}
    wanted = {"Deployment", "NetworkPolicy", "RayService", "ResourceQuota", "Secret"}
    if isinstance(from_file(stack).cluster, EksCluster):
        wanted |= {"ClusterSecretStore", "EC2NodeClass", "NodePool"}
    assert wanted <= kinds


EXAMPLES = [
    block
    for path in sorted((ROOT / "docs").rglob("*.md"))
    for block in re.findall(r"```yaml\n(apiVersion: .*?)```", path.read_text(), re.DOTALL)
    if "kind.x-k8s.io" not in block
]


@pytest.mark.parametrize("block", EXAMPLES)
def test_the_objects_in_the_documentation_are_of_their_kind(block: str) -> None:
    for manifest in yaml.safe_load_all(block):
        schemas.validate(manifest)


@pytest.mark.parametrize("kind", ["NodePool", "ClusterSecretStore", "TargetGroupBinding", "NetworkPolicy"])
def test_the_check_finds_a_field_that_its_kind_does_not_know(kind: str) -> None:
    manifest = next(manifest for manifest in objects(recorded_once("prod")) if manifest["kind"] == kind)
    for place in ({}, {"metadata": manifest["metadata"]}, {"spec": manifest["spec"]}):
        wrong = {**manifest, **{field: {**inner, "misspelt": "x"} for field, inner in place.items()}}
        wrong = wrong if place else {**wrong, "misspelt": "x"}
        with pytest.raises(jsonschema.ValidationError, match="misspelt"):
            schemas.validate(wrong)


def test_the_provider_gets_the_path_of_a_kubeconfig_and_no_credentials(local: Recorder) -> None:
    providers = [inputs for kind, inputs in local.resources.values() if kind == "pulumi:providers:kubernetes"]
    assert [provider["kubeconfig"] for provider in providers] == [str(native_kubeconfig())]


def test_both_namespaces_enforce_restricted_pods(local: Recorder) -> None:
    namespaces = [inputs for kind, inputs in local.resources.values() if kind == "kubernetes:core/v1:Namespace"]
    names = {item["metadata"]["name"]: item["metadata"]["labels"] for item in namespaces}
    assert set(names) == {"kuberay-system", from_file("local").namespace}
    assert all(labels["pod-security.kubernetes.io/enforce"] == "restricted" for labels in names.values())


def test_the_keys_are_a_secret_in_the_services_namespace() -> None:
    team = {"name": "team", "sha256": digest("sk-a-key-that-nobody-guesses"), "concurrency": 4}
    resources = run("local", {f"{PROJECT}:keys": [team]})
    _, secret = resources["kubernetes:core/v1:Secret::llm-keys"]
    assert secret["metadata"]["namespace"] == from_file("local").namespace
    assert rpc.is_rpc_secret(secret["stringData"]), "it would be in the clear in Pulumi's state"
    ((name, content),) = rpc.unwrap_rpc_secret(secret["stringData"]).items()
    assert name == "keys.yaml"
    assert yaml.safe_load(content) == {"keys": [team]}
    (service,) = (inputs for kind, inputs in resources.values() if kind == "kubernetes:ray.io/v1:RayService")
    groups = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    volumes = [volume for group in groups for volume in group["template"]["spec"]["volumes"] if "secret" in volume]
    assert [volume["secret"]["secretName"] for volume in volumes] == ["llm-keys"]


def test_a_cluster_of_others_without_keys_stops_the_program() -> None:
    with pytest.raises(pulumi.RunError, match=r"keys = \[\]: nobody could use the models"):
        run("local", {f"{PROJECT}:cluster": {"kind": "existing", "contexts": ["prod"]}})


def test_a_stack_over_its_limit_stops_the_program() -> None:
    with pytest.raises(pulumi.RunError, match=r"max_hourly_usd = 2: at its largest the stack costs up to 7\.49 USD"):
        run("dev", {**yaml.safe_load((ROOT / "Pulumi.dev.yaml").read_text())["config"], f"{PROJECT}:max_hourly_usd": 2})


def existing(kubeconfig: Path, *contexts: str) -> dict[str, Any]:
    """Values of a stack for a cluster that somebody else runs."""
    key = {"name": "team", "sha256": digest("sk-a-key-that-nobody-guesses")}
    cluster = {"kind": "existing", "contexts": contexts, "kubeconfig": str(kubeconfig), "models_path": "/m"}
    return {f"{PROJECT}:cluster": cluster, f"{PROJECT}:keys": [key]}


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    path = tmp_path / "kubeconfig"
    path.write_text("current-context: prod\ncontexts: [{name: prod}, {name: dev}]\n")
    return path


def test_a_context_that_the_stack_does_not_know_stops_the_program(kubeconfig: Path) -> None:
    """In a plain `pulumi preview`, too."""
    with pytest.raises(pulumi.RunError, match=r"cluster\.contexts = \['dev', 'test'\]: .*'prod'.*; fix: ") as raised:
        run("dev", existing(kubeconfig, "dev", "test"))
    assert str(kubeconfig) in str(raised.value)


def test_a_kubeconfig_that_cannot_be_read_stops_the_program(tmp_path: Path) -> None:
    with pytest.raises(pulumi.RunError, match="cannot read the kubeconfig"):
        run("dev", existing(tmp_path / "none", "dev"))


def test_the_provider_is_bound_to_a_context_of_the_stack(kubeconfig: Path) -> None:
    resources = run("dev", existing(kubeconfig, "dev", "prod"))
    (provider,) = (inputs for kind, inputs in resources.values() if kind == "pulumi:providers:kubernetes")
    assert (provider["kubeconfig"], provider["context"]) == (str(kubeconfig), "prod")


def test_the_outputs_say_how_to_reach_it(local: Recorder) -> None:
    outputs = local.outputs
    assert outputs["endpoint"] == "http://llm-serve-svc.serving.svc:8000/v1"
    assert outputs["models"] == ["chat", "embed", "sentiment", "safety", "rerank"]
    assert outputs["commands"] == [f"make {command} STACK=local" for command in ("forward", "status", "down")]


def test_every_object_is_the_stacks_own(local: Recorder) -> None:
    """By one name: another one for each attempt to create an object would be in the way of changes to it."""
    groups = [inputs["objs"] for kind, inputs in local.resources.values() if kind == "kubernetes:yaml/v2:ConfigGroup"]
    objects = [item for group in groups for item in group]
    objects += [inputs for _, inputs in local.resources.values() if "metadata" in inputs]
    assert len(objects) > 20
    for item in objects:
        assert item["metadata"]["annotations"]["pulumi.com/patchFieldManager"] == f"{PROJECT}-local"
    assert local.transforms == []


def test_a_charts_objects_are_the_stacks_own_too() -> None:
    recorder = record("local", {f"{PROJECT}:operator": {"chart": next(iter(CHARTS))}})
    assert recorder.transforms == [sign]
    props = {"metadata": {"name": "x", "annotations": {"a": "b"}}, "spec": {}}
    result = sign(
        pulumi.ResourceTransformArgs(True, "kubernetes:apps/v1:Deployment", "x", props, pulumi.ResourceOptions())
    )
    assert result
    annotations = {"a": "b", "pulumi.com/patchFieldManager": f"{PROJECT}-local"}
    assert result.props == {"metadata": {"name": "x", "annotations": annotations}, "spec": {}}
    for kind in ("pulumi:providers:kubernetes", "kubernetes:yaml/v2:ConfigGroup"):
        assert sign(pulumi.ResourceTransformArgs(True, kind, "x", {"objs": []}, pulumi.ResourceOptions())) is None


CHARTS = {
    "https://ray-project.github.io/kuberay-helm": {
        "chart": "kuberay-operator",
        "repositoryOpts": {"repo": "https://ray-project.github.io/kuberay-helm"},
    },
    "oci://mirror.example.com/charts/kuberay-operator": {"chart": "oci://mirror.example.com/charts/kuberay-operator"},
}


@pytest.mark.parametrize("chart", CHARTS)
def test_the_operator_from_its_chart(chart: str) -> None:
    operator = {"chart": chart, "image": "mirror.example.com:5000/kuberay/operator"}
    resources = run("local", {f"{PROJECT}:operator": operator})
    (inputs,) = (inputs for kind, inputs in resources.values() if kind == "kubernetes:helm.sh/v4:Chart")
    assert CHARTS[chart].items() <= inputs.items()
    assert (inputs["version"], inputs["namespace"], inputs["skipCrds"]) == (versions.KUBERAY, "kuberay-system", True)
    image = {"repository": "mirror.example.com:5000/kuberay/operator", "tag": f"v{versions.KUBERAY}"}
    assert inputs["values"]["image"] == image
    groups = [inputs for kind, inputs in resources.values() if kind == "kubernetes:yaml/v2:ConfigGroup"]
    kinds = {item["kind"] for group in groups for item in group["objs"]}
    assert kinds == {"CustomResourceDefinition", "Role", "RoleBinding"}


def test_the_operators_image_may_come_from_a_mirror() -> None:
    mirror = "mirror.example.com/kuberay/operator"
    resources = run("local", {f"{PROJECT}:operator": {"image": mirror}})
    groups = [inputs["objs"] for kind, inputs in resources.values() if kind == "kubernetes:yaml/v2:ConfigGroup"]
    (deployment,) = (item for group in groups for item in group if item["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"{mirror}:v{versions.KUBERAY}"
    assert container["resources"]["limits"]["cpu"] == "1"


INCREMENTAL = {
    f"{PROJECT}:upgrade": {
        "kind": "NewClusterWithIncrementalUpgrade",
        "gateway_class_name": "envoy",
        "step_size_percent": 10,
        "interval_seconds": 30,
    },
    f"{PROJECT}:workers": [{"max_replicas": 2}],
}


def operator(resources: dict[str, tuple[str, dict[str, Any]]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The operator's container, and its role."""
    groups = [inputs["objs"] for kind, inputs in resources.values() if kind == "kubernetes:yaml/v2:ConfigGroup"]
    items = {(item["kind"], item["metadata"].get("namespace")): item for group in groups for item in group}
    (container,) = items["Deployment", kuberay.NAMESPACE]["spec"]["template"]["spec"]["containers"]
    (role,) = (item for (kind, namespace), item in items.items() if kind == "Role" and namespace != kuberay.NAMESPACE)
    return container, role


def test_an_incremental_upgrade_opens_the_operators_gate_for_it_and_a_gateway_is_the_way_in(
    kubeconfig: Path, local: Recorder
) -> None:
    container, _ = operator(local.resources)
    assert container["args"][:2] == ["--enable-metrics", "--feature-gates=RayClusterStatusConditions=true"]
    recorded = record("dev", existing(kubeconfig, "dev") | INCREMENTAL)
    container, role = operator(recorded.resources)
    gates = "--feature-gates=RayClusterStatusConditions=true,RayServiceIncrementalUpgrade=true"
    assert container["args"][:2] == ["--enable-metrics", gates]
    (rule,) = (rule for rule in role["rules"] if rule["apiGroups"] == ["gateway.networking.k8s.io"])
    assert {"gateways", "httproutes"} == set(rule["resources"])
    assert recorded.outputs["endpoint"] == "the Gateway llm-gateway in serving, port 80"
    assert {"create", "get", "list", "update", "watch"} <= set(rule["verbs"])


def test_the_operator_has_its_rights_before_it_starts() -> None:
    def program() -> None:
        kuberay.KubeRay("kuberay", Operator(), "models", pulumi.ResourceOptions())

    registered = registering(program)
    assert "ConfigGroup/kuberay-rights" in registered["ConfigGroup/kuberay-operator"].after
    assert "Namespace/models" in registered["ConfigGroup/kuberay-rights"].after


@pytest.mark.parametrize("chart", [None, "https://example.com/charts"])
def test_the_operator_has_rights_in_the_stacks_namespace_and_nowhere_else(kubeconfig: Path, chart: str | None) -> None:
    values = existing(kubeconfig, "dev") | {f"{PROJECT}:operator": {"chart": chart}, f"{PROJECT}:namespace": "models"}
    recorded = record("dev", values)
    found = [item for item in objects(recorded) if "Role" in item["kind"]]
    assert {item["kind"] for item in found} == {"Role", "RoleBinding"}
    (binding,) = (item for item in found if item["kind"] == "RoleBinding" and item["metadata"]["namespace"] == "models")
    (subject,) = binding["subjects"]
    (role,) = (item for item in found if item["kind"] == "Role" and item["metadata"]["namespace"] == "models")
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert any("rayservices" in rule["resources"] for rule in role["rules"])
    if chart:
        (inputs,) = (inputs for kind, inputs in recorded.resources.values() if kind == "kubernetes:helm.sh/v4:Chart")
        values = inputs["values"]
        assert values["watchNamespace"] == ["models"]
        assert (values["singleNamespaceInstall"], values["crNamespacedRbacEnable"]) == (True, False)
        assert subject["name"] == values["serviceAccount"]["name"]
    else:
        container, _ = operator(recorded.resources)
        assert "--watch-namespace=models" in container["args"]
        accounts = [item["metadata"]["name"] for item in objects(recorded) if item["kind"] == "ServiceAccount"]
        assert subject["name"] in accounts
    assert subject["namespace"] == kuberay.NAMESPACE


def test_and_that_of_the_charts_operator(kubeconfig: Path) -> None:
    (url,) = (url for url in CHARTS if url.startswith("https"))
    values = existing(kubeconfig, "dev") | {f"{PROJECT}:operator": {"chart": url}}
    gates = []
    for more in ({}, INCREMENTAL):
        resources = run("dev", values | more)
        (inputs,) = (inputs for kind, inputs in resources.values() if kind == "kubernetes:helm.sh/v4:Chart")
        gates.append(inputs["values"].get("featureGates"))
    assert gates == [None, [{"name": "RayServiceIncrementalUpgrade", "enabled": True}]]


def test_a_typo_stops_the_program_before_it_registers_anything() -> None:
    with pytest.raises(pulumi.RunError, match="servng"):
        run("local", {f"{PROJECT}:servng": {}})
