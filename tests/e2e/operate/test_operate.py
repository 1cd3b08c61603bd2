"""What an operator types once `make up` has deployed: status, doctor, logs, forward, and up again when it fails."""

import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import psutil
import pytest

from infra import versions
from infra.clusters import LOCAL_KEY
from infra.config import ROOT, StackConfig
from infra.platform import kuberay
from scripts import coldstart, diagnose
from scripts.cluster.layout import PAUSE_IMAGE
from scripts.doctor import WRONG
from scripts.kubectl import Kubectl
from scripts.observe import look
from tests.e2e.conftest import NAME, Stack
from tests.ports import free_port

NAMESPACE = StackConfig().namespace
PATIENCE = 300.0


@pytest.mark.usefixtures("deployed")
def test_status_shows_what_runs_on_one_screen(stack: Stack) -> None:
    done = stack.make("status")
    assert done.returncode == 0
    for part in (
        "1 of 1 ready",
        "kuberay/operator",
        "llm: Ready=True",
        "llm-serve-svc",
        "chat (stable)",
        "LLM:chat@stable",
        "1 of 1 running",
    ):
        assert part in done.stdout
    assert "not well" not in done.stdout
    assert len(done.stdout.splitlines()) < 40


@pytest.mark.usefixtures("deployed")
def test_doctor_finds_all_well(stack: Stack) -> None:
    done = stack.make("doctor")
    assert done.returncode == 0
    for part in (
        f"kuberay/operator:v{versions.KUBERAY}",
        "with all fields of the ledger's",
        f"ray {versions.RAY}, vllm {versions.VLLM} in localhost/",
        "on the node",
        "nothing of somebody else's",
    ):
        assert part in done.stdout
    assert WRONG not in done.stdout


def test_doctor_finds_an_operator_that_is_away(stack: Stack, kubernetes: Kubectl) -> None:
    here = ("--namespace", kuberay.NAMESPACE)
    kubernetes("scale", "deployment/kuberay-operator", *here, "--replicas=0")
    try:
        deadline = time.monotonic() + PATIENCE
        while kubernetes.get("pods", *here)["items"]:
            assert time.monotonic() < deadline, "the operator's pod does not go"
            time.sleep(1)
        done = stack.make("doctor")
    finally:
        kubernetes("scale", "deployment/kuberay-operator", *here, "--replicas=1")
        kubernetes("rollout", "status", "deployment/kuberay-operator", *here, "--timeout=300s", timeout=310)
    assert done.returncode != 0
    assert re.search(r"^operator +WRONG +.* is not ready\n  fix: ", done.stdout, re.MULTILINE)
    assert f"stack {NAME} is not well: operator" in done.stdout


@pytest.mark.usefixtures("deployed")
def test_logs_are_those_of_all_replicas(stack: Stack) -> None:
    said = stack.make("logs").stdout
    assert re.search(r"^llm-\S+ replica_gateway_Gateway_\S+ \| .*", said, re.MULTILINE)
    assert re.search(r"^llm-\S+ controller_\S+ \| ", said, re.MULTILINE)
    of_head = stack.make("logs", "POD=head", "WHAT=gcs").stdout
    assert {line.split()[0].count("head") for line in of_head.splitlines()} == {1}


@pytest.mark.usefixtures("deployed")
def test_coldstart_tells_every_stage_of_a_model_that_answers(stack: Stack) -> None:
    done = stack.make("coldstart")
    assert done.returncode == 0
    cells = [re.split(r"  +", line) for line in done.stdout.splitlines()]
    (header,) = [row for row in cells if row[0] == "POD"]
    (*_, model) = [row for row in cells if row[1:2] == ["LLM:chat@stable"]]
    seconds = dict(zip(header[2:], map(float, model[2:]), strict=True))
    assert list(seconds) == [*(stage.upper() for stage in coldstart.STAGES), "TOTAL"]
    assert sum(list(seconds.values())[:-1]) == pytest.approx(seconds["TOTAL"], abs=0.5)  # rounded
    assert any(re.match(r"llm-\S+-head-", row[0]) and row[1] == "–" for row in cells)
    assert re.search(r"^llm-\S+: the first token came \d+ s after", done.stdout, re.MULTILINE)
    assert "\nfirst token," in done.stdout


