"""From nothing to answers on a real Kubernetes.

The steps build on each other: a failing one leaves its report in the output, and the later ones fail with it.
"""

import base64
import json
import math
import subprocess
import time
from typing import Any

import httpx
import psutil
import pytest
import yaml

from infra.clusters import LOCAL_KEY
from infra.config import PROJECT, ROOT, StackConfig, from_file
from infra.platform import kuberay
from scripts.cluster.layout import api_port
from scripts.kubectl import Kubectl
from scripts.up import QUESTION, ask
from scripts.vendor_kuberay import module_dir
from tests.e2e.conftest import Stack


def test_vendored_crds_are_those_of_the_operators_module() -> None:
    published = [
        yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
        for path in sorted((module_dir() / "config" / "crd" / "bases").glob("*.yaml"))
    ]
    assert sorted(kuberay.manifests("kuberay-crds"), key=lambda crd: crd["metadata"]["name"]) == published


def test_a_typo_in_the_stack_file_creates_nothing(stack: Stack) -> None:
    path = ROOT / "Pulumi.typo.yaml"
    path.write_text(f"config: {{'{PROJECT}:serving': {{'modles': []}}}}\n")
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


def test_a_stream_comes_through_the_service_and_names_its_variant(client: httpx.Client) -> None:
    body = {"model": "chat", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 24, "temperature": 0}
    with client.stream("POST", "v1/chat/completions", json={**body, "stream": True}, timeout=120) as streamed:
        assert streamed.headers["x-variant"] == "chat@stable"
        events = [line.removeprefix("data: ") for line in streamed.iter_lines() if line]
    assert events.pop() == "[DONE]"
    said = [json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events]
    assert len(said) > 2
    assert "Paris" in "".join(said)


def test_embeddings_come_through_the_service(client: httpx.Client) -> None:
    texts = ["Paris is the capital of France.", "The kettle boils."]
    reply = client.post("v1/embeddings", json={"model": "embed", "input": texts}).raise_for_status().json()
    vectors = [entry["embedding"] for entry in reply["data"]]
    assert [len(vector) for vector in vectors] == [384, 384]
    assert [math.hypot(*vector) for vector in vectors] == pytest.approx([1, 1], abs=1e-3)


@pytest.mark.parametrize(
    ("path", "body", "found"),
    [
        ("generate", {"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}, "Paris"),
        ("v1/classify", {"model": "sentiment", "input": "I love it"}, "positive"),
        ("v1/moderations", {"input": "You stupid idiot"}, '"flagged":true'),
        ("v1/rerank", {"query": "bread", "documents": ["tax", "dough"], "return_documents": True}, "dough"),
        ("analyze", {"text": "Quel beau matin au bord de la mer !"}, '"language":"fr"'),
    ],
)
def test_every_application_answers(client: httpx.Client, path: str, body: dict[str, Any], found: str) -> None:
    assert found in client.post(path, json=body, timeout=120).raise_for_status().text


def test_nobody_gets_in_without_a_key(kubernetes: Kubectl, client: httpx.Client) -> None:
    refused = client.post("v1/embeddings", json={"input": "hi"}, headers={"x-api-key": "sk-other"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    secret = kubernetes.get("secret", "llm-keys", "-n", StackConfig().namespace)
    assert LOCAL_KEY not in base64.b64decode(secret["data"]["keys.yaml"]).decode()


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


def test_a_worker_waits_for_its_head_once_and_not_by_kuberays_means(kubernetes: Kubectl) -> None:
    selector = ("--selector", "ray.io/node-type=worker")
    (worker,) = kubernetes.get("pods", "-n", StackConfig().namespace, *selector)["items"]
    assert [container["name"] for container in worker["spec"]["initContainers"]] == ["wait-for-head"]


def test_the_weights_are_the_nodes_and_not_the_images(kubernetes: Kubectl) -> None:
    namespace = StackConfig().namespace
    for pod in kubernetes.get("pods", "-n", namespace)["items"]:
        run = ("exec", "-n", namespace, pod["metadata"]["name"], "--", "sh", "-c")
        in_the_image = "find / -xdev \\( -name 'model*.safetensors' -o -name '*.gguf' \\) 2>/dev/null || true"
        assert kubernetes(*run, in_the_image, timeout=300) == ""
        assert "model.safetensors" in kubernetes(*run, "ls $BLUEPRINT_CACHE/models/*")
        assert "denied" in kubernetes(*run, "touch $BLUEPRINT_CACHE/models/x 2>&1 || echo denied")


def test_dashboard_wants_the_token(kubernetes: Kubectl) -> None:
    namespace = StackConfig().namespace
    selector = ("--selector", "ray.io/node-type=head")
    (head,) = kubernetes.get("pods", "-n", namespace, *selector)["items"]
    url = "http://127.0.0.1:8265/api/serve/applications/"
    run = ("exec", "-n", namespace, head["metadata"]["name"], "--", "sh", "-c")
    assert "401" in kubernetes(*run, f"wget --server-response -qO- {url} 2>&1 || true")
    # The one that the program made.
    token = base64.b64decode(kubernetes.get("secret", "llm-ray-token", "-n", namespace)["data"]["auth_token"]).decode()
    assert "applications" in kubernetes(*run, f"wget --header 'Authorization: Bearer {token}' -qO- {url}")


@pytest.mark.usefixtures("deployed")
def test_a_second_up_finds_no_drift_and_changes_nothing(stack: Stack) -> None:
    done = stack.make("up")
    assert done.returncode == 0
    assert "\nunchanged\n" in done.stdout
