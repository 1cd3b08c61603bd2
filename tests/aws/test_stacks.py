"""Each stack's AWS half, as the real AWS provider takes it: applied, unchanged, destroyed. AWS itself is a fake."""

import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from infra.aws.config import SYSTEM
from tests.aws.conftest import CLUSTERS, Cycle
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
    assert there.get("load balancers", []) == ([f"{cluster.name}-entry"] if cluster.entry else [])
    assert there.get("target groups", []) == ([f"{cluster.name}-serve"] if cluster.entry else [])
    assert there.get("caches", []) == ([f"{cluster.name}-valkey"] if cluster.cache else [])
    assert all(name.startswith(cluster.name) for name in there["roles"])


def test_the_way_in_is_internal(cycle: Cycle) -> None:
    assert _ways_in(cycle.made) == ([(True, 80, "TCP", None)] if cycle.cluster.entry else [])


@pytest.mark.parametrize("stack", [stack for stack, cluster in CLUSTERS.items() if not cluster.entry])
def test_a_stack_that_runs_is_opened_to_the_internet_by_tls(stack: str, cycles: dict[str, Future[Cycle]]) -> None:
    cycle = cycles[stack].result()
    assert cycle.opened
    assert _ways_in(cycle.opened.made) == [(False, 443, "TLS", cycle.opened.certificate)]
    assert cycle.opened.made.keys() > cycle.made.keys()
    assert {kind: cycle.opened.made[kind]["id"] for kind in cycle.made} == {
        kind: made["id"] for kind, made in cycle.made.items()
    }, "something was made anew"
    assert cycle.opened.changes == ""


def _ways_in(made: dict[str, Any]) -> list[tuple[bool, int, str, str | None]]:
    """Whether it is internal, port, protocol and certificate of each."""
    balancers = {values["arn"]: values for address, values in made.items() if address.startswith("aws_lb.")}
    return [
        (
            balancers[values["load_balancer_arn"]]["internal"],
            values["port"],
            values["protocol"],
            values["certificate_arn"],
        )
        for address, values in made.items()
        if address.startswith("aws_lb_listener.")
    ]


def test_everything_that_takes_tags_has_the_stacks(cycle: Cycle) -> None:
    """Those that AWS reports, not those that were asked for."""
    tagged = {address: made["tags_all"] for address, made in cycle.made.items() if "tags_all" in made}
    assert len(tagged) > 30
    missing = {
        address for address, tags in tagged.items() if not cycle.cluster.all_tags.items() <= (tags or {}).items()
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
