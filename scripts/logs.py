"""`make logs [POD=text] [WHAT=text] [REQUEST=id] [FOLLOW=1]`: what a stack's Ray pods have logged, and where.

WHAT is a part of a file's path below Ray's directory of logs: by default all of Ray Serve's, replicas included. REQUEST
is what the header x-request-id of an answer says.
"""

import argparse
import contextlib
import json
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


def logs(stack_name: str, pod: str, what: str, request: str, follow: bool) -> None:
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
            show(kubernetes, stack.namespace, name, what, "once", request)
        return
    shown: set[str] = set()
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            for name in set(running(kubernetes, stack.namespace, pod)) - shown:
                shown.add(name)
                arguments = (kubernetes, stack.namespace, name, what, "follow", request)
                threading.Thread(target=show, args=arguments, daemon=True).start()
            time.sleep(LOOK_EVERY)


def running(kubernetes: Kubectl, namespace: str, part: str) -> Iterator[str]:
    """Names of the Ray pods that run."""
    for pod in look(kubernetes, namespace).pods:
        name = pod["metadata"]["name"]
        if label(pod, "is-ray-node") and part in name and pod["status"].get("phase") == "Running":
            yield name


def show(kubernetes: Kubectl, namespace: str, pod: str, *tail: str) -> None:
    """Print what scripts/tail.py, with these arguments, finds in a pod.

    It ends with its standard input, so nothing stays in the pod.
    """
    script = Path(__file__).with_name("tail.py").read_text()
    run = ("exec", "--quiet", "--stdin", "--namespace", namespace, pod, "--", "python", "-c", script, LOGS, *tail)
    command = kubernetes.command(*run)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            file, _, text = line.partition("\t")
            sys.stdout.write(f"{pod} {file.removeprefix(SERVE)} | {readable(text.rstrip())}\n")
            sys.stdout.flush()


def readable(line: str) -> str:
    """A line of JSON as Ray writes one in text, without what the file's name says; any other as it is."""
    try:
        entry = json.loads(line)
        parts = [entry["levelname"], entry["asctime"], entry.get("request_id", ""), "--", entry["message"]]
    except (ValueError, TypeError, KeyError):
        return line
    return "\n".join([" ".join(filter(None, parts)), *filter(None, [entry.get("exc_text")])])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make logs")
    parser.add_argument("stack")
    parser.add_argument("--pod", default="")
    parser.add_argument("--what", default="")
    parser.add_argument("--request", default="")
    parser.add_argument("--follow", action="store_true")
    given = parser.parse_args()
    main(lambda: logs(given.stack, given.pod, given.what or SERVE, given.request, given.follow))
