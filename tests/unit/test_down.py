"""`make down`: made-up states of Pulumi; engine, kubectl and AWS are fakes."""

import io
import json
import sys
from typing import Any

import pytest
from pulumi import automation

from app.keys import Key
from infra.clusters import ExistingCluster
from infra.config import StackConfig
from scripts import down, engine, kubectl, leftovers, stack_file
from scripts.console import Problem
from scripts.leftovers import Left
from scripts.observe import Object
from tests.infra.made_up import EKS, eks_stack
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
    down.down("dev", "")


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


def away(monkeypatch: pytest.MonkeyPatch, name: str, confirmed: str = "", **cluster: Any) -> None:
    """Come as far as taking a stack on AWS away, and no further."""
    monkeypatch.setattr(stack_file, "read", lambda _: eks_stack(**cluster))
    monkeypatch.setattr(engine, "require_state", lambda *_: None)
    monkeypatch.setattr(down, "from_aws", lambda *_: None)
    down.down(name, confirmed)


@pytest.mark.parametrize(
    ("name", "cluster"),
    [
        ("team", {}),  # deletion_protection is on when nothing is said
        ("team", {"deletion_protection": False, "tags": {**EKS["tags"], "environment": "prod"}}),
        ("prod", {"deletion_protection": False}),
    ],
)
def test_production_goes_only_by_its_name(monkeypatch: pytest.MonkeyPatch, name: str, cluster: dict[str, Any]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("prod\n"))  # which is no terminal
    with pytest.raises(Problem, match="nobody has typed its name; nothing was deleted") as raised:
        away(monkeypatch, name, **cluster)
    assert raised.value.fix == f"if it is to go: make down STACK={name} CONFIRM={name}"
    with pytest.raises(Problem, match="'staging' is not its name"):
        away(monkeypatch, name, "staging", **cluster)
    away(monkeypatch, name, name, **cluster)


def test_at_a_terminal_the_name_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO("no\nteam\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdin", terminal)
    with pytest.raises(Problem, match="'no' is not its name"):
        away(monkeypatch, "team")
    away(monkeypatch, "team")
    with pytest.raises(Problem, match="nobody has typed its name"):  # but ended the input
        away(monkeypatch, "team")


def test_a_stack_that_comes_and_goes_needs_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    away(monkeypatch, "team", deletion_protection=False)


class Order:
    """Fakes of engine, cluster and AWS, which note the order of calls; `fails` says what a call ends with."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, fails: dict[str, str] | None = None, **left: list[Left]
    ) -> None:
        self.calls: list[str] = []
        self.fails = fails or {}
        monkeypatch.setattr(stack_file, "read", lambda _: eks_stack(deletion_protection=False))
        monkeypatch.setattr(engine, "require_state", lambda *_: None)
        monkeypatch.setattr(engine, "open_stack", lambda *_: self)
        monkeypatch.setattr(down, "cluster_of", lambda _, stack: stack.cluster)
        monkeypatch.setattr(down, "aws", lambda *_: self.note("describe"))
        monkeypatch.setattr(kubectl, "connect", lambda _: None)
        monkeypatch.setattr(down, "drain", lambda _: self.note("drain"))
        monkeypatch.setattr(leftovers, "left", lambda _: self.note("look") or (left.get("left", []), ["iam: denied"]))
        monkeypatch.setattr(leftovers, "in_the_way", lambda _, known: left.get("in_the_way", []))

    def note(self, what: str) -> None:
        self.calls.append(what)
        if said := self.fails.get(what):
            if what == "describe":
                raise Problem(said, "")
            raise automation.CommandError(automation.CommandResult(stdout=f"\n{said}", stderr="", code=255))

    def export_stack(self) -> automation.Deployment:
        return automation.Deployment(version=3, deployment=STATE)

    def preview_destroy(self, **_: Any) -> None:
        self.note("preview")

    def destroy(self, **_: Any) -> None:
        self.note("destroy")


def test_on_aws_the_cluster_is_drained_when_nothing_is_protected_and_what_is_left_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    order = Order(monkeypatch)
    down.down("team", "")
    assert order.calls == ["preview", "describe", "drain", "destroy", "look"]
    assert "could not be looked for: iam: denied" in capsys.readouterr().out


def test_a_cluster_that_is_gone_already_is_not_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    order = Order(monkeypatch, {"describe": "aws eks describe-cluster: (ResourceNotFoundException)"})
    down.down("team", "")
    assert order.calls == ["preview", "describe", "destroy", "look"]


def test_what_is_protected_keeps_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    order = Order(monkeypatch, {"preview": "error: resource urn cannot be deleted because it is protected"})
    with pytest.raises(Problem, match="nothing was deleted: error: ") as raised:
        down.down("team", "")
    assert order.calls == ["preview"]
    assert "cluster.deletion_protection to false in Pulumi.team.yaml, make up" in raised.value.fix


def test_what_is_left_on_aws_is_an_error_with_the_commands_that_remove_it(monkeypatch: pytest.MonkeyPatch) -> None:
    volume = Left("arn:aws:ec2:…:volume/vol-1", "aws ec2 delete-volume --volume-id vol-1")
    Order(monkeypatch, left=[volume])
    with pytest.raises(Problem, match="stack team is down, and this is still on AWS") as raised:
        down.down("team", "")
    assert raised.value.what.splitlines()[1:] == [f"  {volume.what}", f"    {volume.remove}"]


def test_a_destroy_that_fails_on_aws_names_what_is_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    balancer = Left("arn:aws:elasticloadbalancing:…", "aws elbv2 delete-load-balancer …")
    Order(monkeypatch, {"destroy": "error: DependencyViolation"}, in_the_way=[balancer])
    with pytest.raises(Problem, match="pulumi destroy failed: error: DependencyViolation\n  in the way:") as raised:
        down.down("team", "")
    assert balancer.remove in raised.value.what
