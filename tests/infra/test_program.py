"""infra/ under Pulumi's mocks: what the program registers for each stack, without an engine."""

import json
import runpy
from typing import Any, NoReturn

import pulumi
import pytest
import yaml
from pulumi.runtime import mocks, rpc

from app.keys import digest
from infra.config import ROOT, from_file, native_kubeconfig

STACKS = sorted(path.name.split(".")[1] for path in ROOT.glob("Pulumi.*.yaml"))


class Recorder(mocks.Mocks):
    """Stands in for engine and provider: remembers what it is asked to create."""

    def __init__(self) -> None:
        self.resources: dict[str, tuple[str, dict[str, Any]]] = {}

    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str | None, dict[str, Any]]:
        self.resources[f"{args.typ}::{args.name}"] = (args.typ, args.inputs)
        return f"{args.name}-id", args.inputs

    def call(self, args: mocks.MockCallArgs) -> NoReturn:
        raise AssertionError(f"the program calls nothing on a provider, but it did: {args.token}")


def run(stack: str, values: dict[str, Any] | None = None) -> dict[str, tuple[str, dict[str, Any]]]:
    """Run the program with the stack file's values, or with others, and return what it registered."""
    recorder = Recorder()
    pulumi.runtime.set_mocks(recorder, project="blueprint", stack=stack, preview=False)
    if values is None:
        values = yaml.safe_load((ROOT / f"Pulumi.{stack}.yaml").read_text())["config"]
    given = {key: value if isinstance(value, str) else json.dumps(value) for key, value in (values or {}).items()}
    pulumi.runtime.set_all_config(given)

    @pulumi.runtime.test
    def program() -> None:
        runpy.run_path(str(ROOT / "infra" / "__main__.py"))

    program()
    return recorder.resources


@pytest.mark.parametrize("stack", STACKS)
def test_every_stack_registers_operator_and_rayservice(stack: str) -> None:
    types = {kind for kind, _ in run(stack).values()}
    assert "kubernetes:ray.io/v1:RayService" in types
    assert "blueprint:platform:KubeRay" in types
    assert "pulumi:providers:kubernetes" in types


def test_the_provider_gets_the_path_of_a_kubeconfig_and_no_credentials() -> None:
    providers = [inputs for kind, inputs in run("local").values() if kind == "pulumi:providers:kubernetes"]
    assert [provider["kubeconfig"] for provider in providers] == [str(native_kubeconfig())]


def test_both_namespaces_enforce_restricted_pods() -> None:
    namespaces = [inputs for kind, inputs in run("local").values() if kind == "kubernetes:core/v1:Namespace"]
    names = {item["metadata"]["name"]: item["metadata"]["labels"] for item in namespaces}
    assert set(names) == {"kuberay-system", from_file("local").namespace}
    assert all(labels["pod-security.kubernetes.io/enforce"] == "restricted" for labels in names.values())


def test_the_keys_are_a_secret_in_the_services_namespace() -> None:
    team = {"name": "team", "sha256": digest("sk-a-key-that-nobody-guesses"), "concurrency": 4}
    resources = run("local", {"blueprint:keys": [team]})
    (secret,) = (inputs for kind, inputs in resources.values() if kind == "kubernetes:core/v1:Secret")
    assert secret["metadata"] == {"name": "llm-keys", "namespace": from_file("local").namespace}
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
        run("local", {"blueprint:cluster": {"kind": "existing", "context": "prod"}})


def test_a_typo_stops_the_program_before_it_registers_anything() -> None:
    with pytest.raises(pulumi.RunError, match="servng"):
        run("local", {"blueprint:servng": {}})
