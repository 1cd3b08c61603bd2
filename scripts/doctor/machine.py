"""This machine: the tools, and for a native cluster what that needs."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from infra import image, versions
from infra.aws.config import EksCluster
from infra.clusters import NativeCluster
from infra.config import StackConfig
from infra.observability.config import PrometheusOperator
from scripts import cluster, engine, packages, tools
from scripts.aws_cli import require_aws
from scripts.cluster import images, preflight
from scripts.console import Problem
from scripts.doctor import Check, Note, check

OURS = {"pulumi": versions.PULUMI, "pulumi-kubernetes": versions.PULUMI_KUBERNETES, "pulumi-aws": versions.PULUMI_AWS}
"""Python packages that must be those of the ledger: the state and the providers follow them."""


def checks(stack_name: str, stack: StackConfig) -> Iterator[Check]:
    native = isinstance(stack.cluster, NativeCluster)
    yield check("Python packages", packages_are_the_ledgers)
    needed = ["kubernetes", "coredns", "kuberay", "pause"] if native else ["kubectl"]
    if native and isinstance(stack.observability, PrometheusOperator):
        needed += tools.MONITORING
    needed += ["pulumi"] if engine.has_python_host() else ["pulumi", "pulumi-kubernetes"]
    for name in sorted(needed):
        yield check(f"tool {name}", lambda name=name: tools.whence(name))
    if isinstance(stack.cluster, EksCluster):
        yield check("tool aws", aws_version)
        if not engine.has_python_host():
            yield check("Pulumi's AWS provider", aws_provider)
    yield check("Pulumi's state", lambda: state(stack_name, stack))
    if native:
        yield from of_native(stack)


def packages_are_the_ledgers() -> str:
    found = {name: version(name) for name in OURS}
    if found != OURS:
        raise Problem(
            ", ".join(f"{name} {found[name]} and not {OURS[name]}" for name in OURS if found[name] != OURS[name]),
            "make setup",
        )
    return ", ".join(f"{name} {number}" for name, number in found.items())


def aws_version() -> str:
    require_aws()
    return subprocess.run(["aws", "--version"], capture_output=True, text=True).stdout.strip()


def aws_provider() -> str:
    """Without its Python host, which fetches it, Pulumi takes the provider that it finds."""
    home = Path(os.environ.get("PULUMI_HOME") or Path.home() / ".pulumi")
    kept = home / "plugins" / f"resource-aws-v{versions.PULUMI_AWS}" / "pulumi-resource-aws"
    if found := shutil.which("pulumi-resource-aws") or (str(kept) if kept.exists() else None):
        return found
    raise Problem(
        "neither the provider is here nor Pulumi's Python host, which would fetch it",
        "install Pulumi with its language hosts: https://www.pulumi.com/docs/iac/download-install, "
        f"or run `pulumi plugin install resource aws {versions.PULUMI_AWS}`",
    )


def state(stack_name: str, stack: StackConfig) -> str:
    engine.require_state(stack_name, stack)
    if isinstance(stack.cluster, NativeCluster):
        return f"{engine.native_home()}, with the cluster"
    return str(engine.backend())


def of_native(stack: StackConfig) -> Iterator[Check]:
    """What `make up` looks at before it starts the cluster, and whether the image is there."""
    yield check("root, directories", _may_start)
    yield check("system packages", _packages)
    if cluster.running():
        yield Check("native cluster", "ok", "runs")
    else:
        yield check("native cluster", _alone)
        yield check("memory", lambda: f"{preflight.memory():.1f} GiB available")
        yield check("kernel", _kernel)
    yield check("disk", lambda: f"{preflight.space():.1f} GiB free")
    yield check("image", lambda: native_image(image.reference(stack)))


def _may_start() -> str:
    preflight.root()
    preflight.directories()
    return "fine"


def _packages() -> str:
    if missing := packages.to_install(packages.CLUSTER):
        raise Note(f"missing: {' '.join(missing)}", "nothing: make up installs them")
    return f"all there; containerd {preflight.containerd_major()}"


def _alone() -> str:
    preflight.alone()
    preflight.port()
    return "does not run; make up starts it"


def _kernel() -> str:
    preflight.root()
    preflight.kernel()
    return "namespaces, cgroups, overlay and iptables work"


def native_image(reference: str) -> str:
    if cluster.running() and images.has(reference):
        return f"{reference}, on the node"
    # As containers/storage writes it; asking buildah would leave its run directory behind.
    stored = images.build_store() / "overlay-images" / "images.json"
    known = json.loads(stored.read_text()) if stored.exists() else []
    if any(reference in (item.get("names") or []) for item in known):
        return f"{reference}, built"
    raise Note(f"{reference} is not there", "nothing: make up builds it, which takes minutes")
