"""The images of the Kubernetes path: built by Docker where a daemon runs, else by buildah, which needs none."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from app.builtin import cache_dir
from infra import config, image
from infra.config import ROOT
from scripts import packages
from scripts.cluster.images import buildah
from scripts.console import Problem, main, say, step

LOCAL_BASE = "localhost/debian:bookworm"
SUITE = "bookworm"


def _docker_runs() -> bool:
    return (
        shutil.which("docker") is not None
        and subprocess.run(["docker", "info"], capture_output=True).returncode == 0
    )


def _certificates() -> str:
    """This machine's certificate authorities, which the build needs on networks with their own."""
    path = os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt")
    if not Path(path).exists():
        raise Problem(
            f"the certificate file {path} does not exist",
            "set SSL_CERT_FILE, or install ca-certificates",
        )
    return f"id=ca,src={path}"


def _run(command: Sequence[str], log: Path) -> None:
    """Run a build step; its output goes to `log`, and the end of that into the error."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT)
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise Problem(f"building the image failed:\n{tail}", f"see {log} for the rest")


def _base(log: Path) -> str:
    """The Debian base of the Dockerfile: pulled, or, where no registry answers, made by debootstrap."""
    if buildah.exists(LOCAL_BASE):
        return LOCAL_BASE
    pulled = buildah.run("pull", "--quiet", "docker.io/library/debian:bookworm-slim", check=False)
    if pulled.returncode == 0:
        return "docker.io/library/debian:bookworm-slim"
    with step("making a Debian base image (none can be pulled here)"):
        with tempfile.TemporaryDirectory(dir=cache_dir()) as scratch:
            root = Path(scratch) / "root"
            include = "bash,ca-certificates,libnuma1,procps,python3,python3-venv,wget"
            _run(["debootstrap", "--variant=minbase", f"--include={include}", SUITE, str(root)], log)
            shutil.rmtree(root / "var/cache/apt/archives", ignore_errors=True)
            buildah.from_directory(root, LOCAL_BASE)
    return LOCAL_BASE


def build_with_buildah(reference: str) -> None:
    """Build `reference` into the project's own buildah storage, unless it is there."""
    if buildah.exists(reference):
        return
    log = cache_dir() / "logs" / "image.log"
    base = _base(log)
    with step(f"building {reference} (log: {log})"):
        command = buildah.command(
            "bud",
            "--layers",
            "--isolation=chroot",
            "--network=host",
            f"--secret={_certificates()}",
            f"--build-arg=BASE={base}",
            f"--tag={reference}",
            str(ROOT),
        )
        _run(command, log)


def build_with_docker(reference: str) -> None:
    """Build `reference` into Docker's storage."""
    with step(f"building {reference}"):
        _run(
            ["docker", "build", f"--secret={_certificates()}", f"--tag={reference}", str(ROOT)],
            cache_dir() / "logs" / "image.log",
        )


def build() -> None:
    stack = config.from_file(sys.argv[1])
    reference = image.reference(stack.image)
    if _docker_runs():
        build_with_docker(reference)
    else:
        packages.ensure(packages.CLUSTER)
        build_with_buildah(reference)
    say(f"image: {reference}")


if __name__ == "__main__":
    main(build)
