"""What a stack file may say, and how it is told when it is wrong."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from app import settings
from app.keys import Key, digest
from app.settings import SettingsError, demands
from infra import config, versions
from infra.clusters import LOCAL_KEY, ExistingCluster, NativeCluster
from infra.config import PROJECT, ROOT
from infra.upgrade import Incremental

STACKS = sorted(path.name.split(".")[1] for path in ROOT.glob("Pulumi.*.yaml"))


def stack_file(directory: Path, values: object) -> Path:
    content = (
        {"config": {f"{PROJECT}:{key}": value for key, value in values.items()}} if isinstance(values, dict) else 1
    )
    (directory / "Pulumi.test.yaml").write_text(yaml.safe_dump(content))
    return directory


EXISTING = {"kind": "existing", "contexts": ["kind-dev"], "models_path": "/srv/models"}
INCREMENTAL = {
    "kind": "NewClusterWithIncrementalUpgrade",
    "gateway_class_name": "envoy",
    "max_surge_percent": 25,
    "step_size_percent": 10,
    "interval_seconds": 30,
}


MANIFESTS: dict[str, Any] = {"kind": "manifests", "storage": None}
OBJECTS = {"kind": "objects"}
SECRET = {"name": "remote", "key": "token"}


def key(name: str, **limits: Any) -> dict[str, Any]:
    return {"name": name, "sha256": digest(f"sk-{name}")} | limits


@pytest.mark.parametrize("stack", STACKS)
def test_every_committed_stack_is_valid(stack: str) -> None:
    assert config.from_file(stack).serving.models


def test_local_is_the_native_cluster_with_the_default_settings() -> None:
    stack = config.from_file("local")
    assert stack == config.StackConfig()
    assert isinstance(stack.cluster, NativeCluster)


def test_the_default_demands_fit_the_default_worker() -> None:
    stack = config.StackConfig()
    assert [(group.cpus, group.max_replicas) for group in stack.workers] == [(2, 1)]
    assert sum(demand.cpus * demand.replicas for demand in demands(stack.serving)) <= 2


def test_a_native_cluster_without_keys_takes_the_local_one() -> None:
    stack = config.parse({}, "Pulumi.test.yaml")
    assert stack.keys == []
    assert stack.api_keys == [Key(name="local", sha256=digest(LOCAL_KEY))]


@pytest.mark.parametrize("cluster", [{"kind": "native"}, EXISTING], ids=lambda cluster: cluster["kind"])
def test_listed_keys_are_the_only_ones(cluster: dict[str, Any]) -> None:
    values = {"cluster": cluster, "keys": [key("team", models=["chat"], requests_per_minute=60), key("other")]}
    stack = config.parse(values, "Pulumi.test.yaml")
    assert [given.name for given in stack.api_keys] == ["team", "other"]
    assert digest(LOCAL_KEY) not in [given.sha256 for given in stack.api_keys]


def test_existing_cluster(tmp_path: Path) -> None:
    values = {"cluster": {**EXISTING, "kubeconfig": "~/kc"}, "keys": [key("team")]}
    cluster = config.from_file("test", stack_file(tmp_path, values)).cluster
    assert isinstance(cluster, ExistingCluster)
    assert cluster.kubeconfig_path == Path.home() / "kc"
    assert cluster.models_path == "/srv/models"


def test_the_native_clusters_models_are_this_machines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BLUEPRINT_CACHE", str(tmp_path))
    assert config.StackConfig().models_path == f"{tmp_path}/models"


def test_without_built_in_weights_no_directory_of_the_nodes_is_needed() -> None:
    real = {"models": [{"variants": [{"source": "/weights", "placement": {"num_cpus": 1}}]}], "generate": None}
    values = {"cluster": {"kind": "existing", "contexts": ["kind-dev"]}, "keys": [key("team")]}
    stack = config.parse(values | {"serving": {**NOTHING, **real}}, "Pulumi.test.yaml")
    assert stack.models_path is None


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"servng": {}}, ["servng", "serving"]),
        ({"cluster": {"kind": "natvie"}}, ["cluster", "natvie", "native"]),
        ({"cluster": {"kind": "existing"}}, ["cluster.contexts", "is missing"]),
        ({"cluster": {"kind": "existing", "contexts": []}}, ["cluster.contexts", "at least 1 item"]),
        ({"cluster": {"kind": "existing", "contexts": "prod"}}, ["cluster.contexts", "prod", "a valid list"]),
        ({"cluster": {"kind": "native", "contexts": ["prod"]}}, ["contexts"]),
        ({"operator": {"chart": "http://charts.example.com"}}, ["operator.chart", "http://charts", "https://"]),
        ({"operator": {"chart": "no/such/directory"}}, ["operator.chart", "no/such/directory", "leave it out"]),
        ({"operator": {"image": "quay.io/kuberay/operator:v1"}}, ["operator.image", ":v1", "leave it out"]),
        ({"operator": {"image": "mirror:5000/operator@sha256:0"}}, ["operator.image", "digest", "leave it out"]),
        (
            {"cluster": {"kind": "existing", "contexts": ["kind-dev"]}, "keys": [key("team")]},
            [
                "cluster.models_path: is missing",
                "serving.models.0.variants.0.source = 'builtin:smollm2",
                "to the nodes",
            ],
        ),
        ({"cluster": {**EXISTING, "models_path": "models"}}, ["cluster.models_path", "'models'", "^/"]),
        ({"workers": []}, ["workers"]),
        ({"workers": [{"cpu": 2}]}, ["workers.0.cpu", "cpus"]),
        ({"workers": [{"cpus": 0}]}, ["workers.0.cpus", "0"]),
        ({"workers": [{"gpus": -1}]}, ["workers.0.gpus", "-1"]),
        ({"workers": [{"gpus": 0.5}]}, ["workers.0.gpus", "0.5", "integer"]),
        (
            {"workers": [{"min_replicas": 3}]},
            ["workers.0.min_replicas = 3: is more than max_replicas (1)", "fix: lower it, or raise that"],
        ),
        ({"workers": [{"max_replicas": 0}]}, ["workers.0.max_replicas", "0", "equal to 1"]),
        ({"workers": [{"replicas": 2}]}, ["workers.0.replicas", "no such key", "_replicas?"]),
        ({"workers": [{}, {}]}, ["workers.1.name = 'cpu'", "workers.0 has this name", "give each its own"]),
        ({"clients": {"namespaces": ["Gateway"]}}, ["clients.namespaces.0", "Gateway", "pattern"]),
        ({"clients": {"cidrs": ["10.0.0.1/8"]}}, ["clients.cidrs", "10.0.0.1/8 has host bits set", "10.0.0.0/16"]),
        ({"clients": {"cidrs": ["vpc"]}}, ["clients.cidrs", "'vpc'", "<address>/<bits>"]),
        ({"monitoring_namespace": ""}, ["monitoring_namespace", "pattern"]),
        ({"monitoring_namespace": "serving", "observability": OBJECTS}, ["monitoring_namespace = 'serving'"]),
        ({"observability": {"kind": "grafana"}}, ["observability", "grafana", "'chart', 'manifests', 'objects'"]),
        ({"observability": {**OBJECTS, "retention": "1d"}}, ["observability.retention = '1d': there is no such key"]),
        ({"observability": {"kind": "chart"}}, ["observability.kind = 'chart'", "pulls none", "kind: manifests"]),
        (
            {"observability": {**MANIFESTS, "alertmanager_secret": "who"}},
            ["observability.alertmanager_secret", "pulls none", "without alertmanager_secret"],
        ),
        ({"observability": {"kind": "manifests"}}, ["observability.storage", "makes none", "set it to null"]),
        ({"observability": {**MANIFESTS, "retention": "15"}}, ["observability.retention", "'15'", "(h|d|w|y)"]),
        (
            {"observability": {**MANIFESTS, "mirrors": {"charts": "https://mirror.example.com"}}},
            ["observability.mirrors.charts = 'https://mirror.example.com': no chart", "kind: chart"],
        ),
        (
            {"observability": {**MANIFESTS, "remote_write": [{"url": "http://m.example.com", "token": SECRET}]}},
            ["observability.remote_write.0.url = 'http://m.example.com'", "in the clear", "https://"],
        ),
        (
            {"observability": {**MANIFESTS, "remote_write": [{"url": "https://me:sesame@m.example.com"}]}},
            ["observability.remote_write.0.url: holds a password in the clear", "username and password"],
        ),
        (
            {"observability": {**MANIFESTS, "remote_write": [{"url": "m.example.com"}]}},
            ["observability.remote_write.0.url = 'm.example.com'", "https://<host>/<path>"],
        ),
        (
            {"observability": {**MANIFESTS, "remote_write": [{"url": "https://m.example.com", "password": SECRET}]}},
            ["observability.remote_write.0.username: is missing", "set both"],
        ),
        (
            {"observability": {**MANIFESTS, "remote_write": [{"url": "https://m.example.com", "token": "sesame"}]}},
            ["observability.remote_write.0.token", "a mapping"],
        ),
        ({"idle_timeout_seconds": 0}, ["idle_timeout_seconds", "0", "equal to 1"]),
        ({"head": {"memory_gib": 1}}, ["head.memory_gib", "1", "2"]),
        ({"namespace": "Not_A_Name"}, ["namespace", "Not_A_Name"]),
        ({"serving": {"models": [{"nam": "chat"}]}}, ["serving.models.0.nam", "name"]),
        ({"cluster": EXISTING}, ["keys = []", "nobody could use the models", "make key NAME="]),
        ({"cluster": EXISTING, "keys": []}, ["keys = []", "make key NAME="]),
        ({"keys": [key("local")]}, ["sk-local", "everybody knows", "make key"]),
        ({"cluster": EXISTING, "keys": [key("a"), key("local")]}, ["sk-local", "everybody knows", "make key"]),
        ({"keys": [{"name": "team"}]}, ["keys.0.sha256", "is missing", "make key"]),
        ({"keys": [key("team", sha256="ABC")]}, ["keys.0.sha256", "ABC", "64 hex digits"]),
        ({"keys": [key("team", model=["chat"])]}, ["keys.0.model", "models"]),
        ({"keys": [key("team", requests_per_minute=0)]}, ["keys.0.requests_per_minute", "0", "equal to 1"]),
        ({"keys": key("team")}, ["keys", "a valid list"]),
        (
            {"serving": {"auth": {"keys_file": "/etc/keys.yaml"}}},
            ["serving.auth.keys_file = '/etc/keys.yaml'", "the program makes that file", "list the keys in `keys`"],
        ),
        ({"serving": {"auth": {"redis_url": "host:6379"}}}, ["serving.auth.redis_url", "host:6379", "rediss"]),
        ({"gcs_fault_tolerance": {}}, ["gcs_fault_tolerance.redis_address: is missing"]),
        (
            {"gcs_fault_tolerance": {"redis_address": "redis"}},
            ["gcs_fault_tolerance.redis_address = 'redis': is no address of Redis; fix: write <host>:<port>"],
        ),
        (
            {"gcs_fault_tolerance": {"redis_address": "redis:6379/0"}},
            ["redis_address = 'redis:6379/0'", "<host>:<port>"],
        ),
        ({"gcs_fault_tolerance": {"redis_address": "redis:66379"}}, ["redis_address = 'redis:66379'", "<host>:<port>"]),
        ({"gcs_fault_tolerance": {"redis_address": "https://r:1"}}, ["redis_address = 'https://r:1'", "rediss://"]),
        (
            {"gcs_fault_tolerance": {"redis_address": "redis:6379", "redis_password": "sesame"}},
            ["gcs_fault_tolerance.redis_password", "a mapping"],
        ),
        (
            {"gcs_fault_tolerance": {"redis_address": "redis:6379", "redis_password": {"name": "redis"}}},
            ["gcs_fault_tolerance.redis_password.key: is missing"],
        ),
        (
            {"gcs_fault_tolerance": {"redis_address": "r:1", "redis_password": {"name": "Redis", "key": "a b"}}},
            ["gcs_fault_tolerance.redis_password.name = 'Redis'", "gcs_fault_tolerance.redis_password.key = 'a b'"],
        ),
        (
            {"redis_password": {"name": "redis", "key": "password"}},
            ["redis_password.name = 'redis'", "no Redis", "serving.auth.redis_url"],
        ),
        ({"upgrade": {"kind": "Recreate"}}, ["upgrade", "Recreate", "'NewClusterWithIncrementalUpgrade', 'None'"]),
        (
            {"upgrade": {"kind": "NewCluster", "interval_seconds": 5}},
            ["upgrade.interval_seconds = 5: there is no such"],
        ),
        (
            {"upgrade": {"kind": "None", "max_surge_percent": 5}},
            ["upgrade.max_surge_percent = 5: there is no such key"],
        ),
        ({"upgrade": {"kind": INCREMENTAL["kind"]}}, ["upgrade.gateway_class_name: is missing", "step_size_percent"]),
        ({"upgrade": {**INCREMENTAL, "gateway_class_name": ""}}, ["upgrade.gateway_class_name = ''", "pattern"]),
        ({"upgrade": {**INCREMENTAL, "max_surge_percent": 0}}, ["upgrade.max_surge_percent = 0", "equal to 1"]),
        ({"upgrade": {**INCREMENTAL, "step_size_percent": 101}}, ["upgrade.step_size_percent = 101", "equal to 100"]),
        ({"upgrade": {**INCREMENTAL, "interval_seconds": 0}}, ["upgrade.interval_seconds = 0", "equal to 1"]),
        (
            {"upgrade": INCREMENTAL, "cluster": EXISTING, "keys": [key("team")]},
            [
                "upgrade.kind = 'NewClusterWithIncrementalUpgrade': needs Ray's autoscaler, and every worker group has",
                "a fixed size; fix: raise a group's max_replicas above its min_replicas, or use NewCluster",
            ],
        ),
        (
            {"upgrade": INCREMENTAL, "workers": [{"max_replicas": 2}]},
            [
                "upgrade.kind = 'NewClusterWithIncrementalUpgrade': needs a Gateway API, which the native",
                "use NewCluster",
            ],
        ),
        ({"ready_timeout_seconds": "soon"}, ["ready_timeout_seconds", "soon"]),
    ],
)
def test_wrong_values_name_key_value_and_fix(tmp_path: Path, values: dict, names: list[str]) -> None:
    with pytest.raises(SettingsError) as raised:
        config.from_file("test", stack_file(tmp_path, values))
    message = str(raised.value)
    assert "Pulumi.test.yaml" in message
    for name in names:
        assert name in message, message


@pytest.mark.parametrize("address", ["redis://:sesame@redis:6379", "user:sesame@redis:6379", "sesame@redis"])
def test_a_password_in_an_address_is_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(
        SettingsError, match=r"redis_address: holds a password in the clear; fix: .* redis_password"
    ) as e:
        config.parse({"gcs_fault_tolerance": {"redis_address": address}}, "Pulumi.test.yaml")
    assert "sesame" not in str(e.value)


def chart(directory: Path, version: str) -> str:
    (directory / "Chart.yaml").write_text(f"name: kuberay-operator\nversion: {version}\n")
    return str(directory)


def test_the_operator_may_come_from_a_chart_of_its_version(tmp_path: Path) -> None:
    values = {"chart": chart(tmp_path, versions.KUBERAY), "image": "mirror.example.com:5000/kuberay/operator"}
    operator = config.parse({"operator": values}, "Pulumi.test.yaml").operator
    assert operator.reference == f"mirror.example.com:5000/kuberay/operator:v{versions.KUBERAY}"


def test_a_chart_of_another_version_than_the_crds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"operator\.chart = .*1\.0\.0.*; fix: "):
        config.parse({"operator": {"chart": chart(tmp_path, "1.0.0")}}, "Pulumi.test.yaml")


EXAMPLES = [
    pytest.param(block, id=f"{path.name}-{index}")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for index, block in enumerate(re.findall(r"```yaml\n(.*?)```", path.read_text(), re.DOTALL))
    if f"{PROJECT}:" in block
]


@pytest.mark.parametrize("block", EXAMPLES)
def test_the_stack_files_in_the_documentation_are_valid(tmp_path: Path, block: str) -> None:
    (tmp_path / "Pulumi.test.yaml").write_text(block)
    config.from_file("test", tmp_path)


def gpus(number: int, replicas: int = 1) -> dict[str, Any]:
    """As many pods at most; the fewest do not count."""
    return {"name": "gpu", "min_replicas": 0, "max_replicas": replicas, "cpus": 16, "gpus": number}


NOTHING: dict[str, Any] = {**settings.NOTHING, "gateway": {"placement": {"num_cpus": 0}}}


def serving(placement: dict[str, Any], scaling: dict[str, Any] | None = None, **engine: int) -> dict[str, Any]:
    """Settings of one language model only."""
    variant = {"engine": engine, "placement": placement, "scaling": scaling or {}}
    return {**NOTHING, "models": [{"variants": [variant]}]}


REPLICA = "serving.models.0.variants.0: a replica needs"
TOO_MUCH: list[tuple[dict[str, Any], list[dict[str, Any]], str]] = [
    # One replica.
    (serving({"num_cpus": 64}), [gpus(8)], f"{REPLICA} 64 CPUs and 0 GPUs of one pod"),
    (serving({"num_gpus": 1}), [{}], f"{REPLICA} 1 CPUs and 1 GPUs of one pod"),
    (serving({"num_gpus": 0.5}), [{}], f"{REPLICA} 1 CPUs and 0.5 GPUs of one pod"),
    (serving({"num_gpus": 1}, tensor_parallel_size=4), [gpus(2, replicas=8)], f"{REPLICA} 1 CPUs and 4 GPUs"),
    (
        serving({"num_gpus": 1}, tensor_parallel_size=2, pipeline_parallel_size=4),
        [gpus(4, replicas=4)],
        f"{REPLICA} 1 CPUs and 8 GPUs",
    ),
    # Cores and GPUs must be the same pod's.
    (serving({"num_cpus": 8, "num_gpus": 1}), [{"cpus": 64}, {"name": "gpu", "gpus": 8}], f"{REPLICA} 8 CPUs and 1"),
    (
        {"embeddings": [{"placement": {"num_gpus": 0.2}}]},
        [{"cpus": 8}],
        "serving.embeddings.0: a replica needs 0.25 CPUs and 0.2 GPUs of one pod",
    ),
    ({"gateway": {"placement": {"num_cpus": 4}}}, [{"cpus": 2}], "serving.gateway: a replica needs 4 CPUs"),
    ({"generate": {"placement": {"num_gpus": 1}}}, [{}], "serving.generate: a replica needs 1 CPUs and 1 GPUs"),
    (
        {"rerankers": [{"source": "/models/bge", "placement": {"num_gpus": 0.5}}]},
        [{"cpus": 8}],
        "serving.rerankers.0: a replica needs 0.25 CPUs and 0.5 GPUs",
    ),
    (
        {"pipeline": {"preprocess": {"placement": {"num_cpus": 3}}}},
        [{"cpus": 2, "max_replicas": 4}],
        "serving.pipeline.preprocess: a replica needs 3 CPUs",
    ),
    # All replicas.
    (
        {"pipeline": {"summary": {"scaling": {"num_replicas": 20}}}},
        [{}],
        "serving: all replicas together need 2.76 CPUs, and the workers have 2",
    ),
    (
        serving({"num_cpus": 1}, {"num_replicas": 9}),
        [{"cpus": 2, "max_replicas": 4}],
        "serving: all replicas together need 9 CPUs, and the workers have 8",
    ),
    (
        serving({"num_gpus": 1}, {"autoscaling_config": {"max_replicas": 3}}, tensor_parallel_size=4),
        [gpus(8)],
        "serving: all replicas together need 12 GPUs, and the workers have 8",
    ),
    (
        serving({"num_gpus": 0.5}, {"num_replicas": 3}),
        [gpus(1)],
        "serving: all replicas together need 1.5 GPUs, and the workers have 1",
    ),
]


@pytest.mark.parametrize(("settings", "workers", "problem"), TOO_MUCH, ids=[problem for *_, problem in TOO_MUCH])
def test_replicas_that_would_wait_for_ever_are_refused(
    settings: dict[str, Any], workers: list[dict[str, Any]], problem: str
) -> None:
    with pytest.raises(SettingsError) as raised:
        config.parse({"serving": settings, "workers": workers}, "Pulumi.test.yaml")
    (line,) = str(raised.value).splitlines()[1:]
    assert line.strip().startswith(problem)
    assert "; fix: raise " in line


@pytest.mark.parametrize(
    ("settings", "workers"),
    [
        (serving({"num_gpus": 1}, {"num_replicas": 2}, tensor_parallel_size=4), [gpus(8)]),
        (serving({"num_gpus": 1}, {"num_replicas": 2}, tensor_parallel_size=4), [{}, gpus(4, replicas=2)]),
        (serving({"num_gpus": 0.5}, {"num_replicas": 2}), [gpus(1)]),
        # Pipeline stages may be on several pods.
        (serving({"num_gpus": 1, "strategy": "PACK"}, pipeline_parallel_size=4), [gpus(1, replicas=4)]),
        (serving({"num_cpus": 2}, {"num_replicas": 4}), [{"cpus": 2, "max_replicas": 4}]),
    ],
)
def test_replicas_that_just_fit_are_taken(settings: dict[str, Any], workers: list[dict[str, Any]]) -> None:
    assert config.parse({"serving": settings, "workers": workers}, "Pulumi.test.yaml").serving.models


@pytest.mark.parametrize(("bounds", "scales"), [([(1, 1), (4, 4)], False), ([(1, 1), (0, 1)], True), ([(1, 4)], True)])
def test_ray_scales_where_a_group_has_room(bounds: list[tuple[int, int]], scales: bool) -> None:
    workers = [{"name": f"g{n}", "min_replicas": low, "max_replicas": high} for n, (low, high) in enumerate(bounds)]
    assert config.parse({"workers": workers}, "Pulumi.test.yaml").autoscaling is scales


def incremental(
    workers: list[dict[str, Any]], settings: dict[str, Any], surge: int = 25, **values: Any
) -> config.StackConfig:
    """A stack of incremental upgrades."""
    upgrade = {**INCREMENTAL, "max_surge_percent": surge}
    values |= {"cluster": EXISTING, "keys": [key("team")], "upgrade": upgrade, "workers": workers, "serving": settings}
    return config.parse(values, "Pulumi.test.yaml")


ENCODER = {"source": "/models/bge", "placement": {"num_cpus": 16}, "scaling": {"num_replicas": 4}}
"""In the image for GPUs, this may still compute on CPUs."""


def four(**placement: Any) -> dict[str, Any]:
    """A model with four replicas."""
    return serving({"num_gpus": 1, **placement}, {"num_replicas": 4})


@pytest.mark.parametrize(
    ("workers", "settings", "surge", "added"),
    [
        ([gpus(1, replicas=4)], four(), 25, {"gpu": 1}),
        ([gpus(1, replicas=4)], four(), 38, {"gpu": 2}),  # one and a half are two
        ([gpus(1, replicas=4)], four(), 1, {"gpu": 1}),
        ([gpus(1, replicas=4)], four(), 100, {"gpu": 4}),
        ([gpus(1, replicas=9)], four(), 100, {"gpu": 4}),
        ([gpus(1, replicas=4) | {"min_replicas": 3}], four(), 25, {"gpu": 3}),
        ([gpus(2, replicas=2)], four(), 25, {"gpu": 1}),
        # Of a deployment with one replica, each Ray cluster has one.
        ([gpus(1, replicas=4)], serving({"num_gpus": 1}), 10, {"gpu": 1}),
        # Two thirds of a pod are a pod.
        ([gpus(3, replicas=4)], serving({"num_gpus": 1}, {"num_replicas": 4}, tensor_parallel_size=2), 50, {"gpu": 2}),
        # What needs no GPU is not where they are, unless there is no other place.
        ([{}, gpus(1, replicas=4)], {**four(), "gateway": {}}, 25, {"cpu": 1, "gpu": 1}),
        ([{}, gpus(0, replicas=4)], serving({"num_cpus": 16}, {"num_replicas": 4}), 25, {"cpu": 1, "gpu": 1}),
        ([{}, gpus(1, replicas=4)], {**NOTHING, "embeddings": [ENCODER]}, 25, {"cpu": 1, "gpu": 1}),
    ],
)
def test_an_incremental_upgrade_adds_what_its_replicas_need(
    workers: list[dict[str, Any]], settings: dict[str, Any], surge: int, added: dict[str, int]
) -> None:
    assert incremental(workers, settings, surge).surge == added


def test_a_new_cluster_is_a_second_one_of_full_size_and_none_is_none() -> None:
    workers = [{"name": "cpu"}, gpus(1, replicas=4)]
    assert config.parse({"workers": workers}, "Pulumi.test.yaml").surge == {"cpu": 1, "gpu": 4}
    values = {"workers": workers, "upgrade": {"kind": "None"}}
    assert config.parse(values, "Pulumi.test.yaml").surge == {}


@pytest.mark.parametrize("stack", STACKS)
def test_another_image_rolls_out_in_every_stack_of_ours(stack: str) -> None:
    """With `None`, `up` would succeed, and the old one run on."""
    found = config.from_file(stack)
    assert found.surge == {group.name: group.max_replicas for group in found.workers}


@pytest.mark.parametrize(
    ("surge", "course"),
    [
        (100, [(100, 100), (100, 0)]),
        (40, [(40, 100), (40, 60), (80, 60), (80, 20), (100, 20), (100, 0)]),
        (50, [(50, 100), (50, 50), (100, 50), (100, 0)]),
    ],
)
def test_the_course_of_an_incremental_upgrade(surge: int, course: list[tuple[int, int]]) -> None:
    assert list(Incremental(**{**INCREMENTAL, "max_surge_percent": surge}).course()) == course


@pytest.mark.parametrize(("surge", "seconds"), [(25, 4 * 900 + 12 * 30), (40, 3 * 900 + 10 * 30), (100, 900 + 10 * 30)])
def test_up_waits_for_every_surge_and_every_step(surge: int, seconds: int) -> None:
    assert incremental([gpus(1, replicas=4)], four(), surge).patience_seconds == seconds
    assert config.StackConfig(ready_timeout_seconds=100).patience_seconds == 100


def test_unknown_stack_names_the_known_ones() -> None:
    with pytest.raises(SettingsError, match="local"):
        config.from_file("lokal")


@pytest.mark.parametrize("content", ["config: [", "- 1", "config: 3"])
def test_unreadable_stack_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "Pulumi.test.yaml").write_text(content)
    with pytest.raises(SettingsError, match=r"Pulumi\.test\.yaml"):
        config.from_file("test", tmp_path)


def test_other_programs_keys_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "Pulumi.test.yaml").write_text("config: {'aws:region': eu-west-1}\nencryptionsalt: v1:x\n")
    assert config.from_file("test", tmp_path) == config.StackConfig()


def test_reading_a_stack_file_does_not_wait_for_pulumi() -> None:
    code = "import sys, infra.config; infra.config.from_file('prod'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [name for name in done.stdout.split() if name.startswith("pulumi")] == []
