"""`make status`: what of a stack runs."""

import argparse

from infra.config import NativeCluster
from scripts import cluster, kubectl
from scripts.console import main, say
from scripts.up import read_config


def status(stack_name: str) -> None:
    stack = read_config(stack_name)
    if isinstance(stack.cluster, NativeCluster) and not cluster.running():
        say(f"stack {stack_name}: no cluster runs; `make up` starts it")
        return
    kubernetes = kubectl.connect(stack.cluster)
    say(f"stack {stack_name}, kubeconfig {stack.cluster.kubeconfig_path}\n")
    for what in ("nodes", "rayservices", "pods", "services"):
        say(f"{what}:\n{kubernetes('get', what, '--namespace', stack.namespace, '--output', 'wide')}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stack")
    main(lambda: status(parser.parse_args().stack))