@pytest.fixture
def forwarded(deployed: Any) -> Iterator[tuple[str, str, Callable[[], str]]]:
    """Addresses of endpoint and dashboard, and what `make forward` has said so far."""
    endpoint, dashboard = free_port(), free_port()
    lines: list[str] = []
    with subprocess.Popen(
        ["make", "forward", f"PORT={endpoint}", f"DASHBOARD={dashboard}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout
        while not all(part in "".join(lines) for part in ("endpoint → pod", "dashboard → pod", "base64decode")):
            lines.append(process.stdout.readline())
            assert lines[-1], "it has ended"
        yield f"http://127.0.0.1:{endpoint}", f"http://127.0.0.1:{dashboard}", lambda: "".join(lines)
        children = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGTERM)  # as Ctrl-C, which processes in the background do not hear
        process.wait(60)
        assert psutil.wait_procs(children, timeout=30)[1] == []


def eventually(ask: Callable[[], httpx.Response], code: int) -> httpx.Response:
    """The answer with this code; kubectl listens a moment after it was started."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            answered = ask()
            if answered.status_code == code or time.monotonic() > deadline:
                assert answered.status_code == code, answered.text
                return answered
        except httpx.HTTPError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.5)


def test_the_endpoint_and_the_dashboard_come_to_loopback(
    forwarded: tuple[str, str, Callable[[], str]], kubernetes: Kubectl
) -> None:
    endpoint, dashboard, said = forwarded
    with httpx.Client(trust_env=False, timeout=60) as client:
        headers = {"Authorization": f"Bearer {LOCAL_KEY}"}
        models = eventually(lambda: client.get(f"{endpoint}/v1/models", headers=headers), 200).json()
        assert "chat" in [model["id"] for model in models["data"]]
        eventually(lambda: client.get(f"{dashboard}/api/serve/applications/"), 401)
        (show,) = [line for line in said().splitlines() if "base64decode" in line]
        token = subprocess.run(shlex.split(show), capture_output=True, text=True, check=True).stdout
        assert token not in said()
        headers = {"Authorization": f"Bearer {token}"}
        eventually(lambda: client.get(f"{dashboard}/api/serve/applications/", headers=headers), 200)


def apply_pod(kubernetes: Kubectl, name: str, image: str, where: dict[str, str]) -> None:
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    limits = {"limits": {"cpu": "10m", "memory": "16Mi"}}  # the namespace's quota wants them
    container = {"name": "c", "image": image, "resources": limits, "securityContext": security}
    pod_security = {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
    pod = {
        **{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE}},
        "spec": {"containers": [container], "securityContext": pod_security, "nodeSelector": where},
    }
    kubernetes("apply", "--filename=-", stdin=json.dumps(pod))


@pytest.mark.parametrize(
    ("name", "image", "where", "reason"),
    [
        ("no-image", "localhost/no/such:image", {}, r"ErrImagePull|ImagePullBackOff"),
        ("no-node", PAUSE_IMAGE, {"gpu": "of-tomorrow"}, r"pending, .*didn't match Pod's node affinity/selector"),
    ],
)
def test_a_pod_that_cannot_run_is_told_with_the_reason(
    kubernetes: Kubectl, name: str, image: str, where: dict[str, str], reason: str
) -> None:
    apply_pod(kubernetes, name, image, where)
    try:
        deadline, told = time.monotonic() + PATIENCE, ""
        while not told and time.monotonic() < deadline:
            found = diagnose.findings(look(kubernetes, NAMESPACE), datetime.now(UTC))
            told = next((str(one) for one in found if name in one.about), "")
            time.sleep(1)
    finally:
        kubernetes("delete", "pod", name, "--namespace", NAMESPACE, "--wait=true")
    assert re.search(reason, told)
