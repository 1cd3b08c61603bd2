"""Why a deployment does not become ready, from made-up objects; and when `up` gives up, with a fake kubectl."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from infra.clusters import NativeCluster
from scripts import diagnose, engine, kubectl
from scripts.console import Problem
from scripts.diagnose import cause, findings, hopeless
from scripts.observe import Object, View
from tests.unit.made_up import (
    FAILED_CONSTRUCTOR,
    NEW,
    NOW,
    OLD,
    application,
    condition,
    event,
    pod,
    service,
    view,
)


def told(seen: View) -> list[str]:
    return [str(finding) for finding in findings(seen, NOW)]


def waiting(reason: str, message: str = "") -> Object:
    return {"state": {"waiting": {"reason": reason, "message": message}}}


def test_nothing_is_wrong_with_a_pod_that_starts() -> None:
    assert told(view(pod("llm-w", waiting("ContainerCreating")), pod("llm-i", waiting("PodInitializing")))) == []


def test_an_image_that_cannot_be_pulled_is_named_by_the_kubelets_event() -> None:
    broken = pod("llm-w", waiting("ImagePullBackOff", 'Back-off pulling image "r/b:1"'), phase="Pending")
    pulled = event(broken, "Failed", 'Failed to pull image "r/b:1": r/b:1: not found')
    assert told(view(broken, events=[pulled])) == [
        'pod llm-w, container ray-worker: ImagePullBackOff: Failed to pull image "r/b:1": r/b:1: not found'
    ]
    assert told(view(broken))[0].endswith('Back-off pulling image "r/b:1"')


def test_a_configuration_that_the_kubelet_refuses() -> None:
    (said,) = told(view(pod("llm-w", waiting("CreateContainerConfigError", 'secret "llm-keys" not found'))))
    assert said == 'pod llm-w, container ray-worker: CreateContainerConfigError: secret "llm-keys" not found'


def test_a_container_that_wants_more_memory_than_it_may_have() -> None:
    ended = {"lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}, "restartCount": 1}
    (found,) = findings(view(pod("llm-w", {**waiting("CrashLoopBackOff"), **ended})), NOW)
    assert found.what == "OOMKilled: it wanted more memory than its limit, 12Gi, 1 restarts"
    assert not found.final
    (again,) = findings(view(pod("llm-w", {**waiting("CrashLoopBackOff"), **ended, "restartCount": 3})), NOW)
    assert again.final


def test_a_container_that_has_recovered_is_no_finding() -> None:
    ended = {"lastState": {"terminated": {"reason": "Error", "exitCode": 1}}, "restartCount": 4, "ready": True}
    assert told(view(pod("llm-w", {"state": {"running": {}}, **ended}))) == []


def test_what_a_container_said_at_its_end() -> None:
    ended = {"state": {"terminated": {"reason": "Error", "exitCode": 1, "message": "no such\nfile"}}}
    assert told(view(pod("llm-w", ended))) == [
        "pod llm-w, container ray-worker: ended with exit code 1; it said: no such file"
    ]


def test_a_pod_that_no_node_can_take_but_another_node_may_come() -> None:
    message = "0/1 nodes are available: 1 Insufficient memory."
    full = pod("llm-w", phase="Pending", conditions=[condition("PodScheduled", "False", "Unschedulable", message)])
    full["status"]["containerStatuses"] = []
    assert told(view(full)) == [f"pod llm-w: pending, {message}"]
    assert hopeless(view(full), NOW) == []


def test_a_volume_that_cannot_be_mounted() -> None:
    stuck = pod("llm-w", waiting("ContainerCreating"), phase="Pending")
    assert told(view(stuck, events=[event(stuck, "FailedMount", 'secret "llm-keys" not found')])) == [
        'pod llm-w: FailedMount: secret "llm-keys" not found'
    ]


def test_an_evicted_pod() -> None:
    gone = pod("llm-w", phase="Failed", reason="Evicted", message="The node was low on resource: memory.")
    assert told(view(gone)) == ["pod llm-w: Evicted: The node was low on resource: memory."]


def test_a_pod_that_is_being_deleted_is_no_finding() -> None:
    leaving = pod("llm-w", waiting("ErrImagePull"))
    leaving["metadata"]["deletionTimestamp"] = "2026-11-21T11:59:00Z"
    assert told(view(leaving)) == []


def test_the_replicas_exception_is_told_without_its_traceback() -> None:
    failed = application("DEPLOY_FAILED", {"LLM:chat@canary": ("DEPLOY_FAILED", FAILED_CONSTRUCTOR)})
    (found,) = findings(view(applications={NEW: {"chat@canary": failed}}), NOW)
    assert str(found) == "deployment LLM:chat@canary: DEPLOY_FAILED: ValueError: no model of this name: llama-9"
    assert found.final


def test_a_replica_that_is_tried_again_is_told_but_not_final() -> None:
    retried = "A replica failed to start with exception. Retrying 2 more time(s). Error:\nOSError: no space left"
    (found,) = findings(view(applications={NEW: {"nlp": application("DEPLOYING", {"A": ("UPDATING", retried)})}}), NOW)
    assert str(found) == "deployment A: UPDATING: OSError: no space left"
    assert not found.final


def test_an_application_that_cannot_be_built() -> None:
    message = "Deploying app 'nlp' failed with exception:\nTraceback (most recent call last):\nImportError: no nlp"
    failed = application("DEPLOY_FAILED", {}, message)
    assert told(view(applications={NEW: {"nlp": failed}})) == ["application nlp: DEPLOY_FAILED: ImportError: no nlp"]


def test_during_an_upgrade_what_counts_is_the_new_clusters_serve() -> None:
    broken = {"nlp": application("DEPLOY_FAILED", {}, "ValueError: old")}
    assert told(view(applications={OLD: broken})) == []


def test_pods_come_before_serve_and_serve_before_kuberay() -> None:
    cluster = {"kind": "RayCluster", "metadata": {"name": NEW, "uid": "uid-cluster"}}
    refused = event(cluster, "FailedToCreateWorkerPod", "pods is forbidden: exceeded quota")
    failed = {"nlp": application("DEPLOY_FAILED", {}, "ValueError: x")}
    seen = view(pod("llm-w", waiting("ErrImagePull")), clusters=[cluster], events=[refused], applications={NEW: failed})
    assert [line.split(":")[0] for line in told(seen)] == [
        "pod llm-w, container ray-worker",
        "application nlp",
        f"RayCluster {NEW}",
    ]


def test_a_refusal_of_some_time_ago_is_over() -> None:
    cluster = {"kind": "RayCluster", "metadata": {"name": NEW, "uid": "uid-cluster"}}
    past = event(cluster, "FailedToCreateWorkerPod", "exceeded quota", last="2026-11-21T11:30:00Z")
    assert told(view(clusters=[cluster], events=[past])) == []


@pytest.mark.parametrize(("ready", "over"), [("2026-11-21T11:59:40Z", True), ("2026-11-21T11:59:20Z", False)])
def test_a_refusal_is_over_once_the_service_has_become_ready(ready: str, over: bool) -> None:
    one = service(conditions=[{**condition("Ready", "True", "NonZeroServeEndpoints"), "lastTransitionTime": ready}])
    past = event(one, "FailedToCreateRayCluster", 'rayclusters.ray.io "llm-cvw85" already exists')
    assert bool(told(view(services=[one], events=[past]))) is not over


def test_a_specification_that_kuberay_refuses_until_it_takes_another() -> None:
    refused = service(
        observedGeneration=1, conditions=[condition("Ready", "False", "ValidationFailed", "spec.x is wrong")]
    )
    assert told(view(services=[refused])) == ["RayService llm: ValidationFailed: spec.x is wrong"]
    mended = service(conditions=refused["status"]["conditions"])
    assert told(view(services=[mended])) == []


def test_what_the_old_cluster_suffers_from_is_told_but_does_not_end_the_up_that_mends_it() -> None:
    seen = view(pod("llm-old", waiting("ErrImagePull"), cluster=OLD), pod("llm-new", waiting("ErrImagePull")))
    assert len(told(seen)) == 2
    assert [finding.about for finding in hopeless(seen, NOW)] == ["pod llm-new, container ray-worker"]


def test_nothing_is_final_before_kuberay_has_seen_the_change() -> None:
    assert hopeless(view(pod("llm-new", waiting("ErrImagePull")), services=[service(observedGeneration=1)]), NOW) == []


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (FAILED_CONSTRUCTOR, "ValueError: no model of this name: llama-9"),
        ("A replica's health check failed. This\nand that", "A replica's health check failed. This"),
        ("x\nray.exceptions.ActorDiedError: The actor died.\nIts node is gone.", None),
        ("pydantic_core._pydantic_core.ValidationError: 1 validation error\nname\n  Field required", None),
        ("", ""),
    ],
)
def test_the_cause_in_a_message(message: str, expected: str | None) -> None:
    if expected is None:  # an exception of more than one line
        expected = " ".join(message.removeprefix("x\n").split())
    assert cause(message) == expected


def test_a_long_cause_is_cut() -> None:
    assert len(cause("ValueError: " + "x" * 5000)) < 450


class FakeKubectl(kubectl.Kubectl):
    """Answers from made-up objects, and keeps what it was asked."""

    def __init__(self, items: list[Object]) -> None:
        self.items = items

    def __call__(self, *arguments: str, stdin: str | None = None, timeout: float = 60) -> str:
        if arguments[0] != "get" or arguments[-1] != "json":
            raise Problem(f"the fake does not know {arguments}", "")
        return json.dumps({"items": self.items if "serving" in arguments else []})


@pytest.fixture
def broken() -> FakeKubectl:
    return FakeKubectl([service(), pod("llm-w", waiting("ErrImagePull", "not found"))])


def watch(fake: FakeKubectl, monkeypatch: pytest.MonkeyPatch, give_up_after: float, lines: list[str]) -> bool:
    """Whether it has given up within a second."""
    monkeypatch.setattr(diagnose, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(diagnose, "GIVE_UP_AFTER", give_up_after)
    gave_up = threading.Event()
    with diagnose.watching(fake, "serving", lambda _: None, gave_up.set) as see:
        for line in lines:
            see(line)
        return gave_up.wait(1)


BEGUN = [" +  kubernetes:ray.io/v1:RayService llm creating (0s)"]


def test_up_says_each_finding_once_and_gives_up(
    broken: FakeKubectl, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert watch(broken, monkeypatch, 0.2, BEGUN)
    said = capsys.readouterr().out
    assert said.count("→ pod llm-w, container ray-worker: ErrImagePull: not found") == 1
    assert "giving up" in said


def test_up_gives_a_finding_time(broken: FakeKubectl, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not watch(broken, monkeypatch, 60, BEGUN)


def test_up_looks_when_the_rayservice_has_its_turn(broken: FakeKubectl, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not watch(broken, monkeypatch, 0, [" +  kubernetes:core/v1:Namespace llm creating (0s)"])


RUNNING = application("RUNNING", {})
DEPLOYING = application("DEPLOYING", {})
FAILED = application("DEPLOY_FAILED", {}, "ValueError: x")


def settle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *looks: View, seconds: float = 60) -> int:
    """How often it has looked until Ray Serve ran what was deployed."""
    monkeypatch.setenv("BLUEPRINT_CACHE", str(tmp_path))
    monkeypatch.setattr(diagnose, "LOOK_EVERY", 0.01)
    seen = iter([*looks, *looks[-1:]])  # the failure's report looks once more
    monkeypatch.setattr(diagnose, "look", lambda *_: next(seen))
    diagnose.settle(FakeKubectl([]), "serving", seconds)
    return len(looks) + 1 - len(list(seen))


def test_up_waits_until_serve_runs_what_kuberay_has_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    running = {NEW: {"a": RUNNING, "b": RUNNING}}
    unseen = view(services=[service(observedGeneration=1)], applications=running)
    deploying = view(applications={NEW: {"a": RUNNING, "b": DEPLOYING}})
    nothing = view(applications={OLD: {"a": RUNNING}})
    assert settle(monkeypatch, tmp_path, unseen, deploying, nothing, view(applications=running)) == 4


def test_up_fails_with_an_application_that_was_changed_in_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(Problem, match="application b: DEPLOY_FAILED: ValueError: x"):
        settle(monkeypatch, tmp_path, view(applications={NEW: {"a": RUNNING, "b": FAILED}}))


def test_up_waits_for_applications_so_long_and_no_longer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(Problem, match="not all applications run"):
        settle(monkeypatch, tmp_path, view(applications={NEW: {"a": DEPLOYING}}), seconds=-1)


def test_a_failed_up_names_the_findings_and_the_report(
    broken: FakeKubectl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BLUEPRINT_CACHE", str(tmp_path))
    problem = diagnose.failure(broken, "serving", "error: timed out")
    assert problem.what.splitlines()[1] == "  pod llm-w, container ray-worker: ErrImagePull: not found"
    assert problem.what.splitlines()[-1] == "  pulumi: error: timed out"
    report = tmp_path / "report-serving.txt"
    assert str(report) in problem.fix
    assert report.read_text().startswith("── findings\npod llm-w, container ray-worker: ErrImagePull: not found\n")


def test_a_native_cluster_that_does_not_run_is_no_kubectl_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BLUEPRINT_STATE", str(tmp_path))
    with pytest.raises(Problem, match="the native cluster does not run") as raised:
        kubectl.connect(NativeCluster())
    assert raised.value.fix == "start it: make up"


FAKE_PULUMI = f"""#!{sys.executable}
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: sys.exit(42))  # also where whoever runs the tests ignores it
print("ready", flush=True)
time.sleep(60)
"""


def test_to_give_up_interrupts_pulumi_and_no_other_process(tmp_path: Path) -> None:
    """A fake of Pulumi, which says how it ended."""
    fake = tmp_path / "pulumi"
    fake.write_text(FAKE_PULUMI)
    fake.chmod(0o755)
    with subprocess.Popen([fake], stdout=subprocess.PIPE) as pulumi, subprocess.Popen(["sleep", "60"]) as other:
        assert pulumi.stdout
        pulumi.stdout.readline()
        engine.interrupt()
        assert pulumi.wait(30) == 42
        assert other.poll() is None
        other.terminate()
