"""What Ray LLM makes of variants that want GPUs, without a GPU: its own validation, and what it would reserve."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import ray
import yaml
from ray.serve import Deployment
from ray.serve.llm import LLMConfig, build_llm_deployment
from vllm.engine.arg_utils import AsyncEngineArgs

from app.deployments import engines, llm, router
from app.options import Placement
from app.settings import Generator, Model, Settings, Variant, load, parse
from infra.config import PROJECT

ROOT = Path(__file__).parents[2]
PROFILES = sorted((ROOT / "app" / "profiles").glob("*.yaml"))
STACKS = ("dev", "staging", "prod")


class Expected(NamedTuple):
    bundles: list[dict[str, float]]
    strategy: str = "STRICT_PACK"


L4, H100 = ({f"accelerator_type:{kind}": 0.001} for kind in ("L4", "H100"))
RESERVED = {
    "l4/chat": Expected([{"GPU": 1, **L4}]),
    "l4/small": Expected([{"GPU": 0.5, **L4}]),
    "h100/chat": Expected([{"GPU": 1, **H100}] * 4),
    "dev/chat@stable": Expected([{"GPU": 1, **L4}]),
    "staging/chat@stable": Expected([{"GPU": 1, **L4}] * 4),
    "staging/chat@canary": Expected([{"GPU": 1, **L4}]),
    "prod/chat@stable": Expected([{"GPU": 1, **H100}] * 4),
    "prod/chat@canary": Expected([{"GPU": 1, **L4}]),
}


def serving(stack: str) -> Settings:
    return parse(yaml.safe_load((ROOT / f"Pulumi.{stack}.yaml").read_text())["config"][f"{PROJECT}:serving"])


VARIANTS = {
    f"{path.stem}/{model.name}": (model, variant)
    for path in PROFILES
    for model in load(path).models
    for variant in model.variants
} | {
    f"{stack}/{model.name}@{variant.name}": (model, variant)
    for stack in STACKS
    for model in serving(stack).models
    for variant in model.variants
}


def test_every_variant_of_a_profile_and_of_a_stack_on_aws_is_tested() -> None:
    assert VARIANTS.keys() == RESERVED.keys()


@pytest.mark.parametrize("key", VARIANTS)
def test_ray_takes_every_variant_and_reserves_a_bundle_for_each_worker(key: str) -> None:
    model, variant = VARIANTS[key]
    engine = config(model, variant).get_engine_config()
    assert engine is not None
    assert Expected(engine.placement_bundles, engine.placement_strategy) == RESERVED[key]
    # Split into what vLLM's engine and its frontend take; Ray refuses a name that neither has.
    assert engine.engine_kwargs.items() >= variant.engine.extra.items()
    assert engine.engine_kwargs["tensor_parallel_size"] == len(engine.placement_bundles)


@pytest.mark.parametrize("key", VARIANTS)
def test_vllm_takes_the_arguments_and_none_is_for_cpus(key: str) -> None:
    model, variant = VARIANTS[key]
    engine = config(model, variant).get_engine_config()
    assert engine is not None
    taken = AsyncEngineArgs(**{**engine.engine_kwargs, "model": "/weights", "revision": None})
    assert taken.gpu_memory_utilization == variant.gpu_memory_utilization
    assert taken.kv_cache_memory_bytes == variant.engine.extra.get("kv_cache_memory_bytes")
    assert not [name for name in engines.environment(variant) if name.startswith("VLLM_CPU_")]


def config(model: Model, variant: Variant) -> LLMConfig:
    return llm.config(model, variant, engines.source(variant))


def variant(**values: Any) -> tuple[Model, Variant]:
    (model,) = parse({"models": [{"variants": [values]}]}).models
    return model, model.variants[0]


def test_pipeline_stages_have_a_bundle_for_each_worker_too() -> None:
    model, split = variant(
        source="/models/big",
        engine={"tensor_parallel_size": 2, "pipeline_parallel_size": 3},
        placement={"num_gpus": 1, "strategy": "PACK"},
    )
    engine = config(model, split).get_engine_config()
    assert engine is not None
    assert Expected(engine.placement_bundles, engine.placement_strategy) == Expected([{"GPU": 1}] * 6, "PACK")


def test_a_worker_with_a_share_of_a_gpu_asks_for_no_more() -> None:
    """vLLM would place a worker with a whole GPU, which its bundle does not have, and wait for ever."""
    engine = config(*VARIANTS["l4/small"]).get_engine_config()
    assert engine is not None
    assert engine.get_runtime_env_with_local_env_vars()["env_vars"]["VLLM_RAY_PER_WORKER_GPUS"] == "0.5"
    assert engine.engine_kwargs["gpu_memory_utilization"] == 0.45


def test_on_cpus_the_worker_is_no_actor_and_needs_no_core_of_its_own() -> None:
    model, local = variant(source="/models/small", placement={"num_cpus": 2, "memory_gib": 3})
    engine = config(model, local).get_engine_config()
    assert engine is not None
    assert engine.placement_bundles == [{"CPU": 0}]
    deployment = engines.variant(model, local)._bound_deployment
    assert deployment._replica_config.placement_group_bundles == [{"CPU": 2, "memory": 3 * 2**30}]
    assert reserved(deployment) == {"num_cpus": 2, "memory": 3 * 2**30}


@pytest.mark.parametrize("key", VARIANTS)
def test_a_deployment_is_the_one_that_ray_would_make(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own imports vLLM for it, and asks for this process's environment, for which it would start a Ray."""
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(runtime_env={}))
    model, variant = VARIANTS[key]
    actor = Placement.options(variant.placement)
    its = config(model, variant)
    its.deployment_config = {**variant.scaling.options(), **router.OPTIONS, "ray_actor_options": actor}
    expected, found = (
        application._bound_deployment
        for application in (
            build_llm_deployment(its, override_serve_options={"name": model.deployment(variant)}),
            engines.variant(model, variant),
        )
    )
    assert found.name == expected.name
    assert found._deployment_config == expected._deployment_config
    assert reserved(found) == reserved(expected)
    assert found._replica_config.placement_group_strategy == expected._replica_config.placement_group_strategy
    assert bundles(found) == bundles(expected)


