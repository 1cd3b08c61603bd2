"""The GPU profiles on a node that claims to have GPUs.

What Kubernetes and Ray schedule, admit and refuse by is real. The GPUs are not, and so vLLM's place is taken by
stub_engine.py, which says so in every answer.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.settings import NOTHING, Settings, Variant, demands, load
from infra.clusters import LOCAL_KEY
from infra.config import ROOT, Head, Operator, StackConfig, WorkerGroup
from infra.platform import kuberay
from infra.serving.access import accounts, keys_secret, token_secret
from infra.serving.rayservice import rayservice
from scripts.cluster.layout import NODE, PAUSE_IMAGE
from scripts.kubectl import Kubectl
from scripts.up import ask

NAMESPACE = "gpus"
GPU = "nvidia.com/gpu"
FAKE_GPUS = 8

READ_RAY = """
import json, ray
from ray.util import placement_group_table
ray.init("auto", log_to_driver=False, logging_level="ERROR")
groups = {group["name"]: group for group in placement_group_table().values()}
nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes()}
print(json.dumps({"groups": groups, "nodes": nodes}))
"""


def language_models(profile: str) -> Settings:
    """The language models of a shipped profile as two cores can hold them. What they want of GPUs is untouched.

    Its embedding models are left out: they would need CUDA, and have no engine that a stub could replace.
    """
    models = [
        # Each profile has a model called chat.
        model.model_copy(update={"name": f"{profile}-{model.name}", "variants": [_small(v) for v in model.variants]})
        for model in load(ROOT / "app" / "profiles" / f"{profile}.yaml").models
    ]
    return Settings(**{**NOTHING, "models": models})


def _small(variant: Variant) -> Variant:
    # Nobody waits here for answers of minutes when it is over.
    one = {"num_replicas": 1, "autoscaling_config": None, "graceful_shutdown_timeout_s": 1}
    little = {"num_cpus": 0.1, "memory_gib": None}
    return variant.model_copy(
        update={
            "scaling": variant.scaling.model_copy(update=one),
            "placement": variant.placement.model_copy(update=little),
        }
    )


PROFILES = {name: language_models(name) for name in ("l4", "h100")}
STACK = StackConfig(
    namespace=NAMESPACE,
    head=Head(cpus=1),
    workers=[
        WorkerGroup(name=name, cpus=1, gpus=math.ceil(sum(demand.gpus for demand in demands(profile))), memory_gib=4)
        for name, profile in PROFILES.items()
    ],
    serving=Settings(**{**NOTHING, "models": [model for profile in PROFILES.values() for model in profile.models]}),
)


def variants(settings: Settings) -> list[tuple[str, Variant]]:
    """Every variant and the name of its Serve deployment."""
    return [(model.deployment(variant), variant) for model in settings.models for variant in model.variants]


def with_stub(service: dict[str, Any]) -> dict[str, Any]:
    """The RayService with the stub for an engine, and with the types of its GPUs."""
    cluster = service["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        pod["volumes"].append({"name": "stub", "configMap": {"name": "stub"}})
        (container,) = pod["containers"]
        container["volumeMounts"].append({"name": "stub", "mountPath": "/opt/stub"})
        container["env"] += [
            {"name": "PYTHONPATH", "value": "/opt/app:/opt/stub"},
            {"name": "RAYLLM_VLLM_ENGINE_CLS", "value": "stub_engine.StubEngine"},
        ]
    for group in cluster["workerGroupSpecs"]:
        # With a real GPU, Ray finds out its type by itself and makes this resource of it.
        types = [variant.placement.accelerator_type for _, variant in variants(PROFILES[group["groupName"]])]
        resources = json.dumps({f"accelerator_type:{name}": 1 for name in types if name})
        group["rayStartParams"]["resources"] = f"'{resources}'"  # in quotes: it becomes part of a shell command
    return service


def apply(kubernetes: Kubectl, *objects: dict[str, Any]) -> None:
    kubernetes("apply", "--filename=-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))


@pytest.fixture(scope="module")
def fake_gpus(kubernetes: Kubectl) -> Iterator[None]:
    """The node says that it has GPUs, in the way in which a device plugin makes it say so."""

    def claim(count: int | None) -> None:
        claimed = {GPU: None if count is None else str(count)}
        status = {"status": {"capacity": claimed, "allocatable": claimed}}
        kubernetes("patch", "node", NODE, "--subresource=status", "--type=merge", f"--patch={json.dumps(status)}")

    claim(FAKE_GPUS)
    yield
    claim(None)


@pytest.fixture(scope="module")
def namespace(kubernetes: Kubectl) -> Iterator[str]:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    apply(kubernetes, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}})
    yield NAMESPACE
    kubernetes("delete", "namespace", NAMESPACE, "--timeout=600s", timeout=610)


@pytest.fixture(scope="module")
def watched(kubernetes: Kubectl, namespace: str) -> Iterator[None]:
    """The operator, which minds the stack's namespace and has rights in no other, minds this one as well."""
    apply(kubernetes, *kuberay.rights(Operator(), namespace))
    here = ("deployment/kuberay-operator", "--namespace", kuberay.NAMESPACE)
    args = kubernetes.get(*here)["spec"]["template"]["spec"]["containers"][0]["args"]

    def restart(args: list[str]) -> None:
        change = [{"op": "replace", "path": "/spec/template/spec/containers/0/args", "value": args}]
        kubernetes("patch", *here, "--type=json", f"--patch={json.dumps(change)}")
        kubernetes("rollout", "status", *here, "--timeout=300s", timeout=310)

    restart([f"{arg},{namespace}" if arg.startswith("--watch-namespace=") else arg for arg in args])
    yield
    restart(args)


