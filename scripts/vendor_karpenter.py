"""`make vendor-karpenter`: copy the CRDs of the pinned Karpenter into infra/platform/manifests/."""

import yaml

from scripts.console import main
from scripts.vendor_kuberay import module_dir, write

MODULE = "github.com/aws/karpenter-provider-aws"


def vendor() -> None:
    files = sorted((module_dir("karpenter", MODULE) / "pkg" / "apis" / "crds").glob("*.yaml"))
    write("karpenter-crds", [yaml.safe_load(file.read_text()) for file in files])


if __name__ == "__main__":
    main(vendor)
