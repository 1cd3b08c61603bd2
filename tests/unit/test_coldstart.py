"""`make coldstart`: made-up pods, and logs of Ray 2.60 and vLLM 0.29 as they write them, found by a real grep."""

import csv
import json
import subprocess
from pathlib import Path

import pytest

from infra.config import ROOT, StackConfig
from scripts import coldstart, kubectl, stack_file
from scripts.console import Problem
from scripts.logs import LOGS
from scripts.observe import Object
from tests.unit.made_up import NEW, condition, event, pod, view

RAYLET = "[2026-11-21 11:48:{},729 I 7 7] (raylet) main.cc:283: Setting cluster ID to: 07de\n[… I 7 7] (raylet) more\n"
CONTROLLER = (
    "INFO 2026-11-21 11:48:20,053 controller 425 -- Importing and building app 'chat@stable'.\n"
    "INFO 2026-11-21 11:48:40,500 controller 425 -- Starting Replica(id='ainl7xa0', deployment='LLM:chat@stable', "
    "app='chat@stable').\n"
    "INFO 2026-11-21 11:48:40,500 controller 425 -- Starting Replica(id='wh4u12st', deployment='Embeddings:embed', "
    "app='nlp').\n"
)
VLLM = (
    "(EngineCore pid=17487) INFO 11-21 11:49:{} [default_loader.py:430] Loading weights took {} seconds\n"
    "(EngineCore pid=17487) INFO 11-21 11:49:{} [core.py:368] init engine (profile, …) took 0.11 s\n"
)


def said(second: str, message: str, pid: int = 207) -> str:
    """A line of a replica's log, of which our script needs no more."""
    entry = {"asctime": f"2026-11-21 {second}", "levelname": "INFO", "message": message, "process": pid}
    return json.dumps(entry) + "\n"


def started(name: str, node_type: str, scheduled: str = "", init: str = "", container: str = "") -> Object:
    """A pod of 11:48:00 with the seconds of that minute at which things happened."""
    made = pod(name)
    made["metadata"]["creationTimestamp"] = "2026-11-21T11:48:00Z"
    made["metadata"]["labels"]["ray.io/node-type"] = node_type

    def states(second: str, kind: str) -> list[Object]:
        return [{"state": {kind: {"startedAt": f"2026-11-21T11:48:{second}Z"}}}] if second else []

    made["status"] |= {
        "conditions": [condition("PodScheduled", "True" if scheduled else "False")],
        "initContainerStatuses": states(init, "terminated"),
        "containerStatuses": states(container, "running"),
    }
    if scheduled:
        made["status"]["conditions"][0]["lastTransitionTime"] = f"2026-11-21T11:48:{scheduled}Z"
    return made


HEAD = started("llm-head", "head", scheduled="00", container="01")
WORKER = started("llm-worker", "worker", scheduled="01", init="04", container="16")
WAITING = started("llm-waiting", "worker")


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """A directory of Ray's logs for each pod."""
    files = {
        "llm-head/raylet.out": RAYLET.format("06"),
        "llm-head/serve/controller_425.log": CONTROLLER,
        "llm-worker/raylet.out": RAYLET.format("20"),
        "llm-worker/serve/replica_chat@stable_LLM_chat@stable_ainl7xa0.log": (
            said("11:48:55,500", "Started initializing replica.")
            + said("11:49:15,500", "Started vLLM engine.")
            + said("11:49:16,000", "Finished initializing replica.")
            + said("11:49:20,000", "CALL /v1/chat/completions OK 83.5ms")
        ),
        "llm-worker/serve/replica_nlp_Embeddings_embed_wh4u12st.log": (
            said("11:48:50,000", "Started initializing replica.", 131)
            + said("11:48:54,000", "Finished initializing replica.", 131)
        ),
        "llm-worker/worker-496b-01000000-207.out": VLLM.format("10", "2.50", "14"),
        # Another engine's, at the same time, and one of an hour later.
        "llm-worker/worker-aaaa-01000000-209.out": VLLM.format("12", "9.00", "14"),
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


class FakeKubectl(kubectl.Kubectl):
    """Runs on this machine, on a pod's directory, what it should run in the pod."""

    def __init__(self, logs: Path, claims: list[Object] | None = None) -> None:
        self.logs, self.claims = logs, claims

    def __call__(self, *arguments: str, stdin: str | None = None, timeout: float = 60) -> str:
        match arguments:
            case ("exec", "--namespace", "serving", name, "--", *command) if (self.logs / name).exists():
                here = [part.replace(LOGS, str(self.logs / name)) for part in command]
                return subprocess.run(here, capture_output=True, text=True, check=True).stdout
            case ("get", "nodeclaims.karpenter.sh", *_) if self.claims is not None:
                return json.dumps({"items": self.claims})
        raise Problem(f"the fake does not know {arguments}", "")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch, logs: Path) -> None:
    """A stack of a head, a worker, and a worker without a node."""
    monkeypatch.setattr(stack_file, "read", lambda _: StackConfig())
    monkeypatch.setattr(kubectl, "connect", lambda _: FakeKubectl(logs))
    monkeypatch.setattr(coldstart, "look", lambda *_: view(WORKER, HEAD, WAITING))


