"""`make down`: take a stack away, and a native cluster with it, and look whether anything was left."""

import argparse
import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from pulumi import automation

from infra.clusters import NativeCluster, state_dir
from infra.config import StackConfig
from scripts import cluster, engine, kubectl, stack_file
from scripts.console import Problem, main, say, step
from scripts.kubectl import Kubectl
from scripts.observe import Object, conditions


def down(stack_name: str) -> None:
    stack = stack_file.read(stack_name)
    engine.require_state(stack_name, stack)
    if isinstance(stack.cluster, NativeCluster):
        with_cluster(stack_name, stack)
    else:
        from_cluster(stack_name, stack)
    say(f"stack {stack_name} is down")


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
    main(lambda: down(parser.parse_args().stack))
