"""What `make up` refuses to take over. The cluster is a fake: kubectl's answers are written here."""

import json
from pathlib import Path
from typing import Any

import pytest

from infra import versions
from infra.config import PROJECT, Operator, parse
from infra.observability import prometheus
from infra.platform import kuberay
from scripts import ownership
from scripts.console import Problem
from scripts.kubectl import Kubectl

OURS = f"{PROJECT}-dev"


def made_by(manager: str, item: dict[str, Any]) -> dict[str, Any]:
    """`item` as the API server returns it: what it does itself is in managedFields, too."""
    fields = [{"manager": manager, "operation": "Apply"}, {"manager": "kube-controller-manager"}]
    return {**item, "metadata": {**item["metadata"], "managedFields": fields}}


def namespace(name: str) -> dict[str, Any]:
    return {"kind": "Namespace", "metadata": {"name": name}}


(OPERATOR,) = (item for item in kuberay.operator_objects(Operator(), "serving") if item["kind"] == "Deployment")
CRDS = kuberay.manifests("kuberay-crds")
OTHER = {
    "kind": "Deployment",
    "metadata": {"name": "web", "namespace": "shop"},
    "spec": {"template": {"metadata": {}, "spec": {"containers": [{"image": "web:1"}]}}},
}


class FakeKubectl(Kubectl):
    """Answers `get` as kubectl does: one object, a list, or nothing."""

    def __init__(self, *items: dict[str, Any]) -> None:
        super().__init__(Path("no-kubectl"), Path("no-kubeconfig"), None)
        self.items = items

    def __call__(self, *arguments: str, stdin: str | None = None, timeout: float = 60) -> str:
        verb, kind, *names = arguments
        assert (verb, names[-3:]) == ("get", ["--show-managed-fields", "--output", "json"])
        found = [item for item in self.items if f"{item['kind'].lower()}s" == kind]
        if "--all-namespaces" in names:
            return json.dumps({"kind": "List", "items": found})
        assert "--ignore-not-found" in names
        found = [item for item in found if item["metadata"]["name"] in names]
        if len(found) > 1:
            return json.dumps({"kind": "List", "items": found})
        return json.dumps(found[0]) if found else ""


def check(*items: dict[str, Any], observability: dict[str, Any] | None = None) -> None:
    stack = parse({"observability": observability} if observability else {}, "Pulumi.dev.yaml")
    ownership.require(FakeKubectl(*items), "dev", stack)


def test_a_fresh_cluster_and_what_others_have_on_it_are_fine() -> None:
    check()
    check(made_by("helm", OTHER), made_by("helm", namespace("shop")))


def test_what_the_stack_has_made_is_its_own() -> None:
    made = [OPERATOR, *CRDS, namespace("serving"), namespace("kuberay-system")]
    check(made_by("helm", OTHER), *(made_by(OURS, item) for item in made))


@pytest.mark.parametrize("manager", ["helm", "kubectl-client-side-apply", f"{PROJECT}-staging"])
def test_an_operator_of_somebody_else_is_named_with_its_version(manager: str) -> None:
    with pytest.raises(Problem, match=r"Deployment kuberay-system/kuberay-operator with .*/operator:v") as raised:
        check(made_by(manager, OPERATOR))
    assert f"brings its own, {versions.KUBERAY}" in raised.value.what
    assert "helm uninstall" in raised.value.fix


@pytest.mark.parametrize(
    ("labels", "image"),
    [
        ({"app.kubernetes.io/component": "kuberay-operator"}, "mirror.example.com/ray-operator:v1.5.1"),
        ({}, "mirror.example.com/kuberay/operator:v1.5.1"),
    ],
)
def test_an_operator_is_known_by_its_label_or_image(labels: dict[str, str], image: str) -> None:
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"image": image}]}}
    metadata = {"name": "ray", "namespace": "ml"}
    with pytest.raises(Problem, match=f"Deployment ml/ray with {image}"):
        check(made_by("helm", {"kind": "Deployment", "metadata": metadata, "spec": {"template": template}}))


@pytest.mark.parametrize("number", [1, 2])
def test_crds_that_a_removed_chart_has_left(number: int) -> None:
    with pytest.raises(Problem, match="KubeRay's CRDs are there already") as raised:
        check(*(made_by("helm", crd) for crd in CRDS[:number]))
    names = [crd["metadata"]["name"] for crd in CRDS[:number]]
    assert f"kubectl delete crd {' '.join(names)};" in raised.value.fix


@pytest.mark.parametrize(("name", "way_out"), [("serving", "set `namespace`"), ("kuberay-system", "another cluster")])
def test_a_namespace_of_somebody_else_would_be_deleted_with_the_stack(name: str, way_out: str) -> None:
    with pytest.raises(Problem, match=f"the namespace {name} is there already") as raised:
        check(made_by("kubectl-create", namespace(name)))
    assert way_out in raised.value.fix


MONITORED: dict[str, Any] = {"kind": "manifests", "storage": None}


def test_the_crds_of_another_prometheus_operator_are_left_to_it() -> None:
    crds = [made_by("helm", crd) for crd in prometheus.manifests("prometheus-crds")[:2]]
    check(*crds)
    check(*crds, observability={"kind": "objects"})
    with pytest.raises(Problem, match="CRDs of a Prometheus operator are there already") as raised:
        check(*crds, observability=MONITORED)
    assert "set observability.kind to objects" in raised.value.fix


def test_a_monitoring_namespace_of_somebody_else_is_only_used_for_objects() -> None:
    there = made_by("helm", namespace("monitoring"))
    check(there)
    check(there, observability={"kind": "objects"})
    with pytest.raises(Problem, match="the namespace monitoring is there already") as raised:
        check(there, observability=MONITORED)
    assert "set `monitoring_namespace` to another name" in raised.value.fix
