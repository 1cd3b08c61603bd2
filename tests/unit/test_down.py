"""What `make down` looks for in a cluster that stays: made-up state of Pulumi, a fake engine and a fake kubectl."""

import json
from typing import Any

import pytest
from pulumi import automation

from app.keys import Key
from infra.clusters import ExistingCluster
from infra.config import StackConfig
from scripts import down, engine, kubectl, stack_file
from scripts.console import Problem
from scripts.observe import Object
from tests.unit.made_up import condition

STATE = {
    "resources": [
        {"type": "pulumi:pulumi:Stack"},
        {"type": "pulumi:providers:kubernetes", "id": "1f0c"},
        {"type": "blueprint:serving:RayServing"},
        {"type": "kubernetes:yaml/v2:ConfigGroup"},
        {"type": "kubernetes:core/v1:Namespace", "id": "serving"},
        {"type": "kubernetes:core/v1:Secret", "id": "serving/llm-keys"},
        {"type": "kubernetes:apps/v1:Deployment", "id": "kuberay-system/kuberay-operator"},
        {"type": "kubernetes:rbac.authorization.k8s.io/v1:ClusterRole", "id": "kuberay-operator"},
        {
            "type": "kubernetes:apiextensions.k8s.io/v1:CustomResourceDefinition",
            "id": "rayjobs.ray.io",
            "retainOnDelete": True,
        },
        {"type": "kubernetes:ray.io/v1:RayService", "id": "serving/llm"},
    ]
}
STUCK: Object = {
    "kind": "Namespace",
    "metadata": {"name": "serving"},
    "status": {
        "conditions": [
            condition("NamespaceDeletionContentFailure", "False", message="all is well"),
            condition("NamespaceContentRemaining", "True", message="rayservices.ray.io has 1 resource instances"),
            condition("NamespaceFinalizersRemaining", "False", message="no finalizers"),
        ]
    },
}


class FakeKubectl(kubectl.Kubectl):
    """Of a cluster where `there` is still there; keeps what it was asked for."""

    def __init__(self, *there: Object) -> None:
        self.there = there
        self.asked: list[Object] = []

    def __call__(self, *arguments: str, stdin: str | None = None, timeout: float = 60) -> str:
        self.asked = json.loads(stdin or "{}")["items"]
        match self.there:
            case ():
                return ""
            case (one,):
                return json.dumps(one)
        return json.dumps({"kind": "List", "items": self.there})


class FakeStack:
    """Pulumi's stack with STATE; `fails` is what the engine says."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails

    def export_stack(self) -> automation.Deployment:
        return automation.Deployment(version=3, deployment=STATE)

    def preview_destroy(self, **_: Any) -> None:
        pass

    def destroy(self, **_: Any) -> None:
        if self.fails:
            raise automation.CommandError(automation.CommandResult(stdout=self.fails, stderr="", code=255))


def take_down(monkeypatch: pytest.MonkeyPatch, fake: FakeKubectl, stack: FakeStack) -> None:
    config = StackConfig(
        cluster=ExistingCluster(contexts=["kind-dev"], models_path="/m"), keys=[Key(name="team", sha256="0" * 64)]
    )
    monkeypatch.setattr(stack_file, "read", lambda _: config)
    monkeypatch.setattr(engine, "require_state", lambda *_: None)
    monkeypatch.setattr(kubectl, "connect", lambda _: fake)
    monkeypatch.setattr(engine, "open_stack", lambda *_: stack)
    down.down("dev")


def test_it_looks_for_all_that_pulumi_made_and_was_to_remove() -> None:
    assert [(made["kind"], made["metadata"]) for made in down.objects(STATE)] == [
        ("Namespace", {"name": "serving"}),
        ("Secret", {"name": "llm-keys", "namespace": "serving"}),
        ("Deployment", {"name": "kuberay-operator", "namespace": "kuberay-system"}),
        ("ClusterRole", {"name": "kuberay-operator"}),
    ]
    assert [made["apiVersion"] for made in down.objects(STATE)] == [
        "v1",
        "v1",
        "apps/v1",
        "rbac.authorization.k8s.io/v1",
    ]


def test_a_clean_cluster(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fake = FakeKubectl()
    take_down(monkeypatch, fake, FakeStack())
    assert len(fake.asked) == 4
    assert capsys.readouterr().out.endswith("stack dev is down\n")


def test_what_is_still_there_is_named_with_what_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Problem, match="still in the cluster") as raised:
        take_down(monkeypatch, FakeKubectl(STUCK), FakeStack())
    assert raised.value.what.splitlines()[1:] == ["  Namespace serving; rayservices.ray.io has 1 resource instances"]
    assert "kubectl delete" in raised.value.fix


def test_a_destroy_that_fails_names_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = {"kind": "Secret", "metadata": {"name": "llm-keys", "namespace": "serving"}}
    with pytest.raises(Problem, match=r"pulumi destroy failed: .*error: no way") as raised:
        take_down(monkeypatch, FakeKubectl(STUCK, secret), FakeStack(fails="error: no way"))
    assert raised.value.what.splitlines()[-1] == "  Secret serving/llm-keys"
    assert "make down" in raised.value.fix


def test_a_stack_that_was_never_up() -> None:
    assert down.left_behind(FakeKubectl(STUCK), list(down.objects({}))) == []
