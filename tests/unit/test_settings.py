"""The settings model: what it takes, how it says no, and what Ray gets of it. Needs pydantic and PyYAML only."""

import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from app.settings import (
    NAME,
    PART,
    Autoscaling,
    Demand,
    EmbeddingModel,
    EnginePlacement,
    GpuPlacement,
    Model,
    Placement,
    Scaling,
    Settings,
    SettingsError,
    Variant,
    demands,
    load,
    parse,
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
    (engine(kv_cache_gib=0.25), f"{ENGINE}.kv_cache_gib = 0.25: does not fit", "make it a valid integer"),
    (engine(kv_cache_gib=0), f"{ENGINE}.kv_cache_gib = 0: does not fit", "greater than or equal to 1"),
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
    (embedding(name="chat"), "embeddings.0.name = 'chat': a language model has this name", "give each model its own"),
    ({"models": [], "embeddings": []}, "models = []: nothing is served", "add a model"),
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


def test_no_two_variants_share_a_deployment() -> None:
    texts = ["".join(text) for length in range(1, 6) for text in itertools.product("ab-./", repeat=length)]
    models = [Model(name=text) for text in texts if re.fullmatch(NAME, text)]
    variants = [Variant(name=text) for text in texts if len(text) <= 3 and re.fullmatch(PART, text)]
    names = [model.deployment(variant) for model in models for variant in variants]
    assert len(set(names)) == len(names) > 1000
    assert not any("/" in name for name in names)


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
            "gateway": {"scaling": {"num_replicas": 2}},
        }
    )
    assert list(demands(settings)) == [
        Demand("models.0.variants.0", replicas=3, cpus=8, gpus=8, one_node=False),
        Demand("models.0.variants.1", replicas=1, cpus=1, gpus=0, one_node=True),
        Demand("models.1.variants.0", replicas=2, cpus=1, gpus=0.5, one_node=True),
        Demand("embeddings.0", replicas=4, cpus=0.25, gpus=0.25, one_node=True),
        Demand("gateway", replicas=2, cpus=0.01, gpus=0, one_node=True),
    ]


MANY: dict[str, Any] = {
    "models": [
        {
            "name": "org/big.model",
            "variants": [
                {
                    "source": "org/big",
                    "revision": "0" * 40,
                    "engine": {"tensor_parallel_size": 2, "extra": {"speculative_config": {"method": "ngram"}}},
                    "adapters": [{"name": "legal", "source": "/adapters/legal"}],
                    "placement": {"num_gpus": 1, "memory_gib": 16, "accelerator_type": "H100"},
                    "scaling": {"autoscaling_config": {"max_replicas": 4}},
                },
                {"name": "canary"},
            ],
        }
    ],
    "embeddings": [
        {"batching": {"max_batch_size": 8, "batch_wait_timeout_s": 0.25}},
        {"name": "second", "pooling": "cls"},
    ],
    "gateway": {"max_body_mib": 2},
}


def without_batching(data: dict[str, Any]) -> dict[str, Any]:
    kept = [{key: value for key, value in model.items() if key != "batching"} for model in data["embeddings"]]
    return {**data, "embeddings": kept}


def test_the_cluster_gets_the_same_settings() -> None:
    rendered = yaml.safe_load(yaml.safe_dump(serve_config(parse(MANY))))
    (application,) = rendered["applications"]
    assert parse(application["args"]) == parse(without_batching(MANY))


def test_batching_changes_live_since_it_is_not_in_the_args() -> None:
    """Other args mean other replicas; another user_config reaches those that run."""
    (application,) = serve_config(parse(MANY))["applications"]
    assert application["deployments"] == [
        {"name": "Embeddings:embed", "user_config": {"max_batch_size": 8, "batch_wait_timeout_s": 0.25}},
        {"name": "Embeddings:second", "user_config": {"max_batch_size": 32, "batch_wait_timeout_s": 0.005}},
    ]
    (other,) = serve_config(parse(without_batching(MANY)))["applications"]
    assert other["args"] == application["args"]
    assert other["deployments"] != application["deployments"]


def test_needs_neither_ray_nor_torch() -> None:
    code = (
        "import sys; import app.settings as s; s.serve_config(s.parse({}));"
        "sys.exit(' '.join({'ray', 'torch', 'vllm', 'transformers'} & set(sys.modules)) or 0)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
