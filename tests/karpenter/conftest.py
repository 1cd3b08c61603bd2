"""The real Karpenter on the native cluster, with each stack's AWS half in a fake AWS: what tests/karpenter looks at."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import pytest

from infra.aws.config import POOL, EksCluster, Pool
from infra.config import NativeCluster, StackConfig, WorkerGroup, from_file
from infra.platform.karpenter import node_pools
from infra.platform.kuberay import manifests
from infra.serving.access import accounts
from infra.serving.rayservice import rayservice
from infra.serving.warm import placeholders
from scripts import cluster, tools
from scripts.kubectl import Kubectl, connect
from tests.aws.running import FakeAws
from tests.aws.stacks import CLUSTERS, SERVICE, applied, provider_schema, translated
from tests.aws.terraform import Terraform
from tests.karpenter import simulation
from tests.ports import free_port

GPU = "nvidia.com/gpu"
Object = dict[str, Any]
Found = TypeVar("Found")


@dataclass(frozen=True)
class Stack:
    """A stack whose AWS half is made, and whose worker pods lead to simulated nodes."""

    config: StackConfig
    eks: EksCluster
    made: dict[str, dict[str, Any]]
    """What its AWS half is, by Terraform's addresses."""
    aws: FakeAws
    kubernetes: Kubectl
    log: Path
    """Karpenter's."""

    @property
    def groups(self) -> list[WorkerGroup]:
        """Those whose nodes Karpenter starts. Reserved ones its simulation does not know."""
        pools = [(group, group.pool or Pool()) for group in self.config.workers]
        return [group for group, pool in pools if pool.nodes == "karpenter" and "reserved" not in pool.capacity]

    @property
    def _here(self) -> tuple[str, str]:
        return "--namespace", self.config.namespace

    def start(self) -> None:
        """What must be there before the pods are."""
        namespace = {"name": self.config.namespace, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": namespace}, *accounts(SERVICE, self.config))
        names = [group.name for group in self.groups]
        pools = chain(*node_pools(self.config, self.eks))
        self.apply(*(item for item in pools if item["metadata"]["name"] in names))

    def apply(self, *objects: Object) -> None:
        self.kubernetes("apply", "--server-side", "--filename=-", stdin="\n".join(map(json.dumps, objects)))

    def worker(self, group: WorkerGroup, name: str, **spec: Any) -> Object:
        """A pod of the RayService's, as KubeRay makes it of the template, in so far as the scheduler looks at it."""
        groups = rayservice(SERVICE, self.config)["spec"]["rayClusterConfig"]["workerGroupSpecs"]
        (template,) = (item["template"] for item in groups if item["groupName"] == group.name)
        metadata = {**template["metadata"], "name": name, "namespace": self.config.namespace}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {**template["spec"], **spec}}

    def fill(self) -> None:
        """All pods that may be there at one time: an upgrade's as well, and placeholders."""
        for group in self.groups:
            number = group.max_replicas + self.config.surge.get(group.name, 0)
            self.apply(*(self.worker(group, f"{group.name}-{index}") for index in range(number)))
        if warm := placeholders(SERVICE, self.config):
            self.apply(*warm)

    def pods(self, group: WorkerGroup) -> list[Object]:
        """Placeholders are among them."""
        pods = self.kubernetes.get("pods", *self._here)["items"]
        return [
            pod
            for pod in pods
            if pod["spec"]["nodeSelector"].get(POOL) == group.name and "deletionTimestamp" not in pod["metadata"]
        ]

    def waiting(self, group: WorkerGroup) -> list[str]:
        return [pod["metadata"]["name"] for pod in self.pods(group) if pod["status"]["phase"] == "Pending"]

    def delete(self, kind: str, *names: str) -> None:
        """With all that they own."""
        options = (*self._here, "--ignore-not-found", "--cascade=foreground")
        if names:
            self.kubernetes("delete", kind, *names, *options, timeout=300)

    def nodes(self, group: WorkerGroup) -> dict[str, Object]:
        """By name, those of a group's pool."""
        found = self.kubernetes.get("nodes", f"--selector=karpenter.sh/nodepool={group.name}")["items"]
        return {node["metadata"]["name"]: node for node in found}

    def claims(self) -> dict[str, Object]:
        """Karpenter's NodeClaims, by name."""
        return {claim["metadata"]["name"]: claim for claim in self.kubernetes.get("nodeclaims")["items"]}

    def said(self, kind: str, name: str, reason: str) -> str:
        """What Karpenter's events say of an object; the scheduler's have the same reasons."""
        about = f"--field-selector=involvedObject.kind={kind},involvedObject.name={name},reason={reason}"
        events = self.kubernetes.get("events", "--all-namespaces", about)["items"]
        ours = [
            event for event in events if "karpenter" in (event["source"].get("component"), event["reportingComponent"])
        ]
        return "\n".join(event["message"] for event in ours)

    def until(self, what: str, found: Callable[[], Found], seconds: float = 300) -> Found:
        """What `found` finds, as soon as that is anything."""
        begun = time.monotonic()
        while not (result := found()):
            assert time.monotonic() - begun < seconds, f"{what}, and it is not so after {seconds:g} s\n{self.explain()}"
            time.sleep(1)
        print(f"{self.eks.name}: {what} ({time.monotonic() - begun:.0f} s)", flush=True)
        return result

    def explain(self) -> str:
        events = self.kubernetes("get", "events", "--all-namespaces", "--sort-by=.lastTimestamp")
        shown = self.kubernetes("get", "nodeclaims,nodepools,ec2nodeclasses,pods", "--all-namespaces", "--output=wide")
        return "\n".join([shown, *events.splitlines()[-20:], *self.log.read_text().splitlines()[-20:]])

    def ready(self) -> bool:
        """Whether Karpenter has taken classes and pools. Of what comes before, its word for a pod may be outdated."""
        conditions = [
            {item["type"]: item["status"] for item in found.get("status", {}).get("conditions", [])}
            for found in self.kubernetes.get("ec2nodeclasses,nodepools")["items"]
        ]
        return all(found.get("Ready") == "True" for found in conditions)

    def remove(self) -> None:
        """In the program's order: the pods, then the pools with their nodes, then the classes."""
        self.kubernetes("delete", "namespace", self.config.namespace, "--ignore-not-found", timeout=300)
        for kind in ("nodepools", "ec2nodeclasses"):
            self.kubernetes("delete", kind, "--all", timeout=300)


