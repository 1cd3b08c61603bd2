"""`make logs [POD=text] [WHAT=text] [FOLLOW=1]`: what the Ray pods of a stack have logged, each line with its origin.

WHAT is a part of a file's path below Ray's directory of logs: by default all of Ray Serve's, replicas included.
"""

import argparse
import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from scripts import kubectl, stack_file
from scripts.console import Problem, main
from scripts.kubectl import Kubectl
from scripts.observe import label, look

LOGS = "/tmp/ray/session_latest/logs"
SERVE = "serve/"
LOOK_EVERY = 5.0
"""Seconds between two looks for new pods."""


def logs(stack_name: str, pod: str, what: str, follow: bool) -> None:
    stack = stack_file.read(stack_name)
    kubernetes = kubectl.connect(stack.cluster)
    pods = list(running(kubernetes, stack.namespace, pod))
    if not pods:
        raise Problem(
            f"no Ray pod of stack {stack_name} runs" + (f" whose name contains {pod!r}" if pod else ""),
            "`make status` shows what there is, and what keeps it from running",
        )
    if not follow:
        for name in pods:
            show(kubernetes, stack.namespace, name, what, "once")
        return
    shown: set[str] = set()
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            for name in set(running(kubernetes, stack.namespace, pod)) - shown:
                shown.add(name)
                arguments = (kubernetes, stack.namespace, name, what, "follow")
                threading.Thread(target=show, args=arguments, daemon=True).start()
            time.sleep(LOOK_EVERY)


def running(kubernetes: Kubectl, namespace: str, part: str) -> Iterator[str]:
    """Names of the Ray pods that run."""
    for pod in look(kubernetes, namespace).pods:
        name = pod["metadata"]["name"]
        if label(pod, "is-ray-node") and part in name and pod["status"].get("phase") == "Running":
            yield name


def show(kubernetes: Kubectl, namespace: str, pod: str, what: str, how: str) -> None:
    """Print what scripts/tail.py finds in a pod. It ends with its standard input, so nothing stays in the pod."""
    script = Path(__file__).with_name("tail.py").read_text()
    run = ("exec", "--quiet", "--stdin", "--namespace", namespace, pod, "--", "python", "-c", script, LOGS, what, how)
    command = kubernetes.command(*run)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            file, _, text = line.partition("\t")
            sys.stdout.write(f"{pod} {file.removeprefix(SERVE)} | {text}")
            sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make logs")
    parser.add_argument("stack")
    parser.add_argument("--pod", default="")
    parser.add_argument("--what", default="")
    parser.add_argument("--follow", action="store_true")
    given = parser.parse_args()
    main(lambda: logs(given.stack, given.pod, given.what or SERVE, given.follow))
