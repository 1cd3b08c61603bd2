"""Pods that do nothing, and this machine's Python in their network: who reaches whom on a native cluster."""

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import psutil

from infra.serving.pods import RESTRICTED, UNPRIVILEGED
from scripts.cluster.layout import PAUSE_IMAGE, Record
from scripts.kubectl import Kubectl

Answer = Literal["open", "refused", "closed"]
"""Somebody listens; the enforcer refuses; nobody listens, or nobody answers."""

_CONNECT = """\
import errno, socket, sys
host, port, protocol = sys.argv[1], int(sys.argv[2]), sys.argv[3]
kind = socket.SOCK_STREAM if protocol == "TCP" else socket.SOCK_DGRAM
with socket.socket(socket.AF_INET, kind) as end:
    end.settimeout(5)
    try:
        end.connect((host, port))
        if protocol == "UDP":  # a question to DNS: https://www.rfc-editor.org/rfc/rfc1035#section-4
            name = b"".join(bytes([len(part)]) + part for part in b"kubernetes.default.svc.cluster.local".split(b"."))
            end.send(bytes([0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]) + name + bytes([0, 0, 1, 0, 1]))
            end.recv(512)
        print("open")
    except OSError as error:
        print("refused" if error.errno == errno.EHOSTUNREACH else "closed")
"""
_LISTEN = """\
import selectors, socket, sys
selector = selectors.DefaultSelector()
for port in sys.argv[2:]:
    selector.register(socket.create_server((sys.argv[1], int(port))), selectors.EVENT_READ)
print("listening", flush=True)
while True:
    for key, _ in selector.select():
        key.fileobj.accept()[0].close()
"""


def pod(namespace: str, name: str, labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A pod within Pod Security's "restricted" that sleeps."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": dict(labels or {})},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": UNPRIVILEGED,
            "containers": [
                {
                    "name": "pause",
                    "image": PAUSE_IMAGE,
                    "imagePullPolicy": "Never",
                    "securityContext": RESTRICTED,
                    # A quota wants them.
                    "resources": {"limits": {"cpu": "10m", "memory": "32Mi"}},
                }
            ],
        },
    }


def namespace(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def apply(kubernetes: Kubectl, *objects: Mapping[str, Any]) -> None:
    kubernetes("apply", "--server-side", "--filename=-", stdin="\n".join(map(json.dumps, objects)))


def until_there(kubernetes: Kubectl, namespaces: Iterable[str]) -> None:
    """Wait for what Kubernetes puts into a new namespace, without which there are no pods."""
    for name in namespaces:
        kubernetes("wait", "serviceaccount/default", "--namespace", name, "--for=create", "--timeout=60s")


class Place:
    """A network to connect from, and an address there."""

    def __init__(self, process: int, address: str) -> None:
        self.address = address
        self._enter = ("nsenter", "--target", str(process), "--net", sys.executable, "-c")

    def run(self, code: str, *arguments: str) -> str:
        """What Python prints in this network."""
        done = subprocess.run([*self._enter, code, *arguments], text=True, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def asks(self, address: str, port: int, protocol: str = "TCP") -> str:
        """The Answer."""
        return self.run(_CONNECT, address, str(port), protocol)

    @contextmanager
    def listening(self, *ports: int) -> Iterator[None]:
        command = [*self._enter, _LISTEN, self.address, *map(str, ports)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout and process.stdout.readline() == "listening\n"
                yield
            finally:
                process.terminate()


class Node:
    """The native cluster's one, with addresses of its own."""

    def __init__(self) -> None:
        record = Record.load()
        assert record, "the native cluster does not run"
        self._process = record.node

    def place(self, address: str) -> Place:
        return Place(self._process, address)

    @contextmanager
    def with_address(self, address: str) -> Iterator[Place]:
        """One that clouds have and the native cluster has not."""
        ip = ("nsenter", "--target", str(self._process), "--net", "ip", "address")
        where = (f"{address}/32", "dev", "lo")
        subprocess.run([*ip, "add", *where], check=True)
        try:
            yield self.place(address)
        finally:
            subprocess.run([*ip, "delete", *where], check=True)


def place(kubernetes: Kubectl, namespace: str, name: str) -> Place:
    """The network of a pod, once it runs."""
    kubernetes("wait", f"pod/{name}", "--namespace", namespace, "--for=jsonpath={.status.podIP}", "--timeout=60s")
    found = kubernetes.get("pod", name, "--namespace", namespace)
    return Place(_process_of(found["metadata"]["uid"]), found["status"]["podIP"])


def _process_of(pod_uid: str) -> int:
    """Any process of a pod, by its id on this machine."""
    for process in psutil.process_iter():
        try:
            if f"pod{pod_uid}" in Path(f"/proc/{process.pid}/cgroup").read_text():
                return process.pid
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            continue
    raise AssertionError(f"no process of pod {pod_uid}")


def until(what: str, source: Place, wanted: Answer, address: str, port: int, protocol: str = "TCP") -> None:
    """Wait for an answer: policies take a moment."""
    begun = time.monotonic()
    while (found := source.asks(address, port, protocol)) != wanted:
        assert time.monotonic() - begun < 20, f"{what}: {found}, and not {wanted}"
