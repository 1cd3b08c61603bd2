"""What a stack has on its Kubernetes: rights, operator, CRDs, GPUs of the nodes, versions in the image."""

import json
from collections.abc import Iterator
from typing import Any

from infra import versions
from infra.aws.config import POOL, EksCluster
from infra.aws.pools import instances
from infra.config import StackConfig
from infra.platform import kuberay
from infra.platform.karpenter import node_pools
from scripts import kubectl, ownership
from scripts.console import Problem
from scripts.doctor import UNKNOWN, WRONG, Check, Note, Unknown, check, unlooked
from scripts.kubectl import Kubectl
from scripts.observe import Object, heads

_RIGHTS = {
    "namespaces": "",
    "customresourcedefinitions": "apiextensions.k8s.io",
    "clusterroles": "rbac.authorization.k8s.io",
}
"""What `make up` creates outside a namespace, and its API group."""
_VERSIONS = """
from importlib.metadata import packages_distributions, version
print(version("ray"), version(packages_distributions()["vllm"][0]))
"""
"""For Python in the image, where vLLM's build for CPUs has a name of its own."""


def checks(stack_name: str, stack: StackConfig) -> Iterator[Check]:
    """Of a cluster that is there."""
    try:
        kubernetes = kubectl.connect(stack.cluster)
        version = json.loads(kubernetes("version", "--output=json"))["serverVersion"]
    except Problem as problem:
        # A private API is reached from the VPC only, and what is there may be in order.
        yield Check(
            "Kubernetes", UNKNOWN if isinstance(stack.cluster, EksCluster) else WRONG, problem.what, problem.fix
        )
        yield from unlooked(["operator", "CRDs", "Ray and vLLM"])
        return
    yield check("Kubernetes", lambda: kubernetes_version(version["gitVersion"]))
    yield check("rights", lambda: rights(kubernetes))
    yield check("what is there", lambda: ours(kubernetes, stack_name, stack))
    yield check("operator", lambda: operator(kubernetes))
    for name in vendored(stack):
        yield check(f"CRDs {name}", lambda name=name: crds(kubernetes, name))
    for group in (group for group in stack.workers if group.gpus):
        yield check(f"GPUs of {group.name}", lambda group=group: gpus(kubernetes, stack, group.name))
    yield check("Ray and vLLM", lambda: image_versions(kubernetes, stack.namespace))


def kubernetes_version(found: str) -> str:
    """KubeRay and the manifests go with other minor versions, too, but these were not executed."""
    if found.removeprefix("v").split(".")[:2] != versions.KUBERNETES.split(".")[:2]:
        raise Note(
            f"{found}; executed is {versions.KUBERNETES}",
            "none needed; a cluster of that minor version is the one that was tested",
        )
    return found


def rights(kubernetes: Kubectl) -> str:
    missing = [kind for kind, group in _RIGHTS.items() if not _may_create(kubernetes, kind, group)]
    if missing:
        raise Problem(
            f"you may not create {', '.join(missing)} there", "ask for the role cluster-admin, or another context"
        )
    return f"you may create {', '.join(_RIGHTS)}"


def _may_create(kubernetes: Kubectl, kind: str, group: str) -> bool:
    asked = {
        **{"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"},
        "spec": {"resourceAttributes": {"verb": "create", "resource": kind, "group": group}},
    }
    answer = kubernetes("create", "--filename=-", "--output=json", stdin=json.dumps(asked))
    return bool(json.loads(answer)["status"]["allowed"])


def ours(kubernetes: Kubectl, stack_name: str, stack: StackConfig) -> str:
    ownership.require(kubernetes, stack_name, stack)
    return "nothing of somebody else's that `make up` would take over"


def operator(kubernetes: Kubectl) -> str:
    found = [item for item in _items(kubernetes, "deployments", "--all-namespaces") if kuberay.is_operator(item)]
    if not found:
        raise Note("no KubeRay operator yet", "nothing: make up installs it")
    (first, *_) = found
    image = first["spec"]["template"]["spec"]["containers"][0]["image"]
    if not image.endswith(f":v{versions.KUBERAY}"):
        raise Problem(f"{image}, the ledger says {versions.KUBERAY}", "make up brings that version")
    if not first.get("status", {}).get("readyReplicas"):
        raise Problem(f"{image} is not ready", "make status")
    return image


