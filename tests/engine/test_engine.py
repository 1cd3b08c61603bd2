"""The real Pulumi engine and its real Kubernetes provider, without a cluster: locks, interrupted runs, the chart.

Each test has a state of its own, where `make up` of a native stack has it.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pulumi
import pulumi_kubernetes as kubernetes
import pytest
import yaml
from pulumi import automation

from infra import versions
from infra.clusters import ExistingCluster
from infra.config import PROJECT, ROOT, Operator, StackConfig
from infra.platform import kuberay
from infra.platform.kubeconfig import provider, sign
from scripts import engine, tools
from scripts.console import Problem


@pytest.fixture(autouse=True)
def state(tmp_path: Path) -> Iterator[Path]:
    """Where the stack is; whatever the engine puts into the environment goes with it."""
    with mock.patch.dict(os.environ, {"BLUEPRINT_STATE": str(tmp_path / "state")}):
        yield tmp_path / "state" / "pulumi"


def opened(monkeypatch: pytest.MonkeyPatch, program: Callable[[], None]) -> automation.Stack:
    """The local stack with a program of the test's."""
    monkeypatch.setattr(engine, "_program", program)
    monkeypatch.setattr(engine, "has_python_host", lambda: False)
    return engine.open_stack("local", StackConfig())


def nothing() -> None:
    pulumi.export("models", ["chat"])


RUN = """
import time
from infra.config import StackConfig
from scripts import engine

def program():
    print("begun", flush=True)
    time.sleep(600)

engine._program = program
engine.has_python_host = lambda: False
engine.open_stack("local", StackConfig()).up()
"""


@pytest.fixture
def running() -> Iterator[subprocess.Popen[str]]:
    """`up` of the local stack in a process group of its own, in the middle of the program."""
    command = [sys.executable, "-c", RUN]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout
            assert any("begun" in line for line in process.stdout)
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def locks(state: Path) -> list[Path]:
    return list((state / "state" / ".pulumi" / "locks").rglob("*.json"))


