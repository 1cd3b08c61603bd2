"""kubectl against the cluster of a stack, and nothing but that cluster."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from app.builtin import cache_dir
from infra.config import ExistingCluster, NativeCluster
from scripts import tools
from scripts.console import Problem


class Kubectl:
    """Runs `binary` with the kubeconfig and context of `cluster`."""

    def __init__(self, binary: Path, cluster: NativeCluster | ExistingCluster) -> None:
        # The discovery cache beside our other caches: a native cluster's would stay in ~/.kube for ever.
        cache = cache_dir() / "kubectl"
        self._command = [str(binary), "--kubeconfig", str(cluster.kubeconfig_path), "--cache-dir", str(cache)]
        if cluster.context:
            self._command += ["--context", cluster.context]

    def __call__(self, *arguments: str, stdin: str | None = None, timeout: float = 60) -> str:
        """Standard output of one call. Raises Problem with kubectl's own words when it fails."""
        try:
            done = subprocess.run(
                [*self._command, *arguments],
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

    @contextmanager
    def service(self, namespace: str, name: str, port: int, api_key: str) -> Iterator[httpx.Client]:
        """An HTTP client of a Kubernetes Service, by way of the API server, whatever way of logging in that wants.

        The model's API key goes along as x-api-key: the API server takes Authorization for itself.
        """
        # On a socket in a private directory: `kubectl proxy` asks nobody who they are.
        with tempfile.TemporaryDirectory() as private:
            socket = Path(private) / "api"
            command = [*self._command, "proxy", f"--unix-socket={socket}"]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as proxy:
                try:
                    assert proxy.stdout
                    said = proxy.stdout.readline()  # "Starting to serve", or why not
                    if not said.startswith("Starting"):
                        raise Problem(f"kubectl proxy failed: {said.strip()}", "look at the cluster with `make status`")
                    yield httpx.Client(
                        transport=httpx.HTTPTransport(uds=str(socket)),
                        base_url=f"http://localhost/api/v1/namespaces/{namespace}/services/{name}:{port}/proxy/",
                        headers={"x-api-key": api_key},
                        timeout=60,
                    )
                finally:
                    proxy.terminate()


def connect(cluster: NativeCluster | ExistingCluster) -> Kubectl:
    """kubectl for `cluster`. Raises Problem when its kubeconfig cannot be used, before anything relies on it."""
    if isinstance(cluster, NativeCluster):
        return Kubectl(tools.ensure("kubernetes") / "kubectl", cluster)
    _check(cluster)
    found = shutil.which("kubectl")
    return Kubectl(Path(found) if found else tools.ensure("kubernetes") / "kubectl", cluster)


def _check(cluster: ExistingCluster) -> None:
    path = cluster.kubeconfig_path
    try:
        content = yaml.safe_load(path.read_text())
        contexts = [entry["name"] for entry in content["contexts"]]
    except OSError as error:
        raise Problem(
            f"cannot read the kubeconfig {path}: {error.strerror}",
            "set cluster.kubeconfig in the stack file or KUBECONFIG to a file that you may read",
        ) from None
    except (yaml.YAMLError, KeyError, TypeError):
        raise Problem(
            f"{path} is not a kubeconfig",
            "set cluster.kubeconfig in the stack file or KUBECONFIG to one",
        ) from None
    if cluster.context not in contexts:
        raise Problem(
            f"cluster.context {cluster.context!r} is not in {path}",
            f"name one of its contexts in the stack file: {', '.join(contexts) or 'it has none'}",
        )
