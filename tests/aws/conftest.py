"""Each stack's AWS half, once to the real provider and back: what the tests of tests/aws look at."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from infra.aws.config import EksCluster
from infra.aws.stack import Aws
from infra.config import ROOT, from_file
from tests.aws.running import FakeAws, fake_aws
from tests.aws.terraform import Terraform
from tests.aws.translate import Schema, Translation, translate

SERVICE = "llm"
CLUSTERS = {
    stack: cluster
    for stack in sorted(path.name.split(".")[1] for path in ROOT.glob("Pulumi.*.yaml"))
    if isinstance(cluster := from_file(stack).cluster, EksCluster)
}


@dataclass(frozen=True)
class Cycle:
    """What came of a stack on its way from nothing to nothing."""

    cluster: EksCluster
    translation: Translation
    invalid: list[str]
    made: dict[str, dict[str, Any]]
    """Terraform's state, by address."""
    outputs: dict[str, Any]
    there: dict[str, list[str]]
    """What AWS had after `apply`, by its own account."""
    changes: str
    left: dict[str, list[str]]


@pytest.fixture(scope="session")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Schema:
    terraform = Terraform(tmp_path_factory.mktemp("schema"))
    terraform.init()
    return terraform.schema()


@pytest.fixture(scope="session")
def translations(schema: Schema) -> dict[str, Translation]:
    return {stack: translate(lambda stack=stack: _half(stack), schema, stack) for stack in CLUSTERS}


def _half(stack: str) -> dict[str, Any]:
    return Aws("aws", from_file(stack), CLUSTERS[stack], SERVICE).outputs


@pytest.fixture(scope="session")
def cycles(
    translations: dict[str, Translation], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Cycle]]]:
    """All stacks at once: the provider waits most of the time, for changes to spread that need none here."""
    directory = tmp_path_factory.mktemp("stacks")
    with ThreadPoolExecutor(len(translations)) as threads:
        yield {stack: threads.submit(_cycle, stack, found, directory / stack) for stack, found in translations.items()}


def _cycle(stack: str, translation: Translation, directory: Path) -> Cycle:
    cluster = CLUSTERS[stack]
    terraform = Terraform(directory)
    with fake_aws(directory, cluster.account, cluster.region) as aws:
        terraform.endpoint = aws.endpoint
        terraform.translated(translation)
        terraform.init()
        invalid = terraform.validate()
        terraform.apply()
        return _from_there(cluster, translation, terraform, aws, invalid)


def _from_there(
    cluster: EksCluster, translation: Translation, terraform: Terraform, aws: FakeAws, invalid: list[str]
) -> Cycle:
    made, outputs, there = terraform.state(), terraform.outputs(), aws.has()
    changes = terraform.changes()
    terraform.destroy()
    return Cycle(cluster, translation, invalid, made, outputs, there, changes, aws.has())


@pytest.fixture(scope="session", params=CLUSTERS)
def cycle(request: pytest.FixtureRequest, cycles: dict[str, Future[Cycle]]) -> Cycle:
    return cycles[request.param].result()
