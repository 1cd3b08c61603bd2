"""The AWS half of each stack: as the real AWS provider is given it, and applied to a fake AWS."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


def provider_schema(directory: Path) -> Schema:
    """Of the AWS provider that this machine has. `directory` is Terraform's."""
    terraform = Terraform(directory)
    terraform.init()
    return terraform.schema()


def translated(stack: str, cluster: EksCluster, schema: Schema) -> Translation:
    return translate(lambda: Aws("aws", from_file(stack), cluster, SERVICE).outputs, schema, stack)


@contextmanager
def applied(stack: str, translation: Translation, directory: Path) -> Iterator[tuple[Terraform, FakeAws]]:
    """Everything made, in a fake AWS of its own, until the end of the block."""
    terraform, cluster = Terraform(directory), CLUSTERS[stack]
    with fake_aws(directory, cluster.account, cluster.region) as aws:
        terraform.endpoint = aws.endpoint
        terraform.translated(translation)
        terraform.init()
        terraform.apply()
        yield terraform, aws
