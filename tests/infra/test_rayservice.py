"""The rendered RayService against the CRD of the pinned KubeRay, and against what we promise of it."""

from pathlib import Path, PurePosixPath
from typing import Any

import jsonschema
import pytest
import yaml

from app import keys, settings
from app.keys import Key, KeysFile
from infra import versions
from infra.config import KEYS_FILE, LOCAL_KEY, ROOT, StackConfig, WorkerGroup, from_file
from infra.platform import kuberay
from infra.serving.rayservice import keys_name, keys_secret, rayservice

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


def applications(stack: StackConfig) -> dict[str, dict[str, Any]]:
    rendered = yaml.safe_load(rayservice("llm", stack)["spec"]["serveConfigV2"])
    return {application["name"]: application for application in rendered["applications"]}


def test_each_part_of_the_stacks_settings_is_an_application() -> None:
    values = {
        "models": [{"variants": [{"scaling": {"max_ongoing_requests": 7}}, {"name": "canary"}]}],
        "generate": {"placement": {"num_cpus": 0.5}},
    }
    stack = StackConfig(serving=settings.parse(values), workers=[WorkerGroup(cpus=4)])
    found = applications(stack)
    assert found.keys() == {"chat@stable", "chat@canary", "generate", "nlp", "gateway"}
    (variant,) = settings.parse(found["chat@stable"]["args"]).models[0].variants
    assert variant == stack.serving.models[0].variants[0]
    assert settings.parse(found["generate"]["args"]).generate == stack.serving.generate
    assert [name for name, application in found.items() if application["route_prefix"]] == ["gateway"]


def test_batching_is_user_config_so_that_it_changes_live() -> None:
    values = {"embeddings": [{"batching": {"max_batch_size": 8}}]}
    stack = StackConfig(serving=settings.parse(values))
    nlp = applications(stack)["nlp"]
    told = {deployment["name"]: deployment["user_config"] for deployment in nlp["deployments"]}
    assert told["Embeddings:embed"] == stack.serving.embeddings[0].batching.model_dump()
    assert "batching" not in str(nlp["args"])


def test_the_gateway_reads_the_keys_where_the_workers_have_them() -> None:
    found = applications(StackConfig())
    assert settings.parse(found.pop("gateway")["args"]).auth.keys_file == KEYS_FILE
    assert not any("keys_file" in str(application) for application in found.values())


def test_the_gateway_keeps_what_else_the_stack_says_of_auth() -> None:
    stack = StackConfig(serving=settings.parse({"auth": {"redis_url": "rediss://redis:6379/0"}}))
    auth = settings.parse(applications(stack)["gateway"]["args"]).auth
    assert (auth.keys_file, auth.redis_url) == (KEYS_FILE, "rediss://redis:6379/0")


SECRET = "sk-a-key-that-nobody-guesses"  # noqa: S105
TEAM = Key(name="team", sha256=keys.digest(SECRET), models=["chat"], requests_per_minute=60)


def written(stack: StackConfig) -> KeysFile:
    """The file in the Secret, as the application reads it."""
    ((name, content),) = keys_secret("llm", stack)["stringData"].items()
    assert KEYS_FILE.endswith(f"/{name}")
    return KeysFile.model_validate(yaml.safe_load(content))


def test_the_secret_has_hashes_and_no_key() -> None:
    stack = StackConfig(keys=[TEAM])
    assert written(stack).keys == [TEAM]
    assert written(StackConfig()).keys == [Key(name="local", sha256=keys.digest(LOCAL_KEY))]
    assert "sk-" not in str(keys_secret("llm", stack))
    assert "sk-" not in str(keys_secret("llm", StackConfig()))


def test_the_application_reads_the_secrets_file(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    (content,) = keys_secret("llm", StackConfig(keys=[TEAM]))["stringData"].values()
    file.write_text(content)
    ring = keys.KeyRing(file)
    assert ring.find(SECRET) == TEAM
    assert ring.find(LOCAL_KEY) is None


def test_the_rayservice_itself_holds_no_key_and_no_hash() -> None:
    """Other keys are another Secret, and not another RayService, which would be another cluster."""
    with_key, without = rayservice("llm", StackConfig(keys=[TEAM])), rayservice("llm", StackConfig())
    assert with_key == without
    assert TEAM.sha256 not in str(with_key)


def test_workers_mount_the_secret_and_the_head_does_not() -> None:
    stack = StackConfig(workers=[WorkerGroup(), GPUS])
    cluster = rayservice("llm", stack)["spec"]["rayClusterConfig"]
    secret = keys_secret("llm", stack)["metadata"]
    assert secret == {"name": keys_name("llm"), "namespace": stack.namespace}
    for group in cluster["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        (volume,) = (volume for volume in pod["volumes"] if "secret" in volume)
        assert volume["secret"] == {"secretName": secret["name"]}
        (mount,) = (mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == volume["name"])
        # The directory, not the file: a subPath would never see another version of the Secret.
        assert mount == {"name": volume["name"], "mountPath": str(PurePosixPath(KEYS_FILE).parent), "readOnly": True}
    assert "secret" not in str(cluster["headGroupSpec"]).lower()


GPUS = WorkerGroup(name="h100", replicas=3, cpus=96, gpus=8, memory_gib=900)


def test_workers_tell_kubernetes_and_ray_of_their_gpus(crd: jsonschema.Draft202012Validator) -> None:
    manifest = rayservice("llm", StackConfig(workers=[WorkerGroup(), GPUS]))
    crd.validate(manifest)
    cpu, gpu = manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert (gpu["groupName"], gpu["minReplicas"], gpu["replicas"], gpu["maxReplicas"]) == ("h100", 3, 3, 3)
    assert gpu["rayStartParams"] == {"num-cpus": "96", "num-gpus": "8"}
    assert limits(gpu) == {"cpu": "96", "memory": "900Gi", "nvidia.com/gpu": "8"}
    assert cpu["rayStartParams"] == {"num-cpus": "2", "num-gpus": "0"}
    assert limits(cpu) == {"cpu": "2", "memory": "12Gi"}


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
