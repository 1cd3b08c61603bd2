"""What `make status` says of made-up objects, and of what is not there."""

import json
from pathlib import Path

import pytest

from app.keys import Key
from infra.clusters import ExistingCluster
from infra.config import StackConfig
from scripts import kubectl, observe, stack_file, status
from scripts.console import Problem, table
from scripts.observe import Object, entry, look
from tests.unit.made_up import NEW, NOW, OLD, application, pod, service, view

NODE: Object = {
    "kind": "Node",
    "metadata": {"name": "local"},
    "status": {"conditions": [{"type": "Ready", "status": "True"}]},
}
OPERATOR: Object = {
    "kind": "Deployment",
    "metadata": {"name": "kuberay-chart"},
    "spec": {"template": {"metadata": {}, "spec": {"containers": [{"image": "quay.io/kuberay/operator:v1.6.2"}]}}},
    "status": {"readyReplicas": 1},
}
HEAD = pod("llm-head", {"name": "ray-head", "ready": True})
HEAD["metadata"]["labels"]["ray.io/node-type"] = "head"


class FakeKubectl(kubectl.Kubectl):
    """Answers from made-up objects; `crds`, `operator` and `serve` say whether these can be had."""

    def __init__(self, crds: bool = True, operator: bool = True, serve: bool = True) -> None:
        self.crds, self.operator, self.serve = crds, operator, serve
        self.context = "kind-dev"
        self.kubeconfig = Path("/home/me/.kube/config")

    def __call__(self, *arguments: str, stdin: str | None = None, timeout: float = 60) -> str:
        match arguments:
            case ("version", *_):
                return json.dumps({"serverVersion": {"gitVersion": "v1.35.8"}})
            case ("exec", *_) if self.serve:
                replica = {"state": "RUNNING"}
                running = application("RUNNING", {"LLM:chat@stable": ("HEALTHY", "")})
                running["deployments"]["LLM:chat@stable"]["replicas"] = [replica, {"state": "STARTING"}]
                return json.dumps({"applications": {"chat@stable": running}})
            case ("get", kinds, *_) if "ray.io" in kinds and not self.crds:
                raise Problem('kubectl get failed: the server doesn\'t have a resource type "rayservices"', "")
            case ("get", kinds, "--namespace", "serving", "--output", "json") if "pods" in kinds:
                return json.dumps({"items": [service(), HEAD] if self.crds else []})
            case ("get", "nodes", *_):
                return json.dumps({"items": [NODE]})
            case ("get", "deployments", *_) if self.operator:
                return json.dumps({"items": [OPERATOR]})
            case ("get", "pods", *_):
                return "NAME  READY  STATUS  RESTARTS  AGE\n"
            case ("get", "pods,events", *_):
                return json.dumps({"items": []})
        raise Problem(f"the fake does not know {arguments}", "")


@pytest.fixture
def existing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stack in somebody's cluster, which a fake kubectl shows."""
    stack = StackConfig(
        cluster=ExistingCluster(contexts=["kind-dev"], models_path="/m"), keys=[Key(name="team", sha256="0" * 64)]
    )
    monkeypatch.setattr(stack_file, "read", lambda _: stack)
    monkeypatch.setattr(kubectl, "connect", lambda _: FakeKubectl())


@pytest.mark.usefixtures("existing")
def test_one_screen_tells_what_runs(capsys: pytest.CaptureFixture[str]) -> None:
    status.status("dev")
    said = capsys.readouterr().out
    for part in (
        "Kubernetes v1.35.8, context kind-dev",
        "1 of 1 ready",
        "quay.io/kuberay/operator:v1.6.2, ready",
        "llm: Ready=True NonZeroServeEndpoints",
        "UpgradeInProgress=True BothActivePendingClustersExist",
        f"active {OLD}, pending {NEW}",
        "http://llm-serve-svc.serving:8000 in the cluster, 1 behind it; from here: make forward",
        "chat (stable), embed, sentiment, safety, rerank",
        "LLM:chat@stable  HEALTHY  1 of 2 running, 1 starting",
        "RESTARTS",
    ):
        assert part in said
    assert len(said.splitlines()) < 25


@pytest.mark.usefixtures("existing")
def test_without_crds_and_operator(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(kubectl, "connect", lambda _: FakeKubectl(crds=False, operator=False))
    status.status("dev")
    said = capsys.readouterr().out
    assert "RayService  none; `make up` makes it" in said
    assert "operator    not for this user to see" in said


@pytest.mark.usefixtures("existing")
def test_a_cluster_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    refusing = tmp_path / "kubectl"  # a fake
    refusing.write_text("#!/bin/sh\necho connection refused >&2; exit 1\n")
    refusing.chmod(0o755)
    monkeypatch.setattr(kubectl, "connect", lambda _: kubectl.Kubectl(refusing, Path("/nowhere"), "kind-dev"))
    with pytest.raises(Problem, match=r"dev: its cluster does not answer \(.*connection refused"):
        status.status("dev")


def test_without_a_native_cluster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BLUEPRINT_STATE", str(tmp_path))
    status.status("local")
    assert capsys.readouterr().out == "stack local: no cluster runs; `make up` starts it\n"


def test_where_serve_cannot_be_asked_kuberays_copy_is_shown() -> None:
    copy = {"chat@stable": {"status": "RUNNING", "serveDeploymentStatuses": {"A": {"status": "HEALTHY"}}}}
    seen = service(activeServiceStatus={"rayClusterName": OLD, "applicationStatuses": copy})
    (row,) = list(status.applications(view(applications=dict(observe._as_kuberay_saw(seen)))))[1:]
    assert row == (OLD, "chat@stable", "RUNNING", "A", "HEALTHY", "–")


def test_serve_is_asked_on_the_heads_that_run() -> None:
    assert look(FakeKubectl(), "serving").applications[NEW]["chat@stable"]["status"] == "RUNNING"
    assert look(FakeKubectl(serve=False), "serving").applications == {OLD: {}, NEW: {}}


def test_with_upgrades_in_steps_requests_come_by_a_gateway() -> None:
    found = service()
    assert entry(found) == "llm-serve-svc"
    found["spec"] = {"upgradeStrategy": {"type": "NewClusterWithIncrementalUpgrade"}}
    assert entry(found) == f"{OLD}-serve-svc"
    lines = dict(status.service_lines(found, NOW))
    assert lines["endpoint"] == "the Gateway llm-gateway, 1 behind it; from here: make forward"


def test_a_service_that_kuberay_has_not_looked_at() -> None:
    new = {"metadata": {"name": "llm", "namespace": "serving"}}
    lines = dict(status.service_lines(new, NOW))
    assert lines["RayService"] == "llm: KubeRay has not looked at it yet"
    assert lines["RayCluster"] == "none"


@pytest.mark.parametrize(
    ("since", "expected"),
    [
        ("2026-11-21T11:59:30Z", "for 30 s"),
        ("2026-11-21T11:48:00Z", "for 12 min"),
        ("2026-11-20T12:00:00Z", "for 1 d"),
        ("2026-11-21T12:00:05Z", "for 0 s"),  # two clocks
    ],
)
def test_how_long(since: str, expected: str) -> None:
    assert status.age({"lastTransitionTime": since}, NOW) == expected


def test_nodes_that_are_not_ready_are_named() -> None:
    bad = {"metadata": {"name": "gpu-1"}, "status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}
    assert status.nodes([NODE, bad]) == "1 of 2 ready; not ready: gpu-1"


def test_a_table_is_aligned() -> None:
    assert table([("A", "LONG"), ("long", "b")]) == "A     LONG\nlong  b"
