"""The settings model: what it takes, how it says no, and what Ray gets of it. Needs pydantic and PyYAML only."""

import copy
import functools
import itertools
import operator
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from app.options import Autoscaling, EnginePlacement, GpuPlacement, Placement, Scaling
from app.settings import (
    ANALYZE,
    GENERATE,
    NAME,
    NOTHING,
    PART,
    Classifier,
    Demand,
    EmbeddingModel,
    Generator,
    Model,
    Remote,
    Reranker,
    Settings,
    SettingsError,
    Variant,
    demands,
    environment,
    live,
    load,
    parse,
    remotes,
    serve_config,
)


def test_defaults_serve_the_builtin_models() -> None:
    settings = parse({})
    (model,), (embedding,) = settings.models, settings.embeddings
    (variant,) = model.variants
    assert (model.name, variant.name, variant.builtin) == ("chat", "stable", "smollm2-135m-instruct")
    assert (embedding.name, embedding.builtin) == ("embed", "all-minilm-l6-v2")
    assert not variant.from_hub
    assert not embedding.from_hub
    assert variant.engine.enforce_eager
    assert settings.generate
    assert settings.generate.builtin == variant.builtin
    assert [(one.name, one.builtin) for one in settings.classifiers] == [
        ("sentiment", "vader-sentiment"),
        ("safety", "profanity"),
    ]
    assert [(one.name, one.embedding) for one in settings.rerankers] == [("rerank", "embed")]
    assert not any(one.from_hub for one in (*settings.classifiers, *settings.rerankers))
    assert settings.moderation
    assert settings.moderation.classifier == "safety"
    assert settings.pipeline
    assert (settings.pipeline.sentiment, settings.first_model) == ("sentiment", "chat")
    assert settings.auth.keys_file is None


def test_defaults_fit_two_cores_without_a_gpu() -> None:
    taken = list(demands(parse({})))
    assert sum(demand.cpus * demand.replicas for demand in taken) <= 2
    assert sum(demand.gpus * demand.replicas for demand in taken) == 0


VARIANT = "models.0.variants.0"
SCALING = f"{VARIANT}.scaling"
AUTOSCALING = f"{SCALING}.autoscaling_config"
PLACEMENT = f"{VARIANT}.placement"
ENGINE = f"{VARIANT}.engine"


def variant(**keys: Any) -> dict[str, Any]:
    return {"models": [{"variants": [keys]}]}


def scaling(**keys: Any) -> dict[str, Any]:
    return variant(scaling=keys)


def autoscaling(**keys: Any) -> dict[str, Any]:
    return scaling(autoscaling_config=keys)


def placement(**keys: Any) -> dict[str, Any]:
    return variant(placement=keys)


def engine(**keys: Any) -> dict[str, Any]:
    return variant(engine=keys)


def extra(**keys: Any) -> dict[str, Any]:
    return engine(extra=keys)


def adapter(name: str = "legal", source: str = "/adapters/legal", **keys: Any) -> dict[str, Any]:
    return variant(adapters=[{"name": name, "source": source, **keys}])


def embedding(**keys: Any) -> dict[str, Any]:
    return {"embeddings": [keys]}


def guard(**keys: Any) -> dict[str, Any]:
    return {"models": [{"guard": keys}]}


def generate(**keys: Any) -> dict[str, Any]:
    return {"generate": keys}


def classifier(name: str = "mood", source: str = "builtin:vader-sentiment", **keys: Any) -> dict[str, Any]:
    """A classifier beside the built-in ones."""
    own = [{"name": "sentiment", "source": "builtin:vader-sentiment"}, SAFETY]
    return {"classifiers": [*own, {"name": name, "source": source, **keys}]}


def reranker(**keys: Any) -> dict[str, Any]:
    return {"rerankers": [keys]}


def pipeline(**keys: Any) -> dict[str, Any]:
    return {"pipeline": keys}


def summary(**keys: Any) -> dict[str, Any]:
    return pipeline(summary=keys)


def auth(**keys: Any) -> dict[str, Any]:
    return {"auth": keys}


SAFETY = {"name": "safety", "source": "builtin:profanity", "unsafe": ["offensive"]}


