"""Built-in weights reach the pods from their node, without hostPath in any pod."""

from typing import Any

import pytest

from app import settings
from app.builtin import models_dir
from app.keys import Key, digest
from infra.clusters import ExistingCluster
from infra.config import StackConfig, WorkerGroup
from infra.serving.models import model_volume
from infra.serving.rayservice import rayservice
from tests.infra import schemas

KEY = Key(name="team", sha256=digest("sk-a-key-that-nobody-guesses"))
REAL = settings.parse(
    {
        "models": [{"variants": [{"source": "s3://weights/llama"}]}],
        **{"embeddings": [], "rerankers": [], "generate": None, "pipeline": None},
    }
)


def pods(stack: StackConfig) -> list[dict[str, Any]]:
    cluster = rayservice("llm", stack)["spec"]["rayClusterConfig"]
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_a_directory_of_the_node_is_a_volume_to_read() -> None:
    volume, claim = model_volume("llm", StackConfig())
    schemas.validate(volume)
    schemas.validate(claim)
    assert volume["spec"]["hostPath"]["path"] == str(models_dir())
    # Bound to each other, and no other claim gets the volume, nor the claim a new one.
    assert volume["spec"]["claimRef"] == claim["metadata"]
    assert claim["spec"]["volumeName"] == volume["metadata"]["name"]
    for spec in (volume["spec"], claim["spec"]):
        assert (spec["accessModes"], spec["storageClassName"]) == (["ReadOnlyMany"], "")


def test_head_and_workers_find_the_models_where_the_application_looks() -> None:
    stack = StackConfig(workers=[WorkerGroup(), WorkerGroup(name="more")])
    (_, claim) = model_volume("llm", stack)
    for pod in pods(stack):
        (volume,) = (volume for volume in pod["volumes"] if volume["name"] == "models")
        assert volume["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"], "readOnly": True}
        (container,) = pod["containers"]
        (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == "models")
        assert mount["readOnly"] is True
        (cache,) = (variable["value"] for variable in container["env"] if variable["name"] == "BLUEPRINT_CACHE")
        assert mount["mountPath"] == f"{cache}/models"
        assert "hostPath" not in str(pod)


@pytest.mark.parametrize("path", ["/srv/models", None])
def test_weights_from_elsewhere_need_no_volume(path: str | None) -> None:
    stack = StackConfig(cluster=ExistingCluster(contexts=["c"], models_path=path), serving=REAL, keys=[KEY])
    assert model_volume("llm", stack) == []
    assert "models" not in str([pod["volumes"] for pod in pods(stack)])


def test_another_directory_is_another_volume() -> None:
    """What a PersistentVolume points to cannot be changed, and a claim that pods use cannot be deleted."""
    one, other = (
        model_volume("llm", StackConfig(cluster=ExistingCluster(contexts=["c"], models_path=path), keys=[KEY]))
        for path in ("/srv/models", "/srv/others")
    )
    assert one[0]["spec"]["hostPath"]["path"] == "/srv/models"
    assert one[0]["metadata"]["name"] != other[0]["metadata"]["name"]
