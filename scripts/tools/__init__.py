"""The command line tools of the Kubernetes path: the user's where their version fits, else built from pinned modules.

A build is pinned by its go.sum and kept in the cache under a key of everything that goes into it, so each tool is
built once per machine and a changed pin builds anew. With the modules in Go's cache it needs no network (GOPROXY=off).
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from app.builtin import cache_dir
from infra import versions
from scripts.console import Problem, say, step

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Theirs:
    """A copy of a tool that the user has on PATH, and when it will do."""

    binary: str
    asked: tuple[str, ...]
    """Arguments with which it tells its version."""
    oldest: tuple[int, ...]
    below: tuple[int, ...]

    def find(self) -> Path | None:
        """None where there is none. Raises Problem when its version is another one than we can work with."""
        found = shutil.which(self.binary)
        if found is None:
            return None
        said = subprocess.run([found, *self.asked], capture_output=True, text=True).stdout
        version = re.search(r"\d+\.\d+\.\d+", said)
        if version and self.oldest <= _numbers(version[0]) < self.below:
            return Path(found)
        oldest, below = (".".join(map(str, bound)) for bound in (self.oldest, self.below))
        raise Problem(
            f"{found} is {version[0] if version else 'of no version that it tells'}, and {oldest} or newer, "
            f"but older than {below}, is needed",
            f"install such a {self.binary}, or take this one off PATH",
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


# A Kubernetes client works with an API server one minor version to either side:
# https://kubernetes.io/releases/version-skew-policy/#kubectl
_MAJOR, _MINOR, _ = _numbers(versions.KUBERNETES)
_KUBECTL = Theirs("kubectl", ("version", "--client", "--output=json"), (_MAJOR, _MINOR - 1), (_MAJOR, _MINOR + 2))
_PULUMI = Theirs("pulumi", ("version",), _numbers(versions.PULUMI), (_numbers(versions.PULUMI)[0] + 1,))
_PROMTOOL = Theirs("promtool", ("--version",), (3, 0, 0), (4,))


@dataclass(frozen=True)
class Tool:
    binary: str
    """File name of the executable."""
    package: str = "."
    """What `go build` builds, seen from the module's directory."""
    module: str = ""
    """The directory of its go.mod; by default it has the tool's name."""
    tags: tuple[str, ...] = ()
    """Go's build tags."""
    set: dict[str, str] = field(default_factory=dict)
    """Go variables that carry the version (-X)."""
    embeds: tuple[str, ...] = ()
    """Files that the build needs beside main.go and that come with the first required module."""
    links: tuple[str, ...] = ()
    """Further names under which the executable answers."""
    theirs: Callable[[], Path | None] | None = None
    """Finds a copy of the user's that serves as well."""
    instead: str = ""
    """What to do where it cannot be built."""


def _kubernetes_version(version: str) -> dict[str, str]:
    major, minor, _ = version.split(".")
    return {
        f"k8s.io/{package}.{key}": value
        for package in ("component-base/version", "client-go/pkg/version")
        for key, value in {"gitVersion": f"v{version}", "gitMajor": major, "gitMinor": minor}.items()
    }


def _plugin() -> Path | None:
    """The provider as Pulumi keeps its plug-ins. One on PATH could be of any version, and tells none."""
    home = Path(os.environ.get("PULUMI_HOME") or Path.home() / ".pulumi")
    path = home / "plugins" / f"resource-kubernetes-v{versions.PULUMI_KUBERNETES}" / "pulumi-resource-kubernetes"
    return path if path.exists() else None


_PROMETHEUS = Tool(
    "prometheus",
    package="github.com/prometheus/prometheus/cmd/prometheus",
    # Finds its targets in Kubernetes alone: the other ways are most of the binary.
    tags=("remove_all_sd", "enable_kubernetes_sd"),
    set={"github.com/prometheus/common/version.Version": versions.PROMETHEUS},
)
_PROMETHEUS_OPERATOR = Tool(
    "prometheus-operator",
    package="github.com/prometheus-operator/prometheus-operator/cmd/operator",
    set={"github.com/prometheus/common/version.Version": versions.PROMETHEUS_OPERATOR},
)

# The slowest first: a first build is long, and one that will fail should not do so at its end.
TOOLS = {
    "pulumi-kubernetes": Tool(
        "pulumi-resource-kubernetes",
        set={"github.com/pulumi/pulumi-kubernetes/provider/v4/pkg/version.Version": versions.PULUMI_KUBERNETES},
        embeds=(
            "cmd/pulumi-resource-kubernetes/schema.json",
            "cmd/pulumi-resource-kubernetes/terraform-mapping.json",
        ),
        theirs=_plugin,
        instead=f"run `pulumi plugin install resource kubernetes {versions.PULUMI_KUBERNETES}`",
    ),
    "kubernetes": Tool(
        "kube",
        set=_kubernetes_version(versions.KUBERNETES),
        links=(
            "etcd",
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kubelet",
            "kube-proxy",
            "kubectl",
        ),
        instead="for a cluster that you have, put kubectl on PATH",
    ),
    "pulumi": Tool(
        "pulumi",
        package="github.com/pulumi/pulumi/pkg/v3/cmd/pulumi",
        set={"github.com/pulumi/pulumi/sdk/v3/go/common/version.Version": f"v{versions.PULUMI}"},
        theirs=_PULUMI.find,
        instead="put pulumi on PATH",
    ),
    "kuberay": Tool("kuberay-operator", package="github.com/ray-project/kuberay/ray-operator"),
    "coredns": Tool("coredns"),
    "pause": Tool("pause"),
    "prometheus": _PROMETHEUS,
    "promtool": replace(
        _PROMETHEUS,
        binary="promtool",
        package="github.com/prometheus/prometheus/cmd/promtool",
        module="prometheus",
        theirs=_PROMTOOL.find,
        instead="put promtool on PATH",
    ),
    "prometheus-operator": _PROMETHEUS_OPERATOR,
    "prometheus-config-reloader": replace(
        _PROMETHEUS_OPERATOR,
        binary="prometheus-config-reloader",
        package="github.com/prometheus-operator/prometheus-operator/cmd/prometheus-config-reloader",
        module="prometheus-operator",
    ),
    "karpenter": Tool("karpenter", package="github.com/aws/karpenter-provider-aws/kwok"),
    "kwok": Tool("kwok", package="sigs.k8s.io/kwok/cmd/kwok"),
}
MONITORING = ("prometheus", "prometheus-operator", "prometheus-config-reloader")
"""What a native cluster runs whose stack brings Prometheus."""
SIMULATION = ("karpenter", "kwok")
"""Only `make karpenter` runs them: Karpenter's AWS provider with simulated EC2, and what plays its nodes' kubelets.
Both modules call their executable kwok."""

