"""`make forward [PORT=8000] [DASHBOARD=8265]`: a stack's endpoint and Ray's dashboard on 127.0.0.1, until Ctrl-C."""

import argparse
import shlex
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack

from infra.clusters import LOCAL_KEY
from infra.config import StackConfig
from infra.serving.rayservice import SERVE_PORT
from scripts import kubectl, ports, stack_file
from scripts.console import Problem, main, say
from scripts.kubectl import Kubectl
from scripts.observe import DASHBOARD_PORT, Object, look

LOOK_EVERY = 3.0


class Forward:
    """A local port, passed on to a pod behind a Kubernetes Service, and to another one when that pod goes away.

    Not `kubectl port-forward service/…`: that holds on to the pod it has chosen, and an upgrade changes them all.
    """

    def __init__(self, kubernetes: Kubectl, namespace: str, service: str, local: int, remote: int) -> None:
        self._kubernetes = kubernetes
        self._namespace = namespace
        self._service = service
        self._ports = f"{local}:{remote}"
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115, as long as this
        self._process: subprocess.Popen[bytes] | None = None
        self._pod = ""

    def keep(self, pods: dict[str, Object]) -> Object | None:
        """See to it that the port leads to one of `pods`; returns that pod when it is another one than before."""
        if self._process and self._process.poll() is None and self._pod in pods:
            return None
        self.end()
        ready = [name for name in self._ready() if name in pods]
        if not ready:
            return None
        self._pod = ready[0]
        run = ("port-forward", "--address=127.0.0.1", "--namespace", self._namespace, f"pod/{self._pod}", self._ports)
        self._process = subprocess.Popen(
            self._kubernetes.command(*run), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._said
        )
        return pods[self._pod]

    def _ready(self) -> list[str]:
        """The pods behind the Service that take requests."""
        of = ("--namespace", self._namespace, "--selector", f"kubernetes.io/service-name={self._service}")
        return [
            endpoint["targetRef"]["name"]
            for piece in self._kubernetes.get("endpointslices", *of)["items"]
            for endpoint in piece.get("endpoints") or []
            if endpoint["conditions"].get("ready")
        ]

    def end(self) -> None:
        """Stop passing on; when kubectl had done so by itself, say why."""
        if self._process is None:
            return
        if self._process.poll():
            self._said.seek(0)
            say(f"kubectl port-forward to {self._pod} ended: {' '.join(self._said.readlines()[-1:]).strip()}")
        self._process.terminate()
        self._process.wait()
        self._process = None


def forward(stack_name: str, endpoint_port: str, dashboard_port: str) -> None:
    stack = stack_file.read(stack_name)
    port, dashboard = free_port("PORT", endpoint_port), free_port("DASHBOARD", dashboard_port)
    kubernetes = kubectl.connect(stack.cluster)
    services = look(kubernetes, stack.namespace).services
    if not services:
        raise Problem(f"stack {stack_name} has no RayService to forward to", "deploy it: make up")
    name = services[0]["metadata"]["name"]
    say(f"endpoint   http://127.0.0.1:{port}/v1   {how_to_ask(stack)}\ndashboard  http://127.0.0.1:{dashboard}")
    endpoint = Forward(kubernetes, stack.namespace, f"{name}-serve-svc", port, SERVE_PORT)
    head = Forward(kubernetes, stack.namespace, f"{name}-head-svc", dashboard, DASHBOARD_PORT)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as ending:
        for one in (endpoint, head):
            ending.callback(one.end)
        try:
            while True:
                found = kubernetes.get("pods", "--namespace", stack.namespace)["items"]
                pods = {pod["metadata"]["name"]: pod for pod in found if "deletionTimestamp" not in pod["metadata"]}
                if pod := endpoint.keep(pods):
                    say(f"endpoint → pod {pod['metadata']['name']}")
                if pod := head.keep(pods):
                    say(f"dashboard → pod {pod['metadata']['name']}; {token_hint(kubernetes, pod)}")
                time.sleep(LOOK_EVERY)
        except KeyboardInterrupt:
            say("ended")


def free_port(variable: str, text: str) -> int:
    port = ports.number(variable, text)
    if ports.is_taken(port):
        raise Problem(
            f"port {port} on 127.0.0.1 is in use", f"choose another one: make forward {variable}={10000 + port % 10000}"
        )
    return port


def how_to_ask(stack: StackConfig) -> str:
    """How a request shows its API key."""
    key = "one of the stack file's keys" if stack.keys else LOCAL_KEY
    return f"with the header `Authorization: Bearer <key>`, the key: {key}"


def token_hint(kubernetes: Kubectl, head: Object) -> str:
    """Where the dashboard's token is, by the reference to it in the head's environment; itself it is not shown."""
    for variable in head["spec"]["containers"][0].get("env", []):
        if variable["name"] == "RAY_AUTH_TOKEN" and "valueFrom" in variable:
            secret = variable["valueFrom"]["secretKeyRef"]
            template = f"{{{{.data.{secret['key']} | base64decode}}}}"
            show = (
                "get",
                "secret",
                secret["name"],
                "--namespace",
                head["metadata"]["namespace"],
                "--template",
                template,
            )
            return f"this shows its token:\n  {shlex.join(kubernetes.command(*show))}"
    return "it wants no token"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make forward")
    parser.add_argument("stack")
    parser.add_argument("--port", default="")
    parser.add_argument("--dashboard", default="")
    given = parser.parse_args()
    main(lambda: forward(given.stack, given.port or str(SERVE_PORT), given.dashboard or str(DASHBOARD_PORT)))
