"""Each stack's AWS half, once to the real provider and back: what the tests of tests/aws look at."""

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from infra.aws.config import EksCluster, Entry
from tests.aws.running import FakeAws
from tests.aws.stacks import CLUSTERS, applied, provider_schema, translated
from tests.aws.terraform import Terraform
from tests.aws.translate import Schema, Translation

HOST = "models.example.com"


@dataclass(frozen=True)
class Opened:
    """A stack without a way in, when it has got one from the internet."""

    certificate: str
    made: dict[str, dict[str, Any]]
    changes: str


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
    opened: Opened | None
    left: dict[str, list[str]]


@pytest.fixture(scope="session")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Schema:
    return provider_schema(tmp_path_factory.mktemp("schema"))


@pytest.fixture(scope="session")
def translations(schema: Schema) -> dict[str, Translation]:
    return {stack: translated(stack, cluster, schema) for stack, cluster in CLUSTERS.items()}


@pytest.fixture(scope="session")
def public(schema: Schema) -> dict[str, Translation]:
    """The stacks without a way in, with one from the internet."""
    return {
        stack: translated(stack, _public(cluster), schema) for stack, cluster in CLUSTERS.items() if not cluster.entry
    }


def _public(cluster: EksCluster) -> EksCluster:
    entry = Entry(public=True, host=HOST, certificate=_to_be_made(cluster))
    return cluster.model_copy(update={"entry": entry})


def _to_be_made(cluster: EksCluster) -> str:
    """In the place of the certificate that the fake AWS will have."""
    return f"arn:aws:acm:{cluster.region}:{cluster.account}:certificate/to-be-made"


@pytest.fixture(scope="session")
def cycles(
    translations: dict[str, Translation], public: dict[str, Translation], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Cycle]]]:
    """All stacks at once: the provider waits most of the time, for changes to spread that need none here."""
    directory = tmp_path_factory.mktemp("stacks")
    with ThreadPoolExecutor(len(translations)) as threads:
        yield {
            stack: threads.submit(_cycle, stack, found, public.get(stack), directory / stack)
            for stack, found in translations.items()
        }


def _cycle(stack: str, translation: Translation, public: Translation | None, directory: Path) -> Cycle:
    cluster = CLUSTERS[stack]
    with applied(stack, translation, directory) as (terraform, aws):
        invalid, made, outputs, there = terraform.validate(), terraform.state(), terraform.outputs(), aws.has()
        changes = terraform.changes()
        opened = _open(cluster, public, terraform, aws) if public else None
        terraform.destroy()
        return Cycle(cluster, translation, invalid, made, outputs, there, changes, opened, aws.has())


def _open(cluster: EksCluster, public: Translation, terraform: Terraform, aws: FakeAws) -> Opened:
    certificate = aws.client("acm").request_certificate(DomainName=HOST)["CertificateArn"]
    document = json.dumps(public.document()).replace(_to_be_made(cluster), certificate)
    terraform.write(json.loads(document), public.provider)
    terraform.apply()
    return Opened(certificate, terraform.state(), terraform.changes())


@pytest.fixture(scope="session", params=CLUSTERS)
def cycle(request: pytest.FixtureRequest, cycles: dict[str, Future[Cycle]]) -> Cycle:
    return cycles[request.param].result()