@pytest.fixture(scope="session")
def kubernetes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubectl]:
    """The native cluster with Karpenter's CRDs, its state in a directory of the tests' own."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("BLUEPRINT_STATE", str(tmp_path_factory.mktemp("state") / "blueprint"))
        environment.setenv("BLUEPRINT_API_PORT", str(free_port()))
        try:
            cluster.start(tools.ensure("kubernetes", "coredns", "pause"))
            kubectl = connect(NativeCluster())
            crds = "\n".join(map(json.dumps, manifests("karpenter-crds")))
            kubectl("apply", "--server-side", "--filename=-", stdin=crds)
            kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=50s")
            yield kubectl
        finally:
            cluster.stop()


@pytest.fixture(scope="session")
def binaries(kubernetes: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where Karpenter is; kwok runs."""
    found = tools.ensure(*tools.SIMULATION)
    with simulation.kwok(found / "kwok", kubernetes, tmp_path_factory.mktemp("kwok") / "kwok.log"):
        yield found


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--stacks", default=" ".join(CLUSTERS), type=str.split, help="those whose nodes are asked for")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "stack" in metafunc.fixturenames:
        metafunc.parametrize("stack", metafunc.config.option.stacks, indirect=True, scope="module")


@pytest.fixture(scope="session")
def halves(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[tuple[Terraform, FakeAws]]]]:
    """The stacks' AWS halves, made at once, while the cluster starts."""
    schema = provider_schema(tmp_path_factory.mktemp("schema"))
    stacks: list[str] = request.config.option.stacks
    translations = {stack: translated(stack, CLUSTERS[stack], schema) for stack in stacks}
    directory = tmp_path_factory.mktemp("stacks")
    with ExitStack() as end, ThreadPoolExecutor(len(translations)) as threads:
        yield {
            stack: threads.submit(end.enter_context, applied(stack, translation, directory / stack))
            for stack, translation in translations.items()
        }


@pytest.fixture(scope="module")
def stack(
    request: pytest.FixtureRequest,
    halves: dict[str, Future[tuple[Terraform, FakeAws]]],
    binaries: Path,
    kubernetes: Kubectl,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:
    """One after the other: Karpenter takes a cluster for itself."""
    config, eks = from_file(request.param), CLUSTERS[request.param]
    terraform, aws = halves[request.param].result()
    log = tmp_path_factory.mktemp(request.param) / "karpenter.log"
    stack = Stack(config, eks, terraform.state(), aws, kubernetes, log)
    stack.start()
    with simulation.karpenter(binaries / "karpenter", kubernetes, eks, aws, log):
        stack.until("Karpenter has taken classes and pools", stack.ready)
        yield stack
        stack.remove()
