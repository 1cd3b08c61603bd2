"""What a stack gets to be seen by, under Pulumi's mocks, and each object against the schema of its kind."""

import base64
import functools
import json
from collections.abc import Iterator
from typing import Any

import pulumi
import pytest
import yaml
from pulumi.runtime import rpc

from app.keys import digest
from infra import versions
from infra.config import PROJECT, ROOT, StackConfig, parse
from infra.observability import prometheus, stack
from infra.observability.alerts import rule_groups
from infra.observability.dashboards import dashboards
from infra.platform import kuberay
from infra.serving.network import policies
from infra.serving.rayservice import rayservice
from tests.infra import schemas
from tests.infra.made_up import GPUS, Resource, registering
from tests.infra.made_up import values as eks_values

MANIFESTS = {"kind": "manifests", "storage": None}
CHART = {"kind": "chart"}
LABELS = {"release": "theirs"}
OBJECTS = {"kind": "objects", "labels": LABELS}
TOKEN = {"name": "remote", "key": "token"}


def elsewhere(seen: dict[str, Any], **values: Any) -> StackConfig:
    """On a cluster of somebody else's, where all of it may be."""
    cluster = {"kind": "existing", "contexts": ["dev"], "models_path": "/m"}
    keys = [{"name": "team", "sha256": digest("sk-a-key-that-nobody-guesses")}]
    return parse({"cluster": cluster, "keys": keys, "observability": seen, **values}, "Pulumi.test.yaml")


def on_eks(seen: dict[str, Any], **cluster: Any) -> StackConfig:
    return parse({**eks_values(GPUS, **cluster), "observability": seen}, "Pulumi.test.yaml")


@pytest.fixture(scope="module", autouse=True)
def names_of_crds() -> Iterator[None]:
    """Without their schemas, which take the mocks a second each time. tests/infra/test_program.py has them whole."""
    crds = [{**crd, "spec": {}} for crd in prometheus.manifests("prometheus-crds")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stack, "manifests", lambda name: crds)
        yield


def register(config: StackConfig) -> dict[str, Resource]:
    return _register(config.model_dump_json())


@functools.cache
def _register(values: str) -> dict[str, Resource]:
    config = parse(json.loads(values), "Pulumi.test.yaml")

    def program() -> None:
        assert config.observability
        stack.Monitoring("monitoring", config, config.observability, pulumi.ResourceOptions())

    return registering(program)


def release(registered: dict[str, Resource]) -> Resource:
    return registered["Release/kube-prometheus-stack"]


def of_kind(registered: dict[str, Resource], kind: str) -> dict[str, dict[str, Any]]:
    """Their inputs, by the objects' names."""
    found = [made.inputs for key, made in registered.items() if key.startswith(f"{kind}/")]
    return {inputs["metadata"]["name"]: inputs for inputs in found}


@pytest.mark.parametrize("seen", [MANIFESTS, CHART, OBJECTS], ids=lambda seen: seen["kind"])
def test_all_ways_have_the_same_monitors_rules_and_dashboards_of_their_kinds(seen: dict[str, Any]) -> None:
    config = elsewhere(seen)
    registered = register(config)
    monitors = of_kind(registered, "PodMonitor")
    assert {"ray", "kuberay-operator"} <= monitors.keys()
    (rules,) = of_kind(registered, "PrometheusRule").values()
    assert rules["spec"]["groups"] == rule_groups(config)
    maps = of_kind(registered, "ConfigMap")
    assert [next(iter(made["data"].values())) for made in maps.values()] == [*dashboards(config).values()]
    assert all(made["metadata"]["labels"] == {"grafana_dashboard": "1"} for made in maps.values())
    selected = LABELS if seen is OBJECTS else {}
    for made in (*monitors.values(), rules):
        assert made["metadata"].get("labels", {}) == selected
        assert made["metadata"]["namespace"] == "monitoring"
        schemas.validate({key: rpc.unwrap_rpc_secret(value) for key, value in made.items()})


def test_somebody_elses_operator_gets_nothing_but_that() -> None:
    kinds = {key.partition("/")[0] for key in register(elsewhere(OBJECTS))}
    assert kinds <= {"PodMonitor", "PrometheusRule", "ConfigMap", "Monitoring"}


