"""What a stack file may say, and how it is told when it is wrong."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from app.keys import Key, digest
from app.settings import SettingsError, demands
from infra import config
from infra.config import LOCAL_KEY, ROOT, ExistingCluster, NativeCluster

STACKS = sorted(path.name.split(".")[1] for path in ROOT.glob("Pulumi.*.yaml"))


def stack_file(directory: Path, values: object) -> Path:
    content = (
        {"config": {f"blueprint:{key}": value for key, value in values.items()}} if isinstance(values, dict) else 1
    )
    (directory / "Pulumi.test.yaml").write_text(yaml.safe_dump(content))
    return directory


EXISTING = {"kind": "existing", "context": "kind-dev"}


def key(name: str, **limits: Any) -> dict[str, Any]:
    return {"name": name, "sha256": digest(f"sk-{name}")} | limits


@pytest.mark.parametrize("stack", STACKS)
def test_every_committed_stack_is_valid(stack: str) -> None:
    assert config.from_file(stack).serving.models


def test_local_is_the_native_cluster_with_the_default_settings() -> None:
    stack = config.from_file("local")
    assert stack == config.StackConfig()
    assert isinstance(stack.cluster, NativeCluster)


def test_the_default_demands_fit_the_default_worker() -> None:
    stack = config.StackConfig()
    assert [(group.cpus, group.replicas) for group in stack.workers] == [(2, 1)]
    assert sum(demand.cpus * demand.replicas for demand in demands(stack.serving)) <= 2


def test_a_native_cluster_without_keys_takes_the_local_one() -> None:
    stack = config.parse({}, "Pulumi.test.yaml")
    assert stack.keys == []
    assert stack.api_keys == [Key(name="local", sha256=digest(LOCAL_KEY))]


@pytest.mark.parametrize("cluster", [{"kind": "native"}, EXISTING], ids=lambda cluster: cluster["kind"])
def test_listed_keys_are_the_only_ones(cluster: dict[str, Any]) -> None:
    values = {"cluster": cluster, "keys": [key("team", models=["chat"], requests_per_minute=60), key("other")]}
    stack = config.parse(values, "Pulumi.test.yaml")
    assert [given.name for given in stack.api_keys] == ["team", "other"]
    assert digest(LOCAL_KEY) not in [given.sha256 for given in stack.api_keys]


def test_existing_cluster(tmp_path: Path) -> None:
    values = {"cluster": {**EXISTING, "kubeconfig": "~/kc"}, "keys": [key("team")]}
    cluster = config.from_file("test", stack_file(tmp_path, values)).cluster
    assert isinstance(cluster, ExistingCluster)
    assert cluster.kubeconfig_path == Path.home() / "kc"


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"servng": {}}, ["servng", "serving"]),
        ({"cluster": {"kind": "natvie"}}, ["cluster", "natvie", "native"]),
        ({"cluster": {"kind": "existing"}}, ["cluster", "context"]),
        ({"cluster": {"kind": "native", "context": "prod"}}, ["context"]),
        ({"workers": []}, ["workers"]),
        ({"workers": [{"cpu": 2}]}, ["workers.0.cpu", "cpus"]),
        ({"workers": [{"cpus": 0}]}, ["workers.0.cpus", "0"]),
        ({"workers": [{"gpus": -1}]}, ["workers.0.gpus", "-1"]),
        ({"workers": [{"gpus": 0.5}]}, ["workers.0.gpus", "0.5", "integer"]),
        ({"head": {"memory_gib": 1}}, ["head.memory_gib", "1", "2"]),
        ({"namespace": "Not_A_Name"}, ["namespace", "Not_A_Name"]),
        ({"serving": {"models": [{"nam": "chat"}]}}, ["serving.models.0.nam", "name"]),
        ({"cluster": EXISTING}, ["keys = []", "nobody could use the models", "make key NAME="]),
        ({"cluster": EXISTING, "keys": []}, ["keys = []", "make key NAME="]),
        ({"keys": [key("local")]}, ["sk-local", "everybody knows", "make key"]),
        ({"cluster": EXISTING, "keys": [key("a"), key("local")]}, ["sk-local", "everybody knows", "make key"]),
        ({"keys": [{"name": "team"}]}, ["keys.0.sha256", "is missing", "make key"]),
        ({"keys": [key("team", sha256="ABC")]}, ["keys.0.sha256", "ABC", "64 hex digits"]),
        ({"keys": [key("team", model=["chat"])]}, ["keys.0.model", "models"]),
        ({"keys": [key("team", requests_per_minute=0)]}, ["keys.0.requests_per_minute", "0", "equal to 1"]),
        ({"keys": key("team")}, ["keys", "a valid list"]),
        (
            {"serving": {"auth": {"keys_file": "/etc/keys.yaml"}}},
            ["serving.auth.keys_file = '/etc/keys.yaml'", "the program makes that file", "list the keys in `keys`"],
        ),
        ({"serving": {"auth": {"redis_url": "host:6379"}}}, ["serving.auth.redis_url", "host:6379", "rediss"]),
        ({"ready_timeout_seconds": "soon"}, ["ready_timeout_seconds", "soon"]),
    ],
)
def test_wrong_values_name_key_value_and_fix(tmp_path: Path, values: dict, names: list[str]) -> None:
    with pytest.raises(SettingsError) as raised:
        config.from_file("test", stack_file(tmp_path, values))
    message = str(raised.value)
    assert "Pulumi.test.yaml" in message
    for name in names:
        assert name in message, message


def gpus(number: int, replicas: int = 1) -> dict[str, Any]:
    return {"name": "gpu", "replicas": replicas, "cpus": 16, "gpus": number}


NOTHING: dict[str, Any] = {
    **{kind: [] for kind in ("models", "embeddings", "classifiers", "rerankers")},
    **{kind: None for kind in ("generate", "moderation", "pipeline")},
    "gateway": {"placement": {"num_cpus": 0}},
}
"""Settings of nothing at all, to add to."""


def serving(placement: dict[str, Any], scaling: dict[str, Any] | None = None, **engine: int) -> dict[str, Any]:
    """Settings of one language model only."""
    variant = {"engine": engine, "placement": placement, "scaling": scaling or {}}
    return {**NOTHING, "models": [{"variants": [variant]}]}


REPLICA = "serving.models.0.variants.0: a replica needs"
TOO_MUCH: list[tuple[dict[str, Any], list[dict[str, Any]], str]] = [
    # One replica.
    (serving({"num_cpus": 64}), [gpus(8)], f"{REPLICA} 64 CPUs and 0 GPUs of one pod"),
    (serving({"num_gpus": 1}), [{}], f"{REPLICA} 1 CPUs and 1 GPUs of one pod"),
    (serving({"num_gpus": 0.5}), [{}], f"{REPLICA} 1 CPUs and 0.5 GPUs of one pod"),
    (serving({"num_gpus": 1}, tensor_parallel_size=4), [gpus(2, replicas=8)], f"{REPLICA} 1 CPUs and 4 GPUs"),
    (
        serving({"num_gpus": 1}, tensor_parallel_size=2, pipeline_parallel_size=4),
        [gpus(4, replicas=4)],
        f"{REPLICA} 1 CPUs and 8 GPUs",
    ),
    # Cores and GPUs must be the same pod's.
    (serving({"num_cpus": 8, "num_gpus": 1}), [{"cpus": 64}, {"name": "gpu", "gpus": 8}], f"{REPLICA} 8 CPUs and 1"),
    (
        {"embeddings": [{"placement": {"num_gpus": 0.2}}]},
        [{"cpus": 8}],
        "serving.embeddings.0: a replica needs 0.25 CPUs and 0.2 GPUs of one pod",
    ),
    ({"gateway": {"placement": {"num_cpus": 4}}}, [{"cpus": 2}], "serving.gateway: a replica needs 4 CPUs"),
    ({"generate": {"placement": {"num_gpus": 1}}}, [{}], "serving.generate: a replica needs 1 CPUs and 1 GPUs"),
    (
        {"rerankers": [{"source": "/models/bge", "placement": {"num_gpus": 0.5}}]},
        [{"cpus": 8}],
        "serving.rerankers.0: a replica needs 0.25 CPUs and 0.5 GPUs",
    ),
    (
        {"pipeline": {"preprocess": {"placement": {"num_cpus": 3}}}},
        [{"cpus": 2, "replicas": 4}],
        "serving.pipeline.preprocess: a replica needs 3 CPUs",
    ),
    # All replicas.
    (
        {"pipeline": {"summary": {"scaling": {"num_replicas": 20}}}},
        [{}],
        "serving: all replicas together need 2.76 CPUs, and the workers have 2",
    ),
    (
        serving({"num_cpus": 1}, {"num_replicas": 9}),
        [{"cpus": 2, "replicas": 4}],
        "serving: all replicas together need 9 CPUs, and the workers have 8",
    ),
    (
        serving({"num_gpus": 1}, {"autoscaling_config": {"max_replicas": 3}}, tensor_parallel_size=4),
        [gpus(8)],
        "serving: all replicas together need 12 GPUs, and the workers have 8",
    ),
    (
        serving({"num_gpus": 0.5}, {"num_replicas": 3}),
        [gpus(1)],
        "serving: all replicas together need 1.5 GPUs, and the workers have 1",
    ),
]


@pytest.mark.parametrize(("settings", "workers", "problem"), TOO_MUCH, ids=[problem for *_, problem in TOO_MUCH])
def test_replicas_that_would_wait_for_ever_are_refused(
    settings: dict[str, Any], workers: list[dict[str, Any]], problem: str
) -> None:
    with pytest.raises(SettingsError) as raised:
        config.parse({"serving": settings, "workers": workers}, "Pulumi.test.yaml")
    (line,) = str(raised.value).splitlines()[1:]
    assert line.strip().startswith(problem)
    assert "; fix: raise " in line


@pytest.mark.parametrize(
    ("settings", "workers"),
    [
        (serving({"num_gpus": 1}, {"num_replicas": 2}, tensor_parallel_size=4), [gpus(8)]),
        (serving({"num_gpus": 1}, {"num_replicas": 2}, tensor_parallel_size=4), [{}, gpus(4, replicas=2)]),
        (serving({"num_gpus": 0.5}, {"num_replicas": 2}), [gpus(1)]),
        # Pipeline stages may be on several pods.
        (serving({"num_gpus": 1, "strategy": "PACK"}, pipeline_parallel_size=4), [gpus(1, replicas=4)]),
        (serving({"num_cpus": 2}, {"num_replicas": 4}), [{"cpus": 2, "replicas": 4}]),
    ],
)
def test_replicas_that_just_fit_are_taken(settings: dict[str, Any], workers: list[dict[str, Any]]) -> None:
    assert config.parse({"serving": settings, "workers": workers}, "Pulumi.test.yaml").serving.models


def test_unknown_stack_names_the_known_ones() -> None:
    with pytest.raises(SettingsError, match="local"):
        config.from_file("lokal")


@pytest.mark.parametrize("content", ["config: [", "- 1", "config: 3"])
def test_unreadable_stack_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "Pulumi.test.yaml").write_text(content)
    with pytest.raises(SettingsError, match=r"Pulumi\.test\.yaml"):
        config.from_file("test", tmp_path)


def test_other_programs_keys_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "Pulumi.test.yaml").write_text("config: {'aws:region': eu-west-1}\nencryptionsalt: v1:x\n")
    assert config.from_file("test", tmp_path) == config.StackConfig()