def _items(kubernetes: Kubectl, *what: str) -> list[Object]:
    try:
        return kubernetes.get(*what)["items"]
    except Problem as problem:
        if "orbidden" in problem.what:
            raise Unknown(problem.what, f"the right to list {what[0]}") from None
        raise


def vendored(stack: StackConfig) -> list[str]:
    """Files of infra/platform/manifests whose CRDs the stack puts there."""
    found = ["kuberay-crds"]
    if isinstance(stack.cluster, EksCluster):
        found += ["karpenter-crds"] if any(node_pools(stack, stack.cluster)) else []
        found += ["load-balancer-controller-crds"] if stack.cluster.entry else []
    return found


def crds(kubernetes: Kubectl, name: str) -> str:
    """An API server drops fields that a CRD does not have, without a word."""
    wanted = {crd["metadata"]["name"]: crd for crd in kuberay.manifests(name)}
    # Nothing at all for nothing found, and no list for a single object.
    said = kubernetes("get", "customresourcedefinitions", *wanted, "--ignore-not-found", "--output=json")
    document = json.loads(said or '{"items": []}')
    there = {crd["metadata"]["name"]: crd for crd in document.get("items", [document])}
    if not there:
        raise Note("none yet", "nothing: make up brings them")
    for crd, document in wanted.items():
        if crd not in there:
            raise Problem(f"{crd} is missing", "make up brings it")
        if lacking := sorted(fields(document) - fields(there[crd])):
            raise Problem(
                f"{crd} lacks {', '.join(lacking[:3])}: it is of another version", "make up brings the ledger's"
            )
    return f"{len(wanted)}, with all fields of the ledger's"


def fields(crd: Object) -> set[str]:
    """Paths of all fields that a CRD has, by version."""
    found: set[str] = set()

    def walk(schema: Any, path: str) -> None:
        if isinstance(schema, dict):
            for name, inner in schema.get("properties", {}).items():
                found.add(f"{path}.{name}")
                walk(inner, f"{path}.{name}")
            for key in ("items", "additionalProperties"):
                walk(schema.get(key), path)

    for version in crd["spec"]["versions"]:
        walk(version["schema"]["openAPIV3Schema"], version["name"])
    return found


def gpus(kubernetes: Kubectl, stack: StackConfig, group_name: str) -> str:
    """Whether the nodes of a group offer the GPUs that they have."""
    (group,) = (group for group in stack.workers if group.name == group_name)
    on_aws = isinstance(stack.cluster, EksCluster)
    nodes = _items(kubernetes, "nodes", *(["--selector", f"{POOL}={group.name}"] if on_aws else []))
    offered = {node["metadata"]["name"]: int(node["status"]["allocatable"].get("nvidia.com/gpu", 0)) for node in nodes}
    if on_aws and not offered:
        raise Note("no node yet", "nothing: nodes come with the pods")
    least = group.gpus
    if on_aws and group.pool:
        least = min(instance.gpus for instance in instances(group)) * group.pool.to_a_gpu
    bad = [f"{name} {count}" for name, count in offered.items() if count < least]
    if len(bad) == len(offered) if not on_aws else bad:
        raise Problem(
            f"a node should offer {least} nvidia.com/gpu: {', '.join(bad) or 'there is none'}",
            "see that NVIDIA's driver and device plugin run there: kubectl get pods --all-namespaces | grep nvidia",
        )
    return ", ".join(f"{name} {count}" for name, count in offered.items() if count)


def image_versions(kubernetes: Kubectl, namespace: str) -> str:
    """Those in the head that runs, which has the image of all Ray pods."""
    running = heads(_items(kubernetes, "pods", "--namespace", namespace))
    if not running:
        raise Note("no Ray pod runs yet", "nothing: make up starts it")
    name = running[0]["metadata"]["name"]
    ray, vllm = kubernetes("exec", "--namespace", namespace, name, "--", "python", "-c", _VERSIONS).split()
    found = f"ray {ray}, vllm {vllm} in {running[0]['spec']['containers'][0]['image']}"
    if (ray, vllm) != (versions.RAY, versions.VLLM):
        raise Problem(
            f"{found}; the ledger says {versions.RAY} and {versions.VLLM}", "build the image anew: make image"
        )
    return found