_ENV = {
    "CGO_ENABLED": "0",
    "GOFLAGS": "-mod=readonly -buildvcs=false",
    # The provider's module is missing from the checksum database; its hash in go.sum is what pins it.
    "GONOSUMDB": "github.com/pulumi/*",
}


def _go(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(["go", *arguments], cwd=cwd, env={**os.environ, **_ENV}, capture_output=True, text=True)
    if done.returncode:
        raise Problem(
            f"go {arguments[0]} failed in {cwd.name}: {done.stderr.strip()[-2000:]}",
            "if a module could not be downloaded, check GOPROXY; otherwise see the lines above",
        )
    return done.stdout


def _flags(tool: Tool) -> list[str]:
    values = " ".join(f"-X {name}={value}" for name, value in tool.set.items())
    tags = ["-tags", ",".join(tool.tags)] if tool.tags else []
    return ["-trimpath", *tags, "-ldflags", f"-s -w {values}".strip(), tool.package]


def _key(name: str, tool: Tool) -> str:
    digest = hashlib.sha256()
    for source in sorted((HERE / (tool.module or name)).iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    digest.update(" ".join(_flags(tool)).encode())
    digest.update(_go("env", "GOVERSION", "GOARCH", cwd=HERE).encode())
    return digest.hexdigest()[:16]


def _build(name: str, tool: Tool, target: Path) -> None:
    """Build in a scratch copy of the module, so that neither checkout nor cache ever holds half a tool."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        source = Path(scratch) / "module"
        shutil.copytree(HERE / (tool.module or name), source)
        if tool.embeds:
            module = json.loads(_go("mod", "edit", "-json", cwd=source))["Require"][0]["Path"]
            home = json.loads(_go("mod", "download", "-json", module, cwd=source))["Dir"]
            for path in tool.embeds:
                (source / Path(path).name).write_bytes((Path(home) / path).read_bytes())
        built = Path(scratch) / tool.binary
        _go("build", "-o", str(built), *_flags(tool), cwd=source)
        built.replace(target)


def _usable(find: Callable[[], Path | None]) -> Path | None:
    """What `find` finds; one whose version does not fit is passed over where we can build our own."""
    try:
        return find()
    except Problem as problem:
        if not shutil.which("go"):
            raise
        say(f"{problem.what}: using our own")
        return None


def kubectl() -> Path:
    """kubectl for a cluster that the user has."""
    return _usable(_KUBECTL.find) or ensure("kubernetes") / "kubectl"


def _ours(name: str) -> Path:
    """Where our own build of a tool is, or will be. Raises Problem where Go, which builds it, is missing."""
    tool = TOOLS[name]
    if not shutil.which("go"):
        raise Problem(
            f"{tool.binary} is not here and Go, which builds it, is not installed",
            "install Go 1.26 or newer" + (f", or {tool.instead}" if tool.instead else ""),
        )
    return cache_dir() / "tools" / f"{name}-{_key(name, tool)}" / tool.binary


def built(*names: str) -> bool:
    """Whether our own builds of all of these are in the cache."""
    return bool(shutil.which("go")) and all(_ours(name).exists() for name in names)


def whence(name: str) -> str:
    """Where `ensure`, or `kubectl` for that one, takes a tool from; nothing is built. Raises Problem as they do."""
    theirs = _KUBECTL.find if name == "kubectl" else TOOLS[name].theirs
    if theirs and (found := _usable(theirs)):
        return str(found)
    own = _ours("kubernetes" if name == "kubectl" else name)
    return f"our own build, {own.parent}" if own.exists() else "will be built, once"


def ensure(*names: str) -> Path:
    """A directory that holds the executables of the named tools, built where they are not at hand.

    Raises Problem when Go is missing or a build fails.
    """
    paths: dict[str, Path] = {}
    for name in (name for name in TOOLS if name in names):
        tool = TOOLS[name]
        if tool.theirs and (found := _usable(tool.theirs)):
            paths[tool.binary] = found
            continue
        target = _ours(name)
        if not target.exists():
            with step(f"building {tool.binary} (once per machine)"):
                _build(name, tool, target)
        for executable in (tool.binary, *tool.links):
            paths[executable] = target
    return _directory(paths)


def _directory(paths: dict[str, Path]) -> Path:
    """One directory of links to `paths`; its name follows from its content, so it never changes under a user."""
    key = hashlib.sha256(repr(sorted(paths.items())).encode()).hexdigest()[:16]
    directory = cache_dir() / "tools" / f"bin-{key}"
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=directory.parent))
        for name, path in paths.items():
            (scratch / name).symlink_to(path)
        scratch.chmod(0o755)
        scratch.replace(directory)
    return directory