def fast(model: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The fast path to one model."""
    return {**NOTHING, "models": [model], "gateway": {"fast": True}, **more}


# Data, the start of the line about it, and what the fix must name.
WRONG: list[tuple[dict[str, Any], str, str]] = [
    # Keys that are not there, on every level.
    ({"model": []}, "model = []: there is no such key", "did you mean models?"),
    ({"replicas": 1}, "replicas = 1: there is no such key", "use one of models, embeddings, gateway"),
    ({"models": [{"nam": "x"}]}, "models.0.nam = 'x': there is no such key", "did you mean name?"),
    (variant(surce="/m"), f"{VARIANT}.surce = '/m': there is no such key", "did you mean source?"),
    (engine(max_model_length=1), f"{ENGINE}.max_model_length = 1: there is no such key", "did you mean max_model_len?"),
    (adapter(rank=8), f"{VARIANT}.adapters.0.rank = 8: there is no such key", "use one of name, source"),
    (scaling(num_replica=1), f"{SCALING}.num_replica = 1: there is no such key", "did you mean num_replicas?"),
    (autoscaling(min_replica=1), f"{AUTOSCALING}.min_replica = 1: there is no such key", "did you mean min_replicas?"),
    (placement(num_gpu=1), f"{PLACEMENT}.num_gpu = 1: there is no such key", "did you mean num_gpus?"),
    (embedding(dtpe="float32"), "embeddings.0.dtpe = 'float32': there is no such key", "did you mean dtype?"),
    (
        embedding(batching={"batch_size": 8}),
        "embeddings.0.batching.batch_size = 8: there is no such key",
        "did you mean max_batch_size?",
    ),
    (
        embedding(scaling={"autoscaling": {}}),
        "embeddings.0.scaling.autoscaling = {}: there is no such key",
        "did you mean autoscaling_config?",
    ),
    (
        embedding(placement={"strategy": "PACK"}),
        "embeddings.0.placement.strategy = 'PACK': there is no such key",
        "use one of num_cpus, memory_gib, num_gpus, accelerator_type",
    ),
    ({"gateway": {"max_body": 1}}, "gateway.max_body = 1: there is no such key", "did you mean max_body_mib?"),
    (
        {"gateway": {"scaling": {"num_cpus": 1}}},
        "gateway.scaling.num_cpus = 1: there is no such key",
        "num_replicas",
    ),
    # Keys that Ray has given up: some it ignores in silence.
    (
        scaling(max_concurrent_queries=8),
        f"{SCALING}.max_concurrent_queries = 8: Ray has renamed it",
        "use max_ongoing_requests",
    ),
    (
        autoscaling(target_num_ongoing_requests_per_replica=8),
        f"{AUTOSCALING}.target_num_ongoing_requests_per_replica = 8: Ray has renamed it",
        "use target_ongoing_requests",
    ),
    (
        autoscaling(smoothing_factor=0.5),
        f"{AUTOSCALING}.smoothing_factor = 0.5: Ray has renamed it",
        "use upscaling_factor and downscaling_factor",
    ),
    (
        autoscaling(upscale_smoothing_factor=0.5),
        f"{AUTOSCALING}.upscale_smoothing_factor = 0.5: Ray has renamed it",
        "use upscaling_factor",
    ),
    (
        autoscaling(downscale_smoothing_factor=0.5),
        f"{AUTOSCALING}.downscale_smoothing_factor = 0.5: Ray has renamed it",
        "use downscaling_factor",
    ),
    # Wrong types and ranges.
    ({"models": {}}, "models = {}: does not fit", "make it a valid list"),
    ({"models": None}, "models = None: does not fit", "make it a valid list"),
    ({"models": ["chat"]}, "models.0 = 'chat': does not fit", "make it a mapping"),
    ({"models": [{"variants": []}]}, "models.0.variants = []: does not fit", "at least 1 item"),
    (engine(kv_cache_gib="1"), f"{ENGINE}.kv_cache_gib = '1': does not fit", "make it a valid number"),
    (engine(kv_cache_gib=0), f"{ENGINE}.kv_cache_gib = 0: does not fit", "greater than 0"),
    (engine(dtype="int4"), f"{ENGINE}.dtype = 'int4': does not fit", "'bfloat16', 'float16' or 'float32'"),
    (engine(enforce_eager="no"), f"{ENGINE}.enforce_eager = 'no': does not fit", "make it a valid boolean"),
    (engine(max_num_seqs=1), f"{ENGINE}.max_num_seqs = 1: does not fit", "greater than or equal to 2"),
    (engine(max_lora_rank=12), f"{ENGINE}.max_lora_rank = 12: does not fit", "8, 16, 32"),
    (
        engine(gpu_memory_utilization=90),
        f"{ENGINE}.gpu_memory_utilization = 90: does not fit",
        "less than or equal to 1",
    ),
    (scaling(num_replicas="2"), f"{SCALING}.num_replicas = '2': does not fit", "make it a valid integer"),
    (scaling(num_replicas=True), f"{SCALING}.num_replicas = True: does not fit", "make it a valid integer"),
    (scaling(num_replicas=0), f"{SCALING}.num_replicas = 0: does not fit", "greater than or equal to 1"),
    (scaling(max_queued_requests=-2), f"{SCALING}.max_queued_requests = -2: does not fit", "equal to -1"),
    (scaling(max_queued_requests=0), f"{SCALING}.max_queued_requests = 0: Ray has no such limit", "-1 for no limit"),
    (scaling(health_check_period_s="10s"), f"{SCALING}.health_check_period_s = '10s': does not fit", "a valid number"),
    (
        autoscaling(upscale_delay_s=-1),
        f"{AUTOSCALING}.upscale_delay_s = -1: does not fit",
        "greater than or equal to 0",
    ),
    (placement(num_cpus=-1), f"{PLACEMENT}.num_cpus = -1: does not fit", "greater than or equal to 0"),
    (placement(num_cpus=True), f"{PLACEMENT}.num_cpus = True: does not fit", "make it a valid number"),
    (placement(num_cpus=float("inf")), f"{PLACEMENT}.num_cpus = inf: does not fit", "make it a finite number"),
    (placement(num_cpus=float("nan")), f"{PLACEMENT}.num_cpus = nan: does not fit", "make it a finite number"),
    (placement(num_gpus=1.5), f"{PLACEMENT}.num_gpus = 1.5: does not fit", "less than or equal to 1"),
    (placement(memory_gib=0), f"{PLACEMENT}.memory_gib = 0: does not fit", "greater than 0"),
    (placement(strategy="SPREAD"), f"{PLACEMENT}.strategy = 'SPREAD': does not fit", "'STRICT_PACK' or 'PACK'"),
    (
        placement(accelerator_type="V100", num_gpus=1),
        f"{PLACEMENT}.accelerator_type = 'V100': does not fit",
        "'L4', 'L40S'",
    ),
    (embedding(dtype="auto"), "embeddings.0.dtype = 'auto': does not fit", "'bfloat16', 'float16' or 'float32'"),
    (embedding(pooling="max"), "embeddings.0.pooling = 'max': does not fit", "'mean', 'cls' or 'last'"),
    (
        embedding(batching={"max_batch_size": 0}),
        "embeddings.0.batching.max_batch_size = 0: does not fit",
        "greater than or equal to 1",
    ),
    ({"gateway": {"max_body_mib": 0}}, "gateway.max_body_mib = 0: does not fit", "greater than 0"),
    # Replicas.
    (
        autoscaling(min_replicas=5, max_replicas=3),
        f"{AUTOSCALING}.max_replicas = 3: is less than min_replicas (5)",
        "raise max_replicas",
    ),
    (
        autoscaling(min_replicas=3),
        f"{AUTOSCALING}.max_replicas = 2: is less than min_replicas (3)",
        "lower min_replicas",
    ),
    (
        autoscaling(max_replicas=4, initial_replicas=5),
        f"{AUTOSCALING}.initial_replicas = 5: is not between min_replicas (1) and max_replicas (4)",
        "between them",
    ),
    (
        autoscaling(min_replicas=2, initial_replicas=0),
        f"{AUTOSCALING}.initial_replicas = 0: is not between min_replicas (2) and max_replicas (2)",
        "between them",
    ),
    (
        autoscaling(look_back_period_s=10),
        f"{AUTOSCALING}.look_back_period_s = 10: is not longer than metrics_interval_s (10)",
        "make it longer",
    ),
    (
        autoscaling(metrics_interval_s=60),
        f"{AUTOSCALING}.look_back_period_s = 30: is not longer than metrics_interval_s (60)",
        "make it longer",
    ),
    (
        scaling(num_replicas=2, autoscaling_config={}),
        f"{SCALING}.num_replicas = 2: autoscaling_config is there, too",
        "keep one of them",
    ),
    (
        scaling(max_ongoing_requests=8, autoscaling_config={"target_ongoing_requests": 9}),
        f"{AUTOSCALING}.target_ongoing_requests = 9: is more than a replica takes, max_ongoing_requests (8)",
        "lower it",
    ),
    (
        {"gateway": {"scaling": {"num_replicas": 2, "autoscaling_config": {}}}},
        "gateway.scaling.num_replicas = 2: autoscaling_config is there, too",
        "keep one of them",
    ),
    # An engine and its place.
    (
        engine(tensor_parallel_size=2),
        f"{PLACEMENT}.num_gpus = 0: an engine split over 2 workers needs one whole GPU for each",
        "set it to 1",
    ),
    (
        variant(engine={"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, placement={"num_gpus": 0.5}),
        f"{PLACEMENT}.num_gpus = 0.5: an engine split over 4 workers needs one whole GPU for each",
        "tensor_parallel_size and pipeline_parallel_size to 1",
    ),
    (
        variant(engine={"kv_cache_gib": 4}, placement={"num_gpus": 1}),
        f"{ENGINE}.kv_cache_gib = 4: is for CPUs",
        "use gpu_memory_utilization",
    ),
    (
        variant(engine={"gpu_memory_utilization": 0.6}, placement={"num_gpus": 0.5}),
        f"{ENGINE}.gpu_memory_utilization = 0.6: is more than the replica's share of a GPU (placement.num_gpus is 0.5)",
        "raise num_gpus",
    ),
    (
        engine(gpu_memory_utilization=0.5),
        f"{ENGINE}.gpu_memory_utilization = 0.5: is more than the replica's share of a GPU (placement.num_gpus is 0)",
        "raise num_gpus",
    ),
    (
        engine(max_num_seqs=64),
        f"{ENGINE}.max_num_seqs = 64: is not greater than scaling.max_ongoing_requests (64)",
        "raise it",
    ),
    (
        scaling(max_ongoing_requests=200),
        f"{ENGINE}.max_num_seqs = 128: is not greater than scaling.max_ongoing_requests (200)",
        "lower that",
    ),
    (
        placement(accelerator_type="L4"),
        f"{PLACEMENT}.accelerator_type = 'L4': no GPU is asked for",
        "set num_gpus",
    ),
    (
        embedding(placement={"accelerator_type": "L4"}),
        "embeddings.0.placement.accelerator_type = 'L4': no GPU is asked for",
        "set num_gpus",
    ),
    # What vLLM takes.
    (engine(quantization="fp9"), f"{ENGINE}.quantization = 'fp9': vLLM has no such quantization", "use fp8"),
    (engine(quantization="none"), f"{ENGINE}.quantization = 'none': vLLM has no such quantization", "use "),
    (engine(load_format="pt"), f"{ENGINE}.load_format = 'pt': reads pickled weights", "leave it out"),
    (engine(load_format="auto"), f"{ENGINE}.load_format = 'auto': reads pickled weights", "safetensors"),
    (
        variant(source="org/big", revision="main", engine={"trust_remote_code": True}),
        f"{VARIANT}.revision = 'main': is no commit, and with engine.trust_remote_code",
        "name the commit",
    ),
    (engine(load_format="s3"), f"{ENGINE}.load_format = 's3': vLLM has no such load_format", "runai_streamer"),
    (
        engine(tool_call_parser="llama3"),
        f"{ENGINE}.tool_call_parser = 'llama3': vLLM has no such tool_call_parser",
        "llama3_json",
    ),
    (
        engine(reasoning_parser="deepseek"),
        f"{ENGINE}.reasoning_parser = 'deepseek': vLLM has no such reasoning_parser",
        "deepseek_r1",
    ),
    (extra(dtype="half"), f"{ENGINE}.extra.dtype = 'half': is a key of engine itself", "move it out of extra"),
    (extra(model="org/m"), f"{ENGINE}.extra.model = 'org/m': is the variant's `source`", "set that"),
    (extra(revision="main"), f"{ENGINE}.extra.revision = 'main': is the variant's `revision`", "set that"),
    (extra(served_model_name="x"), f"{ENGINE}.extra.served_model_name = 'x': is the model's `name`", "set that"),
    (extra(enable_lora=True), f"{ENGINE}.extra.enable_lora = True: follows from `adapters`", "list the adapters"),
    (extra(lora_modules=[]), f"{ENGINE}.extra.lora_modules = []: follows from `adapters`", "list the adapters"),
    (
        extra(distributed_executor_backend="mp"),
        f"{ENGINE}.extra.distributed_executor_backend = 'mp': is Ray's to choose",
        "leave it out",
    ),
    (engine(extra={"api_key": "k"}), f"{ENGINE}.extra.api_key: would be in the clear here", "leave it out"),
    (engine(extra={"hf_token": "k"}), f"{ENGINE}.extra.hf_token: would be in the clear here", "HF_TOKEN"),
    (extra(port=1), f"{ENGINE}.extra.port = 1: does nothing here", "leave it out"),
    (extra(data_parallel_size=2), f"{ENGINE}.extra.data_parallel_size = 2: does nothing here", "leave it out"),
    (
        {"gateway": {"placement": {"num_gpus": 1}}},
        "gateway.placement.num_gpus = 1: there is no such key",
        "did you mean num_cpus",
    ),
    (
        extra(speculativ_config={}),
        f"{ENGINE}.extra.speculativ_config = {{}}: vLLM has no such argument",
        "use speculative_config",
    ),
    (extra(zzz=1), f"{ENGINE}.extra.zzz = 1: vLLM has no such argument", "app/vllm.json"),
    (
        extra(additional_config={"scale": float("nan")}),
        f"{ENGINE}.extra.additional_config.scale = nan: does not fit",
        "make it a finite number",
    ),
    # Where weights and adapters come from.
    (variant(source="builtin:gpt-5"), f"{VARIANT}.source = 'builtin:gpt-5': there is no such built-in", "smollm2"),
    (
        variant(source="builtin:all-minilm-l6-v2"),
        f"{VARIANT}.source = 'builtin:all-minilm-l6-v2': there is no such built-in language model",
        "use builtin:smollm2-135m-instruct",
    ),
    (
        embedding(source="builtin:smollm2-135m-instruct"),
        "embeddings.0.source = 'builtin:smollm2-135m-instruct': there is no such built-in embedding model",
        "use builtin:all-minilm-l6-v2",
    ),
    (
        variant(source="weights"),
        f"{VARIANT}.source = 'weights': says not where the weights are",
        "an absolute path",
    ),
    (variant(source="s3://bucket"), f"{VARIANT}.source = 's3://bucket': says not", "s3://<bucket>/<prefix>"),
    (
        embedding(source="s3://bucket/e5"),
        "embeddings.0.source = 's3://bucket/e5': transformers reads no weights from S3",
        "an absolute path",
    ),
    (variant(source="org/big"), f"{VARIANT}.revision: is missing", "add the commit"),
    (variant(source="org/big", revision=""), f"{VARIANT}.revision: is missing", "add the commit"),
    (embedding(source="org/e5"), "embeddings.0.revision: is missing", "add the commit"),
    (variant(source="/m", revision="v1"), f"{VARIANT}.revision = 'v1': /m is not from a hub", "leave it out"),
    (
        variant(source="s3://b/m", revision="v1"),
        f"{VARIANT}.revision = 'v1': s3://b/m is not from a hub",
        "leave it out",
    ),
    (embedding(revision="v1"), "embeddings.0.revision = 'v1': builtin:all-minilm-l6-v2 is not from", "leave it out"),
    (
        adapter(source="s3://b/legal"),
        f"{VARIANT}.adapters.0.source = 's3://b/legal': says not where the adapter is",
        "copy them to the node",
    ),
    (variant(adapters=[{"name": "legal"}]), f"{VARIANT}.adapters.0.source: is missing", "add it"),
    # Names.
    ({"models": [{"name": "a--b"}]}, "models.0.name = 'a--b': does not fit", "pattern"),
    ({"models": [{"name": "a:b"}]}, "models.0.name = 'a:b': does not fit", "pattern"),
    ({"models": [{"name": "chat@x"}]}, "models.0.name = 'chat@x': does not fit", "pattern"),
    ({"models": [{"name": ""}]}, "models.0.name = '': does not fit", "pattern"),
    ({"models": [{"name": "a" * 97}]}, "models.0.name = 'aaa", "at most 96 characters"),
    (variant(name="a/b"), f"{VARIANT}.name = 'a/b': does not fit", "pattern"),
    (adapter("a:b"), f"{VARIANT}.adapters.0.name = 'a:b': does not fit", "pattern"),
    (embedding(name="é"), "embeddings.0.name = 'é': does not fit", "pattern"),
    (
        {"models": [{}, {"name": "x"}, {}]},
        "models.2.name = 'chat': models.0 has this name",
        "give each its own",
    ),
    (
        {"models": [{"variants": [{}, {}]}]},
        "models.0.variants.1.name = 'stable': variants.0 has this name",
        "give each its own",
    ),
    (
        variant(adapters=[{"name": "a", "source": "/a"}, {"name": "a", "source": "/b"}]),
        f"{VARIANT}.adapters.1.name = 'a': adapters.0 has this name",
        "give each its own",
    ),
    ({"embeddings": [{}, {}]}, "embeddings.1.name = 'embed': embeddings.0 has this name", "give each its own"),
    (embedding(name="chat"), "embeddings.0.name = 'chat': models.0 has this name", "give each its own"),
    (classifier("chat"), "classifiers.2.name = 'chat': models.0 has this name", "give each its own"),
    (classifier("safety"), "classifiers.2.name = 'safety': classifiers.1 has this name", "give each its own"),
    (reranker(name="embed"), "rerankers.0.name = 'embed': embeddings.0 has this name", "give each its own"),
    ({"models": [{"name": "rerank"}]}, "rerankers.0.name = 'rerank': models.0 has this name", "give each its own"),
    (classifier("mood@v2"), "classifiers.2.name = 'mood@v2': does not fit", "pattern"),
    (reranker(name="a:b"), "rerankers.0.name = 'a:b': does not fit", "pattern"),
    (NOTHING, "models = []: nothing is served", "add a model"),
    ({"models": [], "embeddings": [], **pipeline(summary=None)}, "rerankers.0.source = ", "set rerankers to []"),
    # Experiments.
    (
        {"models": [{"variants": [{"weight": 0}, {"name": "canary", "weight": 0}]}]},
        "models.0.variants.0.weight = 0: every weight is 0",
        "give one variant a weight",
    ),
    (variant(weight=-1), f"{VARIANT}.weight = -1: does not fit", "greater than or equal to 0"),
    (variant(weight="90%"), f"{VARIANT}.weight = '90%': does not fit", "make it a valid number"),
    (variant(weight=float("inf")), f"{VARIANT}.weight = inf: does not fit", "make it a finite number"),
    (variant(shadow=1.5), f"{VARIANT}.shadow = 1.5: does not fit", "less than or equal to 1"),
    (variant(shadow=True), f"{VARIANT}.shadow = True: does not fit", "make it a valid number"),
    (
        {"models": [{"variants": [{}, {"name": "canary"}], "pins": {"anna": "canry"}}]},
        "models.0.pins.anna = 'canry': there is no such variant",
        "use canary",
    ),
    ({"models": [{"pins": {"anna": 2}}]}, "models.0.pins.anna = 2: does not fit", "make it a valid string"),
    ({"models": [{"pins": ["anna"]}]}, "models.0.pins = ['anna']: does not fit", "make it a mapping"),
    # Guard and moderation.
    (
        guard(classifier="safty"),
        "models.0.guard.classifier = 'safty': there is no such thing in classifiers",
        "use safety, or set models.0.guard to null",
    ),
    (
        guard(classifier="sentiment"),
        "models.0.guard.classifier = 'sentiment': that classifier has no unsafe labels",
        "list them in its `unsafe`",
    ),
    (guard(threshold=0), "models.0.guard.threshold = 0: does not fit", "greater than 0"),
    (guard(on_failure="fail"), "models.0.guard.on_failure = 'fail': does not fit", "'close' or 'open'"),
    (guard(enable=False), "models.0.guard.enable = False: there is no such key", "did you mean enabled?"),
    ({"models": [{"guard": "safety"}]}, "models.0.guard = 'safety': does not fit", "make it a mapping"),
    (
        {"moderation": {"classifier": "safe"}},
        "moderation.classifier = 'safe': there is no such thing in classifiers",
        "use safety, or set moderation to null",
    ),
    (
        {"moderation": {"classifier": "sentiment"}},
        "moderation.classifier = 'sentiment': that classifier has no unsafe labels",
        "list them in its `unsafe`",
    ),
    ({"moderation": {"threshold": 1.1}}, "moderation.threshold = 1.1: does not fit", "less than or equal to 1"),
    (
        {"classifiers": []},
        "moderation.classifier = 'safety': there is no such thing in classifiers",
        "add one to classifiers, or set moderation to null",
    ),
    # Classifiers.
    (
        classifier(source="builtin:toxic"),
        "classifiers.2.source = 'builtin:toxic': there is no such built-in classification model",
        "use builtin:vader-sentiment or builtin:profanity",
    ),
    (
        classifier(source="s3://bucket/toxic"),
        "classifiers.2.source = 's3://bucket/toxic': transformers reads no weights from S3",
        "an absolute path",
    ),
    (classifier(source="org/toxic"), "classifiers.2.revision: is missing", "add the commit"),
    (classifier(unsafe="toxic"), "classifiers.2.unsafe = 'toxic': does not fit", "make it a valid list"),
    (classifier(labels=[]), "classifiers.2.labels = []: there is no such key", "use one of "),
    ({"classifiers": [{"name": "mood"}]}, "classifiers.0.source: is missing", "add it"),
    # Rerankers.
    (
        reranker(source="embedding:embd"),
        "rerankers.0.source = 'embd': there is no such thing in embeddings",
        "use embed, or set rerankers to []",
    ),
    (
        {"embeddings": []},
        "rerankers.0.source = 'embed': there is no such thing in embeddings",
        "add one to embeddings, or set rerankers to []",
    ),
    (
        reranker(source="builtin:all-minilm-l6-v2"),
        "rerankers.0.source = 'builtin:all-minilm-l6-v2': there is no such built-in reranking model",
        "use other weights",
    ),
    (reranker(source="org/bge"), "rerankers.0.revision: is missing", "add the commit"),
    (
        reranker(source="embedding:embed", revision="main"),
        "rerankers.0.revision = 'main': embedding:embed is not from a hub",
        "leave it out",
    ),
    # /generate.
    (
        generate(source="s3://bucket/m"),
        "generate.source = 's3://bucket/m': vLLM itself copies nothing from S3",
        "set engine.load_format to runai_streamer",
    ),
    (generate(source="builtin:gpt-5"), "generate.source = 'builtin:gpt-5': there is no such built-in", "smollm2"),
    (generate(source="org/m"), "generate.revision: is missing", "add the commit"),
    (generate(name="x"), "generate.name = 'x': there is no such key", "use one of source, revision, engine"),
    (
        generate(engine={"tensor_parallel_size": 2}),
        "generate.placement.num_gpus = 0: an engine split over 2 workers needs one whole GPU for each",
        "set it to 1",
    ),
    (
        generate(scaling={"max_ongoing_requests": 128}),
        "generate.engine.max_num_seqs = 128: is not greater than scaling.max_ongoing_requests (128)",
        "raise it",
    ),
    ({"generate": []}, "generate = []: does not fit", "make it a mapping"),
    (
        generate(engine={"tool_call_parser": "hermes"}),
        "generate.engine.tool_call_parser = 'hermes': is for the OpenAI routes",
        "serve the model in models",
    ),
    (
        generate(placement={"strategy": "PACK"}),
        "generate.placement.strategy = 'PACK': the workers of /generate's engine are processes of one node",
        "leave it out",
    ),
    # /analyze.
    (
        pipeline(sentiment="sentimnt"),
        "pipeline.sentiment = 'sentimnt': there is no such thing in classifiers",
        "use sentiment",
    ),
    (
        summary(model="big"),
        "pipeline.summary.model = 'big': there is no such thing in models",
        "use one of chat, or set pipeline.summary to null",
    ),
    (
        {"models": []},
        "pipeline.summary.model = '': there is no such thing in models",
        "add one to models, or set pipeline.summary to null",
    ),
    (summary(min_words=0), "pipeline.summary.min_words = 0: does not fit", "greater than or equal to 1"),
    (summary(placement={"num_gpus": 1}), "pipeline.summary.placement.num_gpus = 1: there is no such key", "num_cpus"),
    (pipeline(max_characters="20k"), "pipeline.max_characters = '20k': does not fit", "make it a valid integer"),
    (pipeline(preprocess=None), "pipeline.preprocess = None: does not fit", "make it a mapping"),
    (pipeline(stages=[]), "pipeline.stages = []: there is no such key", "use one of "),
    # Keys and quotas.
    (auth(keys_file=["keys.yaml"]), "auth.keys_file = ['keys.yaml']: does not fit", "make it a valid string"),
    (auth(keys_file=True), "auth.keys_file = True: does not fit", "make it a valid string"),
    (auth(key_file="k"), "auth.key_file = 'k': there is no such key", "did you mean keys_file?"),
    (auth(keys=[]), "auth.keys = []: there is no such key", "keys_file"),
    (auth(redis_url="http://host"), "auth.redis_url = 'http://host': is no address of Redis", "redis://host:6379/0"),
    (auth(redis_url="redis://me:secret@host"), "auth.redis_url: holds a password in the clear", "REDIS_PASSWORD"),
    ({"logging": {"encoding": "xml"}}, "logging.encoding = 'xml'", "'json' or 'text'"),
    ({"logging": {"level": "LOUD"}}, "logging.level = 'LOUD'", "'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
    ({"logging": {"log_level": "DEBUG"}}, "logging.log_level = 'DEBUG': there is no such key", "did you mean level?"),
    ({"tracing": {}}, "tracing.endpoint: is missing", "add it"),
    *(
        ({"tracing": {"endpoint": wrong}}, f"tracing.endpoint = '{wrong}': is no address of a collector", ":4318")
        for wrong in ("collector:4318", "grpc://collector:4317", "http://", "http://collector:0", "http://host:x")
    ),
    (
        {"tracing": {"endpoint": "http://me:secret@host:4318"}},
        "tracing.endpoint: holds a password in the clear",
        "a collector that asks for none",
    ),
    # The fast path.
    (
        {"gateway": {"fast": True}},
        "gateway.fast = True: serves one model and nothing else",
        "set embeddings to [], classifiers to [], rerankers to [], generate to null, moderation to null, pipeline to "
        "null, or leave gateway.fast out",
    ),
    (fast({}, models=[{}, {"name": "b"}]), "gateway.fast = True: is for one model, and there are 2", "keep one, or"),
    (
        fast({}, models=[], embeddings=[{}]),
        "gateway.fast = True: is for one model, and there are 0",
        "or leave gateway.fast out",
    ),
    (fast({"variants": [{}, {"name": "b"}]}), "models.0.variants: are 2, and with gateway.fast", "keep one, or"),
    (
        fast({"guard": {}}, classifiers=[SAFETY]),
        "models.0.guard: with gateway.fast there is no classifier",
        "set models.0.guard to null",
    ),
    (
        fast({"variants": [{"scaling": {"autoscaling_config": {"min_replicas": 0}}}]}),
        f"{VARIANT}.scaling.autoscaling_config.min_replicas = 0: with gateway.fast there is no gateway",
        "set it to 1 or more",
    ),
    (
        fast({}, gateway={"fast": True, "scaling": {"num_replicas": 2}}),
        "gateway.scaling: with gateway.fast the gateway's replicas are the model's",
        "say it in models.0.variants.0.scaling, or leave",
    ),
    (
        fast({}, gateway={"fast": True, "placement": {"num_cpus": 2}}),
        "gateway.placement: with gateway.fast the gateway's replicas are the model's",
        "say it in models.0.variants.0.placement",
    ),
]


@pytest.mark.parametrize(("data", "problem", "fix"), WRONG, ids=[p for _, p, _ in WRONG])
def test_wrong_settings_name_key_value_reason_and_fix(data: dict[str, Any], problem: str, fix: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(data)
    (line,) = str(caught.value).splitlines()[1:]
    assert line.strip().startswith(problem)
    _, _, after = line.partition("fix: ")
    assert fix in after


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        parse({"models": [{"nam": "x", "variants": [{"engine": {"dtype": 8, "kv_cache_gib": -1}}]}], "x": 1})
    keys = [line.split(" = ")[0].strip() for line in str(caught.value).splitlines()[1:]]
    assert sorted(keys) == ["models.0.nam", f"{ENGINE}.dtype", f"{ENGINE}.kv_cache_gib", "x"]


@pytest.mark.parametrize("data", [{"models": ["x" * 10_000]}, extra(zzz="x" * 10_000), engine(seed="x" * 10_000)])
def test_a_long_value_does_not_drown_the_message(data: dict[str, Any]) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(data)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("source", "revision", "from_hub"),
    [
        ("builtin:smollm2-135m-instruct", None, False),
        ("/models/llama", None, False),
        ("s3://weights/llama-3/8b", None, False),
        ("meta-llama/Llama-3.1-8B-Instruct", "0e9e39f249a16976918f6564b8830bc894c89659", True),
    ],
)
def test_sources(source: str, revision: str | None, from_hub: bool) -> None:
    (model,) = parse(variant(source=source, revision=revision)).models
    assert model.variants[0].source == source
    assert model.variants[0].from_hub == from_hub


def test_a_models_adapters_may_come_from_a_path_or_a_hub() -> None:
    adapters = [{"name": "legal", "source": "/adapters/legal"}, {"name": "med", "source": "org/med"}]
    (model,) = parse(variant(adapters=adapters)).models
    assert [given.model_dump() for given in model.variants[0].adapters] == adapters


@pytest.mark.parametrize(("share", "utilization"), [(1, 0.9), (0.5, 0.45), (0.2, 0.18)])
def test_an_engine_takes_nine_tenths_of_its_share_of_a_gpu(share: float, utilization: float) -> None:
    assert Variant(placement=EnginePlacement(num_gpus=share)).gpu_memory_utilization == utilization


def test_settings_do_not_change() -> None:
    settings = parse({})
    with pytest.raises(ValidationError):
        settings.models = []


def test_load(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("models:\n- name: small\n  variants:\n  - engine: {max_model_len: 512}\n")
    (model,) = load(file).models
    assert (model.name, model.variants[0].engine.max_model_len) == ("small", 512)
    file.write_text("")
    assert load(file) == Settings()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read"),
        ("models: [", "is not YAML"),
        ("models: 0x_", "is not YAML"),
        ("models: !!bool x", "is not YAML"),
        ("[" * 2000, "is not YAML"),
        ("- models", "holds ['models']"),
        ("0", "holds 0"),
        ("models: [{nam: x}]", "models.0.nam = 'x'"),
    ],
)
def test_load_names_the_file(tmp_path: Path, content: str | None, problem: str) -> None:
    file = tmp_path / "settings.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SettingsError) as caught:
        load(file)
    assert str(caught.value).startswith(str(file))
    assert problem in str(caught.value)
    assert "fix: " in str(caught.value)


# Every option with a value that is not its default.
CHOSEN_AUTOSCALING = {
    "min_replicas": 0,
    "max_replicas": 7,
    "initial_replicas": 3,
    "target_ongoing_requests": 12.5,
    "upscale_delay_s": 5.0,
    "downscale_delay_s": 120.0,
    "upscaling_factor": 0.5,
    "downscaling_factor": 0.25,
    "metrics_interval_s": 4.0,
    "look_back_period_s": 20.0,
}
CHOSEN_SCALING = {
    "max_ongoing_requests": 48,
    "max_queued_requests": 96,
    "health_check_period_s": 7.0,
    "health_check_timeout_s": 21.0,
    "graceful_shutdown_wait_loop_s": 1.5,
    "graceful_shutdown_timeout_s": 90.0,
}


def test_every_scaling_option_reaches_ray_under_rays_name() -> None:
    given = Scaling.model_validate({**CHOSEN_SCALING, "num_replicas": 3, "retry_after_s": 9})
    assert given.options() == {
        **CHOSEN_SCALING,
        "num_replicas": 3,
        "backpressure_config": {"status_code": 429, "retry_after_s": 9},
    }
    assert given.model_fields_set == Scaling.model_fields.keys() - {"autoscaling_config"}, "one is not tested"


def test_every_autoscaling_option_reaches_ray_under_rays_name() -> None:
    given = Scaling.model_validate({**CHOSEN_SCALING, "autoscaling_config": CHOSEN_AUTOSCALING})
    options = given.options()
    assert options["autoscaling_config"] == CHOSEN_AUTOSCALING
    assert "num_replicas" not in options, "Ray refuses both"
    assert CHOSEN_AUTOSCALING.keys() == Autoscaling.model_fields.keys(), "one is not tested"
    assert all(Autoscaling.model_fields[name].default != value for name, value in CHOSEN_AUTOSCALING.items())


def test_the_default_is_one_replica_and_a_bounded_queue() -> None:
    assert Scaling().options() == {
        "num_replicas": 1,
        "max_ongoing_requests": 64,
        "max_queued_requests": 256,
        "backpressure_config": {"status_code": 429, "retry_after_s": 1},
        "health_check_period_s": 10,
        "health_check_timeout_s": 30,
        "graceful_shutdown_wait_loop_s": 2,
        "graceful_shutdown_timeout_s": 20,
    }


def test_initial_replicas_are_rays_to_choose_when_left_out() -> None:
    options = Scaling(autoscaling_config=Autoscaling()).options()
    assert "initial_replicas" not in options["autoscaling_config"]


def test_every_placement_option_reaches_ray_under_rays_name() -> None:
    given = GpuPlacement(num_cpus=1.5, num_gpus=0.25, memory_gib=1.5, accelerator_type="L4")
    assert given.options() == {"num_cpus": 1.5, "num_gpus": 0.25, "memory": 1_610_612_736, "accelerator_type": "L4"}
    assert given.model_fields_set == GpuPlacement.model_fields.keys(), "one is not tested"


def test_what_is_not_asked_for_is_not_reserved() -> None:
    assert Placement().options() == {"num_cpus": 0.25}
    assert GpuPlacement().options() == {"num_cpus": 0.25, "num_gpus": 0}


def test_deployments_are_named_after_models_and_variants() -> None:
    model = Model(name="org/big.model", variants=[Variant(), Variant(name="canary-2")])
    names = [model.deployment(variant) for variant in model.variants]
    assert names == ["LLM:org--big.model@stable", "LLM:org--big.model@canary-2"]
    assert EmbeddingModel(name="org/e5").deployment == "Embeddings:org--e5"
    assert Classifier(name="org/toxic", source="/m").deployment == "Classifier:org--toxic"
    assert Reranker(name="org/bge").deployment == "Rerank:org--bge"


def test_no_two_variants_share_a_deployment() -> None:
    texts = ["".join(text) for length in range(1, 6) for text in itertools.product("ab-./", repeat=length)]
    models = [Model(name=text) for text in texts if re.fullmatch(NAME, text)]
    variants = [Variant(name=text) for text in texts if len(text) <= 3 and re.fullmatch(PART, text)]
    names = [model.deployment(variant) for model in models for variant in variants]
    assert len(set(names)) == len(names) > 1000
    assert not any("/" in name for name in names)
    found = remotes(Settings(models=[model.model_copy(update={"variants": variants}) for model in models[:50]]))
    applications = [remote.application for name, remote in found.items() if name.startswith("LLM:")]
    assert len(set(applications)) == len(applications) == 50 * len(variants)
    assert not {"generate", "nlp", "gateway"} & set(applications)
    assert not any("/" in application for application in applications)


def test_demands_count_every_replica_and_every_worker() -> None:
    settings = parse(
        {
            "models": [
                {
                    "name": "big",
                    "variants": [
                        {
                            "engine": {"tensor_parallel_size": 4, "pipeline_parallel_size": 2},
                            "placement": {"num_cpus": 8, "num_gpus": 1, "strategy": "PACK"},
                            "scaling": {"autoscaling_config": {"min_replicas": 1, "max_replicas": 3}},
                        },
                        {"name": "canary"},
                    ],
                },
                {"name": "small", "variants": [{"placement": {"num_gpus": 0.5}, "scaling": {"num_replicas": 2}}]},
            ],
            "embeddings": [{"placement": {"num_gpus": 0.25}, "scaling": {"num_replicas": 4}}],
            "generate": {"engine": {"tensor_parallel_size": 2}, "placement": {"num_gpus": 1}},
            "classifiers": [{**SAFETY, "scaling": {"num_replicas": 3}, "placement": {"num_gpus": 0.1, "num_cpus": 1}}],
            "rerankers": [{}],
            "pipeline": {
                "sentiment": "safety",
                "scaling": {"autoscaling_config": {"max_replicas": 5}},
                "preprocess": {"placement": {"num_cpus": 2}},
                "summary": {"scaling": {"num_replicas": 2}},
            },
            "gateway": {"scaling": {"num_replicas": 2}, "placement": {"num_cpus": 0.5}},
        }
    )
    assert list(demands(settings)) == [
        Demand("models.0.variants.0", replicas=3, cpus=8, gpus=8, one_node=False),
        Demand("models.0.variants.1", replicas=1, cpus=1, gpus=0, one_node=True),
        Demand("models.1.variants.0", replicas=2, cpus=1, gpus=0.5, one_node=True),
        Demand("generate", replicas=1, cpus=1, gpus=2, one_node=True),
        Demand("embeddings.0", replicas=4, cpus=0.25, gpus=0.25, one_node=True),
        Demand("classifiers.0", replicas=3, cpus=1, gpus=0.1, one_node=True),
        Demand("rerankers.0", replicas=1, cpus=0.05, gpus=0, one_node=True),
        Demand("gateway", replicas=2, cpus=0.5, gpus=0, one_node=True),
        Demand("pipeline", replicas=5, cpus=0.05, gpus=0, one_node=True),
        Demand("pipeline.preprocess", replicas=1, cpus=2, gpus=0, one_node=True),
        Demand("pipeline.summary", replicas=2, cpus=0.05, gpus=0, one_node=True),
    ]


def test_nothing_is_reserved_for_what_is_left_out() -> None:
    settings = parse({**NOTHING, "embeddings": [{}]})
    assert [demand.key for demand in demands(settings)] == ["embeddings.0", "gateway"]


MANY: dict[str, Any] = {
    "models": [
        {
            "name": "org/big.model",
            "variants": [
                {
                    "source": "org/big",
                    "revision": "0" * 40,
                    "weight": 9,
                    "engine": {"tensor_parallel_size": 2, "extra": {"speculative_config": {"method": "ngram"}}},
                    "adapters": [{"name": "legal", "source": "/adapters/legal"}],
                    "placement": {"num_gpus": 1, "memory_gib": 16, "accelerator_type": "H100"},
                    "scaling": {"autoscaling_config": {"max_replicas": 4}},
                },
                {"name": "canary", "engine": {"kv_cache_gib": 0.25}},
                {"name": "next", "weight": 0, "shadow": 0.5},
            ],
            "pins": {"anna": "canary"},
            "guard": {"threshold": 0.9},
        },
        {"name": "small"},
    ],
    "embeddings": [
        {"batching": {"max_batch_size": 8, "batch_wait_timeout_s": 0.25}},
        {"name": "second", "pooling": "cls"},
    ],
    "generate": {"source": "s3://bucket/m", "engine": {"load_format": "runai_streamer"}},
    "classifiers": [
        {"name": "mood", "source": "org/mood", "revision": "1" * 40},
        {**SAFETY, "batching": {"max_batch_size": 4}},
    ],
    "moderation": {"threshold": 0.25},
    "rerankers": [
        {"source": "embedding:second"},
        {"name": "org/bge", "source": "/models/bge", "batching": {"max_batch_size": 2}},
    ],
    "pipeline": {"sentiment": "mood", "summary": {"model": "small", "max_tokens": 50}},
    "gateway": {"max_body_mib": 2},
    "auth": {"keys_file": "/etc/keys.yaml", "redis_url": "rediss://redis:6379/0"},
}
LEAST: dict[str, dict[str, Any]] = {
    "a language model": {"models": [{}]},
    "embeddings": {"embeddings": [{}]},
    "generate": {"generate": {}},
    "a classifier": {"classifiers": [{"name": "mood", "source": "builtin:vader-sentiment"}]},
    "moderation": {"classifiers": [SAFETY], "moderation": {}},
    "a cross-encoder and a model": {"models": [{}], "rerankers": [{"source": "/models/bge"}]},
    "a pipeline": {
        "classifiers": [{"name": "sentiment", "source": "builtin:vader-sentiment"}],
        "pipeline": {"summary": None},
    },
}


def applications(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a RayService is told, by the applications' names."""
    return {application["name"]: application for application in serve_config(parse(data))["applications"]}


def test_it_is_plain_data() -> None:
    rendered = serve_config(parse(MANY))
    assert yaml.safe_load(yaml.safe_dump(rendered)) == rendered


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({}, {"encoding": "JSON", "log_level": "INFO"}),
        ({"encoding": "text", "level": "DEBUG"}, {"encoding": "TEXT", "log_level": "DEBUG"}),
    ],
)
def test_a_cluster_logs_json_unless_told_otherwise(given: dict[str, str], options: dict[str, str]) -> None:
    assert serve_config(parse({"logging": given}))["logging_config"] == options


