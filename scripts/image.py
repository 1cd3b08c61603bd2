"""The images of the Kubernetes path: built by Docker where a daemon runs, else by buildah, which needs none."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from infra.config import ROOT, Image
from infra.image import reference
from scripts import packages, stack_file
from scripts.cluster.images import buildah
from scripts.console import Problem, main, say, step

LOCAL_BASE = "localhost/debian:bookworm"
SUITE = "bookworm"


def _docker_runs() -> bool:
    return (
        shutil.which("docker") is not None and subprocess.run(["docker", "info"], capture_output=True).returncode == 0
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


def _stored() -> list[str]:
    return buildah("images", "--format", "{{.Name}}:{{.Tag}}").split()


def _base(wanted: str) -> str:
    """The base of the Dockerfile: pulled, or, where no registry answers and any will do, made by debootstrap."""
    default = wanted == Image().base
    if default and LOCAL_BASE in _stored():
        return LOCAL_BASE
    try:
        buildah("pull", "--quiet", wanted)
        return wanted
    except Problem:
        if not default:
            raise
        say(f"  {wanted} cannot be pulled here")
    with step(f"making {LOCAL_BASE} by debootstrap"), tempfile.TemporaryDirectory() as root:
        include = "bash,ca-certificates,libnuma1,procps,python3,python3-venv,wget"
        made = subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={include}", SUITE, root], capture_output=True, text=True
        )
        if made.returncode:
            raise Problem(
                f"debootstrap failed: {(made.stdout + made.stderr).strip()[-500:]}",
                "check that apt-get works on this machine, and that /tmp is not mounted noexec or nodev",
            )
        Path(root).chmod(0o755)
        for package in Path(root, "var/cache/apt/archives").glob("*.deb"):
            package.unlink()
        container = buildah("from", "scratch").strip()
        try:
            buildah("copy", "--quiet", container, root, "/")
            buildah("commit", "--quiet", container, LOCAL_BASE)
        finally:
            buildah("rm", container)
    return LOCAL_BASE


def build_with_buildah(image: Image) -> None:
    """Build the image into the project's own buildah storage, unless it is there."""
    name = reference(image)
    if name in _stored():
        return
    base = _base(image.base)
    with step(f"building {name} (minutes, the first time)"):
        buildah(
            *("bud", "--layers", "--isolation=chroot", "--network=host", f"--secret={_certificates()}"),
            *(f"--build-arg=BASE={base}", f"--tag={name}", str(ROOT)),
        )
    say(f"  its size: {buildah('images', '--format', '{{.Size}}', name).strip()}")


def _build_with_docker(image: Image) -> None:
    name = reference(image)
    arguments = [f"--secret={_certificates()}", f"--build-arg=BASE={image.base}", f"--tag={name}", str(ROOT)]
    with step(f"building {name} with Docker"):
        built = subprocess.run(["docker", "build", *arguments])
    if built.returncode:
        raise Problem("docker build failed", "see its output above")
    size = subprocess.run(["docker", "images", "--format", "{{.Size}}", name], capture_output=True, text=True)
    say(f"  its size: {size.stdout.strip()}")


def build() -> None:
    image = stack_file.read(sys.argv[1]).image
    if _docker_runs():
        _build_with_docker(image)
    else:
        packages.ensure(packages.CLUSTER)
        build_with_buildah(image)
    say(f"image: {reference(image)}")


if __name__ == "__main__":
    main(build)
