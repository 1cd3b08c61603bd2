"""What must go from a cluster before the cluster itself does, or it stays on AWS and is paid for.

Load balancers and instances are made by controllers in the cluster, and no more of them is known to Pulumi than the
objects that asked for them: https://github.com/aws/karpenter-provider-aws/issues/1955
"""

from scripts.console import Problem, say, step
from scripts.kubectl import Kubectl
from scripts.observe import Object

RAY = ("rayservices.ray.io", "rayjobs.ray.io", "rayclusters.ray.io")
"""A RayService first: it would make its Ray cluster anew."""
BALANCERS = ("targetgroupbindings.elbv2.k8s.aws", "ingresses.networking.k8s.io", "gateways.gateway.networking.k8s.io")
POOLS, CLAIMS = "nodepools.karpenter.sh", "nodeclaims.karpenter.sh"
PATIENCE = 900
"""Seconds for each kind: workers end what they have begun, and instances take minutes to go."""


def drain(kubernetes: Kubectl) -> None:
    """Ray's pods, then what leads to them, then the nodes. Raises Problem with what does not go, and what holds it."""
    known = kubernetes("api-resources", "--output=name", "--verbs=delete").split()
    with step("draining: Ray"):
        for kind in RAY:
            _delete(kubernetes, kind, known)
    with step("draining: load balancers"):
        for kind in BALANCERS:
            _delete(kubernetes, kind, known)
        for service in kubernetes.get("services", "--all-namespaces")["items"]:
            if service["spec"]["type"] == "LoadBalancer":
                _finish(kubernetes, "services", "delete", "service", *_place(service))
    with step("draining: Karpenter's nodes"):
        # A pool goes when its nodes have, and not before.
        _delete(kubernetes, POOLS, known, "--cascade=foreground")
        _delete(kubernetes, CLAIMS, known)
    if claims := kubernetes.get("persistentvolumeclaims", "--all-namespaces")["items"]:
        names = ", ".join(f"{item['metadata']['namespace']}/{item['metadata']['name']}" for item in claims)
        say(f"  the volumes of {names} stay on AWS, with what is in them")


def _delete(kubernetes: Kubectl, kind: str, known: list[str], *how: str) -> None:
    if kind in known:
        namespaced = () if kind in (POOLS, CLAIMS) else ("--all-namespaces",)
        _finish(kubernetes, kind, "delete", kind, "--all", *namespaced, *how)


def _finish(kubernetes: Kubectl, kind: str, *command: str) -> None:
    """Run the deletion, and wait until its objects are gone."""
    try:
        said = kubernetes(*command, "--ignore-not-found", f"--timeout={PATIENCE}s", timeout=PATIENCE + 60)
    except Problem as problem:
        left = [_held(item) for item in kubernetes.get(kind, "--all-namespaces")["items"] if _goes(item)]
        raise Problem(
            f"{kind} do not go: {problem.what}" + "".join(f"\n  {line}" for line in left),
            "the controller behind a finalizer must run; run `make down` again when it does, which goes on from here",
        ) from None
    for line in said.splitlines():
        say(f"  {line}")


def _goes(item: Object) -> bool:
    return "deletionTimestamp" in item["metadata"]


def _held(item: Object) -> str:
    held = ", ".join(item["metadata"].get("finalizers", [])) or "nothing"
    return f"{item['metadata']['name']}: held by {held}"


def _place(item: Object) -> tuple[str, ...]:
    return item["metadata"]["name"], "--namespace", item["metadata"]["namespace"]
