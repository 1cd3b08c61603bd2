"""`make status`: what of a stack runs, and what keeps the rest from running."""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime

from infra.clusters import NativeCluster
from infra.config import StackConfig
from infra.platform import kuberay
from infra.serving.rayservice import SERVE_PORT
from scripts import cluster, diagnose, kubectl, stack_file
from scripts.console import Problem, main, say, table
from scripts.kubectl import Kubectl
from scripts.observe import Object, View, conditions, entry, in_steps, look

NONE = "–"


def status(stack_name: str) -> None:
    stack = stack_file.read(stack_name)
    if isinstance(stack.cluster, NativeCluster) and not cluster.running():
        say(f"stack {stack_name}: no cluster runs; `make up` starts it")
        return
    kubernetes = kubectl.connect(stack.cluster)
    try:
        version = json.loads(kubernetes("version", "--output=json"))
        view = look(kubernetes, stack.namespace)
    except Problem as problem:
        raise Problem(
            f"stack {stack_name}: its cluster does not answer ({problem.what})",
            f"check the network and the credentials in {kubernetes.kubeconfig}",
        ) from None
    now = datetime.now(UTC)
    rows = [
        ("PART", "STATE"),
        ("cluster", where(kubernetes, version["serverVersion"]["gitVersion"])),
        ("nodes", nodes(seen(kubernetes, "nodes"))),
        ("operator", operator(seen(kubernetes, "deployments", "--namespace", kuberay.NAMESPACE))),
        *((kind, text) for service in view.services for kind, text in service_lines(service, now)),
        *([] if view.services else [("RayService", "none; `make up` makes it")]),
        ("models", models(stack)),
    ]
    say(f"stack {stack_name}\n\n{table(rows)}")
    if any(view.applications.values()):
        say(f"\n{table(list(applications(view)))}")
    if view.pods:
        say("\n" + kubernetes("get", "pods", "--namespace", stack.namespace).rstrip())
    if found := diagnose.findings(view, now):
        say("\nnot well:\n  " + "\n  ".join(map(str, found)))


def seen(kubernetes: Kubectl, *what: str) -> list[Object] | None:
    """None where one may not look."""
    try:
        return kubernetes.get(*what)["items"]
    except Problem:
        return None


def where(kubernetes: Kubectl, version: str) -> str:
    named = f"context {kubernetes.context}, " if kubernetes.context else "native, "
    return f"Kubernetes {version}, {named}kubeconfig {kubernetes.kubeconfig}"


def nodes(found: list[Object] | None) -> str:
    if found is None:
        return "not for this user to see"
    bad = [node["metadata"]["name"] for node in found if conditions(node).get("Ready", {}).get("status") != "True"]
    return f"{len(found) - len(bad)} of {len(found)} ready" + (f"; not ready: {', '.join(bad)}" if bad else "")


def operator(found: list[Object] | None) -> str:
    if found is None:
        return "not for this user to see"
    for deployment in found:
        if kuberay.is_operator(deployment):
            image = deployment["spec"]["template"]["spec"]["containers"][0]["image"]
            ready = deployment.get("status", {}).get("readyReplicas", 0)
            return f"{image}, {'ready' if ready else 'not ready'}"
    return f"none in {kuberay.NAMESPACE}; `make up` installs it"


def service_lines(service: Object, now: datetime) -> Iterator[tuple[str, str]]:
    """The RayService with its conditions, its Ray clusters, and where it answers."""
    name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
    state = service.get("status", {})
    known = [f"{kind}={one['status']} {one['reason']}, {age(one, now)}" for kind, one in conditions(service).items()]
    yield "RayService", f"{name}: " + ("; ".join(known) or "KubeRay has not looked at it yet")
    clusters = {kind: state.get(f"{kind}ServiceStatus", {}).get("rayClusterName") for kind in ("active", "pending")}
    named = [f"{kind} {cluster}" for kind, cluster in clusters.items() if cluster]
    yield "RayCluster", ", ".join(named) or "none"
    endpoints = state.get("numServeEndpoints", 0)
    service_url = f"http://{entry(service)}.{namespace}:{SERVE_PORT} in the cluster"
    address = f"the Gateway {name}-gateway" if in_steps(service) else service_url
    yield "endpoint", f"{address}, {endpoints} behind it; from here: make forward"


def age(condition: Object, now: datetime) -> str:
    """How long a condition has been as it is."""
    seconds = (now - datetime.fromisoformat(condition["lastTransitionTime"])).total_seconds()
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"for {seconds / size:.0f} {unit}"
    return f"for {max(seconds, 0):.0f} s"


def models(stack: StackConfig) -> str:
    """What the stack file asks for."""
    serving = stack.serving
    language = [f"{model.name} ({', '.join(variant.name for variant in model.variants)})" for model in serving.models]
    others = [model.name for model in (*serving.embeddings, *serving.classifiers, *serving.rerankers)]
    return ", ".join([*language, *others])


def applications(view: View) -> Iterator[tuple[str, ...]]:
    """Each Serve deployment as Serve, or else KubeRay, has it."""
    yield "RAYCLUSTER", "APPLICATION", "STATUS", "DEPLOYMENT", "STATUS", "REPLICAS"
    for ray, found in view.applications.items():
        for name, application in found.items():
            rows = [(key, one["status"], replicas(one)) for key, one in application["deployments"].items()]
            for row in rows or [(NONE, NONE, NONE)]:
                yield ray, name, application["status"], *row


def replicas(deployment: Object) -> str:
    """As `1 of 2 running, 1 starting`; KubeRay's copy does not count them."""
    if "replicas" not in deployment:
        return NONE
    states = Counter(replica["state"].lower() for replica in deployment["replicas"])
    running = states.pop("running", 0)
    others = "".join(f", {number} {state}" for state, number in states.items())
    return f"{running} of {deployment['target_num_replicas']} running{others}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stack")
    main(lambda: status(parser.parse_args().stack))
