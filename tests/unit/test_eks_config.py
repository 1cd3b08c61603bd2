"""What a stack file may say of a cluster on AWS, and how it is told when it is wrong."""

from typing import Any

import pytest

from app.settings import SettingsError
from infra import config
from infra.aws.config import EksCluster
from infra.config import PROJECT
from tests.unit.contract_stacks import QWEN3_8B
from tests.unit.test_stack_config import NOTHING, key


def eks(*workers: dict[str, Any], **cluster: Any) -> dict[str, Any]:
    """Values of a stack on AWS, with other values of its cluster, and other workers."""
    return {
        "cluster": {
            "kind": "eks",
            "name": "team",
            "account": "123456789012",
            "region": "eu-central-1",
            "zones": ["eu-central-1a", "eu-central-1b", "eu-central-1c"],
            "tags": {"owner": "ml", "cost_center": "4711", "environment": "test"},
            "admins": ["arn:aws:iam::123456789012:role/admin"],
            **cluster,
        },
        "image": {"repository": "registry.example.com/team"},
        "keys": [key("team")],
        "workers": [*workers] or [L4],
        "serving": {**NOTHING, "models": [{"variants": [HUB]}]},
    }


CERTIFICATE = "arn:aws:acm:eu-central-1:123456789012:certificate/0123-abcd"
L4 = {"name": "l4", "cpus": 7, "gpus": 1, "memory_gib": 28, "pool": {"gpu": "L4"}}
HUB = {
    "source": "Qwen/Qwen3-8B",
    "revision": "b968826d9c46dd6066d109eabc6255188de91218",
    "engine": {"quantization": "fp8"},
    "size": QWEN3_8B,
    "placement": {"num_gpus": 1, "accelerator_type": "L4"},
}


SPLIT = {**HUB, "placement": {**HUB["placement"], "strategy": "PACK"}, "engine": {"tensor_parallel_size": 2}}


def test_a_cluster_on_aws() -> None:
    stack = config.parse(eks(), "Pulumi.test.yaml")
    assert isinstance(stack.cluster, EksCluster)
    assert stack.cluster.bucket == "team-weights-123456789012-eu-central-1"
    assert stack.cluster.registry == "123456789012.dkr.ecr.eu-central-1.amazonaws.com/team"
    assert stack.cluster.arn == "arn:aws:eks:eu-central-1:123456789012:cluster/team"
    assert stack.cluster.deletion_protection, "whoever forgets it keeps what they have"
    assert stack.models_path is None


def pool(**values: Any) -> dict[str, Any]:
    return eks({**L4, "pool": {"gpu": "L4", **values}})


