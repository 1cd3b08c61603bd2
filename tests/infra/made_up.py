"""A small stack on AWS, and what Pulumi would be told of it."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import pulumi
from pulumi.runtime import mocks, rpc

from app.keys import digest
from app.settings import NOTHING
from infra.aws.config import EksCluster
from infra.aws.stack import Aws
from infra.config import PROJECT, StackConfig, parse
from tests.infra.aws_outputs import outputs
from tests.unit.contract_stacks import QWEN3_8B

ACCOUNT, REGION, NAME = "123456789012", "us-east-1", "team"
ADMIN = f"arn:aws:iam::{ACCOUNT}:role/platform-admin"
EKS: dict[str, Any] = {
    "kind": "eks",
    "name": NAME,
    "account": ACCOUNT,
    "region": REGION,
    "zones": [f"{REGION}{zone}" for zone in "abc"],
    "tags": {"owner": "ml", "cost_center": "4711", "environment": "test"},
    "admins": [ADMIN],
}
GPUS: dict[str, Any] = {"name": "l4", "max_replicas": 4, "cpus": 7, "gpus": 1, "memory_gib": 28, "pool": {"gpu": "L4"}}
SOURCE = f"s3://{NAME}-weights-{ACCOUNT}-{REGION}/org/model/0123abc"


def serving(**variant: Any) -> dict[str, Any]:
    """One model, and nothing of what is there by default."""
    return {**NOTHING, "models": [{"variants": [variant]}]}


FROM_S3 = serving(source=SOURCE, size=QWEN3_8B, placement={"num_gpus": 1, "accelerator_type": "L4"})
SMALL = serving(
    source=SOURCE,
    size={**QWEN3_8B, "parameters_billion": 1.54},
    engine={"gpu_memory_utilization": 0.2},
    placement={"num_gpus": 1, "accelerator_type": "L4"},
)
"""Four of it fit a GPU."""
FROM_HUB: dict[str, Any] = {
    **NOTHING,
    "embeddings": [{"source": "BAAI/bge-large-en-v1.5", "revision": "d4aa6901d3a41ba39fb536a557fa166f842b0e09"}],
}
"""Without a GPU, in either image."""


def values(*workers: dict[str, Any], serving: dict[str, Any] = FROM_S3, **cluster: Any) -> dict[str, Any]:
    """What the stack file says."""
    return {
        "cluster": {**EKS, **cluster},
        "image": {"repository": "registry.example.com/team"},
        "keys": [{"name": "team", "sha256": digest("sk-a-key-that-nobody-guesses")}],
        "workers": [*workers] or [GPUS],
        "serving": serving,
    }


def eks_stack(*workers: dict[str, Any], **cluster: Any) -> StackConfig:
    return parse(values(*workers, **cluster), "Pulumi.test.yaml")


class Resource(NamedTuple):
    inputs: dict[str, Any]
    after: list[str]
    """Kind/name of what it depends on; a component's parts come after what the component comes after."""
    ignored: list[str]
    protected: bool
    retained: bool

    def document(self, field: str = "policy") -> list[dict[str, Any]]:
        """The statements of a policy."""
        return json.loads(self.inputs[field])["Statement"]


class _Provider(mocks.Mocks):
    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str | None, dict[str, Any]]:
        return f"{args.name}-id", outputs(args.typ, args.name, args.inputs)

    def call(self, args: mocks.MockCallArgs) -> NoReturn:
        raise AssertionError(f"the program calls nothing on a provider, but it did: {args.token}")


class _Engine(mocks.MockMonitor):
    def __init__(self) -> None:
        super().__init__(_Provider())
        self.registered: dict[str, Resource] = {}

    def RegisterResource(self, request: Any) -> Any:  # noqa: N802
        self.registered[_key(request.type, request.name)] = Resource(
            inputs=rpc.deserialize_properties(request.object),
            after=[
                *map(_of_urn, request.dependencies),
                *(parent.after if (parent := self.registered.get(_of_urn(request.parent))) else []),
            ],
            ignored=list(request.ignoreChanges),
            protected=request.protect,
            retained=request.retainOnDelete,
        )
        return super().RegisterResource(request)


def _key(kind: str, name: str) -> str:
    return f"{kind.rpartition(':')[2]}/{name}"


def _of_urn(urn: str) -> str:
    kind, _, name = urn.rpartition("::")
    return _key(kind.rpartition("$")[2], name)


def register(stack: StackConfig) -> dict[str, Resource]:
    """What the AWS half of a stack registers, by kind/name."""

    def program() -> None:
        assert isinstance(stack.cluster, EksCluster)
        Aws("aws", stack, stack.cluster, "llm")

    return registering(program)


def registering(program: Callable[[], None]) -> dict[str, Resource]:
    """What a program registers, by kind/name."""
    engine = _Engine()
    pulumi.runtime.set_mocks(_Provider(), project=PROJECT, stack="test", monitor=engine)
    pulumi.runtime.test(program)()
    return engine.registered