@pytest.fixture(scope="module")
def service(kubernetes: Kubectl, fake_gpus: None, watched: None, namespace: str) -> Iterator[dict[str, Any]]:
    """The RayService of STACK, Ready. Its models' sources do not exist, nor is there a way out of the cluster."""
    stub = Path(__file__).with_name("stub_engine.py")
    config_map = {
        **{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "stub", "namespace": namespace}},
        "data": {stub.name: stub.read_text()},
    }
    access = (keys_secret(NAMESPACE, STACK), token_secret(NAMESPACE, STACK), *accounts(NAMESPACE, STACK))
    apply(kubernetes, config_map, *access, with_stub(rayservice(NAMESPACE, STACK)))
    patience = STACK.ready_timeout_seconds
    wait = ("wait", "rayservice", NAMESPACE, "--for=condition=Ready", f"--timeout={patience}s")
    kubernetes(*wait, "--namespace", namespace, timeout=patience + 10)
    yield kubernetes.get("rayservice", NAMESPACE, "--namespace", namespace)
    # As long as the operator minds it: it has to take its finalizer away.
    kubernetes("delete", "rayservice", NAMESPACE, "--namespace", namespace, "--timeout=300s", timeout=310)


@pytest.fixture(scope="module")
def ray(kubernetes: Kubectl, service: dict[str, Any]) -> dict[str, Any]:
    """What Ray says of its placement groups (by name) and of its nodes' resources (by id)."""
    (head,) = kubernetes.get("pods", "--namespace", NAMESPACE, "--selector", "ray.io/node-type=head")["items"]
    run = ("exec", "--namespace", NAMESPACE, head["metadata"]["name"], "--", "python", "-c", READ_RAY)
    return json.loads(kubernetes(*run, timeout=300))


def group_of(deployment: str, ray: dict[str, Any]) -> dict[str, Any]:
    """The placement group of a deployment's one replica."""
    (group,) = [group for name, group in ray["groups"].items() if deployment in name]
    assert group["state"] == "CREATED"
    return group