WRONG_ON_AWS: list[tuple[dict[str, Any], list[str]]] = [
    (eks(name="Team"), ["cluster.name = 'Team'", "pattern"]),
    (eks(name="a" * 25), ["cluster.name", "pattern"]),
    (eks(account=123456789012), ["cluster.account = 123456789012", "valid string"]),
    (eks(region="Ireland"), ["cluster.region = 'Ireland'"]),
    (eks(region="cn-north-1"), ["cluster.region = 'cn-north-1'"]),
    (eks(zones=["eu-central-1a"]), ["cluster.zones", "at least 3 items"]),
    (eks(zones=["eu-central-1a", "eu-central-1a", "eu-central-1b"]), ["cluster.zones", "is there twice"]),
    (
        eks(zones=["eu-central-1a", "eu-central-1b", "us-east-1c"]),
        ["us-east-1c is not a zone of eu-central-1", "eu-central-1a"],
    ),
    (eks(tags={"owner": "ml"}), ["cluster.tags.cost_center: is missing", "cluster.tags.environment: is missing"]),
    (
        eks(tags={"owner": "ml", "cost_center": "1", "environment": "x", "more": {"owner": "me"}}),
        ["cluster.tags.more", "'owner' is a tag already"],
    ),
    (
        eks(tags={"owner": "ml", "cost_center": "1", "environment": "x", "more": {"aws:x": "me"}}),
        ["cluster.tags.more", "no key of a tag"],
    ),
    (eks(network={"cidr": "10.0.0.0/24"}), ["cluster.network.cidr = '10.0.0.0/24'", "/16 to /20"]),
    (eks(network={"cidr": "52.0.0.0/16"}), ["cluster.network.cidr = '52.0.0.0/16'", "no private network"]),
    (eks(network={"cidr": "10.0.0.1/16"}), ["cluster.network.cidr", "host bits", "10.40.0.0/16"]),
    (eks(network={"nat": "two"}), ["cluster.network.nat = 'two'", "'one' or 'per-zone'"]),
    (eks(public_cidrs=["0.0.0.0/0"]), ["cluster.public_cidrs", "0.0.0.0/0 is the whole internet", "or none"]),
    (eks(public_cidrs=["128.0.0.0/1"]), ["cluster.public_cidrs", "or much of it"]),
    (eks(public_cidrs=["office"]), ["cluster.public_cidrs", "office", "10.40.0.0/16"]),
    (eks(admins=[]), ["cluster.admins", "at least 1 item"]),
    (eks(admins=["admin"]), ["cluster.admins.0 = 'admin'", "arn:aws:iam"]),
    (eks(log_days=31), ["cluster.log_days = 31", "30"]),
    (eks(nodes={"min": 5}), ["cluster.nodes.min = 5: is more than max (4)"]),
    (eks(cache={"node_type": "small"}), ["cluster.cache.node_type = 'small'"]),
    (
        {**eks(cache={}), "gcs_fault_tolerance": {"redis_address": "redis:6379"}},
        ["gcs_fault_tolerance.redis_address = 'redis:6379'", "cluster.cache", "keep one"],
    ),
    (
        {
            **eks(cache={}),
            "serving": {**NOTHING, "models": [{"variants": [HUB]}], "auth": {"redis_url": "redis://redis:6379"}},
        },
        ["serving.auth.redis_url = 'redis://redis:6379'", "cluster.cache", "keep one"],
    ),
    (eks(entry={"public": True}), ["cluster.entry.certificate: is missing", "in the clear", "leave public out"]),
    (eks(entry={"public": True, "certificate": CERTIFICATE}), ["cluster.entry.host: is missing"]),
    (eks(entry={"host": "models.example.com"}), ["cluster.entry.host = 'models.example.com'", "or neither"]),
    (eks(entry={"certificate": CERTIFICATE}), ["cluster.entry.certificate = 'arn:", "or neither"]),
    (eks(entry={"host": "models"}), ["cluster.entry.host = 'models'", "pattern"]),
    (
        eks(entry={"host": "models.example.com", "certificate": CERTIFICATE.replace("eu-central-1", "us-east-1")}),
        ["cluster.entry.certificate = 'arn:", "own region and account", "in eu-central-1"],
    ),
    (
        {
            **eks({**L4, "min_replicas": 0}),
            "upgrade": {
                "kind": "NewClusterWithIncrementalUpgrade",
                "gateway_class_name": "envoy",
                "step_size_percent": 10,
                "interval_seconds": 30,
            },
        },
        ["upgrade.kind = 'NewClusterWithIncrementalUpgrade'", "cluster.entry", "null"],
    ),
    (eks(mirrors={"charts": "http://mirror"}), ["cluster.mirrors.charts = 'http://mirror'"]),
    (eks(mirrors={"images": "mirror/"}), ["cluster.mirrors.images = 'mirror/'"]),
    (
        {**eks(), "observability": {"kind": "chart", "mirrors": {"images": "mirror.example.com"}}},
        ["observability.mirrors: those of the cluster are for all", "cluster.mirrors"],
    ),
    (pool(gpu="L5"), ["workers.0.pool.gpu = 'L5'", "'L4'"]),
    (pool(capacity=["on-demand", "spot"]), ["workers.0.pool.capacity", "fix: write ['spot', 'on-demand']"]),
    (pool(capacity=["reserved"]), ["workers.0.pool.reservations = []: nothing is reserved"]),
    (pool(nodes="managed", capacity=["spot", "on-demand"]), ["workers.0.pool.capacity", "either spot or on-demand"]),
    (eks({**L4, "name": "system"}), ["workers.0.name = 'system': is that of the cluster's own nodes"]),
    (pool(nodes="asg"), ["workers.0.pool.nodes = 'asg'", "'karpenter' or 'managed'"]),
    (pool(reservations=["cr-0123456789abcdef0"]), ["workers.0.pool.reservations", "add reserved to capacity"]),
    (pool(share={"replicas": 4}), ["workers.0.pool.share.replicas = 4", "a node for each pod", "nodes: managed"]),
    (pool(nodes="managed", share={"replicas": 1}), ["workers.0.pool.share.replicas = 1"]),
    (pool(nodes="managed", share={"by": "mig", "replicas": 2}), ["workers.0.pool.share.by = 'mig'", "'mps'"]),
    (
        eks({**L4, "gpus": 2, "pool": {"gpu": "L4", "nodes": "managed", "share": {"replicas": 2}}}),
        ["workers.0.gpus = 2: a pod with a share"],
    ),
    (
        eks({**L4, "memory_gib": 200, "pool": {"gpu": "L4", "nodes": "managed", "share": {"replicas": 4}}}),
        ["workers.0: no instance that we know holds the 4 pods that share a GPU, each of 7 CPUs"],
    ),
    (
        {
            **eks({**L4, "max_replicas": 2, "pool": {"gpu": "L4", "nodes": "managed", "share": {"replicas": 2}}}),
            "serving": {**NOTHING, "models": [{"variants": [SPLIT]}]},
        },
        ["workers.0.pool.share: serving.models.0.variants.0 is split over 2 GPUs", "STRICT_PACK"],
    ),
    (eks({**L4, "pool": None}), ["workers.0.pool.gpu: is missing", "1 GPUs", "L4 or H100"]),
    (eks(L4, {"pool": {"gpu": "L4"}}), ["workers.1.pool.gpu = 'L4': the group's pods have no GPU"]),
    (
        eks({**L4, "memory_gib": 1000}),
        ["workers.0: no instance that we know holds a pod of 7 CPUs, 1 GPUs (L4) and 1000 GiB", "instances.csv"],
    ),
    (
        eks({**L4, "pool": {"gpu": "A10G"}}),
        ["serving.models.0.variants.0.placement.accelerator_type = 'L4': no worker group has it", "or use A10G"],
    ),
    (
        {**eks(), "image": {}},
        [f"image.repository = 'localhost/{PROJECT}'", "123456789012.dkr.ecr.eu-central-1.amazonaws.com/team"],
    ),
    (
        {**eks(), "serving": {**NOTHING, "models": [{"variants": [HUB, {**HUB, "name": "canary", "placement": {}}]}]}},
        ["serving.models.0.variants.1.placement.num_gpus = 0: a stack with GPUs", "computes on no CPU"],
    ),
    ({**eks(), "keys": []}, ["keys = []"]),
    ({**eks(), "serving": {}}, ["serving.models.0.variants.0.source = 'builtin:", "nodes of EKS come and go"]),
    ({"workers": [{"pool": {}}]}, ["workers.0.pool: is for clusters of kind eks"]),
]


@pytest.mark.parametrize(("values", "names"), WRONG_ON_AWS, ids=[names[0] for _, names in WRONG_ON_AWS])
def test_wrong_values_of_a_cluster_on_aws_name_key_value_and_fix(values: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(SettingsError) as raised:
        config.parse(values, "Pulumi.test.yaml")
    for name in [*names, "fix: "]:
        assert name in str(raised.value), str(raised.value)
