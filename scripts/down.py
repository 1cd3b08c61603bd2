"""`make down`: take a stack away, and a native cluster with it, and look whether anything was left."""

import argparse
import contextlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from pulumi import automation

from infra.aws.config import EksCluster
from infra.clusters import NativeCluster, state_dir
from infra.config import StackConfig
from scripts import cluster, engine, kubectl, leftovers, stack_file
from scripts.aws_cli import aws, cluster_of
from scripts.console import Problem, main, say, step
from scripts.drain import drain
from scripts.kubectl import Kubectl
from scripts.leftovers import Left
from scripts.observe import Object, conditions

PRODUCTION = ("prod", "production")


def down(stack_name: str, confirmed: str = "") -> None:
    """`confirmed` is the name of the stack where nobody is there to type it."""
    stack = stack_file.read(stack_name)
    require_consent(stack_name, stack, confirmed)
    engine.require_state(stack_name, stack)
    if isinstance(stack.cluster, NativeCluster):
        with_cluster(stack_name, stack)
    elif isinstance(stack.cluster, EksCluster):
        from_aws(stack_name, stack)
    else:
        from_cluster(stack_name, stack)
    say(f"stack {stack_name} is down")


def require_consent(stack_name: str, stack: StackConfig, confirmed: str) -> None:
    """Raises Problem unless whoever takes production away has said its name."""
    eks = stack.cluster if isinstance(stack.cluster, EksCluster) else None
    serious = eks and (eks.deletion_protection or eks.tags.environment in PRODUCTION)
    if not serious and stack_name not in PRODUCTION:
        return
    if not confirmed and sys.stdin.isatty():
        say(f"this takes stack {stack_name} away, with the weights and images in it; type its name to go on:")
        confirmed = sys.stdin.readline().strip()
    if confirmed != stack_name:
        why = f"{confirmed!r} is not its name" if confirmed else "nobody has typed its name"
        raise Problem(
            f"stack {stack_name} is protected, and {why}; nothing was deleted",
            f"if it is to go: make down STACK={stack_name} CONFIRM={stack_name}",
        )


def with_cluster(stack_name: str, stack: StackConfig) -> None:
    """A native cluster goes, and everything in it: what Pulumi cannot destroy holds nothing up."""
    if cluster.running():
        with step(f"pulumi destroy --stack {stack_name}"):
            try:
                engine.open_stack(stack_name, stack).destroy(on_output=engine.progress(), color="never")
            except automation.ConcurrentUpdateError as error:
                raise engine.in_use(stack_name, error) from None
            except automation.CommandError as error:
                say(f"pulumi destroy failed: {engine.reason(error)}")
    cluster.stop()
    shutil.rmtree(engine.native_home(), ignore_errors=True)
    with contextlib.suppress(OSError):  # not there, or the user keeps more in it
        state_dir().rmdir()


def from_cluster(stack_name: str, stack: StackConfig) -> None:
    """Somebody else's cluster stays, without anything of this stack."""
    kubernetes = kubectl.connect(stack.cluster)
    opened = engine.open_stack(stack_name, stack)
    made = list(objects(opened.export_stack().deployment or {}))
    try:
        with step(f"pulumi destroy --stack {stack_name}"):
            engine.destroy(opened)
    except automation.ConcurrentUpdateError as error:
        raise engine.in_use(stack_name, error) from None
    except automation.CommandError as error:
        left = "\n  ".join(["", *left_behind(kubernetes, made)])
        raise Problem(
            f"pulumi destroy failed: {engine.reason(error)}{left}",
            "what is left is still in Pulumi's state; correct it and run `make down` again",
        ) from None
    if left := left_behind(kubernetes, made):
        raise Problem(
            "objects of the stack are still in the cluster:\n  " + "\n  ".join(left),
            "kubectl delete them; a namespace goes when the finalizers of what is in it are done",
        )


