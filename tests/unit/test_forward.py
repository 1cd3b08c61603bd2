"""`make forward`: which pod a port leads to, with a fake kubectl; and what it says of ports and of the token."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from app.keys import digest
from infra.config import StackConfig, parse
from scripts import forward, kubectl
from scripts.console import Problem
from scripts.forward import Forward
from scripts.observe import Object
from tests.unit.made_up import pod


class FakeKubectl(kubectl.Kubectl):
    """A Service with `behind` behind it, and a port-forward that is only a process; it keeps what it started."""

    def __init__(self) -> None:
        self.behind = ["llm-a"]
        self.forwarded: list[str] = []
        self.runs = "sleep 60"

    def __call__(self, *arguments: str, stdin: str | None = None, timeout: float = 60) -> str:
        assert "kubernetes.io/service-name=llm-serve-svc" in arguments
        endpoints = [{"targetRef": {"name": name}, "conditions": {"ready": True}} for name in self.behind]
        starting = {"targetRef": {"name": "llm-starts"}, "conditions": {"ready": False}}
        return json.dumps({"items": [{"endpoints": [starting, *endpoints]}, {"endpoints": None}]})

    def command(self, *arguments: str) -> list[str]:
        assert "--address=127.0.0.1" in arguments
        self.forwarded.append(" ".join(arguments[-2:]))
        return ["sh", "-c", self.runs]


@pytest.fixture
def fake() -> FakeKubectl:
    return FakeKubectl()


@pytest.fixture
def endpoint(fake: FakeKubectl) -> Iterator[Forward]:
    made = Forward(fake, "serving", lambda: "llm-serve-svc", 18000, 8000)
    yield made
    made.end()


def pods(*names: str) -> dict[str, Object]:
    return {name: pod(name) for name in names}


def test_a_port_leads_to_one_pod_as_long_as_that_lives(fake: FakeKubectl, endpoint: Forward) -> None:
    found = endpoint.keep(pods("llm-a", "llm-b"))
    assert found
    assert found["metadata"]["name"] == "llm-a"
    fake.behind = ["llm-b"]  # the Service has moved on, but streams on the old pod go on
    assert endpoint.keep(pods("llm-a", "llm-b")) is None
    assert fake.forwarded == ["pod/llm-a 18000:8000"]


def test_a_port_leads_to_another_pod_when_that_goes_away(fake: FakeKubectl, endpoint: Forward) -> None:
    endpoint.keep(pods("llm-a"))
    fake.behind = ["llm-b"]
    endpoint.keep(pods("llm-b"))
    assert fake.forwarded == ["pod/llm-a 18000:8000", "pod/llm-b 18000:8000"]


def test_while_no_pod_is_ready_it_waits(fake: FakeKubectl, endpoint: Forward) -> None:
    fake.behind = []
    assert endpoint.keep(pods("llm-a", "llm-starts")) is None
    assert fake.forwarded == []


def test_kubectls_end_is_told_and_it_begins_again(
    fake: FakeKubectl, endpoint: Forward, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.runs = "echo noise >&2; echo error: lost connection to pod >&2; exit 1"
    endpoint.keep(pods("llm-a"))
    assert endpoint._process
    endpoint._process.wait()
    fake.runs = "sleep 60"
    assert endpoint.keep(pods("llm-a"))
    assert "kubectl port-forward to llm-a ended: error: lost connection to pod" in capsys.readouterr().out


def test_a_port_in_use_is_told_with_another_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Problem, match=f"port {port} on 127.0.0.1 is in use") as raised:
            forward.free_port("DASHBOARD", str(port))
    assert "make forward DASHBOARD=1" in raised.value.fix


@pytest.mark.parametrize("text", ["http", "70000", "0", "-1"])
def test_a_port_that_is_none(text: str) -> None:
    with pytest.raises(Problem, match=f"PORT is '{text}'"):
        forward.free_port("PORT", text)


def test_the_token_is_not_shown_but_how_to_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    head = pod("llm-head")
    reference = {"secretKeyRef": {"name": "llm-bbbbb", "key": "auth_token"}}
    head["spec"]["containers"][0]["env"] = [{"name": "RAY_AUTH_TOKEN", "valueFrom": reference}]
    monkeypatch.setattr(FakeKubectl, "command", lambda _, *arguments: ["kubectl", *arguments])
    assert forward.token_hint(FakeKubectl(), head).endswith(
        "kubectl get secret llm-bbbbb --namespace serving --template '{{index .data \"auth_token\" | base64decode}}'"
    )


def ways(monkeypatch: pytest.MonkeyPatch, **values: Any) -> dict[str, forward.Way]:
    monkeypatch.setattr(FakeKubectl, "command", lambda _, *arguments: ["kubectl", *arguments])
    key = {"name": "team", "sha256": digest("sk-a-key-that-nobody-guesses")}
    cluster = {"kind": "existing", "contexts": ["dev"], "models_path": "/m"}
    stack = parse({"cluster": cluster, "keys": [key], "monitoring_namespace": "seen", **values}, "Pulumi.dev.yaml")
    return {way.variable: way for way in forward.ways(stack, "llm", FakeKubectl())}


@pytest.mark.parametrize(
    ("seen", "variables"),
    [
        (None, {"PORT", "DASHBOARD"}),
        ({"kind": "objects"}, {"PORT", "DASHBOARD"}),
        ({"kind": "manifests"}, {"PORT", "DASHBOARD", "PROMETHEUS"}),
        ({"kind": "chart"}, {*forward.VARIABLES}),
    ],
)
def test_what_a_stack_has_is_forwarded(
    monkeypatch: pytest.MonkeyPatch, seen: dict[str, Any] | None, variables: set[str]
) -> None:
    found = ways(monkeypatch, observability=seen)
    assert found.keys() == variables
    for variable in variables & {"GRAFANA", "PROMETHEUS"}:
        assert found[variable].namespace == "seen"


@pytest.mark.parametrize("secret", [None, "ours"])
def test_grafanas_password_is_not_shown_but_how_to_see_it(monkeypatch: pytest.MonkeyPatch, secret: str | None) -> None:
    way = ways(monkeypatch, observability={"kind": "chart", "grafana_secret": secret})["GRAFANA"]
    name = secret or "grafana-admin"
    assert f'get secret {name} --namespace seen --template \'{{{{index .data "admin-password"' in way.hint


def test_how_the_key_is_sent() -> None:
    assert "Authorization: Bearer" in forward.how_to_ask(StackConfig())
    assert "sk-local" in forward.how_to_ask(StackConfig())
