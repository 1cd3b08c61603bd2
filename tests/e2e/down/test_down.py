"""Back to nothing. The last scenario: it takes the cluster of all others away."""

import json
import os
import signal
import subprocess
import sys

import pytest

from infra.clusters import NativeCluster
from scripts import cluster, kubectl, tools
from scripts.cluster import traces
from scripts.cluster.layout import PAUSE_IMAGE, Record
from scripts.drain import drain
from scripts.kubectl import Kubectl
from tests.e2e.conftest import Stack


def require_nothing(stack: Stack) -> None:
    assert cluster.leftovers() == []
    assert not stack.state.exists()
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line for line in running if str(stack.state) in line and sys.executable not in line] == []


def test_a_drained_cluster_has_neither_ray_nor_load_balancers(kubernetes: Kubectl) -> None:
    """As `make down` begins on AWS; what comes after finds less than Pulumi's state says."""
    kubernetes("create", "service", "loadbalancer", "web", "--tcp=80", "--namespace=default")
    drain(kubernetes)
    assert kubernetes.get("rayservices.ray.io,rayclusters.ray.io", "--all-namespaces")["items"] == []
    services = kubernetes.get("services", "--namespace=default")["items"]
    assert [service["metadata"]["name"] for service in services] == ["kubernetes"]


@pytest.mark.usefixtures("deployed")
def test_down_leaves_nothing(stack: Stack) -> None:
    done = stack.make("down")
    assert done.returncode == 0
    require_nothing(stack)


def test_a_killed_cluster_leaves_nothing_either(stack: Stack) -> None:
    cluster.start(tools.ensure("kubernetes", "coredns", "pause"))
    pod = {
        **{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pause"}},
        "spec": {"containers": [{"name": "pause", "image": PAUSE_IMAGE}]},
    }
    kubernetes = kubectl.connect(NativeCluster())
    kubernetes("apply", "--filename=-", stdin=json.dumps(pod))
    kubernetes("wait", "pod/pause", "--for=condition=Ready", "--timeout=120s", timeout=130)
    record = Record.load()
    assert record
    os.kill(record.supervisor, signal.SIGKILL)
    assert traces.wait_for_end(60)
    assert traces.containers()
    assert stack.make("down").returncode == 0
    require_nothing(stack)
