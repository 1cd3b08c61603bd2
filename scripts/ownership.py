"""What `make up` must not take over: KubeRay, Prometheus' CRDs and namespaces of somebody else's.

To create and to take over is one request in server-side apply: Pulumi would change them without a word, and `make down`
would delete them. Whose an object is says its field manager (infra/platform/kubeconfig.py).
"""

import json

from infra import versions
from infra.config import StackConfig
from infra.observability import prometheus
from infra.observability.config import ObjectsOnly
from infra.platform import kuberay
from infra.platform.kubeconfig import manager
from scripts.console import Problem
from scripts.kubectl import Kubectl
from scripts.observe import Object


def require(kubernetes: Kubectl, stack: str, config: StackConfig) -> None:
    """Raises Problem when an operator, CRDs or a namespace that `stack` would make are there, and not by `stack`."""
    monitored = config.observability is not None and not isinstance(config.observability, ObjectsOnly)
    for deployment in _of_others(kubernetes, stack, "deployments", "--all-namespaces"):
        if kuberay.is_operator(deployment):
            where = f"{deployment['metadata']['namespace']}/{deployment['metadata']['name']}"
            (container, *_) = deployment["spec"]["template"]["spec"]["containers"]
            raise Problem(
                f"a KubeRay operator runs there already: Deployment {where} with {container['image']}; "
                f"stack {stack} has not made it, and brings its own, {versions.KUBERAY}",
                "one operator serves a whole cluster: remove that one (`helm uninstall`, or `make down` of the stack "
                "that made it), or deploy to another cluster",
            )
    if found := _crds_of_others(kubernetes, stack, kuberay.manifests("kuberay-crds")):
        raise Problem(
            f"KubeRay's CRDs are there already: {found}; stack {stack} has not made them, and brings those of "
            f"{versions.KUBERAY}",
            f"if nothing needs them (kubectl get {found.replace(' ', ',')} -A), kubectl delete crd {found}; "
            "or deploy to another cluster",
        )
    if monitored and (found := _crds_of_others(kubernetes, stack, prometheus.manifests("prometheus-crds"))):
        raise Problem(
            f"the CRDs of a Prometheus operator are there already: {found}; stack {stack} has not made them, and "
            f"brings those of {versions.PROMETHEUS_OPERATOR}",
            "if that operator runs, let it read the stack's monitors and rules: set observability.kind to objects; "
            f"if nothing needs them, kubectl delete crd {found}",
        )
    mine = (config.namespace, kuberay.NAMESPACE, *([config.monitoring_namespace] if monitored else []))
    for item in _of_others(kubernetes, stack, "namespaces", *mine, "--ignore-not-found"):
        name = item["metadata"]["name"]
        key = {config.namespace: "namespace", config.monitoring_namespace: "monitoring_namespace"}.get(name)
        other = f"set `{key}` to another name" if key else "deploy to another cluster"
        raise Problem(
            f"the namespace {name} is there already; stack {stack} has not made it, and `make down` would delete it "
            "with all that is in it",
            f"{other}, or, if nothing in it is needed, kubectl delete namespace {name}",
        )


def _crds_of_others(kubernetes: Kubectl, stack: str, crds: list[Object]) -> str:
    """The names of those that are there and not by `stack`, with spaces between."""
    names = [crd["metadata"]["name"] for crd in crds]
    found = _of_others(kubernetes, stack, "customresourcedefinitions", *names, "--ignore-not-found")
    return " ".join(crd["metadata"]["name"] for crd in found)


def _of_others(kubernetes: Kubectl, stack: str, *what: str) -> list[Object]:
    """What `kubectl get` finds, without the objects that `stack` has made."""
    # Nothing at all for nothing found, and no list for a single object that was asked for by its name.
    found = json.loads(kubernetes("get", *what, "--show-managed-fields", "--output", "json") or '{"items": []}')
    return [item for item in found.get("items", [found]) if manager(stack) not in _managers(item)]


def _managers(item: Object) -> list[str]:
    return [entry.get("manager", "") for entry in item["metadata"].get("managedFields", [])]
