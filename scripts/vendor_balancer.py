"""`make vendor-balancer`: copy the CRDs of the pinned Load Balancer Controller into infra/platform/manifests/."""

import yaml

from infra import versions
from scripts.console import Problem, main
from scripts.vendor_kuberay import module_dir, write

TOOL = "load-balancer-controller"
MODULE = "sigs.k8s.io/aws-load-balancer-controller"


def vendor() -> None:
    chart = module_dir(TOOL, MODULE) / "helm" / "aws-load-balancer-controller"
    version = yaml.safe_load((chart / "Chart.yaml").read_text())["version"]
    if version != versions.LOAD_BALANCER_CONTROLLER:
        raise Problem(
            f"the module is {version}, and the ledger says {versions.LOAD_BALANCER_CONTROLLER}",
            f"change infra/versions.py or scripts/tools/{TOOL}/go.mod",
        )
    # The others are for the Gateway API, which the controller leaves alone where its CRDs are not there.
    items = [item for item in yaml.safe_load_all((chart / "crds" / "crds.yaml").read_text()) if item]
    write("load-balancer-controller-crds", items)


if __name__ == "__main__":
    main(vendor)
