"""RayServing under Pulumi's mocks: what it registers, and in which order."""

from typing import Any, NamedTuple, NoReturn

import pulumi
import pytest
import yaml
from pulumi.runtime import mocks, rpc

from app import settings
from infra.config import StackConfig
from infra.platform.kubeconfig import manager
from infra.serving.rayservice import RayServing, around

RAYSERVICE = "RayService/llm"


class Provider(mocks.Mocks):
    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str | None, dict[str, Any]]:
        return f"{args.name}-id", args.inputs

    def call(self, args: mocks.MockCallArgs) -> NoReturn:
        raise AssertionError(f"RayServing calls nothing on a provider, but it did: {args.token}")


class Resource(NamedTuple):
    inputs: dict[str, Any]
    after: list[str]
    """Kind/name of what it depends on."""
    ignored: list[str]


class Engine(mocks.MockMonitor):
    """Stands in for the engine: remembers what it is asked to register, by kind/name."""

    def __init__(self) -> None:
        super().__init__(Provider())
        self.registered: dict[str, Resource] = {}

    def RegisterResource(self, request: Any) -> Any:  # noqa: N802
        after = [_key(*urn.split("::")[-2:]) for urn in request.dependencies]
        inputs = rpc.deserialize_properties(request.object)
        self.registered[_key(request.type, request.name)] = Resource(inputs, after, list(request.ignoreChanges))
        return super().RegisterResource(request)


def _key(kind: str, name: str) -> str:
    return f"{kind.rpartition(':')[2]}/{name}"


def key(manifest: dict[str, Any]) -> str:
    return _key(manifest["kind"], manifest["metadata"]["name"])


class Cache(NamedTuple):
    """A Valkey whose address Pulumi knows when it is there."""

    address: pulumi.Output[str]
    password: pulumi.Output[str]


def register(stack: StackConfig, **valkey: str) -> dict[str, Resource]:
    engine = Engine()
    pulumi.runtime.set_mocks(Provider(), monitor=engine)

    @pulumi.runtime.test
    def program() -> None:
        outputs = {name: pulumi.Output.from_input(value) for name, value in valkey.items()}
        RayServing("llm", stack, pulumi.ResourceOptions(), Cache(**outputs) if outputs else None)

    program()
    return engine.registered


@pytest.fixture(scope="module")
def registered() -> dict[str, Resource]:
    return register(StackConfig())


def test_all_around_it_is_there_before_the_rayservice(registered: dict[str, Resource]) -> None:
    wanted = {key(manifest) for manifest in around("llm", StackConfig())}
    assert set(registered[RAYSERVICE].after) == {*wanted, "Secret/llm-ray-token"}


def test_manifests_become_resources_as_they_are_but_for_the_stacks_name(registered: dict[str, Resource]) -> None:
    for manifest in around("llm", StackConfig()):
        inputs = registered[key(manifest)].inputs
        named = {**manifest["metadata"], "annotations": {"pulumi.com/patchFieldManager": manager("stack")}}
        assert {field: rpc.unwrap_rpc_secret(value) for field, value in inputs.items()} == manifest | {
            "metadata": named
        }


def test_rays_token_is_made_once_and_kept_secret(registered: dict[str, Resource]) -> None:
    token = registered["Secret/llm-ray-token"]
    assert token.ignored == ["data"], "every `up` would change it under the pods that run"
    assert rpc.is_rpc_secret(token.inputs["data"]), "it would be in the clear in Pulumi's state"


VALKEY = {"address": "rediss://valkey.example.com:6379", "password": "sesame"}


def test_the_heads_state_is_in_the_programs_own_valkey() -> None:
    registered = register(StackConfig(), **VALKEY)
    secret = registered["Secret/llm-valkey"]
    assert rpc.is_rpc_secret(secret.inputs["stringData"]), "it would be in the clear in Pulumi's state"
    assert rpc.unwrap_rpc_secret(secret.inputs["stringData"]) == {"password": "sesame"}
    service = registered[RAYSERVICE]
    assert service.inputs["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"] == {
        "redisAddress": "rediss://valkey.example.com:6379",
        "redisPassword": {"valueFrom": {"secretKeyRef": {"name": "llm-valkey", "key": "password"}}},
    }
    assert "Secret/llm-valkey" in service.after
    for policy in ("gcs-state", "redis"):
        ports = registered[f"NetworkPolicy/{policy}"].inputs["spec"]["egress"][0]["ports"]
        assert ports == [{"port": 6379, "protocol": "TCP"}]


def test_and_so_are_the_counts_of_the_gateway() -> None:
    spec = register(StackConfig(), **VALKEY)[RAYSERVICE].inputs["spec"]
    applications = {item["name"]: item["args"] for item in yaml.safe_load(spec["serveConfigV2"])["applications"]}
    assert settings.parse(applications.pop("gateway")).auth.redis_url == VALKEY["address"]
    assert "valkey" not in str(applications)
    (group,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    variables = {item["name"]: item for item in group["template"]["spec"]["containers"][0]["env"]}
    reference = {"secretKeyRef": {"name": "llm-valkey", "key": "password"}}
    assert variables["REDIS_PASSWORD"]["valueFrom"] == reference
    assert "sesame" not in str(spec)
