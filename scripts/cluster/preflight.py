"""Whether this machine can run the native cluster: looked at before anything is changed, one sentence per obstacle."""

import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from app.builtin import cache_dir
from infra.clusters import state_dir
from scripts import packages, ports
from scripts.cluster import traces
from scripts.cluster.layout import NAMESPACES, PATH, api_port, image_store
from scripts.console import Problem

_GIB = 1 << 30
ELSEWHERE = "run it in a virtual machine, or deploy to a cluster you have: cluster.kind existing in the stack file"

# One of each kind of rule that kube-proxy and CNI write.
_RULES = """\
*nat
-A POSTROUTING -m comment --comment x -m mark --mark 1 -m addrtype --dst-type LOCAL -j MASQUERADE
-A PREROUTING -p tcp -m statistic --mode random --probability 0.5 -j DNAT --to-destination 127.0.0.1:1
COMMIT
*filter
-A FORWARD -m conntrack --ctstate INVALID -j REJECT
COMMIT
"""


def root() -> None:
    """Namespaces, mounts and cgroups are root's, and Linux's."""
    if platform.system() != "Linux":
        raise Problem(
            f"the native cluster needs Linux, and this is {platform.system()}",
            ELSEWHERE,
        )
    if os.geteuid() != 0:
        raise Problem(
            "the native cluster needs root: it makes namespaces, mounts and cgroups",
            "sudo -E make up, or deploy to a cluster you have: cluster.kind existing in the stack file",
        )


def directories() -> None:
    for variable, directory in {"STATE": state_dir(), "CACHE": cache_dir()}.items():
        if not directory.is_absolute():
            raise Problem(
                f"BLUEPRINT_{variable} is {str(directory)!r}, and not every process works in this directory",
                f"set it to an absolute path: BLUEPRINT_{variable}={directory.resolve()}",
            )
        for covered in map(Path, ("/run", "/var/run", "/var/lib", "/var/log")):
            if directory.resolve().is_relative_to(covered.resolve()):
                raise Problem(
                    f"{directory} lies under {covered}, where the cluster has a view of its own",
                    f"set BLUEPRINT_{variable} to a directory elsewhere",
                )


def alone() -> None:
    """One cluster per machine: they would share cgroups and the image store."""
    if traces.wait_for_end(3):  # one that was killed takes a moment to go
        return
    for pid, process in traces.processes().items():
        raise Problem(
            f"another native cluster runs on this machine: process {pid}, {process}",
            "stop it first: make down, with BLUEPRINT_STATE set to its state directory",
        )


def port() -> None:
    if ports.is_taken(api_port()):
        raise Problem(
            f"port {api_port()} on 127.0.0.1, meant for the API server, is in use",
            "choose another one: BLUEPRINT_API_PORT=26443 make up",
        )


def space() -> float:
    """GiB of disk that are free: room for the images on the first run, and some air for logs and volumes later."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    blobs = image_store() / "io.containerd.content.v1.content" / "blobs" / "sha256"
    kept = sum(blob.stat().st_size for blob in blobs.iterdir()) if blobs.exists() else 0
    needed = 3 if kept > _GIB else 15
    free = shutil.disk_usage(cache_dir()).free / _GIB
    if free < needed:
        raise Problem(
            f"{cache_dir()} has {free:.1f} GiB free, and the cluster's images and pods need {needed}",
            "free some space, or set BLUEPRINT_CACHE to a directory on a larger disk",
        )
    return free


def memory() -> float:
    """GiB of memory that are available."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024 / _GIB
    if available < 4:
        raise Problem(
            f"{available:.1f} GiB of memory are available, and the smallest useful cluster needs 4",
            "end other programs, or take a larger machine (12 GiB for the built-in model)",
        )
    return available


def kernel() -> None:
    """Try what the cluster will do, in namespaces that are gone a moment later."""

    environment = {**os.environ, "PATH": PATH}

    def attempt(what: str, *command: str, text: str = "") -> None:
        done = subprocess.run([*NAMESPACES, *command], env=environment, input=text, capture_output=True, text=True)
        if done.returncode:
            raise Problem(f"{what} here: {done.stderr.strip() or done.returncode}", ELSEWHERE)

    attempt("root cannot make namespaces", "true")
    attempt("iptables does not work", "iptables-restore", text=_RULES)
    attempt("virtual network devices do not work", *["ip", "link", "add", "blueprint0", "type", "veth"])
    with tempfile.TemporaryDirectory(dir=cache_dir()) as scratch:
        for name in ("lower", "upper", "work", "merged"):
            (Path(scratch) / name).mkdir()
        layers = f"lowerdir={scratch}/lower,upperdir={scratch}/upper,workdir={scratch}/work"
        attempt(
            f"overlay file systems do not work on {cache_dir()}",
            *("mount", "-t", "overlay", "-o", layers, "overlay", f"{scratch}/merged"),
        )
    missing = traces.missing_controllers()
    if missing:
        raise Problem(f"the cgroup controllers {', '.join(missing)} are not available here", ELSEWHERE)


def containerd_major() -> int:
    text = subprocess.run(["containerd", "--version"], capture_output=True, text=True).stdout
    version = re.search(r"\bv?(\d+)\.(\d+)\.\d+", text)
    if version and (int(version[1]), int(version[2])) >= (1, 6) and int(version[1]) <= 2:
        return int(version[1])
    raise Problem(
        f"containerd 1.6 to 2.x is needed, and this is: {text.strip() or 'none'}",
        "install your distribution's containerd",
    )


def check() -> None:
    root()
    directories()
    alone()
    packages.ensure(packages.CLUSTER)
    containerd_major()
    port()
    memory()
    space()
    kernel()
