"""What `make doctor` says of this machine and of a cluster: made-up objects, fakes of kubectl and of tools."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from infra import versions
from infra.aws.config import POOL
from infra.config import PROJECT, StackConfig
from infra.platform import kuberay
from scripts import cluster as native
from scripts import engine, kubectl, packages, tools
from scripts.cluster import images, preflight
from scripts.console import Problem
from scripts.doctor import NOTE, OK, UNKNOWN, WRONG, Check, __main__, check, cluster, machine
from scripts.observe import Object
from tests.infra.made_up import GPUS, eks_stack
from tests.unit.made_up import pod


def by_name(checks: Iterable[Check]) -> dict[str, Check]:
    return {check.about: check for check in checks}


def operator(image: str, ready: int = 1) -> Object:
    container = {"image": image}
    template = {"metadata": {"labels": {"app.kubernetes.io/component": "kuberay-operator"}}}
    return {
        "metadata": {"name": "kuberay-operator", "namespace": kuberay.NAMESPACE, "managedFields": [{"manager": OURS}]},
        "spec": {"template": {**template, "spec": {"containers": [container]}}},
        "status": {"readyReplicas": ready},
    }


def crd(name: str, *fields: str) -> Object:
    properties = {"spec": {"type": "object", "properties": {field: {"type": "string"} for field in fields}}}
    version = {"name": "v1", "schema": {"openAPIV3Schema": {"type": "object", "properties": properties}}}
    return {"metadata": {"name": name}, "spec": {"versions": [version]}}


def node(name: str, gpus: int) -> Object:
    return {
        "metadata": {"name": name, "labels": {POOL: "l4"}},
        "status": {"allocatable": {"nvidia.com/gpu": str(gpus)}},
    }


CRDS = [crd("rayservices.ray.io", "upgradeStrategy", "serveConfigV2"), crd("rayclusters.ray.io")]
OURS = f"{PROJECT}-dev"
HEAD = pod("llm-head")
HEAD["metadata"]["labels"]["ray.io/node-type"] = "head"
HEAD["spec"]["containers"][0]["image"] = "registry/team:abc"


class FakeKubectl(kubectl.Kubectl):
    """Of a cluster where all is well; `there` has by kind what is another way, None for what one may not list."""

    def __init__(
        self, may: bool = True, said: str = f"{versions.RAY} {versions.VLLM}", **there: list[Object] | None
    ) -> None:
        self.may, self.said = may, said
        well = {
            "deployments": [operator(f"quay.io/kuberay/operator:v{versions.KUBERAY}")],
            "customresourcedefinitions": CRDS,
            "nodes": [node("gpu-1", 1)],
            "pods": [HEAD],
        }
        self.there: dict[str, list[Object] | None] = {**well, **there}

    def __call__(self, *arguments: str, stdin: str | None = None, timeout: float = 60) -> str:
        match arguments:
            case ("version", *_):
                return json.dumps({"serverVersion": {"gitVersion": f"v{versions.KUBERNETES}"}})
            case ("create", *_):
                return json.dumps({"status": {"allowed": self.may}})
            case ("exec", *_):
                return f"{self.said}\n"
            case ("get", _, *_) if "--show-managed-fields" in arguments:  # whose they are: tests/unit/test_ownership.py
                return ""
            case ("get", kind, *_):
                if self.there[kind] is None:
                    raise Problem(f"kubectl get failed: {kind} is forbidden", "")
                return json.dumps({"items": self.there[kind]})
        raise Problem(f"the fake does not know {arguments}", "")


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Check]]:
    """What is found of a stack with GPUs through a fake kubectl."""

    def looked(stack: StackConfig | None = None, **there: Any) -> dict[str, Check]:
        monkeypatch.setattr(kuberay, "manifests", lambda _: CRDS)
        monkeypatch.setattr(kubectl, "connect", lambda _: FakeKubectl(**there))
        return by_name(cluster.checks("dev", stack or eks_stack({**GPUS}, entry=None)))

    return looked


def test_a_cluster_where_all_is_well(look: Callable[..., dict[str, Check]]) -> None:
    found = look()
    assert {check.state for check in found.values()} == {OK}
    assert found["GPUs of l4"].found == "gpu-1 1"
    assert found["Ray and vLLM"].found == f"ray {versions.RAY}, vllm {versions.VLLM} in registry/team:abc"


@pytest.mark.parametrize(
    ("about", "state", "says", "there"),
    [
        ("rights", WRONG, "you may not create namespaces, customresourcedefinitions, clusterroles", {"may": False}),
        ("operator", NOTE, "no KubeRay operator yet", {"deployments": []}),
        (
            "operator",
            WRONG,
            f"operator:v1.5.0, the ledger says {versions.KUBERAY}",
            {"deployments": [operator("kuberay/operator:v1.5.0")]},
        ),
        ("operator", WRONG, "is not ready", {"deployments": [operator(f"kuberay/operator:v{versions.KUBERAY}", 0)]}),
        ("CRDs kuberay-crds", NOTE, "none yet", {"customresourcedefinitions": []}),
        (
            "CRDs kuberay-crds",
            WRONG,
            "rayservices.ray.io is missing",
            {"customresourcedefinitions": CRDS[1:]},
        ),
        (
            "GPUs of l4",
            WRONG,
            "a node should offer 1 nvidia.com/gpu: gpu-2 0",
            {"nodes": [node("gpu-1", 1), node("gpu-2", 0)]},
        ),
        ("GPUs of l4", NOTE, "no node yet", {"nodes": []}),
        ("GPUs of l4", UNKNOWN, "nodes is forbidden", {"nodes": None}),
        ("Ray and vLLM", NOTE, "no Ray pod runs yet", {"pods": []}),
        (
            "Ray and vLLM",
            WRONG,
            f"the ledger says {versions.RAY} and {versions.VLLM}",
            {"said": f"2.50.0 {versions.VLLM}"},
        ),
    ],
)
def test_what_is_not_well(
    look: Callable[..., dict[str, Check]], about: str, state: str, says: str, there: dict[str, Any]
) -> None:
    found = look(**there)[about]
    assert found.state == state
    assert says in found.found
    assert found.fix


def test_a_crd_of_another_version_lacks_fields(look: Callable[..., dict[str, Check]]) -> None:
    found = look(customresourcedefinitions=[crd("rayservices.ray.io", "serveConfigV2"), CRDS[1]])["CRDs kuberay-crds"]
    assert found.state == WRONG
    assert "rayservices.ray.io lacks v1.spec.upgradeStrategy" in found.found


def test_fields_of_the_real_crds_are_found() -> None:
    (service,) = (crd for crd in kuberay.manifests("kuberay-crds") if crd["metadata"]["name"] == "rayservices.ray.io")
    assert "v1.spec.rayClusterConfig.workerGroupSpecs.template.spec.containers.image" in cluster.fields(service)


def test_a_cluster_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_: object) -> None:
        raise Problem("no route to host", "start the VPN")

    monkeypatch.setattr(kubectl, "connect", away)
    (first, *others) = cluster.checks("dev", eks_stack(entry=None))
    assert first == Check("Kubernetes", UNKNOWN, "no route to host", "start the VPN"), "a private API may be in order"
    (first, *_) = cluster.checks("local", StackConfig())
    assert first.state == WRONG
    assert {check.state for check in others} == {UNKNOWN}


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine on which a native cluster could start, whatever this one is like."""
    monkeypatch.setenv("BLUEPRINT_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("BLUEPRINT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tools, "whence", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(packages, "to_install", lambda _: [])
    monkeypatch.setattr(preflight, "containerd_major", lambda: 2)
    for name in ("root", "alone", "port", "kernel"):
        monkeypatch.setattr(preflight, name, lambda: None)
    for name in ("memory", "space"):
        monkeypatch.setattr(preflight, name, lambda: 30.0)


@pytest.mark.usefixtures("quiet")
def test_a_machine_on_which_nothing_runs_yet(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    __main__.doctor("local")
    said = capsys.readouterr().out
    assert "memory" in said
    assert "30.0 GiB available" in said
    assert "does not run; make up starts it" in said
    assert "  fix: nothing: make up builds it, which takes minutes" in said
    assert said.splitlines()[-1].endswith("ok, 1 note")
    assert not (tmp_path / "state").exists()


@pytest.mark.usefixtures("quiet")
def test_what_would_make_up_fail_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def little() -> float:
        raise Problem("3.2 GiB of memory are available", "end other programs")

    monkeypatch.setattr(preflight, "memory", little)
    with pytest.raises(Problem, match="stack local is not well: memory"):
        __main__.doctor("local")
    said = capsys.readouterr().out.splitlines()
    (line,) = (number for number, text in enumerate(said) if text.startswith("memory"))
    assert " ".join(said[line].split()) == "memory WRONG 3.2 GiB of memory are available"
    assert said[line + 1] == "  fix: end other programs"


@pytest.mark.usefixtures("quiet")
def test_packages_that_make_up_would_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "to_install", lambda _: ["runc"])
    assert by_name(machine.of_native(StackConfig()))["system packages"] == Check(
        "system packages", NOTE, "missing: runc", "nothing: make up installs them"
    )


def test_an_image_that_is_built_or_on_the_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BLUEPRINT_CACHE", str(tmp_path))
    stored = images.build_store() / "overlay-images" / "images.json"
    stored.parent.mkdir(parents=True)
    stored.write_text(json.dumps([{"id": "1"}, {"names": ["localhost/image:abc"]}]))
    monkeypatch.setattr(native, "running", lambda: False)
    assert machine.native_image("localhost/image:abc") == "localhost/image:abc, built"
    monkeypatch.setattr(native, "running", lambda: True)
    monkeypatch.setattr(images, "has", lambda _: True)
    assert machine.native_image("localhost/image:abc") == "localhost/image:abc, on the node"


def test_python_packages_that_are_not_the_ledgers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check("packages", machine.packages_are_the_ledgers).state == OK
    monkeypatch.setattr(machine, "OURS", {"pulumi": "1.2.3"})
    found = check("packages", machine.packages_are_the_ledgers)
    assert (found.state, found.fix) == (WRONG, "make setup")
    assert "and not 1.2.3" in found.found


def test_the_provider_for_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PULUMI_HOME", str(tmp_path))
    assert not engine.has_python_host()
    missing = check("provider", machine.aws_provider)
    assert missing.state == WRONG
    assert f"pulumi plugin install resource aws {versions.PULUMI_AWS}" in missing.fix
    kept = tmp_path / "plugins" / f"resource-aws-v{versions.PULUMI_AWS}" / "pulumi-resource-aws"
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert machine.aws_provider() == str(kept)


def test_an_unknown_stack() -> None:
    with pytest.raises(Problem, match="stack 'nope' has no "):
        __main__.doctor("nope")
