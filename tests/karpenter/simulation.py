"""Karpenter's AWS provider with simulated EC2, as a process beside the cluster, and kwok, which plays kubelets.

Of EC2, types, zones, subnets, images and prices are the fake AWS's. Launch templates, fleets and instances are
simulated within Karpenter's own process: https://github.com/aws/karpenter-provider-aws/tree/v1.14.1/kwok
"""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.aws.config import EksCluster
from infra.platform.nodes import NAMESPACE, karpenter_values
from scripts.kubectl import Kubectl
from tests.aws.running import FakeAws

STAGES = Path(__file__).with_name("stages.yaml")
NODES = "kwok.x-k8s.io/node=fake"
"""Label of the nodes that simulated instances register."""


@contextmanager
def _running(command: list[str], environment: Mapping[str, str], log: Path) -> Iterator[None]:
    """A process until the end of the block, and no longer than this one."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            # Not the caller's: neither their AWS account nor a proxy.
            env={"PATH": os.environ["PATH"], "HOME": str(log.parent), **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def kwok(binary: Path, kubernetes: Kubectl, log: Path) -> Iterator[None]:
    command = [str(binary), f"--kubeconfig={kubernetes.kubeconfig}", f"--config={STAGES}"]
    # Only those: by default it would take the real node, too.
    command += [f"--manage-nodes-with-label-selector={NODES}", "--node-lease-duration-seconds=40"]
    with _running(command, {}, log):
        yield


@contextmanager
def karpenter(binary: Path, kubernetes: Kubectl, eks: EksCluster, aws: FakeAws, log: Path) -> Iterator[None]:
    """With the settings that the program gives its chart."""
    settings = karpenter_values(eks)["settings"]
    environment = {
        "KUBECONFIG": str(kubernetes.kubeconfig),
        "SYSTEM_NAMESPACE": NAMESPACE,
        "CLUSTER_NAME": settings["clusterName"],
        "INTERRUPTION_QUEUE": settings["interruptionQueue"],
        "DISABLE_LEADER_ELECTION": "true",
        # Any that are free; nobody asks there.
        **{"METRICS_PORT": "0", "HEALTH_PROBE_PORT": "0"},
        **{"AWS_REGION": eks.region, "AWS_ENDPOINT_URL": aws.endpoint, "AWS_EC2_METADATA_DISABLED": "true"},
        **{"AWS_ACCESS_KEY_ID": "fake", "AWS_SECRET_ACCESS_KEY": "fake"},
    }
    with _running([str(binary)], environment, log):
        yield


def instances(kubernetes: Kubectl) -> dict[str, dict[str, Any]]:
    """Simulated instances by their ids, as EC2 describes them. Karpenter's process keeps a copy in the cluster."""
    maps = kubernetes.get("configmaps", "--namespace", NAMESPACE)["items"]
    kept = [item.get("data", {}) for item in maps if item["metadata"]["name"].startswith("kwok-aws-instances-")]
    return {found["InstanceId"]: found for data in kept for found in json.loads(data.get("instances", "[]"))}
