"""Each stack's AWS half, as the real AWS provider takes it: applied, unchanged, destroyed. AWS itself is a fake."""

import json
from pathlib import Path

from infra.aws.config import SYSTEM
from tests.aws.conftest import Cycle
from tests.aws.terraform import Terraform
from tests.aws.translate import NEWER, Translation


def test_the_provider_knows_every_argument_and_takes_every_value(cycle: Cycle) -> None:
    assert cycle.invalid == []


def test_what_the_provider_does_not_know_yet_is_known(cycle: Cycle) -> None:
    """These were checked by Pulumi's types alone."""
    assert cycle.translation.newer <= {".".join(key) for key in NEWER}


def test_everything_is_made(cycle: Cycle) -> None:
    assert set(cycle.made) == cycle.translation.addresses()


def test_another_apply_would_change_nothing(cycle: Cycle) -> None:
    assert cycle.changes == ""


def test_aws_has_it(cycle: Cycle) -> None:
    cluster, there = cycle.cluster, cycle.there
    zones = 3 if cluster.network.nat == "per-zone" else 1
    assert there["clusters"] == [cluster.name]
    assert there["buckets"] == [cluster.bucket]
    assert there["repositories"] == [cluster.name]
    assert there["queues"][0].endswith(f"/{cluster.account}/{cluster.name}")
    assert [len(there[kind]) for kind in ("VPCs", "subnets", "NAT gateways", "addresses")] == [1, 6, zones, zones]
    assert there.get("caches", []) == ([f"{cluster.name}-valkey"] if cluster.cache else [])
    assert all(name.startswith(cluster.name) for name in there["roles"])


def test_everything_that_takes_tags_has_the_stacks(cycle: Cycle) -> None:
    """Those that AWS reports, not those that were asked for."""
    tagged = {address: made["tags_all"] for address, made in cycle.made.items() if "tags_all" in made}
    assert len(tagged) > 30
    missing = {
        address for address, tags in tagged.items() if not cycle.cluster.tags.all.items() <= (tags or {}).items()
    }
    assert missing == set()


def test_nodes_wait_for_what_makes_them_ready(cycle: Cycle) -> None:
    (group,) = (
        body for body in cycle.translation.resources["aws_eks_node_group"].values() if body["node_group_name"] == SYSTEM
    )
    assert {"aws_eks_addon.vpc-cni", "aws_eks_addon.kube-proxy"} <= set(group["depends_on"])


def test_the_outputs_name_what_was_made(cycle: Cycle) -> None:
    assert cycle.outputs["weights"] == f"s3://{cycle.cluster.bucket}"
    assert cycle.outputs["repository"] == cycle.cluster.registry


def test_nothing_is_left(cycle: Cycle) -> None:
    assert cycle.left == {}


def test_a_wrong_value_is_refused_with_the_right_ones(translations: dict[str, Translation], tmp_path: Path) -> None:
    """The provider's own knowledge, which neither Pulumi's types nor a mock has."""
    (translation, *_) = translations.values()
    document = json.dumps(translation.document())
    assert "AL2023_x86_64_STANDARD" in document
    terraform = Terraform(tmp_path)
    terraform.write(json.loads(document.replace("AL2023_x86_64_STANDARD", "AL2023_x86_64_NVIDEA")))
    terraform.init()
    refused = terraform.validate()
    assert refused
    assert all("aws_eks_node_group" in problem for problem in refused)
    assert all("AL2023_x86_64_NVIDIA" in problem and "BOTTLEROCKET_x86_64" in problem for problem in refused)
