"""A Ray of its own for a test module, with settings deployed as KubeRay deploys them: through Ray's REST API."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from app.settings import Settings, environment, serve_config
from tests.app.conftest import BINARIES, PATIENCE_SECONDS, batches, httpx_client, started, wait_for
from tests.ports import free_port


class Cluster(NamedTuple):
    dashboard: httpx.Client
    http: httpx.Client
    """A client of what is served."""
    gcs_port: int
    http_port: int
    host: str
    """Where the application is to listen."""
    temp_dir: Path
    variables: dict[str, str]
    """Environment of whoever talks to it as a Ray."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def deploy(self, settings: Settings, without: str = "") -> None:
        """Make these the settings, but leave out one application."""
        config = serve_config(settings)
        config["applications"] = [one for one in config["applications"] if one["name"] != without]
        config["http_options"] = {"host": self.host, "port": self.http_port}
        sent = self.dashboard.put("/api/serve/applications/", json=config)
        assert sent.status_code == 200, sent.text

    def applications(self) -> dict[str, Any]:
        return self.dashboard.get("/api/serve/applications/").json()["applications"]

    def deployments(self) -> dict[str, Any]:
        """Those of all applications, by their names."""
        return {
            name: deployment
            for application in self.applications().values()
            for name, deployment in application["deployments"].items()
        }

    def runs(self) -> bool:
        """Whether every application does; fails when one cannot."""
        applications = self.applications()
        failed = {name: one["message"] for name, one in applications.items() if one["status"] == "DEPLOY_FAILED"}
        assert not failed, failed
        return bool(applications) and all(one["status"] == "RUNNING" for one in applications.values())

    def batches(self, deployment: str) -> tuple[float, float]:
        """How many batches `deployment` has made, and how many of them with one text only, once all are counted."""
        return batches(self.temp_dir, deployment)

    def placement_groups(self) -> list[dict[str, Any]]:
        """Those that replicas have asked for, from Ray's control store: the REST API leaves out their strategy."""
        script = (
            f"import json, ray, ray.util; ray.init('127.0.0.1:{self.gcs_port}', log_to_driver=False);"
            "print(json.dumps(list(ray.util.placement_group_table().values()), default=str))"
        )
        environment = {**os.environ, **self.variables}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120, check=True
        )
        return json.loads(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def ray_cluster(settings: Settings, log: Path, host: str = "127.0.0.1") -> Iterator[Cluster]:
    """A Ray of four cores, which the machine need not have, and no GPUs; `settings` are sent, and not yet running."""
    # Short: Ray keeps sockets in it, whose paths may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-") as name:
        token = uuid.uuid4().hex
        variables = {
            **environment(settings),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token,
            "RAY_metrics_report_interval_ms": "500",
            # Fixed ports of each Ray's; another one on this machine may have them, and take them with it.
            "DASHBOARD_METRIC_PORT": str(free_port()),
            "AUTOSCALER_METRIC_PORT": str(free_port()),
        }
        gcs_port, http_port, dashboard_port = free_port(), free_port(), free_port()
        dashboard = httpx.Client(
            base_url=f"http://127.0.0.1:{dashboard_port}",
            headers={"Authorization": f"Bearer {token}"},
            trust_env=False,
            timeout=PATIENCE_SECONDS,
        )
        http = httpx_client(f"http://127.0.0.1:{http_port}")
        ours = Cluster(dashboard, http, gcs_port, http_port, host, Path(name), variables)
        command: list[str | Path] = [
            *(BINARIES / "ray", "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=4", "--num-gpus=0"),
            *(f"--temp-dir={name}", f"--port={gcs_port}", f"--dashboard-port={dashboard_port}"),
        ]

        def answers() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                return dashboard.get("/api/version").status_code == 200
            return False

        with started(command, log, status=None, variables=variables) as process, dashboard, http:
            wait_for("Ray's dashboard", answers, process)
            ours.deploy(settings)
            yield ours