def from_aws(stack_name: str, stack: StackConfig) -> None:
    """The cluster goes with all around it: emptied first, by the controllers that have made what Pulumi did not."""
    eks = cluster_of(stack_name, stack)
    opened = engine.open_stack(stack_name, stack)
    made = opened.export_stack().deployment or {}
    try:
        with step(f"pulumi destroy --stack {stack_name}"):
            engine.destroy(opened, lambda: drain_cluster(eks))
    except automation.ConcurrentUpdateError as error:
        raise engine.in_use(stack_name, error) from None
    except automation.CommandError as error:
        raise refused(stack_name, engine.reason(error), eks, made) from None
    with step("looking for what is left on AWS"):
        left, unknown = leftovers.left(eks)
    for what in unknown:
        say(f"  could not be looked for: {what}")
    if left:
        raise Problem(
            f"stack {stack_name} is down, and this is still on AWS:" + shown(left),
            "remove it by the commands above; who made it says `aws cloudtrail lookup-events`",
        )


def drain_cluster(eks: EksCluster) -> None:
    """Nothing where a run before has come as far as to delete it."""
    try:
        aws("eks", "describe-cluster", "--region", eks.region, "--name", eks.name)
    except Problem as problem:
        if "ResourceNotFound" in problem.what:
            return
        raise
    drain(kubectl.connect(eks))


def refused(stack_name: str, reason: str, eks: EksCluster, made: Mapping[str, Any]) -> Problem:
    if "it is protected" in reason:
        return Problem(
            f"nothing was deleted: {reason}",
            f"set cluster.deletion_protection to false in Pulumi.{stack_name}.yaml, make up, and run this again",
        )
    known = {resource["id"] for resource in made.get("resources", []) if resource.get("id")}
    left: list[Left] = []
    with contextlib.suppress(Problem):  # what Pulumi says must be told, whatever AWS says now
        left = leftovers.in_the_way(eks, known)
    return Problem(
        f"pulumi destroy failed: {reason}" + ("\n  in the way:" + shown(left) if left else ""),
        "what is left is still in Pulumi's state; correct it and run `make down` again",
    )


def shown(left: list[Left]) -> str:
    return "".join(f"\n  {one.what}\n    {one.remove}" for one in left)


def objects(deployment: Mapping[str, Any]) -> Iterator[Object]:
    """The Kubernetes objects in Pulumi's state, by kind and name, but those that it is to leave behind.

    Nor custom resources: they go with their namespace, and once their CRD is gone kubectl cannot even ask for them.
    """
    for resource in deployment.get("resources", []):
        provider, _, rest = resource["type"].partition(":")
        api, _, kind = rest.partition(":")
        group = api.partition("/")[0]
        if provider != "kubernetes" or not resource.get("id") or resource.get("retainOnDelete"):
            continue
        if "." not in group or group.endswith(".k8s.io"):
            namespace, _, name = resource["id"].rpartition("/")
            metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
            yield {"apiVersion": api.removeprefix("core/"), "kind": kind, "metadata": metadata}


def left_behind(kubernetes: Kubectl, made: list[Object]) -> list[str]:
    """Those that are still there, by looking."""
    if not made:
        return []
    asked = json.dumps({"apiVersion": "v1", "kind": "List", "items": made})
    found = kubernetes("get", "--filename=-", "--ignore-not-found", "--output=json", stdin=asked)
    document: Object = json.loads(found or '{"items": []}')
    return [description(item) for item in document.get("items", [document])]


def description(item: Object) -> str:
    """Kind and name; of a namespace also what keeps it."""
    path = "/".join(filter(None, (item["metadata"].get("namespace"), item["metadata"]["name"])))
    holding = [
        condition["message"]
        for name, condition in conditions(item).items()
        if item["kind"] == "Namespace" and name.endswith("Remaining") and condition["status"] == "True"
    ]
    return "; ".join([f"{item['kind']} {path}", *holding])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stack")
    parser.add_argument("--confirm", default="")
    given = parser.parse_args()
    main(lambda: down(given.stack, given.confirm))
