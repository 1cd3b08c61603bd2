"""kubectl against the cluster of a stack, and nothing but that cluster."""

import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from app.builtin import cache_dir
from app.settings import SettingsError
from infra.aws.config import EksCluster
from infra.clusters import ExistingCluster, NativeCluster
from infra.config import Cluster
from scripts import tools
from scripts.cluster import running
from scripts.console import Problem


class Kubectl:
    """Runs `binary` with a kubeconfig and one of its contexts, the current one when None."""

    def __init__(self, binary: Path, kubeconfig: Path, context: str | None) -> None:
        # The discovery cache beside our other caches: a native cluster's would stay in ~/.kube for ever.
        cache = cache_dir() / "kubectl"
        self.context = context
        self.kubeconfig = kubeconfig
        self._command = [str(binary), "--kubeconfig", str(kubeconfig), "--cache-dir", str(cache)]
        if context:
            self._command += ["--context", context]

    def __call__(self, *arguments: str, stdin: str | None = None, timeout: float = 60) -> str:
        """Standard output of one call. Raises Problem with kubectl's own words when it fails."""
        try:
            done = subprocess.run(
                self.command(*arguments),
                input=stdin,
                capture_output=True,
                text=True,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            raise Problem(
                f"kubectl {arguments[0]} gave no answer within {timeout:g} s",
                "look at the cluster with `make status`",
            ) from None
        if done.returncode:
            raise Problem(
                f"kubectl {arguments[0]} failed: {done.stderr.strip()[-500:]}",
                "look at the cluster with `make status`",
            )
        return done.stdout

    def get(self, *arguments: str) -> dict[str, Any]:
        return json.loads(self("get", *arguments, "--output", "json"))

    def command(self, *arguments: str) -> list[str]:
        """For whoever runs it in a way of his own, or shows it."""
        return [*self._command, *arguments]

    @contextmanager
    def api(self) -> Iterator[httpx.Client]:
        """An HTTP client of the API server, whatever way of logging in that wants."""
        # On a socket in a private directory: `kubectl proxy` asks nobody who they are.
        with tempfile.TemporaryDirectory() as private:
            socket = Path(private) / "api"
            command = self.command("proxy", f"--unix-socket={socket}")
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as proxy:
                try:
                    assert proxy.stdout
                    said = proxy.stdout.readline()  # "Starting to serve", or why not
                    if not said.startswith("Starting"):
                        raise Problem(f"kubectl proxy failed: {said.strip()}", "look at the cluster with `make status`")
                    transport = httpx.HTTPTransport(uds=str(socket))
                    yield httpx.Client(transport=transport, base_url="http://localhost/", timeout=60)
                finally:
                    proxy.terminate()

    @contextmanager
    def service(self, namespace: str, name: str, port: int, api_key: str) -> Iterator[httpx.Client]:
        """An HTTP client of a Kubernetes Service, by way of the API server.

        The model's API key goes along as x-api-key: the API server takes Authorization for itself.
        """
        with self.api() as client:
            client.base_url = f"http://localhost/api/v1/namespaces/{namespace}/services/{name}:{port}/proxy/"
            client.headers["x-api-key"] = api_key
            yield client


def connect(cluster: Cluster) -> Kubectl:
    """kubectl for `cluster`. Raises Problem when that does not run, or the stack may not go there."""
    if isinstance(cluster, NativeCluster):
        if not running():
            raise Problem("the native cluster does not run", "start it: make up")
        return Kubectl(tools.ensure("kubernetes") / "kubectl", cluster.kubeconfig_path, cluster.context)
    reached = ExistingCluster(contexts=[cluster.arn]) if isinstance(cluster, EksCluster) else cluster
    try:
        context = reached.context
    except SettingsError as error:
        if isinstance(cluster, EksCluster):
            raise Problem(
                f"{reached.kubeconfig_path} does not know the cluster {cluster.name}",
                f"{cluster.update_kubeconfig}, once `pulumi up` has made it",
            ) from None
        what, _, fix = str(error).rpartition("; fix: ")
        raise Problem(what, fix) from None
    return Kubectl(tools.kubectl(), reached.kubeconfig_path, context)