def bundles(deployment: Deployment) -> list[dict[str, float]]:
    """Of its placement group, but resources of which nothing is reserved."""
    found = deployment._replica_config.placement_group_bundles or []
    return [{name: amount for name, amount in bundle.items() if amount} for bundle in found]


def reserved(deployment: Deployment) -> dict[str, Any]:
    """What Ray reserves for a replica."""
    return {name: value for name, value in (deployment.ray_actor_options or {}).items() if name != "runtime_env"}


def generator(**values: Any) -> Deployment:
    """That of /generate."""
    model = parse({"generate": {"source": "/models/small", **values}}).generate
    assert isinstance(model, Generator)
    return engines.generator(model)._bound_deployment


def test_generate_reserves_the_gpus_of_all_its_workers_for_the_replica() -> None:
    placed = generator(
        engine={"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
        placement={"num_cpus": 3, "num_gpus": 1, "accelerator_type": "H100"},
    )
    assert reserved(placed) == {"num_cpus": 3, "num_gpus": 4, "accelerator_type": "H100"}


def test_generate_has_our_router_too() -> None:
    routing = generator()._deployment_config.request_router_config
    assert routing.get_request_router_class() is router.PromptRouter


def test_generate_takes_a_share_of_a_gpu_or_none() -> None:
    assert reserved(generator(placement={"num_gpus": 0.5})) == {"num_cpus": 1, "num_gpus": 0.5}
    assert reserved(generator()) == {"num_cpus": 0.25, "num_gpus": 0}
