"""The rendered RayService against the CRD of the pinned KubeRay, and against what we promise of it."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

import jsonschema
import pytest
import yaml

from app import keys, settings
from app.keys import Key
from infra import versions
from infra.clusters import ExistingCluster
from infra.config import KEYS_FILE, ROOT, GcsFaultTolerance, Operator, SecretKey, StackConfig, WorkerGroup, from_file
from infra.platform.kuberay import chart_arguments, operator_objects
from infra.serving.access import accounts, keys_name, keys_secret, token_name
from infra.serving.pods import RESTRICTED
from infra.serving.rayservice import rayservice
from infra.upgrade import Incremental, NewCluster, NoUpgrade, Upgrade
from tests.infra import schemas

STACKS = sorted(path.name.split(".")[1] for path in ROOT.glob("Pulumi.*.yaml"))


@pytest.mark.parametrize("stack", STACKS)
def test_every_stack_renders_a_valid_rayservice(stack: str) -> None:
    schemas.validate(rayservice("llm", from_file(stack)))


def test_the_check_finds_a_misspelt_field() -> None:
    manifest = rayservice("llm", StackConfig())
    manifest["spec"]["rayClusterConfig"]["headGroupSpec"]["rayStartParam"] = {}
    with pytest.raises(jsonschema.ValidationError, match="rayStartParam"):
        schemas.validate(manifest)


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


def test_head_and_workers_have_the_applications_environment() -> None:
    tracing = {"tracing": {"endpoint": "http://collector:4318"}}
    stack = StackConfig(serving=settings.parse(tracing), workers=[WorkerGroup(), GPUS])
    cluster = rayservice("llm", stack)["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        variables = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert settings.environment(stack.serving).items() <= variables.items()


TEAM = Key(name="team", sha256=keys.digest("sk-a-key-that-nobody-guesses"))


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


GPUS = WorkerGroup(name="h100", min_replicas=3, max_replicas=3, cpus=96, gpus=8, memory_gib=900)


def test_workers_tell_kubernetes_and_ray_of_their_gpus() -> None:
    manifest = rayservice("llm", StackConfig(workers=[WorkerGroup(), GPUS]))
    schemas.validate(manifest)
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


def test_the_head_is_asked_early_whether_it_is_ready_and_as_patiently_as_kuberay_does() -> None:
    """Serve is told of its applications then. KubeRay asks the same from 10 s on, every 5 s, and minds the tenth no."""
    head = rayservice("llm", StackConfig())["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
    probe = head["containers"][0]["readinessProbe"]
    assert probe["httpGet"] == {"path": "/api/healthz", "port": 52365}
    assert probe["initialDelaySeconds"] + probe["periodSeconds"] < 5
    assert probe["periodSeconds"] * probe["failureThreshold"] == 5 * 10


@contextmanager
def wait_for_head(address: str) -> Iterator[subprocess.Popen[str]]:
    """A worker's init container, as a process, whose head has this address, once it waits."""
    (group,) = rayservice("llm", StackConfig())["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["initContainers"]
    environment = {**os.environ, "FQ_RAY_IP": address}
    with subprocess.Popen(container["command"], env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == f"waiting for the head at {address}:6379\n"
            yield process
        finally:
            process.kill()


def test_a_worker_begins_when_its_head_takes_connections() -> None:
    with wait_for_head("127.0.77.1") as waits, socket.socket() as head:
        assert waits.poll() is None
        head.bind(("127.0.77.1", 6379))
        head.listen()
        assert waits.wait(timeout=60) == 0


def test_a_worker_that_waits_ends_when_it_is_told_to() -> None:
    """Bash as a container's first process would otherwise take no notice, for all of a worker's grace period."""
    with wait_for_head("127.0.77.2") as waits:
        waits.terminate()
        assert waits.wait(timeout=60) == 128 + signal.SIGTERM


def test_kuberay_has_no_workers_wait_by_its_own_means() -> None:
    (deployment,) = (item for item in operator_objects(Operator(), "serving") if item["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    chart = chart_arguments("oci://charts/kuberay-operator", "operator", "serving")
    for environment in (container["env"], chart["values"]["env"]):
        assert {"name": "ENABLE_INIT_CONTAINER_INJECTION", "value": "false"} in environment


def limits(group: dict[str, Any]) -> dict[str, str]:
    (container,) = group["template"]["spec"]["containers"]
    return container["resources"]["limits"]


def test_pods_are_restricted_and_the_dashboard_wants_a_token() -> None:
    cluster = rayservice("llm", StackConfig())["spec"]["rayClusterConfig"]
    assert cluster["rayVersion"] == versions.RAY
    assert cluster["authOptions"] == {"mode": "token", "secretName": token_name("llm")}
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        assert pod["serviceAccountName"] in {account["metadata"]["name"] for account in accounts("llm", StackConfig())}
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["image"].split(":")[-1] != "latest"


ROOM = StackConfig(workers=[WorkerGroup(), WorkerGroup(name="more", min_replicas=0, max_replicas=4)])


def test_a_stack_of_fixed_size_has_no_autoscaler() -> None:
    cluster = rayservice("llm", StackConfig(workers=[WorkerGroup(), GPUS]))["spec"]["rayClusterConfig"]
    assert "enableInTreeAutoscaling" not in cluster
    assert "projected" not in str(cluster["headGroupSpec"])


def test_a_group_with_room_to_grow_is_the_autoscalers() -> None:
    manifest = rayservice("llm", ROOM.model_copy(update={"idle_timeout_seconds": 90}))
    schemas.validate(manifest)
    cluster = manifest["spec"]["rayClusterConfig"]
    assert cluster["enableInTreeAutoscaling"] is True
    options = cluster["autoscalerOptions"]
    assert (options["version"], options["idleTimeoutSeconds"]) == ("v2", 90)
    _, more = cluster["workerGroupSpecs"]
    assert (more["minReplicas"], more["replicas"], more["maxReplicas"]) == (0, 0, 4)
    # KubeRay sets Never for autoscaler v2, and refuses any other that it finds.
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert "restartPolicy" not in group["template"]["spec"]


def test_the_autoscaler_is_restricted_and_alone_has_a_token_of_the_kubernetes_api() -> None:
    cluster = rayservice("llm", ROOM)["spec"]["rayClusterConfig"]
    options = cluster["autoscalerOptions"]
    (ray,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    assert options["securityContext"] == ray["securityContext"]
    volumes = {volume["name"]: volume for volume in cluster["headGroupSpec"]["template"]["spec"]["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in options["volumeMounts"]}
    # https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/autoscaler/_private/kuberay/node_provider.py
    token = mounts.pop("/var/run/secrets/kubernetes.io/serviceaccount")
    paths = [source[kind] for source in volumes[token]["projected"]["sources"] for kind in source]
    assert [path.get("path") or path["items"][0]["path"] for path in paths] == ["token", "ca.crt", "namespace"]
    assert mounts == {"/tmp": "tmp"}
    assert token not in [mount["name"] for mount in ray["volumeMounts"]]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert group["template"]["spec"]["automountServiceAccountToken"] is False


def test_other_bounds_are_another_pod_template() -> None:
    """All else that they change, KubeRay leaves out of its comparison, and so changes nothing."""

    def template(low: int, high: int) -> dict[str, Any]:
        stack = StackConfig(workers=[WorkerGroup(min_replicas=low, max_replicas=high)])
        (group,) = rayservice("llm", stack)["spec"]["rayClusterConfig"]["workerGroupSpecs"]
        return group["template"]

    assert template(1, 2) != template(1, 3)
    assert template(1, 2) != template(2, 2)
    assert template(1, 2) == template(1, 2)


def upgraded(upgrade: Upgrade) -> dict[str, Any]:
    """A stack that may be upgraded in any way."""
    cluster = ExistingCluster(contexts=["dev"], models_path="/srv/models")
    workers = [WorkerGroup(max_replicas=2)]
    return rayservice("llm", StackConfig(cluster=cluster, keys=[TEAM], workers=workers, upgrade=upgrade))


INCREMENTAL = Incremental(gateway_class_name="envoy", max_surge_percent=20, step_size_percent=5, interval_seconds=15)


@pytest.mark.parametrize("upgrade", [NewCluster(), INCREMENTAL, NoUpgrade()], ids=lambda upgrade: upgrade.kind)
def test_the_strategy_is_kuberays(upgrade: Upgrade) -> None:
    manifest = upgraded(upgrade)
    schemas.validate(manifest)
    assert manifest["spec"]["upgradeStrategy"]["type"] == upgrade.kind
    annotations = manifest["metadata"]["annotations"]
    assert annotations["pulumi.com/waitFor"] == '["condition=Ready","condition=UpgradeInProgress=False"]'


def test_an_incremental_upgrade_has_its_options_and_the_time_for_them() -> None:
    manifest = upgraded(INCREMENTAL)
    assert manifest["spec"]["upgradeStrategy"]["clusterUpgradeOptions"] == {
        "gatewayClassName": "envoy",
        "maxSurgePercent": 20,
        "stepSizePercent": 5,
        "intervalSeconds": 15,
    }
    assert manifest["spec"]["rayClusterConfig"]["enableInTreeAutoscaling"] is True
    assert manifest["metadata"]["annotations"]["pulumi.com/timeoutSeconds"] == str(5 * 900 + 20 * 15)


@pytest.mark.parametrize("upgrade", [NewCluster(), NoUpgrade()], ids=lambda upgrade: upgrade.kind)
def test_other_strategies_have_no_options(upgrade: Upgrade) -> None:
    """KubeRay would refuse none of them, and heed none."""
    manifest = upgraded(upgrade)
    assert manifest["spec"]["upgradeStrategy"].keys() == {"type"}
    assert manifest["metadata"]["annotations"]["pulumi.com/timeoutSeconds"] == "900"


PASSWORD = SecretKey(name="redis", key="password")


def test_the_heads_state_is_in_redis() -> None:
    redis = GcsFaultTolerance(redis_address="rediss://state.example.com:6379", redis_password=PASSWORD)
    manifest = rayservice("llm", StackConfig(gcs_fault_tolerance=redis))
    schemas.validate(manifest)
    # And no externalStorageNamespace, which two Ray clusters of one RayService would share.
    assert manifest["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"] == {
        "redisAddress": "rediss://state.example.com:6379",
        "redisPassword": {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}},
    }


def test_a_redis_without_password_and_none() -> None:
    redis = GcsFaultTolerance(redis_address="redis:6379")
    manifest = rayservice("llm", StackConfig(gcs_fault_tolerance=redis))
    schemas.validate(manifest)
    assert manifest["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"] == {"redisAddress": "redis:6379"}
    assert "gcsFaultToleranceOptions" not in rayservice("llm", StackConfig())["spec"]["rayClusterConfig"]


def test_workers_have_the_password_of_the_gateways_redis_from_its_secret_and_the_head_has_not() -> None:
    serving = settings.parse({"auth": {"redis_url": "rediss://redis:6379/0"}})
    stack = StackConfig(serving=serving, redis_password=PASSWORD, workers=[WorkerGroup(), GPUS])
    manifest = rayservice("llm", stack)
    schemas.validate(manifest)
    variable = {"name": "REDIS_PASSWORD", "valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}}
    cluster = manifest["spec"]["rayClusterConfig"]
    for group in cluster["workerGroupSpecs"]:
        assert variable in group["template"]["spec"]["containers"][0]["env"]
    assert "REDIS_PASSWORD" not in str(cluster["headGroupSpec"])
    assert "REDIS_PASSWORD" not in str(rayservice("llm", StackConfig(serving=serving)))


def test_the_pod_that_cleans_up_redis_is_a_head_that_the_namespace_takes() -> None:
    """KubeRay makes it of the head's template: first container, volumes, security. It sets limits of its own."""
    head = rayservice("llm", StackConfig())["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
    (container,) = head["containers"]
    assert "initContainers" not in head
    assert container["securityContext"] == RESTRICTED
    assert head["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    # KubeRay sets these, and refuses a RayService that has them already.
    assert not {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS"} & {variable["name"] for variable in container["env"]}


PATIENT = {"graceful_shutdown_timeout_s": 299.5}


@pytest.mark.parametrize(
    ("values", "drain", "grace", "delay"),
    [
        ({}, "50", 60, 60),
        ({"models": [{"variants": [{}, {"name": "canary", "scaling": PATIENT}]}]}, "330", 340, 320),
        ({"gateway": {"scaling": PATIENT}}, "330", 340, 320),
        ({"pipeline": {"summary": {"scaling": PATIENT}}}, "330", 340, 320),
    ],
    ids=["default", "a variant", "the gateway", "a stage of the pipeline"],
)
def test_workers_have_the_time_that_the_most_patient_deployment_takes(
    values: dict[str, Any], drain: str, grace: int, delay: int
) -> None:
    manifest = rayservice("llm", StackConfig(serving=settings.parse(values), workers=[WorkerGroup(cpus=4), GPUS]))
    schemas.validate(manifest)
    assert manifest["spec"]["rayClusterDeletionDelaySeconds"] == delay
    cluster = manifest["spec"]["rayClusterConfig"]
    # It would wait for itself.
    assert "terminationGracePeriodSeconds" not in cluster["headGroupSpec"]["template"]["spec"]
    for group in cluster["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        environment = {variable["name"]: variable["value"] for variable in pod["containers"][0]["env"]}
        assert environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] == drain
        # Kubernetes must not cut Ray off.
        assert pod["terminationGracePeriodSeconds"] == grace > int(drain)
