"""`make forward [PORT=8000] [DASHBOARD=8265] [GRAFANA=3000] [PROMETHEUS=9090]`: a stack on 127.0.0.1, until Ctrl-C.

Its endpoint, Ray's dashboard and, where the stack has them, Grafana and Prometheus.
"""

import argparse
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import NamedTuple

from infra.clusters import LOCAL_KEY
from infra.config import StackConfig
from infra.observability.chart import ADMIN, GRAFANA
from infra.observability.config import PrometheusOperator, PrometheusStack
from infra.serving.rayservice import SERVE_PORT
from scripts import kubectl, ports, stack_file
from scripts.console import Problem, main, say
from scripts.kubectl import Kubectl
from scripts.observe import DASHBOARD_PORT, Object, entry, look

LOOK_EVERY = 3.0
GRAFANA_PORT = 3000
PROMETHEUS_PORT = 9090
VARIABLES = ("PORT", "DASHBOARD", "GRAFANA", "PROMETHEUS")


class Forward:
    """A local port, passed on to a pod behind a Kubernetes Service, and to another one when that pod goes away.

    Not `kubectl port-forward service/…`: that holds on to the pod it has chosen, and an upgrade changes them all.
    """

    def __init__(
        self, kubernetes: Kubectl, namespace: str, service: Callable[[], str], local: int, remote: int
    ) -> None:
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
        of = ("--namespace", self._namespace, "--selector", f"kubernetes.io/service-name={self._service()}")
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


class Way(NamedTuple):
    """What is forwarded of a stack."""

    name: str
    variable: str
    """By which make is told its port."""
    namespace: str
    service: Callable[[], str]
    """Its name, which an upgrade may change."""
    remote: int
    path: str = ""
    hint: str = ""
    """How one gets in."""


def ways(stack: StackConfig, service: str, kubernetes: Kubectl) -> Iterator[Way]:
    """All that a stack with this RayService has."""

    def serving() -> str:
        return entry(kubernetes.get("rayservices.ray.io", service, "--namespace", stack.namespace))

    yield Way("endpoint", "PORT", stack.namespace, serving, SERVE_PORT, "/v1", how_to_ask(stack))
    yield Way("dashboard", "DASHBOARD", stack.namespace, lambda: f"{service}-head-svc", DASHBOARD_PORT)
    seen, namespace = stack.observability, stack.monitoring_namespace
    if isinstance(seen, PrometheusStack):
        password = show_secret(kubernetes, namespace, seen.grafana_secret or ADMIN, "admin-password")
        yield Way(
            "grafana",
            "GRAFANA",
            namespace,
            lambda: GRAFANA,
            GRAFANA_PORT,
            hint=f"this shows its password:\n  {password}",
        )
    if isinstance(seen, PrometheusStack | PrometheusOperator):
        yield Way("prometheus", "PROMETHEUS", namespace, lambda: "prometheus-operated", PROMETHEUS_PORT)


def forward(stack_name: str, wanted: Mapping[str, str]) -> None:
    """`wanted` are ports by their variable; the others are as in the cluster."""
    stack = stack_file.read(stack_name)
    kubernetes = kubectl.connect(stack.cluster)
    services = look(kubernetes, stack.namespace).services
    if not services:
        raise Problem(f"stack {stack_name} has no RayService to forward to", "deploy it: make up")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as ending:
        kept: list[tuple[Way, Forward]] = []
        for way in ways(stack, services[0]["metadata"]["name"], kubernetes):
            port = free_port(way.variable, wanted.get(way.variable) or str(way.remote))
            say(f"{way.name:10} http://127.0.0.1:{port}{way.path}   {way.hint}".rstrip())
            kept.append((way, Forward(kubernetes, way.namespace, way.service, port, way.remote)))
            ending.callback(kept[-1][1].end)
        try:
            while True:
                for namespace in {way.namespace for way, _ in kept}:
                    found = kubernetes.get("pods", "--namespace", namespace)["items"]
                    pods = {pod["metadata"]["name"]: pod for pod in found if "deletionTimestamp" not in pod["metadata"]}
                    for way, one in kept:
                        if way.namespace == namespace and (pod := one.keep(pods)):
                            hint = f"; {token_hint(kubernetes, pod)}" if way.name == "dashboard" else ""
                            say(f"{way.name} → pod {pod['metadata']['name']}{hint}")
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
            command = show_secret(kubernetes, head["metadata"]["namespace"], secret["name"], secret["key"])
            return f"this shows its token:\n  {command}"
    return "it wants no token"


def show_secret(kubernetes: Kubectl, namespace: str, name: str, key: str) -> str:
    """The command that shows a Secret's value."""
    template = f'{{{{index .data "{key}" | base64decode}}}}'
    return shlex.join(kubernetes.command("get", "secret", name, "--namespace", namespace, "--template", template))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make forward")
    parser.add_argument("stack")
    for variable in VARIABLES:
        parser.add_argument(f"--{variable.lower()}", default="")
    given = parser.parse_args()
    main(lambda: forward(given.stack, {variable: getattr(given, variable.lower()) for variable in VARIABLES}))