def test_logging_and_tracing_restart_no_application() -> None:
    told = {"logging": {"level": "DEBUG"}, "tracing": {"endpoint": "http://collector:4318"}}
    assert applications({**MANY, **told}) == applications(MANY)


@pytest.mark.parametrize(
    ("endpoint", "url", "port"),
    [
        ("http://collector:4318", "http://collector:4318/v1/traces", 4318),
        ("http://collector:4318/", "http://collector:4318/v1/traces", 4318),
        ("https://traces.example.com/otlp", "https://traces.example.com/otlp", 443),
        ("http://collector", "http://collector/v1/traces", 80),
    ],
)
def test_where_traces_go(endpoint: str, url: str, port: int) -> None:
    settings = parse({"tracing": {"endpoint": endpoint}})
    assert settings.tracing
    assert settings.tracing.port == port
    assert environment(settings)["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] == url


def test_nothing_is_traced_unless_told_to() -> None:
    assert not [name for name in environment(parse({})) if "TRAC" in name or "OTEL" in name]


def test_what_changes_alone_is_an_application_of_its_own() -> None:
    found = applications(MANY)
    assert {name: application["import_path"] for name, application in found.items()} == {
        "org--big.model@stable": "app.main:variant",
        "org--big.model@canary": "app.main:variant",
        "org--big.model@next": "app.main:variant",
        "small@stable": "app.main:variant",
        "generate": "app.main:generate",
        "nlp": "app.main:nlp",
        "gateway": "app.main:gateway",
    }
    assert {
        name: application["route_prefix"] for name, application in found.items() if application["route_prefix"]
    } == {"gateway": "/"}


def test_a_variants_application_gets_this_variant_and_not_its_part_in_the_experiment() -> None:
    model, _ = parse(MANY).models
    for variant in model.variants:
        args = applications(MANY)[f"org--big.model@{variant.name}"]["args"]
        assert {key for key, value in args.items() if value} == {"models"}
        assert "weight" not in str(args)
        assert "shadow" not in str(args)
        (alone,) = parse(args).models
        assert alone.name == model.name
        assert alone.variants == [variant.model_copy(update={"weight": 1, "shadow": 0})]


def test_generates_application_gets_its_engine_alone() -> None:
    args = applications(MANY)["generate"]["args"]
    assert {key for key, value in args.items() if value} == {"generate"}
    assert parse(args).generate == parse(MANY).generate


def test_the_nlp_application_gets_its_models_and_pipeline_and_no_other() -> None:
    args = applications(MANY)["nlp"]["args"]
    settings, given = parse(MANY), parse(args)
    assert "engine" not in str(args)
    assert given.pipeline == settings.pipeline
    assert given.generate is None
    # A change of another variant must not restart it.
    assert [(model.name, [one.name for one in model.variants]) for model in given.models] == [("small", ["stable"])]
    for kind in ("embeddings", "classifiers", "rerankers"):
        for alone, model in zip(getattr(given, kind), getattr(settings, kind), strict=True):
            assert alone.model_copy(update={"batching": model.batching}) == model


def test_the_gateway_gets_every_name_and_no_engine() -> None:
    args = applications(MANY)["gateway"]["args"]
    settings, given = parse(MANY), parse(args)
    assert "engine" not in str(args)
    assert remotes(given) == remotes(settings)
    for part in ("gateway", "moderation", "pipeline", "auth", "first_model"):
        assert getattr(given, part) == getattr(settings, part)
    assert [classifier.unsafe for classifier in given.classifiers] == [[], ["offensive"]]
    assert [adapter.name for adapter in given.models[0].variants[0].adapters] == ["legal"]


def test_the_gateway_is_told_of_the_experiment_while_it_runs() -> None:
    (gateway,) = applications(MANY)["gateway"]["deployments"]
    guard = {"classifier": "safety", "enabled": True, "threshold": 0.9, "on_failure": "close"}
    assert gateway == {
        "name": "Gateway",
        "user_config": {
            "models": {
                "org/big.model": {
                    "weights": {"stable": 9, "canary": 1, "next": 0},
                    "shadow": {"next": 0.5},
                    "pins": {"anna": "canary"},
                    "guard": guard,
                },
                "small": {"weights": {"stable": 1}, "shadow": {}, "pins": {}, "guard": None},
            }
        },
    }
    assert gateway["user_config"] == live(parse(MANY)).model_dump()


def test_every_deployment_is_where_its_callers_look_for_it() -> None:
    found = remotes(parse(MANY))
    assert {remote.application for remote in found.values()} == applications(MANY).keys() - {"gateway"}
    assert all(remote.deployment == name for name, remote in found.items())
    assert found["LLM:org--big.model@canary"] == Remote("org--big.model@canary", "LLM:org--big.model@canary")
    assert found[GENERATE].application == "generate"
    assert found[ANALYZE].application == "nlp"
    batched = {deployment["name"] for deployment in applications(MANY)["nlp"]["deployments"]}
    assert batched == {name for name, remote in found.items() if remote.application == "nlp"} - {ANALYZE}


@pytest.mark.parametrize(
    "data", [{}, MANY, *({**NOTHING, **least} for least in LEAST.values())], ids=["defaults", "many", *LEAST]
)
def test_each_applications_args_are_settings_by_themselves(data: dict[str, Any]) -> None:
    found = serve_config(parse(data))["applications"]
    assert len({application["name"] for application in found}) == len(found)
    deployments = [deployment["name"] for application in found for deployment in application["deployments"]]
    assert len(set(deployments)) == len(deployments)
    for application in found:
        assert parse(application["args"])
    assert applications(data)["gateway"]["route_prefix"] == "/"
    assert remotes(parse(applications(data)["gateway"]["args"])) == remotes(parse(data))


@pytest.mark.parametrize("name", ["embed", "sentiment", "safety", "rerank"])
def test_a_model_may_have_the_name_of_a_default_that_is_left_out(name: str) -> None:
    for application in serve_config(parse({**NOTHING, "models": [{"name": name}]}))["applications"]:
        assert parse(application["args"])


def changed(path: str, value: Any) -> set[str]:
    """What of the RayService is another one when the setting at `path` is: args, and deployments' user_config."""
    other = copy.deepcopy(MANY)
    keys: list[Any] = [int(key) if key.isdigit() else key for key in path.split(".")]
    functools.reduce(operator.getitem, keys[:-1], other)[keys[-1]] = value
    before, after = parts(MANY), parts(other)
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


def parts(data: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, application in applications(data).items():
        found[f"{name} args"] = application["args"]
        found |= {
            f"{name} {deployment['name']}": deployment["user_config"] for deployment in application["deployments"]
        }
    return found


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("models.0.variants.0.weight", 1),
        ("models.0.variants.1.weight", 0),
        ("models.0.variants.2.shadow", 1),
        ("models.0.pins", {}),
        ("models.0.pins.bert", "stable"),
        ("models.0.guard.threshold", 0.5),
        ("models.0.guard.enabled", False),
        ("models.0.guard.on_failure", "open"),
    ],
)
def test_an_experiment_changes_live(path: str, value: Any) -> None:
    """Other args mean other replicas; another user_config reaches those that run."""
    assert changed(path, value) == {"gateway Gateway"}


