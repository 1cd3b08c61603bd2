"""`make down`: take a stack away, and a native cluster with it, and look whether anything was left."""

import argparse
import contextlib
import shutil

from pulumi import automation

from infra.config import NativeCluster, state_dir
from scripts import cluster, engine, kubectl
from scripts.console import Problem, main, say, step
from scripts.up import read_config


def destroy(stack_name: str) -> None:
    stack = read_config(stack_name)
    native = isinstance(stack.cluster, NativeCluster)
    if not native:
        kubectl.connect(stack.cluster)
    if not native or cluster.running():
        with step(f"pulumi destroy --stack {stack_name}"):
            try:
                opened = engine.open_stack(stack_name, stack)
                opened.destroy(on_output=engine.progress(), color="never")
            except automation.CommandError as error:
                if not native:
                    raise Problem(
                        f"pulumi destroy failed: {engine.reason(error)}",
                        "what is left is still in Pulumi's state; correct it and run `make down` again",
                    ) from None
                # The cluster goes next, and everything in it.
                say(f"pulumi destroy failed: {engine.reason(error)}")
    if native:
        cluster.stop()
        shutil.rmtree(engine.native_home(), ignore_errors=True)
        with contextlib.suppress(OSError):  # not there, or the user keeps more in it
            state_dir().rmdir()
    say(f"stack {stack_name} is down")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stack")
    main(lambda: destroy(parser.parse_args().stack))
