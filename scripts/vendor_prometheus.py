"""`make vendor-prometheus`: copy the pinned Prometheus operator's manifests into infra/observability/manifests/.

With what its project gives a Prometheus to find its targets by: an account and its role.
"""

from pathlib import Path
from typing import Any

import yaml

from infra.observability.prometheus import MANIFESTS
from scripts.console import main
from scripts.vendor_kuberay import module_dir, write
from scripts.vendor_secrets import undescribed

MODULE = "github.com/prometheus-operator/prometheus-operator"


def crds(module: Path) -> list[dict[str, Any]]:
    """Without the texts for readers: Prometheus' alone are larger than what the API server stores of an object."""
    return undescribed(
        [_read(path) for path in sorted((module / "example" / "prometheus-operator-crd").glob("*.yaml"))]
    )


def operator(module: Path) -> list[dict[str, Any]]:
    """Of the operator all but the ServiceMonitor, which needs the CRDs; of its Prometheus what that may do."""
    rbac = module / "example" / "rbac"
    found = [_read(path) for room in ("prometheus-operator", "prometheus") for path in sorted((rbac / room).glob("*"))]
    return [item for item in found if not item["apiVersion"].startswith("monitoring.coreos.com/")]


def vendor() -> None:
    module = module_dir("prometheus-operator", MODULE)
    write("prometheus-crds", crds(module), MANIFESTS)
    write("prometheus-operator", operator(module), MANIFESTS)


class _Loader(yaml.CSafeLoader):
    """For which = is a string, as it is in all YAML but PyYAML's: https://github.com/yaml/pyyaml/issues/89"""


_Loader.add_constructor("tag:yaml.org,2002:value", yaml.CSafeLoader.construct_yaml_str)


def _read(path: Path) -> dict[str, Any]:
    return _Loader(path.read_text()).get_single_data()


if __name__ == "__main__":
    main(vendor)
