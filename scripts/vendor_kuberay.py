"""`make vendor-kuberay`: copy the manifests of the pinned KubeRay operator into infra/platform/manifests/."""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml

from infra.platform.kuberay import MANIFESTS, NAMESPACE
from scripts import tools
from scripts.console import main, step

MODULE = "github.com/ray-project/kuberay/ray-operator"


def module_dir(tool: str = "kuberay", module: str = MODULE) -> Path:
    """A module as Go downloaded it, and verified it by the tool's go.sum."""
    found = subprocess.run(
        ["go", "mod", "download", "-json", module],
        cwd=Path(tools.__file__).parent / tool,
        capture_output=True,
        text=True,
        check=True,
    )
    return Path(json.loads(found.stdout)["Dir"])


def write(name: str, items: list[dict[str, Any]], directory: Path = MANIFESTS) -> None:
    # An object a line: indented, the CRDs would be three times as large.
    lines = ",\n".join(json.dumps(item, separators=(",", ":")) for item in items)
    (directory / f"{name}.json").write_text(f'{{"apiVersion":"v1","kind":"List","items":[\n{lines}\n]}}\n')


def vendor() -> None:
    kubectl = tools.ensure("kubernetes") / "kubectl"
    with step("rendering KubeRay's manifests"), tempfile.TemporaryDirectory() as scratch:
        source = os.path.relpath(module_dir() / "config" / "default", scratch)
        overlay = {"namespace": NAMESPACE, "resources": [source]}
        (Path(scratch) / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
        rendered = subprocess.run([kubectl, "kustomize", scratch], capture_output=True, text=True, check=True).stdout
    objects = list(yaml.load_all(rendered, Loader=yaml.CSafeLoader))
    crds = [item for item in objects if item["kind"] == "CustomResourceDefinition"]
    rest = [item for item in objects if item["kind"] != "CustomResourceDefinition"]
    write("kuberay-crds", crds)
    write("kuberay-operator", rest)


if __name__ == "__main__":
    main(vendor)
