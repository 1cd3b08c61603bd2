"""What a stack file may say, and how it is told when it is wrong."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import SettingsError
from infra import config
from infra.config import ROOT, ExistingCluster, NativeCluster

STACKS = sorted(path.name.split(".")[1] for path in ROOT.glob("Pulumi.*.yaml"))


def stack_file(directory: Path, values: object) -> Path:
    content = (
        {"config": {f"blueprint:{key}": value for key, value in values.items()}} if isinstance(values, dict) else 1
    )
    (directory / "Pulumi.test.yaml").write_text(yaml.safe_dump(content))
    return directory


@pytest.mark.parametrize("stack", STACKS)
def test_every_committed_stack_is_valid(stack: str) -> None:
    assert config.from_file(stack).serving.models


def test_local_is_the_native_cluster_with_the_default_settings() -> None:
    stack = config.from_file("local")
    assert stack == config.StackConfig()
    assert isinstance(stack.cluster, NativeCluster)


def test_existing_cluster(tmp_path: Path) -> None:
    values = {"cluster": {"kind": "existing", "context": "kind-dev", "kubeconfig": "~/kc"}}
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


def serving(placement: dict[str, Any], scaling: dict[str, Any] | None = None, **engine: int) -> dict[str, Any]:
    """Settings of one language model only."""
    variant = {"engine": engine, "placement": placement, "scaling": scaling or {}}
    return {"models": [{"variants": [variant]}], "embeddings": [], "gateway": {"placement": {"num_cpus": 0}}}


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
    # All replicas.
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