@pytest.mark.parametrize(
    ("path", "deployment"),
    [
        ("embeddings.0", "Embeddings:embed"),
        ("embeddings.1", "Embeddings:second"),
        ("classifiers.0", "Classifier:mood"),
        ("classifiers.1", "Classifier:safety"),
        ("rerankers.0", "Rerank:rerank"),
        ("rerankers.1", "Rerank:org--bge"),
    ],
)
def test_batching_changes_live(path: str, deployment: str) -> None:
    assert changed(f"{path}.batching", {"max_batch_size": 17}) == {f"nlp {deployment}"}


@pytest.mark.parametrize(
    ("path", "value", "applications"),
    [
        ("models.0.variants.1.engine", {"kv_cache_gib": 2.0}, {"org--big.model@canary"}),
        ("models.0.variants.1.scaling", {"num_replicas": 2}, {"org--big.model@canary"}),
        ("models.0.variants.1.source", "/models/other", {"org--big.model@canary"}),
        ("models.1.variants", [{"placement": {"num_cpus": 2}}], {"small@stable"}),
        ("generate.engine.seed", 7, {"generate"}),
        ("classifiers.1.max_tokens", 64, {"nlp"}),
        ("embeddings.1.scaling", {"num_replicas": 2}, {"nlp"}),
        ("gateway.max_body_mib", 4, {"gateway"}),
        ("moderation.threshold", 0.75, {"gateway"}),
        ("auth.redis_url", None, {"gateway"}),
    ],
)
def test_what_needs_other_replicas_leaves_the_other_applications_alone(
    path: str, value: Any, applications: set[str]
) -> None:
    assert changed(path, value) == {f"{name} args" for name in applications}


def test_generate_reads_from_s3_with_the_streamer() -> None:
    settings = parse(generate(source="s3://bucket/m", engine={"load_format": "runai_streamer"}))
    assert settings.generate
    assert settings.generate.source == "s3://bucket/m"
    assert Generator().placement.num_cpus < EnginePlacement().num_cpus


def test_needs_neither_ray_nor_torch() -> None:
    code = (
        "import sys; import app.settings as s; s.serve_config(s.parse({}));"
        "sys.exit(' '.join({'ray', 'torch', 'vllm', 'transformers'} & set(sys.modules)) or 0)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_fast_path_takes_what_its_model_takes() -> None:
    settings = parse(fast({"variants": [{"scaling": {"num_replicas": 3}}]}))
    assert [(demand.key, demand.replicas) for demand in demands(settings)] == [("models.0.variants.0", 3)]