@pytest.mark.usefixtures("stack")
def test_each_stage_of_each_pod_and_replica(capsys: pytest.CaptureFixture[str]) -> None:
    coldstart.coldstart("local")
    lines = capsys.readouterr().out.splitlines()
    assert cells(lines[2]) == ["POD", "REPLICA", *(stage.upper() for stage in coldstart.STAGES), "TOTAL"]
    assert [cells(line) for line in lines[3:8]] == [
        ["llm-head", "–", "0.0", "1.0", "5.7", "–", "–", "–", "–", "–", "6.7"],
        ["llm-waiting", *"–" * 9, "0.0"],
        ["llm-worker", "–", "1.0", "3.0", "16.7", "–", "–", "–", "–", "–", "20.7"],
        ["llm-worker", "Embeddings:embed", "1.0", "3.0", "16.7", "19.8", "9.5", "–", "–", "4.0", "54.0"],
        ["llm-worker", "LLM:chat@stable", "1.0", "3.0", "16.7", "19.8", "15.0", "2.5", "17.5", "0.5", "76.0"],
    ]
    assert f"{NEW}: the first token came 76 s after the first pod was scheduled" in lines


@pytest.mark.usefixtures("stack")
def test_its_lines_are_those_of_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    coldstart.coldstart("local")
    with (ROOT / "scripts" / "plan" / "stages.csv").open(newline="") as file:
        planned = csv.DictReader(file)
        assert planned.fieldnames
        measured = list(csv.DictReader(capsys.readouterr().out.splitlines()[-5:], planned.fieldnames))
        assert [row["stage"] for row in measured] == [row["stage"] for row in planned]
    assert [row["seconds"] for row in measured] == ["1.0", "19.7", "2.5", "32.5", "0.5"]
    assert {(row["seconds_per_gib"], row["mark"]) for row in measured} == {("0", "measured")}
    assert {row["source"] for row in measured} == {
        "make coldstart STACK=local, 2026-11-21: LLM:chat@stable on llm-worker"
    }


def test_weights_of_other_processes_count_where_the_replica_has_none(logs: Path) -> None:
    """As with several GPUs, whose workers are processes of Ray; and where the lines are text, without a process."""
    (logs / "llm-worker" / "worker-496b-01000000-207.out").unlink()
    (logs / "llm-worker" / "worker-bbbb-01000000-210.out").write_text(VLLM.format("59", "99.0", "59"))
    (*_, last) = coldstart.starts([WORKER], {"llm-worker": coldstart.logged(FakeKubectl(logs), WORKER)})
    assert last.seconds["weights"] == 9.0


def test_without_logs_there_is_what_kubernetes_tells(tmp_path: Path) -> None:
    lines = coldstart.logged(FakeKubectl(tmp_path), WORKER)
    (only,) = coldstart.starts([WORKER], {"llm-worker": lines})
    assert only.seconds == {"node": 1.0, "image": 3.0}
    assert list(coldstart.first_tokens([only])) == []
    assert coldstart.stages_csv("local", [only]) == ""


def test_a_replica_that_waited_for_its_pod_was_asked_for_before(logs: Path) -> None:
    """The autoscaler's order: the application is built, the replica asked for, then the pod comes."""
    early = CONTROLLER.replace("11:48:40", "11:40:00")
    (logs / "llm-head" / "serve" / "controller_425.log").write_text(early)
    kubernetes = FakeKubectl(logs)
    found = coldstart.starts(
        [HEAD, WORKER], {pod["metadata"]["name"]: coldstart.logged(kubernetes, pod) for pod in (HEAD, WORKER)}
    )
    assert found[-1].seconds["applications"] == 0.0
    assert sum(found[-1].seconds.values()) == pytest.approx(76.0)


def test_karpenters_part(logs: Path) -> None:
    """A node that is there, and one that is on its way."""
    conditions = [condition(kind, "True") for kind in ("Launched", "Registered", "Initialized")]
    for one, second in zip(conditions, ("03", "41", "58"), strict=True):
        one["lastTransitionTime"] = f"2026-11-21T11:48:{second}Z"
    meta = {"name": "l4-abc", "creationTimestamp": "2026-11-21T11:48:00Z"}
    claims: list[Object] = [
        {"metadata": meta, "status": {"nodeName": "ip-10-0-1-2", "conditions": conditions}},
        {"metadata": meta},
    ]
    assert list(coldstart.node_claims(FakeKubectl(logs, claims))) == [
        ("NODE", "LAUNCHED", "REGISTERED", "INITIALIZED"),
        ("ip-10-0-1-2", "3", "41", "58"),
        ("l4-abc", "–", "–", "–"),
    ]
    assert list(coldstart.node_claims(FakeKubectl(logs))) == []


@pytest.mark.usefixtures("stack")
def test_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coldstart, "look", lambda *_: view(events=[event(HEAD, "Killing", "")]))
    with pytest.raises(Problem, match="there is no Ray pod of stack dev\n  fix: make up STACK=dev"):
        coldstart.coldstart("dev")
