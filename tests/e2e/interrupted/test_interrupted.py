"""A run of Pulumi that is killed while it waits for an object: the next one goes on, also with other values."""

import os
import signal
import subprocess
import sys
import time
from unittest import mock

import pytest

from infra.config import ROOT, StackConfig
from infra.platform.kubeconfig import manager
from scripts import engine
from scripts.kubectl import Kubectl
from tests.e2e.interrupted.program import NAMESPACE, program

STACK = "interrupted"
RUN = f"""
from infra.config import StackConfig
from scripts import engine
from tests.e2e.interrupted.program import program

engine._program = lambda: program(replicas=1)
engine.has_python_host = lambda: False
engine.open_stack({STACK!r}, StackConfig()).up()
"""


def test_the_next_run_goes_on(
    kubernetes: Kubectl, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    get = ("get", "deployments", "--namespace", NAMESPACE)
    with subprocess.Popen([sys.executable, "-c", RUN], cwd=ROOT, start_new_session=True) as process:
        try:
            deadline = time.monotonic() + 300
            while not kubernetes(*get, "--output", "name"):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.5)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    monkeypatch.setattr(engine, "_program", lambda: program(replicas=0))
    monkeypatch.setattr(engine, "has_python_host", lambda: False)
    with mock.patch.dict(os.environ):
        stack = engine.open_stack(STACK, StackConfig())
        assert "interrupted while it worked on kubernetes:apps/v1:Deployment" in capsys.readouterr().out
        result = stack.up()
        assert "pending operations" not in result.stdout
        assert result.summary.resource_changes == {"create": 1, "same": 3}
        (deployment,) = kubernetes.get(*get[1:], "--show-managed-fields")["items"]
        applied = [entry for entry in deployment["metadata"]["managedFields"] if entry["operation"] == "Apply"]
        assert [entry["manager"] for entry in applied] == [manager(STACK)]
        stack.destroy()
