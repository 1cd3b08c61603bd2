"""What a stack file may say, and how it is told when it is wrong."""

from pathlib import Path

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
        ({"head": {"memory_gib": 1}}, ["head.memory_gib", "1", "2"]),
        ({"namespace": "Not_A_Name"}, ["namespace", "Not_A_Name"]),
        ({"serving": {"models": [{"nam": "chat"}]}}, ["serving.models.0.nam", "name"]),
        ({"serving": {"models": [{"scaling": {"num_replicas": 9}}]}}, ["serving.models", "workers"]),
        ({"serving": {"models": [{"scaling": {"num_cpus": 64}}]}}, ["num_cpus", "64", "workers"]),
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
