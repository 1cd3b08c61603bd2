"""The operator dies and comes back: requests go on without it, and the next change is taken."""

import httpx

from infra.config import StackConfig
from infra.platform import kuberay
from scripts.kubectl import Kubectl
from tests.e2e.conftest import Stack, chat, growing

EMBED = {"input": "hi"}


def test_the_operator_is_killed_and_comes_back(stack: Stack, kubernetes: Kubectl, client: httpx.Client) -> None:
    where = ("--namespace", kuberay.NAMESPACE)
    (before,) = kubernetes.get("pods", *where)["items"]
    kubernetes("delete", "pod", before["metadata"]["name"], *where, "--grace-period=0", "--force")
    client.post("v1/embeddings", json=EMBED).raise_for_status()
    kubernetes("rollout", "status", "deployment/kuberay-operator", *where, "--timeout=300s", timeout=310)
    pods = kubernetes.get("pods", *where)["items"]
    assert before["metadata"]["uid"] not in {pod["metadata"]["uid"] for pod in pods}
    client.post("v1/embeddings", json=EMBED).raise_for_status()

    pinned = chat(weights=(1,), pins={"somebody": "stable"})
    assert stack.up(**growing(models=[pinned])).returncode == 0
    written = kubernetes.get("rayservice", "llm", "--namespace", StackConfig().namespace)
    assert written["status"]["observedGeneration"] == written["metadata"]["generation"]
