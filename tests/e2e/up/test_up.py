"""From nothing to answers on a real Kubernetes.

The steps build on each other: a failing one leaves its report in the output, and the later ones fail with it.
"""

import math
import subprocess
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest
import yaml

from infra.config import LOCAL_KEY, ROOT, StackConfig, from_file
from infra.platform import kuberay
from infra.serving.rayservice import SERVE_PORT
from scripts.cluster.layout import api_port
from scripts.kubectl import Kubectl
from scripts.up import QUESTION, ask
from scripts.vendor_kuberay import module_dir
from tests.e2e.conftest import Stack


@pytest.fixture(scope="module")
def client(kubernetes: Kubectl) -> Iterator[httpx.Client]:
    """Of the application, by way of its Kubernetes Service."""
    with kubernetes.service(StackConfig().namespace, "llm-serve-svc", SERVE_PORT, LOCAL_KEY) as client:
        yield client


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


def test_up_ends_with_an_answer(deployed: subprocess.CompletedProcess[str]) -> None:
    assert QUESTION in deployed.stdout
    assert "Paris" in deployed.stdout


def test_the_model_answers_through_the_service(kubernetes: Kubectl) -> None:
    config = from_file("local")
    answer = ask(kubernetes, config.namespace, "llm-serve-svc", config.serving.first_model, LOCAL_KEY)
    assert "Paris" in answer


def test_embeddings_come_through_the_service(client: httpx.Client) -> None:
    texts = ["Paris is the capital of France.", "The kettle boils."]
    reply = client.post("v1/embeddings", json={"model": "embed", "input": texts}).raise_for_status().json()
    vectors = [entry["embedding"] for entry in reply["data"]]
    assert [len(vector) for vector in vectors] == [384, 384]
    assert [math.hypot(*vector) for vector in vectors] == pytest.approx([1, 1], abs=1e-3)


def test_ready_says_so(client: httpx.Client) -> None:
    deadline = time.monotonic() + 300
    # On a busy machine a model may take longer for the probe's token than /ready waits.
    while (reply := client.get("ready")).status_code == 503 and time.monotonic() < deadline:
        time.sleep(1)
    assert reply.json() == {"ready": True}


@pytest.mark.usefixtures("deployed")
def test_the_api_listens_on_loopback_alone() -> None:
    listening = {
        connection.laddr.ip
        for connection in psutil.net_connections("tcp")
        if connection.laddr and connection.laddr.port == api_port() and connection.status == psutil.CONN_LISTEN
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


@pytest.mark.usefixtures("deployed")
def test_a_second_up_changes_nothing(stack: Stack) -> None:
    done = stack.make("up")
    assert done.returncode == 0
    assert "\nunchanged\n" in done.stdout


@pytest.mark.usefixtures("deployed")
def test_status_shows_what_runs(stack: Stack) -> None:
    done = stack.make("status")
    assert done.returncode == 0
    assert "llm" in done.stdout
    assert "Running" in done.stdout
