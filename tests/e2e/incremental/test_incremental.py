"""Upgrades in steps, behind a Gateway and under load, lose no request and break no stream.

A native stack has no Gateway, and none of these upgrades. So this one is of `kind: existing`: it takes the native
cluster for one that somebody else has made, with the Gateway API in it.
"""

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.builtin import models_dir
from app.keys import digest
from infra.clusters import native_kubeconfig
from infra.config import from_file
from scripts import up
from scripts.cluster import layout
from scripts.kubectl import Kubectl, connect
from tests.e2e.conftest import NAME, Stack
from tests.e2e.incremental.gateway import CLASS, URL, Gateway, gateway, install
from tests.e2e.load import NAMESPACE, clusters, keep, keys, loaded, nothing_is_lost, until_one_is_left

API_KEY = secrets.token_urlsafe()
UPGRADE = {
    "kind": "NewClusterWithIncrementalUpgrade",
    "gateway_class_name": CLASS,
    "max_surge_percent": 50,
    "step_size_percent": 25,
    "interval_seconds": 10,
}
STEPS = [(100, 0), (75, 25), (50, 50), (25, 75), (0, 100), (100,)]
"""Weights of the Ray cluster that goes and of the one that comes, which in the end is the only one."""


@pytest.fixture(scope="module")
def config(stack: Stack) -> dict[str, Any]:
    """Keys of the stack, which has Ray's autoscaler."""
    some = keys(workers=1, scaling={"num_replicas": 2})
    return {
        **some,
        "workers": [{**some["workers"][0], "max_replicas": 2}],
        "upgrade": UPGRADE,
        "keys": [{"name": "load", "sha256": digest(API_KEY)}],
        "cluster": {
            "kind": "existing",
            "contexts": [layout.NAME],
            "kubeconfig": str(native_kubeconfig()),
            "models_path": str(models_dir()),
        },
    }


@pytest.fixture(scope="module")
def kubernetes(stack: Stack, config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubectl]:
    """The native cluster with the Gateway API, and with the images that others would pull."""
    stack.make("down")  # of the scenarios before
    home = tmp_path_factory.mktemp("pulumi")
    (home / "logs").touch()  # as scripts/engine.py has it, and why
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PULUMI_HOME", str(home))
        environment.setenv("PULUMI_BACKEND_URL", f"file://{home}")
        environment.setenv("PULUMI_CONFIG_PASSPHRASE", "")
        environment.setenv("BLUEPRINT_API_KEY", API_KEY)
        stack.configure(**config)
        try:
            up.prepare_native(from_file(NAME))
            kubernetes = connect(from_file(NAME).cluster)
            install(kubernetes)
            yield kubernetes
        finally:
            stack.configure()  # by which `make down` takes the cluster away


@pytest.fixture(scope="module")
def entry(kubernetes: Kubectl) -> Iterator[Gateway]:
    with gateway(kubernetes) as found:
        yield found


def test_nothing_is_lost(
    run: int, stack: Stack, config: dict[str, Any], kubernetes: Kubectl, entry: Gateway, results: Path | None
) -> None:
    if run == 0:
        stack.require(**config)
    before = clusters(kubernetes)
    entry.weights.clear()
    with loaded(URL, API_KEY) as report:
        assert stack.up(**{**config, "head": {"memory_gib": 5 - run % 2}}).returncode == 0
        until_one_is_left(kubernetes)
    keep({"change": "incremental", "run": run, **report.summary()}, results)
    assert clusters(kubernetes) != before
    assert entry.weights == STEPS
    nothing_is_lost(report)


@pytest.mark.usefixtures("entry")
def test_down_leaves_the_cluster_to_who_made_it(stack: Stack, kubernetes: Kubectl) -> None:
    assert stack.make("down").returncode == 0
    found = [item["metadata"]["name"] for item in kubernetes.get("namespaces")["items"]]
    assert "default" in found
    assert NAMESPACE not in found
    assert kubernetes.get("gatewayclasses")["items"]
