"""From nothing to an answer on a real Kubernetes, and back to nothing.

The steps build on each other: a failing one leaves its report in the output, and the later ones fail with it.
"""

import json
import subprocess
import sys

import psutil
import pytest
import yaml

from infra.config import ROOT, StackConfig, from_file
from infra.platform import kuberay
from scripts import cluster
from scripts.kubectl import Kubectl, connect
from scripts.up import QUESTION, ask
from scripts.vendor_kuberay import module_dir
from tests.e2e.conftest import Stack


@pytest.fixture(autouse=True)
def environment(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code under test, called from here, looks at the same cluster as the commands."""
    for name in ("BLUEPRINT_STATE", "BLUEPRINT_API_PORT"):
        monkeypatch.setenv(name, stack.environment[name])


@pytest.fixture
def kubernetes(stack: Stack) -> Kubectl:
    return connect(from_file("local").cluster)


def test_vendored_crds_are_those_of_the_operators_module() -> None:
    published = [
        yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
        for path in sorted((module_dir() / "config" / "crd" / "bases").glob("*.yaml"))
    ]
    assert sorted(kuberay.manifests("kuberay-crds"), key=lambda crd: crd["metadata"]["name"]) == published


def test_a_typo_in_the_stack_file_creates_nothing(stack: Stack) -> None:
    path = ROOT / "Pulumi.typo.yaml"
    path.write_text("config: {'blueprint:serving': {'modles': []}}\n")
    try:
        failed = stack.make("up", "STACK=typo")
    finally:
        path.unlink()
    assert failed.returncode != 0
    assert "serving.modles" in failed.stdout
    assert "models" in failed.stdout
    assert "Traceback" not in failed.stdout
    assert not stack.state.exists()


def test_up_ends_with_an_answer(stack: Stack) -> None:
    done = stack.make("up")
    assert done.returncode == 0
    assert QUESTION in done.stdout
    assert "Paris" in done.stdout


def test_the_model_answers_through_the_service(kubernetes: Kubectl) -> None:
    config = from_file("local")
    answer = ask(kubernetes, config.namespace, "llm-serve-svc", config.serving.models[0].name)
    assert "Paris" in answer


def test_ready_says_so(kubernetes: Kubectl) -> None:
    namespace = StackConfig().namespace
    path = f"/api/v1/namespaces/{namespace}/services/llm-serve-svc:8000/proxy/ready"
    assert json.loads(kubernetes("get", "--raw", path)) == {"ready": True}


def test_the_api_listens_on_loopback_alone(stack: Stack) -> None:
    port = int(stack.environment["BLUEPRINT_API_PORT"])
    listening = {
        connection.laddr.ip
        for connection in psutil.net_connections("tcp")
        if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_pods_are_not_root_and_cannot_write_their_image(kubernetes: Kubectl) -> None:
    namespace = StackConfig().namespace
    pods = [item["metadata"]["name"] for item in kubernetes.get("pods", "-n", namespace)["items"]]
    assert len(pods) == 2
    for pod in pods:
        run = ("exec", "-n", namespace, pod, "--")
        assert kubernetes(*run, "id", "-u").strip() == "1000"
        assert "denied" in kubernetes(*run, "sh", "-c", "touch /opt/app/x 2>&1 || echo denied")


def test_dashboard_wants_the_token(kubernetes: Kubectl) -> None:
    namespace = StackConfig().namespace
    selector = ("--selector", "ray.io/node-type=head")
    (head,) = kubernetes.get("pods", "-n", namespace, *selector)["items"]
    ask_dashboard = "wget --server-response -qO- http://127.0.0.1:8265/api/serve/applications/ 2>&1 || true"
    run = ("exec", "-n", namespace, head["metadata"]["name"], "--", "sh", "-c")
    assert "401" in kubernetes(*run, ask_dashboard)


def test_a_second_up_changes_nothing(stack: Stack) -> None:
    done = stack.make("up")
    assert done.returncode == 0
    assert "\nunchanged\n" in done.stdout


def test_status_shows_what_runs(stack: Stack) -> None:
    done = stack.make("status")
    assert done.returncode == 0
    assert "llm" in done.stdout
    assert "Running" in done.stdout


def test_down_leaves_nothing(stack: Stack) -> None:
    done = stack.make("down")
    assert done.returncode == 0
    assert cluster.leftovers() == []
    assert not stack.state.exists()
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line for line in running if str(stack.state) in line and sys.executable not in line] == []
