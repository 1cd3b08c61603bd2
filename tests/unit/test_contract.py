"""What a stack file is refused for, each rule with the whole sentence that it is told in."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.keys import digest
from app.settings import SettingsError
from infra import config, versions
from infra.aws.instances import known
from infra.aws.pools import instances, most_nodes
from infra.platform.karpenter import node_pool
from tests.unit.contract_stacks import H100, L4, L4X4, LLAMA_70B, NOTHING, QWEN3_8B, SHARED, values, variant

ELSEWHERE = {"kind": "existing", "contexts": ["kind-dev"]}
KEY = {"name": "team", "sha256": digest("sk-team")}
INCREMENTAL = {
    "kind": "NewClusterWithIncrementalUpgrade",
    "gateway_class_name": "envoy",
    "step_size_percent": 10,
    "interval_seconds": 30,
}
CERTIFICATE = "arn:aws:acm:us-east-1:123456789012:certificate/0123-abcd"
SPLIT = {"tensor_parallel_size": 4}
TWO = {"num_replicas": 2}
SMALL = {**QWEN3_8B, "parameters_billion": 1.54}


def promised(**objectives: Any) -> dict[str, Any]:
    return values(observability={"kind": "chart", "objectives": objectives})


def zones(region: str) -> dict[str, Any]:
    return {"region": region, "zones": [f"{region}{zone}" for zone in "abc"]}


REFUSED: list[tuple[dict[str, Any], str]] = [
    # Tensor parallelism and the pods and instances that it needs.
    (
        values(L4, variants=[variant(engine=SPLIT)]),
        "serving.models.0.variants.0: a replica needs 1 CPUs and 4 L4 GPUs of one pod, and no worker group "
        "has them: l4 (7 CPUs, 1 L4 GPUs); fix: raise the cpus or gpus of one, or lower the replica's "
        "placement",
    ),
    (
        values(L4, H100, variants=[variant(engine=SPLIT)]),
        "serving.models.0.variants.0: a replica needs 1 CPUs and 4 L4 GPUs of one pod, and no worker group "
        "has them: l4 (7 CPUs, 1 L4 GPUs), h100 (180 CPUs, 8 H100 GPUs); fix: raise the cpus or gpus of "
        "one, or lower the replica's placement",
    ),
    (
        values(L4X4, variants=[variant(engine={"tensor_parallel_size": 8})]),
        "serving.models.0.variants.0: a replica needs 1 CPUs and 8 L4 GPUs of one pod, and no worker group "
        "has them: l4x4 (40 CPUs, 4 L4 GPUs); fix: raise the cpus or gpus of one, or lower the replica's "
        "placement",
    ),
    (
        values(L4X4, variants=[variant(engine={"tensor_parallel_size": 2, "pipeline_parallel_size": 4})]),
        "serving.models.0.variants.0: a replica needs 1 CPUs and 8 L4 GPUs of one pod, and no worker group "
        "has them: l4x4 (40 CPUs, 4 L4 GPUs); fix: raise the cpus or gpus of one, or lower the replica's "
        "placement",
    ),
    (
        values({**L4X4, "gpus": 16}),
        "workers.0: no instance that we know holds a pod of 40 CPUs, 16 GPUs (L4) and 160 GiB; fix: lower "
        "them, some of each is the node's own, or add the type to infra/aws/instances.csv",
    ),
    (
        values({**L4X4, "cpus": 500}),
        "workers.0: no instance that we know holds a pod of 500 CPUs, 4 GPUs (L4) and 160 GiB; fix: lower "
        "them, some of each is the node's own, or add the type to infra/aws/instances.csv",
    ),
    (
        values({**L4, "memory_gib": 1000}),
        "workers.0: no instance that we know holds a pod of 7 CPUs, 1 GPUs (L4) and 1000 GiB; fix: lower "
        "them, some of each is the node's own, or add the type to infra/aws/instances.csv",
    ),
    (
        values({**L4, "pool": None}),
        "workers.0.pool.gpu: is missing, and the group's pods have 1 GPUs; fix: say which, L4 or H100 for instance",
    ),
    (
        values(L4, {"name": "cpu", "pool": {"gpu": "L4"}}),
        "workers.1.pool.gpu = 'L4': the group's pods have no GPU; fix: leave it out, or set gpus",
    ),
    (
        values(L4X4, variants=[variant(engine={"tensor_parallel_size": 3})]),
        "serving.models.0.variants.0.engine.tensor_parallel_size = 3: 32 attention heads "
        "(size.num_attention_heads) cannot be split over so many GPUs; fix: use a divisor of that",
    ),
    (
        values(H100, variants=[variant("H100", LLAMA_70B, engine={"tensor_parallel_size": 6})]),
        "serving.models.0.variants.0.engine.tensor_parallel_size = 6: 64 attention heads "
        "(size.num_attention_heads) cannot be split over so many GPUs; fix: use a divisor of that",
    ),
    (
        values(
            L4X4, variants=[variant(size={**QWEN3_8B, "num_hidden_layers": 2}, engine={"pipeline_parallel_size": 4})]
        ),
        "serving.models.0.variants.0.engine.pipeline_parallel_size = 4: is more than the model's layers "
        "(size.num_hidden_layers is 2); fix: lower it",
    ),
    (
        values(L4X4, variants=[variant(engine=SPLIT, placement={"num_gpus": 0.5})]),
        "serving.models.0.variants.0.placement.num_gpus = 0.5: an engine split over 4 workers needs one "
        "whole GPU for each; fix: set it to 1, or tensor_parallel_size and pipeline_parallel_size to 1",
    ),
    # Weights and cache.
    (
        values(L4, variants=[variant(size=None)]),
        "serving.models.0.variants.0.size: is missing, and whether "
        "s3://team-weights-123456789012-us-east-1/org/model/0123abc fits its GPUs is known by it; fix: add "
        "it, with the values of the model's config.json",
    ),
    (
        values(L4, variants=[variant(engine={"quantization": None, "max_model_len": 40960})]),
        "serving.models.0.variants.0.engine.max_model_len = 40960: on each L4 of workers.0 weights take "
        "15.3 GiB, the cache of one such request 5.6, and 90% of it has 20.1; fix: lower it, quantize, "
        "raise tensor_parallel_size, or take larger GPUs",
    ),
    (
        values(L4, variants=[variant(engine={"max_model_len": 131072})]),
        "serving.models.0.variants.0.engine.max_model_len = 131072: on each L4 of workers.0 weights take "
        "7.6 GiB, the cache of one such request 18.0, and 90% of it has 20.1; fix: lower it, quantize, "
        "raise tensor_parallel_size, or take larger GPUs",
    ),
    (
        values(L4, variants=[variant(size=LLAMA_70B)]),
        "serving.models.0.variants.0.engine.max_model_len = 2048: on each L4 of workers.0 weights take "
        "65.7 GiB, the cache of one such request 0.6, and 90% of it has 20.1; fix: lower it, quantize, "
        "raise tensor_parallel_size, or take larger GPUs",
    ),
    (
        values(L4X4, variants=[variant(size=LLAMA_70B, engine={**SPLIT, "quantization": None})]),
        "serving.models.0.variants.0.engine.max_model_len = 2048: on each L4 of workers.0 weights take "
        "32.9 GiB, the cache of one such request 0.2, and 90% of it has 20.1; fix: lower it, quantize, "
        "raise tensor_parallel_size, or take larger GPUs",
    ),
    (
        values(H100, variants=[variant("H100", LLAMA_70B, engine={"quantization": None})]),
        "serving.models.0.variants.0.engine.max_model_len = 2048: on each H100 of workers.0 weights take "
        "131.4 GiB, the cache of one such request 0.6, and 90% of it has 72.0; fix: lower it, quantize, "
        "raise tensor_parallel_size, or take larger GPUs",
    ),
    (
        values(
            L4X4, variants=[variant(size=LLAMA_70B, engine={**SPLIT, "quantization": "awq", "max_model_len": 163840})]
        ),
        "serving.models.0.variants.0.engine.max_model_len = 163840: on each L4 of workers.0 weights take "
        "8.2 GiB, the cache of one such request 12.5, and 90% of it has 20.1; fix: lower it, quantize, "
        "raise tensor_parallel_size, or take larger GPUs",
    ),
    (
        values(L4, variants=[variant(engine={"gpu_memory_utilization": 0.3})]),
        "serving.models.0.variants.0.engine.max_model_len = 2048: on each L4 of workers.0 weights take 7.6 "
        "GiB, the cache of one such request 0.3, and 30% of it has 6.7; fix: lower it, quantize, raise "
        "tensor_parallel_size, or take larger GPUs",
    ),
    (
        values(L4, variants=[variant(placement={"num_gpus": 0.3})]),
        "serving.models.0.variants.0.engine.max_model_len = 2048: on each L4 of workers.0 weights take 7.6 "
        "GiB, the cache of one such request 0.3, and 27% of it has 6.0; fix: lower it, quantize, raise "
        "tensor_parallel_size, or take larger GPUs",
    ),
    (
        values(L4, variants=[variant(engine={"max_model_len": 8192, "extra": {"kv_cache_memory_bytes": 1073741824}})]),
        "serving.models.0.variants.0.engine.extra.kv_cache_memory_bytes = 1073741824: is 1.0 GiB, and one "
        "request of 8192 tokens needs 1.1; fix: raise it, or lower max_model_len",
    ),
    (
        values(L4, variants=[variant(engine={"extra": {"kv_cache_memory_bytes": 21474836480}})]),
        "serving.models.0.variants.0.engine.max_model_len = 2048: on each L4 of workers.0 weights take 7.6 "
        "GiB, the cache of one such request 20.0, and it has 22.4; fix: lower it, quantize, raise "
        "tensor_parallel_size, or take larger GPUs",
    ),
    (
        values(L4, variants=[variant(engine={"quantization": "torchao"})]),
        "serving.models.0.variants.0.size.bytes_per_parameter: is missing, and what quantization = "
        "'torchao' makes of a parameter is for the weights to say; fix: add it, 0.5 for 4 bits or 1 for 8",
    ),
    (
        values(L4, variants=[variant(engine={"dtype": "float32", "quantization": None})]),
        "serving.models.0.variants.0.engine.max_model_len = 2048: on each L4 of workers.0 weights take "
        "30.5 GiB, the cache of one such request 0.6, and 90% of it has 20.1; fix: lower it, quantize, "
        "raise tensor_parallel_size, or take larger GPUs",
    ),
    (
        values(L4, H100, variants=[variant(None, LLAMA_70B, engine={"quantization": "awq"})]),
        "serving.models.0.variants.0.engine.max_model_len = 2048: on each L4 of workers.0 weights take "
        "32.9 GiB, the cache of one such request 0.6, and 90% of it has 20.1; fix: lower it, quantize, "
        "raise tensor_parallel_size, or take larger GPUs",
    ),
    (
        {
            **{"cluster": ELSEWHERE, "keys": [KEY], "workers": [{"name": "gpu", "cpus": 8, "gpus": 1}]},
            "serving": {**NOTHING, "models": [{"variants": [variant(size=LLAMA_70B)]}]},
        },
        "serving.models.0.variants.0.engine.max_model_len = 2048: on each L4 of workers.0 weights take "
        "65.7 GiB, the cache of one such request 0.6, and 90% of it has 20.1; fix: lower it, quantize, "
        "raise tensor_parallel_size, or take larger GPUs",
    ),
    # Replicas.
    (
        values(L4, variants=[variant(scaling=TWO)]),
        "serving: all replicas together need 2 GPUs, and the workers have 1; fix: raise "
        "workers.*.max_replicas or gpus, or lower num_replicas or max_replicas",
    ),
    (
        values(L4, {**H100, "max_replicas": 2}, variants=[variant(scaling={"num_replicas": 3})]),
        "serving: all replicas together need 3 L4 GPUs, and the workers have 1; fix: raise the "
        "max_replicas of workers with L4, or lower num_replicas or max_replicas",
    ),
    (
        values({**L4X4, "gpus": 3}, variants=[variant(engine={"tensor_parallel_size": 2}, scaling=TWO)]),
        "serving: all replicas together need 4 GPUs, and the workers have 3; fix: raise "
        "workers.*.max_replicas or gpus, or lower num_replicas or max_replicas",
    ),
    (
        values(
            {**L4X4, "gpus": 3, "max_replicas": 2},
            variants=[variant(engine={"tensor_parallel_size": 2}, scaling={"num_replicas": 3})],
        ),
        "serving.models.0.variants.0: has up to 3 replicas, and the pods that hold one have room for 2; "
        "fix: raise max_replicas of l4x4, or lower the replica's",
    ),
    (
        values(
            {**L4, "max_replicas": 3},
            variants=[variant(size=SMALL, placement={"num_gpus": 0.6}, scaling={"num_replicas": 4})],
        ),
        "serving.models.0.variants.0: has up to 4 replicas, and the pods that hold one have room for 3; "
        "fix: raise max_replicas of l4, or lower the replica's",
    ),
    (
        values({**L4, "max_replicas": 4}, variants=[variant(scaling={"autoscaling_config": {"max_replicas": 5}})]),
        "serving: all replicas together need 5 GPUs, and the workers have 4; fix: raise "
        "workers.*.max_replicas or gpus, or lower num_replicas or max_replicas",
    ),
    (
        values({**L4, "max_replicas": 2}, variants=[variant(), variant(name="canary", scaling=TWO)]),
        "serving: all replicas together need 3 GPUs, and the workers have 2; fix: raise "
        "workers.*.max_replicas or gpus, or lower num_replicas or max_replicas",
    ),
    (
        values(L4, variants=[variant(placement={"num_cpus": 8})]),
        "serving.models.0.variants.0: a replica needs 8 CPUs and 1 L4 GPUs of one pod, and no worker group "
        "has them: l4 (7 CPUs, 1 L4 GPUs); fix: raise the cpus or gpus of one, or lower the replica's "
        "placement",
    ),
    (
        values({**L4, "max_replicas": 2}, variants=[variant(placement={"num_cpus": 7}, scaling=TWO)]),
        "serving: all replicas together need 14.01 CPUs, and the workers have 14; fix: raise "
        "workers.*.max_replicas or cpus, or lower num_replicas or max_replicas",
    ),
    # Limits of GPUs, with an upgrade's surge.
    (
        values({**L4, "pool": {"gpu": "L4", "max_gpus": 1}}),
        "workers.0.pool.max_gpus = 1: 1 pods, 1 more while an upgrade (NewCluster) lasts and 0 warm ones "
        "need 2 GPUs; fix: raise it, lower max_replicas or warm, or use an upgrade with a smaller surge",
    ),
    (
        values({**L4, "max_replicas": 8, "pool": {"gpu": "L4", "max_gpus": 8}}, upgrade={"kind": "NewCluster"}),
        "workers.0.pool.max_gpus = 8: 8 pods, 8 more while an upgrade (NewCluster) lasts and 0 warm ones "
        "need 16 GPUs; fix: raise it, lower max_replicas or warm, or use an upgrade with a smaller surge",
    ),
    (
        values({**L4, "pool": {"gpu": "L4", "max_gpus": 2, "warm": 2}}, upgrade={"kind": "None"}),
        "workers.0.pool.max_gpus = 2: 1 pods, 0 more while an upgrade (None) lasts and 2 warm ones need 3 "
        "GPUs; fix: raise it, lower max_replicas or warm, or use an upgrade with a smaller surge",
    ),
    (
        values({**H100, "pool": {"gpu": "H100", "max_gpus": 8}}, variants=[variant("H100", LLAMA_70B, engine=SPLIT)]),
        "workers.0.pool.max_gpus = 8: 1 pods, 1 more while an upgrade (NewCluster) lasts and 0 warm ones "
        "need 16 GPUs; fix: raise it, lower max_replicas or warm, or use an upgrade with a smaller surge",
    ),
    (
        values(
            {**H100, "pool": {"gpu": "H100", "max_gpus": 4}},
            variants=[variant("H100", LLAMA_70B, engine=SPLIT)],
            upgrade={"kind": "None"},
        ),
        "workers.0.pool.max_gpus = 4: 1 pods, 0 more while an upgrade (None) lasts and 0 warm ones need 8 "
        "GPUs; fix: raise it, lower max_replicas or warm, or use an upgrade with a smaller surge",
    ),
    (
        values(
            {**L4, "min_replicas": 0, "max_replicas": 4, "pool": {"gpu": "L4", "max_gpus": 4}},
            **{"variants": [variant(scaling={"num_replicas": 4})], "cluster": {"entry": None}},
            upgrade={**INCREMENTAL, "max_surge_percent": 50},
        ),
        "workers.0.pool.max_gpus = 4: 4 pods, 3 more while an upgrade (NewClusterWithIncrementalUpgrade) "
        "lasts and 0 warm ones need 7 GPUs; fix: raise it, lower max_replicas or warm, or use an upgrade "
        "with a smaller surge",
    ),
    (
        values({"name": "cpu", "cpus": 4, "pool": {"max_gpus": 4}}, L4),
        "workers.0.pool.max_gpus = 4: the group's pods have no GPU; fix: leave it out, or set gpus",
    ),
    # Accelerators.
    (
        values(L4, variants=[variant("H100")]),
        "serving.models.0.variants.0.placement.accelerator_type = 'H100': no worker group has it; fix: set "
        "the pool.gpu of one to it, or use L4",
    ),
    (
        values({**L4, "pool": {"gpu": "A10G"}}),
        "serving.models.0.variants.0.placement.accelerator_type = 'L4': no worker group has it; fix: set "
        "the pool.gpu of one to it, or use A10G",
    ),
    (
        values({**L4, "gpus": 0, "pool": {}}, variants=[variant("T4")]),
        "serving.models.0.variants.0.placement.accelerator_type = 'T4': no worker group has it; fix: set "
        "the pool.gpu of one to it, or use none",
    ),
    # Shared GPUs.
    (
        values(
            {**SHARED, "max_replicas": 4},
            variants=[variant(engine={"tensor_parallel_size": 4}, placement={"strategy": "PACK"})],
        ),
        "workers.0.pool.share: serving.models.0.variants.0 is split over 4 GPUs, and its workers could get "
        "the same one; fix: leave share out, or placement.strategy: STRICT_PACK, which keeps it to a group "
        "with so many",
    ),
    (
        values({**SHARED, "gpus": 4, "cpus": 4}),
        "workers.0.gpus = 4: a pod with a share of a GPU has one; fix: set 1, or leave pool.share out",
    ),
    (
        values(SHARED, variants=[variant(size=SMALL)]),
        "serving.models.0.variants.0.engine.gpu_memory_utilization = 0.9: up to 4 such engines have one "
        "GPU of workers.0 (pool.share.replicas is 4); fix: make it 0.25 or less",
    ),
    (
        values(SHARED, variants=[variant(size=SMALL, engine={"gpu_memory_utilization": 0.3})]),
        "serving.models.0.variants.0.engine.gpu_memory_utilization = 0.3: up to 4 such engines have one "
        "GPU of workers.0 (pool.share.replicas is 4); fix: make it 0.25 or less",
    ),
    (
        values({**L4, "pool": {"gpu": "L4", "share": {"replicas": 2}}}),
        "workers.0.pool.share.replicas = 2: Karpenter counts the GPUs that EC2 names, and would start a "
        "node for each pod; fix: set nodes: managed, or let replicas share the GPU of one pod by a "
        "fraction in placement.num_gpus",
    ),
    (
        values({**SHARED, "memory_gib": 200}),
        "workers.0: no instance that we know holds the 4 pods that share a GPU, each of 2 CPUs, 1 GPUs "
        "(L4) and 200 GiB; fix: lower them, some of each is the node's own, or add the type to "
        "infra/aws/instances.csv",
    ),
    # Keys.
    (
        values(keys=[]),
        "keys = []: nobody could use the models, or everybody; fix: add one, `make key NAME=...` prints it",
    ),
    (
        {"cluster": ELSEWHERE},
        "keys = []: nobody could use the models, or everybody; fix: add one, `make key NAME=...` prints it",
    ),
    (
        {"keys": [{"name": "local", "sha256": digest("sk-local")}]},
        "keys: one of them is sk-local, which everybody knows; fix: make another, `make key`",
    ),
    (
        {"serving": {"auth": {"keys_file": "/keys.yaml"}}},
        "serving.auth.keys_file = '/keys.yaml': in a stack the program makes that file; fix: leave it out, "
        "and list the keys in `keys`",
    ),
    # The way in.
    (
        values(cluster={"entry": {"public": True}}),
        "cluster.entry.certificate: is missing, and API keys do not go over the internet in the clear; "
        "fix: set host and certificate, or leave public out",
    ),
    (
        values(cluster={"entry": {"public": True, "certificate": CERTIFICATE}}),
        "cluster.entry.host: is missing, and API keys do not go over the internet in the clear; fix: set "
        "host and certificate, or leave public out",
    ),
    (
        values(cluster={"entry": {"certificate": CERTIFICATE}}),
        "cluster.entry.certificate = 'arn:aws:acm:us-east-1:123456789012:certificate/0123-abcd': a "
        "certificate is for a name, and the load balancer's own has none; fix: set host and certificate, "
        "or neither",
    ),
    (
        values(cluster={"entry": {"host": "models.example.com", "certificate": CERTIFICATE.replace("east", "west")}}),
        "cluster.entry.certificate = 'arn:aws:acm:us-west-1:123456789012:certificate/0123-abcd': a load "
        "balancer takes those of its own region and account; fix: name one of 123456789012 in us-east-1, "
        "or import it there",
    ),
    (
        values(cluster={"public_cidrs": ["0.0.0.0/0"]}),
        "cluster.public_cidrs = ['0.0.0.0/0']: 0.0.0.0/0 is the whole internet, or much of it; fix: name "
        "your own networks, or none",
    ),
    # Images.
    (
        values(image={"repository": "registry.example.com/team:latest"}),
        "image.repository = 'registry.example.com/team:latest': has a tag or digest, and what a tag names "
        "changes; fix: leave it out, the program adds it",
    ),
    (
        values(image={"repository": "registry.example.com/team@sha256:0123"}),
        "image.repository = 'registry.example.com/team@sha256:0123': has a tag or digest, and what a tag "
        "names changes; fix: leave it out, the program adds it",
    ),
    (
        values(image={"repository": "localhost/team"}),
        "image.repository = 'localhost/team': no node can pull from there; fix: use "
        "123456789012.dkr.ecr.us-east-1.amazonaws.com/team, which the program makes, or a registry of yours",
    ),
    (
        values(image={"repository": "registry.example.com/team", "base": "debian"}),
        "image.base = 'debian': may be another Debian any day; fix: name a release, or <name>@sha256:<digest>",
    ),
    (
        values(image={"repository": "registry.example.com/team", "base": "registry:5000/debian:latest"}),
        "image.base = 'registry:5000/debian:latest': may be another Debian any day; fix: name a release, "
        "or <name>@sha256:<digest>",
    ),
    (
        values(operator={"image": "quay.io/kuberay/operator:nightly"}),
        "operator.image = 'quay.io/kuberay/operator:nightly': has a tag or digest; fix: leave it out, the "
        "tag is v1.6.2",
    ),
    # Regions.
    (
        values(cluster=zones("eu-west-1")),
        "cluster.region = 'eu-west-1': has none of the instances with L4 that hold a pod of workers.0, "
        "g6.2xlarge, g6.4xlarge, g6.8xlarge, g6.16xlarge; fix: choose a region that has one, or another "
        "pool.gpu",
    ),
    (
        values(H100, variants=[variant("H100", LLAMA_70B, engine=SPLIT)], cluster=zones("eu-central-1")),
        "cluster.region = 'eu-central-1': has none of the instances with H100 that hold a pod of "
        "workers.0, p5.48xlarge; fix: choose a region that has one, or another pool.gpu",
    ),
    (
        values(cluster={**zones("me-south-1"), "nodes": {"instance_types": ["m7i.xlarge"]}}),
        "cluster.nodes.instance_types = ['m7i.xlarge']: me-south-1 has none of them; fix: name one that it "
        "has, or choose another region",
    ),
    # Upgrades.
    (
        values({**L4, "min_replicas": 0}, upgrade=INCREMENTAL),
        "upgrade.kind = 'NewClusterWithIncrementalUpgrade': its requests come by a Gateway, and "
        "cluster.entry leads past that; fix: set cluster.entry to null and give the Gateway a load "
        "balancer, or use NewCluster",
    ),
    (
        values(upgrade=INCREMENTAL, cluster={"entry": None}),
        "upgrade.kind = 'NewClusterWithIncrementalUpgrade': needs Ray's autoscaler, and every worker group "
        "has a fixed size; fix: raise a group's max_replicas above its min_replicas, or use NewCluster",
    ),
    (
        {"upgrade": INCREMENTAL, "workers": [{"max_replicas": 2}]},
        "upgrade.kind = 'NewClusterWithIncrementalUpgrade': needs a Gateway API, which the native cluster "
        "has not; fix: use NewCluster, or a cluster of kind existing that has one",
    ),
    # What is in one place only.
    (
        values(L4, L4),
        "workers.1.name = 'l4': workers.0 has this name; fix: give each its own",
    ),
    (
        values({**L4, "name": "system"}),
        "workers.0.name = 'system': is that of the cluster's own nodes; fix: choose another",
    ),
    (
        values(cluster={"cache": {}}, gcs_fault_tolerance={"redis_address": "redis:6379"}),
        "gcs_fault_tolerance.redis_address = 'redis:6379': the state is in cluster.cache; fix: keep one of them",
    ),
    (
        {**values(), "serving": {"embeddings": [], "generate": None, "rerankers": []}},
        "serving.models.0.variants.0.source = 'builtin:smollm2-135m-instruct': pods read it from their "
        "node, and nodes of EKS come and go without it; fix: serve weights from S3 or a hub, or leave that "
        "model out ([] or null)",
    ),
    (
        {"workers": [{"pool": {}}]},
        "workers.0.pool: is for clusters of kind eks; fix: leave it out, nodes are the cluster's",
    ),
    # Money.
    (
        values(max_hourly_usd=2),
        "max_hourly_usd = 2: at its largest the stack costs up to 8.08 USD an hour, of which l4 nodes "
        "6.79; fix: raise it, lower max_replicas or warm, or use an upgrade with a smaller surge; `make "
        "cost` shows each part",
    ),
    (
        values({**H100, "max_replicas": 2}, variants=[variant("H100", LLAMA_70B, engine=SPLIT)], max_hourly_usd=120),
        "max_hourly_usd = 120: at its largest the stack costs up to 221.54 USD an hour, of which h100 "
        "nodes 220.16; fix: raise it, lower max_replicas or warm, or use an upgrade with a smaller surge; "
        "`make cost` shows each part",
    ),
    (
        values({**L4, "pool": {"gpu": "L4", "warm": 10}}, max_hourly_usd=20, upgrade={"kind": "None"}),
        "max_hourly_usd = 20: at its largest the stack costs up to 39.08 USD an hour, of which l4 nodes "
        "37.36; fix: raise it, lower max_replicas or warm, or use an upgrade with a smaller surge; `make "
        "cost` shows each part",
    ),
    (
        values(max_hourly_usd=50, cluster={**zones("eu-central-1"), "entry": None}),
        "max_hourly_usd = 50: prices in eu-central-1 are not known, of m7i.xlarge, gp3-gb, g6.2xlarge, "
        "gp3-mibps, nat-gateway, interface-endpoint; fix: `make prices` asks AWS, or leave max_hourly_usd "
        "out",
    ),
    (
        values(max_hourly_usd=50, cluster={"cache": {"node_type": "cache.x9.large"}}),
        "max_hourly_usd = 50: prices in us-east-1 are not known, of cache.x9.large; fix: `make prices` "
        "asks AWS, or leave max_hourly_usd out",
    ),
    (
        values(max_hourly_usd=0),
        "max_hourly_usd = 0: does not fit (What a cluster of kind eks may cost an hour at its largest, an "
        "upgrade's second Ray cluster among it; `make cost` shows what it does.); fix: make it greater "
        "than 0",
    ),
    (
        {"max_hourly_usd": 5},
        "max_hourly_usd = 5: what this cluster costs is for its owner to say; fix: leave it out",
    ),
    # What is promised, and how alerts can know whether it is kept.
    (
        promised(models={"chta": {"availability": 0.99}}),
        "observability.objectives.models.chta: there is no such language model in serving; fix: use chat, or leave it "
        "out",
    ),
    (
        promised(models={"generate": {"availability": 0.99}}),
        "observability.objectives.models.generate: there is no such language model in serving; fix: use one of chat, "
        "or leave it out",
    ),
    (
        promised(every_model={"time_to_first_token": {"within_s": 0.3}}),
        "observability.objectives.every_model.time_to_first_token.within_s = 0.3: vLLM counts how many were faster at "
        "other bounds, not at this one; fix: use 0.25 or 0.5",
    ),
    (
        promised(models={"chat": {"inter_token_latency": {"within_s": 90.0}}}),
        "observability.objectives.models.chat.inter_token_latency.within_s = 90.0: vLLM counts how many were faster at "
        "other bounds, not at this one; fix: use 80",
    ),
    (
        promised(models={"chat": {"availability": 0.9}}),
        "observability.objectives.models.chat.availability = 0.9: leaves so much for failures that not even all "
        "requests failing would be noticed in time; fix: make it more than 0.931",
    ),
    (
        promised(window_days=90, availability=0.97),
        "observability.objectives.availability = 0.97: leaves so much for failures that not even all requests failing "
        "would be noticed in time; fix: make it more than 0.977",
    ),
    (
        {"observability": {"kind": "manifests", "storage": None, "retention": "48h"}},
        "observability.retention = '48h': alerts look at the last 72 hours; fix: keep samples for 3d or longer",
    ),
]


@pytest.mark.parametrize(("stack", "message"), REFUSED, ids=[message.partition(":")[0] for _, message in REFUSED])
def test_what_cannot_work_is_refused_with_key_value_reason_and_fix(stack: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as raised:
        config.parse(stack, "Pulumi.test.yaml")
    assert str(raised.value) == f"Pulumi.test.yaml:\n  {message}"


def test_a_stack_without_a_file_is_unknown() -> None:
    with pytest.raises(SettingsError) as raised:
        config.from_file("prd")
    assert str(raised.value) == "stack 'prd' has no Pulumi.prd.yaml; fix: use prod, or write that file"


@pytest.mark.parametrize(("ledger", "other"), [("RAY", "2.61.0"), ("VLLM", "0.30.0"), ("KUBERAY", "1.7.0")])
def test_versions_that_have_not_run_together_are_refused(
    monkeypatch: pytest.MonkeyPatch, ledger: str, other: str
) -> None:
    (known,) = versions.TESTED
    monkeypatch.setattr(versions, ledger, other)
    with pytest.raises(SettingsError) as raised:
        config.parse({}, "Pulumi.test.yaml")
    assert str(raised.value) == (
        f"Pulumi.test.yaml:\n  infra/versions.py: Ray {versions.RAY}, vLLM {versions.VLLM} and KubeRay "
        f"{versions.KUBERAY} have not been tested together; fix: take Ray {known[0]} with vLLM {known[1]} and KubeRay "
        f"{known[2]}, or run `make test e2e` and add them to TESTED"
    )


@pytest.mark.parametrize("stack", ["local", "dev", "staging", "prod"])
def test_the_committed_stacks_keep_the_contract(stack: str) -> None:
    found = config.from_file(stack)
    assert (found.max_hourly_usd is None) is (stack == "local"), "what costs money has a limit"


@pytest.mark.parametrize(
    "stack",
    [
        values(),
        promised(window_days=7, availability=0.8, models={"chat": {"time_to_first_token": {"within_s": 1}}}),
        values(H100, variants=[variant("H100", LLAMA_70B, engine=SPLIT, scaling=TWO)]),
        values({**SHARED, "max_replicas": 4}, variants=[variant(size=SMALL, engine={"gpu_memory_utilization": 0.25})]),
        # A hair below what is refused above.
        values(L4, variants=[variant(engine={"quantization": None, "max_model_len": 32768})]),
        values({**L4, "max_replicas": 4, "pool": {"gpu": "L4", "max_gpus": 4}}, upgrade={"kind": "None"}),
        values(L4, variants=[variant(engine={"max_model_len": 8192, "extra": {"kv_cache_memory_bytes": 2**31}})]),
        values(L4, variants=[variant(size=LLAMA_70B, engine={"quantization": None, "extra": {"cpu_offload_gb": 125}})]),
        values(L4, variants=[variant(engine={"max_model_len": 131072, "extra": {"kv_cache_dtype": "fp8"}})]),
        values(
            L4, variants=[variant(size={**QWEN3_8B, "bytes_per_parameter": 0.6}, engine={"quantization": "torchao"})]
        ),
        # What is not known of a region is not refused.
        values(cluster={**zones("mx-central-1"), "nodes": {"instance_types": ["p9.xlarge"]}}),
        values(image={"repository": "registry:5000/team", "base": "debian@sha256:0123"}),
        values(max_hourly_usd=9),
    ],
)
def test_what_can_work_is_taken(stack: dict[str, Any]) -> None:
    assert config.parse(stack, "Pulumi.test.yaml")


def test_without_a_size_only_clusters_whose_nodes_are_not_ours_are_trusted() -> None:
    unknown = {**NOTHING, "models": [{"variants": [variant(size=None)]}]}
    workers = [{"name": "gpu", "cpus": 8, "gpus": 1}]
    assert config.parse({"cluster": ELSEWHERE, "keys": [KEY], "workers": workers, "serving": unknown}, "test")


GPUS = ["T4", "A10G", "L4", "L40S", "A100-80G", "H100"]
SHAPES = [
    {"cpus": 3, "gpus": 1, "memory_gib": 10},
    {"cpus": 7, "gpus": 1, "memory_gib": 28},
    {"cpus": 40, "gpus": 4, "memory_gib": 150},
    {"cpus": 90, "gpus": 8, "memory_gib": 700},
]
groups = st.builds(
    lambda shape, bounds, pool: {**shape, "min_replicas": min(bounds), "max_replicas": max(1, *bounds), "pool": pool},
    st.sampled_from(SHAPES),
    st.tuples(st.integers(0, 6), st.integers(0, 6)),
    st.fixed_dictionaries(
        {"gpu": st.sampled_from(GPUS), "nodes": st.sampled_from(["karpenter", "managed"]), "warm": st.integers(0, 2)},
        optional={"max_gpus": st.integers(1, 64)},
    ),
)
models = st.fixed_dictionaries(
    {
        "size": st.sampled_from([SMALL, QWEN3_8B, LLAMA_70B]),
        "engine": st.fixed_dictionaries(
            {
                **{"tensor_parallel_size": st.sampled_from([1, 2, 4]), "max_model_len": st.sampled_from([4096, 32768])},
                "quantization": st.sampled_from([None, "fp8", "awq"]),
            }
        ),
        "scaling": st.fixed_dictionaries({"num_replicas": st.integers(1, 3)}),
    }
)
stacks = st.fixed_dictionaries(
    {
        "groups": st.lists(groups, min_size=1, max_size=2),
        "models": st.lists(st.tuples(st.integers(0, 1), models), min_size=1, max_size=2),
        "upgrade": st.sampled_from(["NewCluster", "None"]),
        "limit": st.integers(5, 1000),
    }
)


def test_nothing_that_is_taken_wants_more_than_there_is_or_may_be_paid() -> None:
    """GPUs, memory and money, by arithmetic of the test's own, and by what Karpenter is really told."""
    taken = []

    @settings(max_examples=600, deadline=None, derandomize=True)
    @given(stacks)
    def holds(drawn: dict[str, Any]) -> None:
        workers = [{"name": f"g{index}", **group} for index, group in enumerate(drawn["groups"])]
        variants = [
            variant(workers[at % len(workers)]["pool"]["gpu"], name=f"v{index}", **model)
            for index, (at, model) in enumerate(drawn["models"])
        ]
        limits = {"upgrade": {"kind": drawn["upgrade"]}, "max_hourly_usd": float(drawn["limit"])}
        try:
            stack = config.parse(values(*workers, variants=variants, **limits), "test")
        except SettingsError:
            return
        taken.append(stack)
        for gpu in GPUS:
            offered = sum(group["gpus"] * group["max_replicas"] for group in workers if group["pool"]["gpu"] == gpu)
            wanted = [one for one in variants if one["placement"]["accelerator_type"] == gpu]
            assert sum(_gpus(one) * one["scaling"]["num_replicas"] for one in wanted) <= offered
            for one in wanted:
                assert _needed_gib(one) <= 0.9 * min(kind.gpu_memory_gib for kind in known() if kind.gpu == gpu)
        money = 0.0
        for group, asked in zip(stack.workers, workers, strict=True):
            assert group.pool
            kinds = instances(group)
            nodes = most_nodes(stack, group)
            if group.pool.nodes == "karpenter":
                told = node_pool(stack, group)["spec"]["limits"]["nvidia.com/gpu"]
                nodes = told // kinds[0].gpus
            pods = asked["max_replicas"] * (2 if drawn["upgrade"] == "NewCluster" else 1) + asked["pool"]["warm"]
            assert pods * asked["gpus"] <= nodes * kinds[0].gpus <= asked["pool"].get("max_gpus", 1000)
            money += nodes * max(kind.usd_per_hour for kind in kinds)
        assert money <= drawn["limit"]

    holds()
    assert len(taken) > 30, "else nothing was tried"


def _gpus(model: dict[str, Any]) -> int:
    return model["engine"]["tensor_parallel_size"]


def _needed_gib(model: dict[str, Any]) -> float:
    """Weights and one context on each GPU."""
    size, engine = model["size"], model["engine"]
    each = {None: 2, "fp8": 1, "awq": 0.5}[engine["quantization"]]
    weights = size["parameters_billion"] * 1e9 * each / _gpus(model)
    token = 2 * size["num_hidden_layers"] * size["num_key_value_heads"] / _gpus(model) * size["head_dim"] * 2
    return (weights + token * engine["max_model_len"]) / 2**30
