"""`make up`: from a stack file to a model that answers."""

import argparse
import os
import shutil
import time
from pathlib import Path

import httpx
from pulumi import automation

from app.builtin import cache_dir
from infra import image
from infra.clusters import LOCAL_KEY, NativeCluster
from infra.config import StackConfig
from infra.observability import prometheus
from infra.observability.config import PrometheusOperator
from infra.serving.rayservice import SERVE_PORT
from scripts import cluster, diagnose, engine, kubectl, models, ownership, stack_file, tools
from scripts.cluster import images
from scripts.console import Problem, main, say, step
from scripts.image import build_with_buildah
from scripts.kubectl import Kubectl
from scripts.observe import entry, look

QUESTION = "What is the capital of France?"
ANSWER_WITHIN = 300
"""Seconds. RayService Ready comes before the Service's endpoints do, and the first token is the slowest."""


def prepare_native(stack: StackConfig) -> None:
    """A running native cluster with every image and the built-in models on its node."""
    bin_dir = tools.ensure("kubernetes", "coredns", "kuberay", "pause")
    if not cluster.running():
        # Of a cluster that was killed; its state would tell Pulumi that all is there.
        shutil.rmtree(engine.native_home(), ignore_errors=True)
    cluster.start(bin_dir)
    _stand_in(bin_dir / "kuberay-operator", stack.operator.reference, "/manager")
    if isinstance(stack.observability, PrometheusOperator):
        bin_dir = tools.ensure(*tools.MONITORING)
        for name in tools.MONITORING:
            _stand_in(bin_dir / name, prometheus.image(name, stack, stack.observability), f"/bin/{name}")
    models.ensure(stack.serving)
    reference = image.reference(stack)
    if not images.has(reference):
        build_with_buildah(stack)
        with step(f"putting {reference} on the node"):
            images.load(reference)


def _stand_in(binary: Path, reference: str, entrypoint: str) -> None:
    """Put on the node, in place of a published image, one of the executable that we built from the same release."""
    if not images.has(reference):
        images.from_binary(binary, reference, entrypoint=entrypoint)
        images.load(reference)


def api_key(stack: StackConfig) -> str:
    """The API key to ask with. Raises Problem when only its owner knows it."""
    if not stack.keys:
        return LOCAL_KEY
    if not (key := os.environ.get("BLUEPRINT_API_KEY")):
        raise Problem("the stack has API keys of its own", "set BLUEPRINT_API_KEY to one that may ask its first model")
    return key


def ask(kubernetes: Kubectl, namespace: str, service: str, model: str, api_key: str) -> str:
    """The model's answer to QUESTION, through the Kubernetes Service. Raises Problem with the last error."""
    request = {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 24,
        "temperature": 0,
    }
    deadline = time.monotonic() + ANSWER_WITHIN
    with kubernetes.service(namespace, service, SERVE_PORT, api_key) as client:
        while True:
            try:
                reply = client.post("v1/chat/completions", json=request)
                if reply.is_success:
                    return reply.json()["choices"][0]["message"]["content"]
                error = f"{reply.status_code} {reply.text[:500]}"
            except httpx.HTTPError as failure:
                error = repr(failure)
            if time.monotonic() > deadline:
                raise Problem(f"the model does not answer: {error}", "look at `make status` and `make logs`")
            time.sleep(2)


def up(stack_name: str) -> None:
    started = time.monotonic()
    stack = stack_file.read(stack_name)
    engine.require_state(stack_name, stack)
    key = api_key(stack)
    if isinstance(stack.cluster, NativeCluster):
        prepare_native(stack)
    kubernetes = kubectl.connect(stack.cluster)
    ownership.require(kubernetes, stack_name, stack)
    with step(f"pulumi up --stack {stack_name}"):
        try:
            opened = engine.open_stack(stack_name, stack)
            engine.refresh(opened)
            if not isinstance(stack.cluster, NativeCluster):
                engine.policed(opened.preview)
            with diagnose.watching(kubernetes, stack.namespace, engine.progress(), engine.interrupt) as see:
                result = engine.policed(opened.up, on_output=see)
        except automation.ConcurrentUpdateError as error:
            raise engine.in_use(stack_name, error) from None
        except automation.CommandError as error:
            raise diagnose.failure(kubernetes, stack.namespace, engine.reason(error)) from None
    changes = result.summary.resource_changes or {}
    changed = {kind: count for kind, count in changes.items() if kind != "same"}
    say("unchanged" if not changed else f"changed: {changed}")
    with step("waiting until Ray Serve runs all applications"):
        diagnose.settle(kubernetes, stack.namespace, stack.ready_timeout_seconds)
    with step("asking the model through the Kubernetes Service"):
        (service,) = look(kubernetes, stack.namespace).services
        answer = ask(kubernetes, stack.namespace, entry(service), stack.serving.first_model, key)
    say(f"\n  {QUESTION}\n  → {answer}\n")
    say(f"stack {stack_name} is up ({time.monotonic() - started:.0f} s; cache: {cache_dir()})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stack")
    main(lambda: up(parser.parse_args().stack))