def test_every_port_that_is_scraped_is_one_that_the_pods_declare() -> None:
    config = on_eks(CHART)
    spec = rayservice("llm", config)["spec"]["rayClusterConfig"]
    (head,) = spec["headGroupSpec"]["template"]["spec"]["containers"]
    (worker,) = spec["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    monitors = of_kind(register(config), "PodMonitor")
    (operator,) = (
        container
        for item in kuberay.operator_objects(config.operator, config.namespace)
        if item["kind"] == "Deployment"
        for container in item["spec"]["template"]["spec"]["containers"]
    )

    def scraped(monitor: str, container: dict[str, Any]) -> dict[str, int]:
        wanted = [endpoint["port"] for endpoint in monitors[monitor]["spec"]["podMetricsEndpoints"]]
        return {port["name"]: port["containerPort"] for port in container["ports"] if port["name"] in wanted}

    assert scraped("ray", head) == {"metrics": 8080, "as-metrics": 44217, "dash-metrics": 44227}
    assert scraped("ray", worker) == {"metrics": 8080}
    assert scraped("kuberay-operator", operator) == {"http": 8080}
    assert "--enable-metrics" in operator["args"], "else it says nothing of RayServices"


def test_gpus_and_nodes_are_asked_where_the_program_has_made_what_tells_of_them() -> None:
    assert of_kind(register(on_eks(CHART)), "PodMonitor").keys() >= {"dcgm-exporter", "karpenter"}
    assert not of_kind(register(elsewhere(CHART)), "PodMonitor").keys() & {"dcgm-exporter", "karpenter"}
    managed = parse(
        {**eks_values({**GPUS, "pool": {"gpu": "L4", "nodes": "managed"}}), "observability": CHART}, "Pulumi.test.yaml"
    )
    assert "karpenter" not in of_kind(register(managed), "PodMonitor")


def test_the_chart_is_the_ledgers_with_the_crds_of_its_operator() -> None:
    registered = register(elsewhere(CHART))
    chart = release(registered)
    assert chart.inputs["repositoryOpts"] == {"repo": "https://prometheus-community.github.io/helm-charts"}
    assert chart.inputs["version"] == versions.KUBE_PROMETHEUS_STACK
    assert (chart.inputs["skipCrds"], chart.inputs["values"]["crds"]) == (True, {"enabled": False})
    assert {"ConfigGroup/prometheus-crds", "Namespace/monitoring"} <= {*chart.after}
    for kind in ("PodMonitor", "PrometheusRule"):
        (made, *_) = (made for key, made in registered.items() if key.startswith(f"{kind}/"))
        assert "Release/kube-prometheus-stack" in made.after, "whose operator refuses rules that it cannot read"


def test_the_charts_prometheus_takes_what_has_no_label_of_its_release() -> None:
    spec = release(register(elsewhere(CHART))).inputs["values"]["prometheus"]["prometheusSpec"]
    selectors = {key: value for key, value in spec.items() if key.endswith("SelectorNilUsesHelmValues")}
    assert {"podMonitorSelectorNilUsesHelmValues", "ruleSelectorNilUsesHelmValues"} <= selectors.keys()
    assert not any(selectors.values())
    assert spec["image"] == {"tag": f"v{versions.PROMETHEUS}"}


def test_what_only_root_on_a_node_may_is_not_installed() -> None:
    registered = register(elsewhere(CHART))
    labels = registered["Namespace/monitoring"].inputs["metadata"]["labels"]
    assert labels == {"pod-security.kubernetes.io/enforce": "restricted"}
    values = release(registered).inputs["values"]
    for part in ("nodeExporter", "kubeEtcd", "kubeScheduler", "kubeControllerManager", "kubeProxy"):
        assert values[part] == {"enabled": False}


def test_an_alert_that_we_have_is_not_the_charts_as_well() -> None:
    config = elsewhere(CHART)
    ours = {rule["alert"] for group in rule_groups(config) for rule in group["rules"] if "alert" in rule}
    disabled = release(register(config)).inputs["values"]["defaultRules"]["disabled"]
    assert disabled
    assert ours >= disabled.keys()


def test_grafanas_password_is_made_once_kept_secret_and_in_no_value() -> None:
    registered = register(elsewhere(CHART))
    made = registered["Secret/grafana-admin"]
    assert rpc.is_rpc_secret(made.inputs["data"]), "it would be in the clear in Pulumi's state"
    assert made.ignored == ["data"], "Grafana knows the first one only"
    data = {key: base64.b64decode(value).decode() for key, value in rpc.unwrap_rpc_secret(made.inputs["data"]).items()}
    assert data["admin-user"] == "admin"
    assert len(data["admin-password"]) >= 32
    values = release(registered).inputs["values"]
    assert values["grafana"]["admin"] == {"existingSecret": "grafana-admin"}
    assert data["admin-password"] not in str(values)


def test_grafanas_password_may_be_somebody_elses() -> None:
    registered = register(elsewhere({**CHART, "grafana_secret": "ours"}))
    assert "Secret/grafana-admin" not in registered
    assert release(registered).inputs["values"]["grafana"]["admin"] == {"existingSecret": "ours"}


def test_there_is_an_alertmanager_where_somebody_is_to_be_told() -> None:
    secret = {"alertmanager_secret": "who"}
    assert release(register(elsewhere(CHART))).inputs["values"]["alertmanager"] == {"enabled": False}
    spec = release(register(elsewhere({**CHART, **secret}))).inputs["values"]["alertmanager"]["alertmanagerSpec"]
    assert (spec["useExistingSecret"], spec["configSecret"]) == (True, "who")
    registered = register(elsewhere({**MANIFESTS, **secret}))
    made = of_kind(registered, "Alertmanager")["alertmanager"]
    assert made["spec"]["configSecret"] == "who"
    schemas.validate(made)
    told = of_kind(registered, "Prometheus")["prometheus"]["spec"]["alerting"]["alertmanagers"]
    assert told == [{"namespace": "monitoring", "name": "alertmanager-operated", "port": "web"}]
    assert not of_kind(register(elsewhere(MANIFESTS)), "Alertmanager")


SAMPLES: dict[str, Any] = {
    "retention": "30d",
    "storage": {"gib": 100, "class_name": "fast"},
    "external_labels": {"stack": "test"},
    "remote_write": [
        {"url": "https://metrics.example.com/api/v1/write", "token": TOKEN},
        {"url": "https://other.example.com/write", "username": {**TOKEN, "key": "name"}, "password": TOKEN},
    ],
}


@pytest.mark.parametrize("kind", ["chart", "manifests"])
def test_samples_are_kept_and_sent_on_as_the_stack_file_says(kind: str) -> None:
    registered = register(elsewhere({"kind": kind, **SAMPLES}))
    if kind == "chart":
        spec = release(registered).inputs["values"]["prometheus"]["prometheusSpec"]
        storage = spec["storageSpec"]
    else:
        made = of_kind(registered, "Prometheus")["prometheus"]
        schemas.validate(made)
        spec = made["spec"]
        storage = spec["storage"]
    assert (spec["retention"], spec["retentionSize"]) == ("30d", "80.0GiB")
    assert spec["externalLabels"] == {"stack": "test"}
    claim = storage["volumeClaimTemplate"]["spec"]
    assert (claim["storageClassName"], claim["resources"]["requests"]["storage"]) == ("fast", "100Gi")
    by_token, by_name = spec["remoteWrite"]
    assert by_token["authorization"] == {"credentials": TOKEN}
    assert by_name["basicAuth"] == {"username": {**TOKEN, "key": "name"}, "password": TOKEN}


def test_without_a_volume_the_samples_are_in_the_pod() -> None:
    """The operator makes a claim of everything that does not say so."""
    (made,) = of_kind(register(elsewhere(MANIFESTS)), "Prometheus").values()
    assert made["spec"]["storage"] == {"emptyDir": {}}


def test_on_eks_the_volume_is_encrypted_and_the_pods_are_on_nodes_that_stay() -> None:
    registered = register(on_eks({**CHART, "alertmanager_secret": "who"}))
    (storage_class,) = of_kind(registered, "StorageClass").values()
    assert storage_class["parameters"] == {"type": "gp3", "encrypted": "true"}
    values = release(registered).inputs["values"]
    spec = values["prometheus"]["prometheusSpec"]
    assert spec["storageSpec"]["volumeClaimTemplate"]["spec"]["storageClassName"] == "prometheus"
    system = {"blueprint/pool": "system"}
    for part in (
        *(spec, values["grafana"], values["kube-state-metrics"], values["prometheusOperator"]),
        *(values["alertmanager"]["alertmanagerSpec"], values["prometheusOperator"]["admissionWebhooks"]["patch"]),
    ):
        assert part["nodeSelector"] == system
    objects = register(on_eks(MANIFESTS))["ConfigGroup/prometheus-operator"].inputs["objs"]
    (operator,) = (item for item in objects if item["kind"] == "Deployment")
    assert operator["spec"]["template"]["spec"]["nodeSelector"].items() >= system.items()
    assert not of_kind(register(elsewhere(CHART)), "StorageClass")


MIRRORS = {"charts": "oci://mirror.example.com/charts", "images": "mirror.example.com/images"}


@pytest.mark.parametrize("config", [on_eks(CHART, mirrors=MIRRORS), elsewhere({**CHART, "mirrors": MIRRORS})])
def test_chart_and_images_may_come_from_mirrors(config: StackConfig) -> None:
    chart = release(register(config)).inputs
    assert chart["chart"] == "oci://mirror.example.com/charts/kube-prometheus-stack"
    # For all images of the chart, under their own names behind the registry.
    assert chart["values"]["global"] == {"imageRegistry": "mirror.example.com/images"}


def images(registered: dict[str, Resource]) -> set[str]:
    (operator,) = (
        item for item in registered["ConfigGroup/prometheus-operator"].inputs["objs"] if item["kind"] == "Deployment"
    )
    (container,) = operator["spec"]["template"]["spec"]["containers"]
    (reloader,) = (
        argument.partition("=")[2] for argument in container["args"] if argument.startswith("--prometheus-config")
    )
    return {container["image"], reloader, of_kind(registered, "Prometheus")["prometheus"]["spec"]["image"]}


def test_the_manifests_images_may_come_from_a_mirror() -> None:
    published = images(register(elsewhere(MANIFESTS)))
    assert published == {image for name, image in prometheus.IMAGES.items() if name != "alertmanager"}
    mirrored = images(register(elsewhere({**MANIFESTS, "mirrors": {"images": "mirror.example.com/images"}})))
    assert mirrored == {f"mirror.example.com/images/{image.partition('/')[2]}" for image in published}


def test_the_manifests_are_of_their_kinds_in_the_namespace_and_the_stacks_own() -> None:
    registered = register(elsewhere(MANIFESTS, monitoring_namespace="seen"))
    for item in registered["ConfigGroup/prometheus-operator"].inputs["objs"]:
        schemas.validate(item)
        assert item["metadata"].get("namespace", "seen") == "seen"
        assert all(subject["namespace"] == "seen" for subject in item.get("subjects", []))
        assert item["metadata"]["annotations"]["pulumi.com/patchFieldManager"] == f"{PROJECT}-test"
    assert registered["Prometheus/prometheus-prometheus"].after


@pytest.mark.parametrize("seen", [MANIFESTS, CHART], ids=lambda seen: seen["kind"])
def test_from_outside_of_the_namespace_nobody_comes_in(seen: dict[str, Any]) -> None:
    made_policies = of_kind(register(elsewhere(seen)), "NetworkPolicy")
    own = made_policies["own"]["spec"]
    assert (own["podSelector"], own["ingress"]) == ({}, [{"from": [{"podSelector": {}}]}])
    # But the API server, with what it asks the chart's operator.
    assert made_policies.keys() - {"own"} == ({"webhook"} if seen is CHART else set())
    for made in made_policies.values():
        schemas.validate(made)


def test_prometheus_gets_to_what_it_scrapes() -> None:
    """The models' namespace is closed but for this."""
    config = elsewhere(CHART, monitoring_namespace="seen")
    (metrics,) = (policy for policy in policies(config) if policy["metadata"]["name"] == "metrics")
    (rule,) = metrics["spec"]["ingress"]
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "seen"}}}]
    assert {port["port"] for port in rule["ports"]} == {8080, 44217, 44227}


def test_the_documented_alertmanager_configuration_is_one() -> None:
    text = (ROOT / "docs" / "observability.md").read_text()
    (block,) = (part for part in text.split("```")[1::2] if "route:" in part)
    config = yaml.safe_load(block.removeprefix("yaml\n"))
    known = {receiver["name"] for receiver in config["receivers"]}
    assert {config["route"]["receiver"], *(route["receiver"] for route in config["route"]["routes"])} <= known