def test_the_rayservice_serves_all_models(service: dict[str, Any]) -> None:
    applications = service["status"]["activeServiceStatus"]["applicationStatuses"].values()
    assert {application["status"] for application in applications} == {"RUNNING"}
    deployments = {
        name: deployment["status"]
        for application in applications
        for name, deployment in application["serveDeploymentStatuses"].items()
    }
    assert deployments == dict.fromkeys(["Gateway", *dict(variants(STACK.serving))], "HEALTHY")


@pytest.mark.usefixtures("service")
def test_workers_are_given_their_gpus(kubernetes: Kubectl) -> None:
    pods = kubernetes.get("pods", "--namespace", NAMESPACE, "--selector", "ray.io/node-type=worker")["items"]
    given = {
        pod["metadata"]["labels"]["ray.io/group"]: pod["spec"]["containers"][0]["resources"]["limits"][GPU]
        for pod in pods
    }
    assert given == {group.name: str(group.gpus) for group in STACK.workers}
    for pod in pods:
        assert pod["spec"]["nodeName"] == NODE
        assert pod["status"]["phase"] == "Running"


@pytest.mark.usefixtures("service")
def test_a_pod_that_wants_more_gpus_than_are_left_stays_pending(kubernetes: Kubectl) -> None:
    left = FAKE_GPUS - sum(group.gpus for group in STACK.workers)
    metadata = {"name": "greedy", "namespace": NAMESPACE}
    container = {
        **{"name": "greedy", "image": PAUSE_IMAGE, "resources": {"limits": {GPU: str(left + 1)}}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    security = {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {"containers": [container], "securityContext": security}
    apply(kubernetes, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    try:
        wait = ("wait", "pod", "greedy", "--for=condition=PodScheduled=False", "--timeout=300s")
        kubernetes(*wait, "--namespace", NAMESPACE, timeout=310)
        status = kubernetes.get("pod", "greedy", "--namespace", NAMESPACE)["status"]
    finally:
        kubernetes("delete", "pod", "greedy", "--namespace", NAMESPACE)
    assert status["phase"] == "Pending"
    (reason,) = [condition["message"] for condition in status["conditions"] if condition["type"] == "PodScheduled"]
    assert f"Insufficient {GPU}" in reason


def test_a_tensor_parallel_engine_has_whole_gpus_of_one_node(ray: dict[str, Any]) -> None:
    parallel = [(name, variant) for name, variant in variants(STACK.serving) if variant.engine.tensor_parallel_size > 1]
    assert parallel
    for deployment, variant in parallel:
        group = group_of(deployment, ray)
        assert [bundle["GPU"] for bundle in group["bundles"].values()] == [1] * variant.engine.tensor_parallel_size
        assert group["strategy"] == "STRICT_PACK"
        assert len(set(group["bundles_to_node_id"].values())) == 1


def test_a_fractional_engine_has_its_share_of_a_gpu(ray: dict[str, Any]) -> None:
    fractional = [(name, variant) for name, variant in variants(STACK.serving) if 0 < variant.placement.num_gpus < 1]
    assert fractional
    for deployment, variant in fractional:
        (bundle,) = group_of(deployment, ray)["bundles"].values()
        assert bundle["GPU"] == variant.placement.num_gpus


def test_an_engine_is_where_its_type_of_gpu_is(ray: dict[str, Any]) -> None:
    typed = [(name, variant) for name, variant in variants(STACK.serving) if variant.placement.accelerator_type]
    assert typed
    for deployment, variant in typed:
        for node in group_of(deployment, ray)["bundles_to_node_id"].values():
            assert f"accelerator_type:{variant.placement.accelerator_type}" in ray["nodes"][node]


@pytest.mark.usefixtures("service")
@pytest.mark.parametrize("model", [model.name for model in STACK.serving.models])
def test_the_stub_answers_for_each_model(kubernetes: Kubectl, model: str) -> None:
    answer = ask(kubernetes, NAMESPACE, f"{NAMESPACE}-serve-svc", model, LOCAL_KEY)
    assert answer == f"I am a stub without a GPU, in place of the model {model}."