def test_a_living_run_keeps_its_lock(
    state: Path, running: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (lock,) = locks(state)
    pid = json.loads(lock.read_text())["pid"]
    with pytest.raises(Problem, match=f"stack local is in use: process {pid} on "):
        opened(monkeypatch, nothing)
    assert locks(state) == [lock]
    assert running.poll() is None


def test_the_lock_of_a_killed_run_is_removed(
    state: Path,
    running: subprocess.Popen[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    (lock,) = locks(state)
    while engine._is_pulumi(json.loads(lock.read_text())["pid"]):
        time.sleep(0.1)
    result = opened(monkeypatch, nothing).up()
    assert result.summary.result == "succeeded"
    assert "its lock is removed" in capsys.readouterr().out
    assert locks(state) == []


def begun(kind: str) -> dict[str, Any]:
    """A create that was interrupted, as Pulumi notes it in the state."""
    urn = f"urn:pulumi:local::{PROJECT}::{kind}::interrupted"
    return {"resource": {"urn": urn, "custom": True, "type": kind}, "type": "creating"}


@pytest.mark.parametrize(("kind", "forgotten"), [("kubernetes:core/v1:Secret", True), ("aws:s3/bucket:Bucket", False)])
def test_an_interrupted_create_is_begun_again(
    state: Path, monkeypatch: pytest.MonkeyPatch, kind: str, forgotten: bool
) -> None:
    """With Kubernetes; what was begun in a cloud, only its owner can tell."""
    opened(monkeypatch, nothing).up()
    (file,) = (state / "state" / ".pulumi" / "stacks").rglob("local.json")
    content = json.loads(file.read_text())
    content["checkpoint"]["latest"]["pending_operations"] = [begun(kind)]
    file.write_text(json.dumps(content))
    result = opened(monkeypatch, nothing).up()
    assert ("pending operations" in result.stdout) is not forgotten
    assert ("pending_operations" in file.read_text()) is not forgotten


def test_the_plain_cli_sees_the_same_state(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what docs/clusters.md exports."""
    opened(monkeypatch, nothing).up()
    environment = {
        "PATH": os.environ["PATH"],
        "PULUMI_HOME": str(state),
        "PULUMI_BACKEND_URL": f"file://{state}/state",
        "PULUMI_CONFIG_PASSPHRASE_FILE": f"{state}/passphrase",
    }
    pulumi_binary = tools.ensure("pulumi") / "pulumi"
    command = [pulumi_binary, "-C", f"{state}/project", "stack", "output", "--stack", "local", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"models": ["chat"]}


def test_an_unknown_context_is_refused_at_preview(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text("current-context: prod\ncontexts: [{name: prod}]\n")
    cluster = ExistingCluster(contexts=["dev", "test"], kubeconfig=str(kubeconfig))

    def program() -> None:
        provider(cluster)

    with pytest.raises(automation.CommandError) as raised:
        opened(monkeypatch, program).preview()
    assert "the current context of" in engine.reason(raised.value)
    assert "Traceback" not in str(raised.value)


CHART = {
    "Chart.yaml": f"""
        apiVersion: v2
        name: kuberay-operator
        version: {versions.KUBERAY}
        """,
    "values.yaml": """
        fullnameOverride: kuberay-operator
        resources: {limits: {cpu: 100m}}
        """,
    "crds/never.yaml": """
        apiVersion: apiextensions.k8s.io/v1
        kind: CustomResourceDefinition
        metadata: {name: never.example.com}
        """,
    "templates/deployment.yaml": """
        apiVersion: apps/v1
        kind: Deployment
        metadata:
          name: {{ .Values.fullnameOverride }}
          namespace: {{ .Release.Namespace }}
        spec:
          selector: {matchLabels: {app: operator}}
          template:
            metadata: {labels: {app: operator}}
            spec:
              serviceAccountName: {{ .Values.serviceAccount.name }}
              containers:
                - name: {{ .Chart.Name }}
                  image: "{{ .Values.image.repository }}:{{ .Values.image.tag }}"
                  args: ["--watch-namespace={{ join "," .Values.watchNamespace }}"]
                  resources: {{ toJson .Values.resources }}
        """,
}
"""A chart of this test's, with the names of KubeRay's values: KubeRay's own is not to be had everywhere."""


def rendered(directory: Path) -> dict[str, dict[str, Any]]:
    """Objects that the provider has written instead of creating them, by kind and name."""
    found = [yaml.load(path.read_text(), Loader=yaml.CSafeLoader) for path in directory.rglob("*.yaml")]
    return {f"{item['kind']}/{item['metadata']['name']}": item for item in found}


def test_a_chart_is_rendered_with_our_values_and_crds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chart, output = tmp_path / "chart", tmp_path / "rendered"
    for name, content in CHART.items():
        (chart / name).parent.mkdir(parents=True, exist_ok=True)
        (chart / name).write_text(textwrap.dedent(content))
    operator = Operator(chart=str(chart), image="mirror.example.com/kuberay/operator")
    # In place of KubeRay's four, which take the engine half a minute.
    crd = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "ours"},
        "spec": {
            "group": "example.com",
            "names": {"kind": "Ours"},
            "scope": "Namespaced",
            "versions": [{"name": "v1"}],
        },
    }
    published = kuberay.manifests
    monkeypatch.setattr(kuberay, "manifests", lambda name: [crd] if name == "kuberay-crds" else published(name))

    def program() -> None:
        pulumi.runtime.register_resource_transform(sign)
        renders = kubernetes.Provider("cluster", render_yaml_to_directory=str(output))
        kuberay.KubeRay("kuberay", operator, "serving", pulumi.ResourceOptions(provider=renders))

    opened(monkeypatch, program).up()
    found = rendered(output)
    assert found.keys() == {
        *("Namespace/kuberay-system", "Namespace/serving", "CustomResourceDefinition/ours"),
        *("Role/kuberay-operator", "RoleBinding/kuberay-operator", "Deployment/kuberay-chart"),
    }
    assert found["RoleBinding/kuberay-operator"]["subjects"][0]["name"] == "kuberay-chart"
    deployment = found["Deployment/kuberay-chart"]
    pod = deployment["spec"]["template"]["spec"]
    assert deployment["metadata"]["namespace"] == kuberay.NAMESPACE
    assert pod["serviceAccountName"] == "kuberay-chart"
    assert pod["containers"][0]["image"] == operator.reference
    assert pod["containers"][0]["args"] == ["--watch-namespace=serving"]
    assert pod["containers"][0]["resources"] == kuberay.RESOURCES
    managers = {item["metadata"]["annotations"]["pulumi.com/patchFieldManager"] for item in found.values()}
    assert managers == {f"{PROJECT}-local"}
