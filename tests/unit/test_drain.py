"""In which order a cluster is emptied: a fake kubectl, which keeps what it was told."""

import json

import pytest

from scripts import kubectl
from scripts.console import Problem
from scripts.drain import BALANCERS, CLAIMS, POOLS, RAY, drain
from scripts.observe import Object


def item(name: str, **more: object) -> Object:
    return {"metadata": {"name": name, "namespace": "serving", **more}, "spec": {"type": "ClusterIP"}}


BALANCER = {**item("web"), "spec": {"type": "LoadBalancer"}}


class FakeKubectl(kubectl.Kubectl):
    """Of a cluster with these kinds and objects; `stuck` is the kind whose objects do not go."""

    def __init__(self, *kinds: str, stuck: str = "", **there: list[Object]) -> None:
        self.kinds, self.stuck = kinds, stuck
        self.there = {"services": [item("kubernetes"), BALANCER], "persistentvolumeclaims": [], **there}
        self.told: list[str] = []

    def __call__(self, *arguments: str, stdin: str | None = None, timeout: float = 60) -> str:
        match arguments:
            case ("api-resources", *_):
                return "\n".join(self.kinds)
            case ("get", kind, *_):
                return json.dumps({"items": self.there[kind]})
            case ("delete", kind, *_):
                self.told.append(" ".join(arguments[1:]))
                if kind == self.stuck:
                    raise Problem("kubectl delete failed: timed out waiting for the condition", "")
                return ""
        raise AssertionError(arguments)


def test_pods_then_load_balancers_then_nodes() -> None:
    fake = FakeKubectl(*RAY, *BALANCERS, POOLS, CLAIMS)
    drain(fake)
    assert [told.split()[0] for told in fake.told] == [*RAY, *BALANCERS, "service", POOLS, CLAIMS]
    assert "service web --namespace serving" in fake.told[6]
    assert "--cascade=foreground" in fake.told[7]
    assert not any("kubernetes" in told for told in fake.told if told.startswith("service "))


def test_kinds_that_the_cluster_does_not_have_are_left_out() -> None:
    fake = FakeKubectl("rayservices.ray.io")
    drain(fake)
    assert [told.split()[0] for told in fake.told] == ["rayservices.ray.io", "service"]


def test_what_does_not_go_is_named_with_what_holds_it() -> None:
    stays = item("l4-x7k2p", deletionTimestamp="2026-11-21T12:00:00Z", finalizers=["karpenter.sh/termination"])
    fake = FakeKubectl(POOLS, CLAIMS, stuck=CLAIMS, **{CLAIMS: [stays, item("other")]})
    with pytest.raises(Problem, match=r"nodeclaims\.karpenter\.sh do not go: .*timed out") as raised:
        drain(fake)
    assert raised.value.what.splitlines()[1:] == ["  l4-x7k2p: held by karpenter.sh/termination"]
    assert "make down" in raised.value.fix


def test_volumes_with_data_are_told_and_not_deleted(capsys: pytest.CaptureFixture[str]) -> None:
    fake = FakeKubectl(persistentvolumeclaims=[item("notebook")])
    drain(fake)
    assert "volumes of serving/notebook stay on AWS" in capsys.readouterr().out
    assert not any("persistentvolume" in told for told in fake.told)
