"""`make vendor-secrets`: copy the schemas of External Secrets' objects that the tests check into tests/infra/crds/.

Not into infra/platform/manifests/: the CRDs of a cluster come with the chart.
"""

from typing import Any

import yaml

from infra.config import ROOT
from scripts.console import main
from scripts.vendor_kuberay import module_dir, write

MODULE = "github.com/external-secrets/external-secrets"
KINDS = ("clustersecretstores", "externalsecrets")


def vendor() -> None:
    bases = module_dir("external-secrets", MODULE) / "config" / "crds" / "bases"
    items = [yaml.safe_load((bases / f"external-secrets.io_{kind}.yaml").read_text()) for kind in KINDS]
    for item in items:
        item["spec"]["versions"] = [version for version in item["spec"]["versions"] if version["served"]]
    write("external-secrets-crds", undescribed(items), ROOT / "tests" / "infra" / "crds")


def undescribed(value: Any) -> Any:
    """Without the texts for readers, nine tenths of it."""
    if isinstance(value, list):
        return [undescribed(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: undescribed(item) for key, item in value.items() if not (key == "description" and isinstance(item, str))
    }


if __name__ == "__main__":
    main(vendor)
