"""The rendered RayService against the CRD of the pinned KubeRay, and against what we promise of it."""

from typing import Any

import jsonschema
import pytest
import yaml

from app import settings
from infra import versions
from infra.config import ROOT, StackConfig, WorkerGroup, from_file
from infra.platform import kuberay
from infra.serving.rayservice import rayservice

STACKS = sorted(path.name.split(".")[1] for path in ROOT.glob("Pulumi.*.yaml"))


def strict(schema: Any) -> Any:
    """A CRD's schema as JSON schema that refuses unknown fields, which the API server would drop in silence."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    result = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result


@pytest.fixture(scope="session")
def crd() -> jsonschema.Draft202012Validator:
    found = {crd["metadata"]["name"]: crd for crd in kuberay.manifests("kuberay-crds")}["rayservices.ray.io"]
    schema = next(v for v in found["spec"]["versions"] if v["name"] == "v1")["schema"]["openAPIV3Schema"]
    strict_schema = strict(schema)
    strict_schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(strict_schema)


@pytest.mark.parametrize("stack", STACKS)
def test_every_stack_renders_a_valid_rayservice(stack: str, crd: jsonschema.Draft202012Validator) -> None:
    crd.validate(rayservice("llm", from_file(stack)))


def test_the_check_finds_a_misspelt_field(crd: jsonschema.Draft202012Validator) -> None:
    manifest = rayservice("llm", StackConfig())
    manifest["spec"]["rayClusterConfig"]["headGroupSpec"]["rayStartParam"] = {}
    with pytest.raises(jsonschema.ValidationError, match="rayStartParam"):
        crd.validate(manifest)


def test_application_args_are_the_settings_of_the_stack() -> None:
    values = {"models": [{"name": "other", "variants": [{"scaling": {"max_ongoing_requests": 7}}]}]}
    stack = StackConfig(serving=settings.parse(values))
    rendered = yaml.safe_load(rayservice("llm", stack)["spec"]["serveConfigV2"])
    (application,) = rendered["applications"]
    assert settings.parse(application["args"]) == stack.serving
    assert application["import_path"] == "app.main:app"


def test_batching_is_user_config_so_that_it_changes_live() -> None:
    values = {"embeddings": [{"batching": {"max_batch_size": 8}}]}
    stack = StackConfig(serving=settings.parse(values))
    (application,) = yaml.safe_load(rayservice("llm", stack)["spec"]["serveConfigV2"])["applications"]
    (deployment,) = application["deployments"]
    assert deployment["user_config"] == stack.serving.embeddings[0].batching.model_dump()
    assert "batching" not in str(application["args"])


GPUS = WorkerGroup(name="h100", replicas=3, cpus=96, gpus=8, memory_gib=900)


def test_workers_tell_kubernetes_and_ray_of_their_gpus(crd: jsonschema.Draft202012Validator) -> None:
    manifest = rayservice("llm", StackConfig(workers=[WorkerGroup(), GPUS]))
    crd.validate(manifest)
    cpu, gpu = manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert (gpu["groupName"], gpu["minReplicas"], gpu["replicas"], gpu["maxReplicas"]) == ("h100", 3, 3, 3)
    assert gpu["rayStartParams"] == {"num-cpus": "96", "num-gpus": "8"}
    assert limits(gpu) == {"cpu": "96", "memory": "900Gi", "nvidia.com/gpu": "8"}
    assert cpu["rayStartParams"] == {"num-cpus": "2", "num-gpus": "0"}
    assert limits(cpu) == {"cpu": "2", "memory": "10Gi"}


def test_the_head_runs_no_replica() -> None:
    head = rayservice("llm", StackConfig(workers=[WorkerGroup(), GPUS]))["spec"]["rayClusterConfig"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in limits(head)


def limits(group: dict[str, Any]) -> dict[str, str]:
    (container,) = group["template"]["spec"]["containers"]
    return container["resources"]["limits"]


def test_pods_are_restricted_and_the_dashboard_wants_a_token() -> None:
    cluster = rayservice("llm", StackConfig())["spec"]["rayClusterConfig"]
    assert cluster["rayVersion"] == versions.RAY
    assert cluster["authOptions"] == {"mode": "token"}
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["image"].split(":")[-1] != "latest"
