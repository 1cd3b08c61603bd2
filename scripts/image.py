"""`make image`, `make push`: images built by Docker where a daemon runs, else by buildah, which needs none."""

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from app.builtin import cache_dir
from infra.aws.config import EksCluster
from infra.config import ROOT, Image, StackConfig
from infra.image import reference
from scripts import packages, stack_file
from scripts.aws_cli import aws, cluster_of
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


def build_with_buildah(stack: StackConfig) -> None:
    """Build the stack's image into the project's own buildah storage, unless it is there."""
    name = reference(stack)
    if name in _stored():
        return
    base = _base(stack.image.base)
    with step(f"building {name} (minutes, the first time)"):
        buildah(
            *("bud", "--layers", "--isolation=chroot", "--network=host", f"--secret={_certificates()}"),
            *(f"--build-arg=BASE={base}", f"--build-arg=ACCELERATOR={stack.accelerator}", f"--tag={name}", str(ROOT)),
        )
    say(f"  its size: {buildah('images', '--format', '{{.Size}}', name).strip()}")


def bill(stack: StackConfig) -> Path:
    """Where the image's bill of materials is: CycloneDX's, of its Python packages with their hashes."""
    repository, _, tag = reference(stack).rpartition(":")
    return cache_dir() / "sbom" / f"{repository.rpartition('/')[2]}-{tag}.cdx.json"


def _write_bill(stack: StackConfig) -> None:
    """By the lock, which is what the image has; what of Debian's is in it, `dpkg-query --list` there tells."""
    path = bill(stack)
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = ROOT / "requirements" / f"{stack.accelerator}.txt"
    command = [sys.executable, "-m", "cyclonedx_py", "requirements", str(lock), "--pyproject", "pyproject.toml"]
    with step("bill of materials"):
        # Its validation takes most of its time, and tests do that.
        command += ["--output-reproducible", "--no-validate", "--output-format", "JSON", "--output-file", f"{path}.new"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise Problem(f"cyclonedx-py failed: {done.stderr.strip()[-500:]}", f"see whether {lock} is a lock")
        Path(f"{path}.new").replace(path)


def _docker(*arguments: str, stdin: str | None = None) -> None:
    if subprocess.run(["docker", *arguments], input=stdin, text=True).returncode:
        raise Problem(f"docker {arguments[0]} failed", "see its output above")


def _build_with_docker(stack: StackConfig) -> None:
    name = reference(stack)
    with step(f"building {name} with Docker"):
        _docker(
            *("build", f"--secret={_certificates()}", f"--build-arg=BASE={stack.image.base}"),
            *(f"--build-arg=ACCELERATOR={stack.accelerator}", f"--tag={name}", str(ROOT)),
        )
    size = subprocess.run(["docker", "images", "--format", "{{.Size}}", name], capture_output=True, text=True)
    say(f"  its size: {size.stdout.strip()}")


def build(stack: StackConfig) -> None:
    """Build the stack's image by whichever of the two there is."""
    if _docker_runs():
        _build_with_docker(stack)
    else:
        packages.ensure(packages.CLUSTER)
        build_with_buildah(stack)
    _write_bill(stack)
    say(f"image: {reference(stack)}\nits bill of materials: {bill(stack)}")


def push(stack_name: str, stack: StackConfig) -> None:
    """Build the image, on a base that is pinned by its digest, and bring it to its registry.

    To the repository that the program has made on AWS, unless that has it, with a password from AWS; to any other with
    what `docker login` or `buildah login` has left.
    """
    name = reference(stack)
    repository, _, tag = name.rpartition(":")
    if repository.startswith("localhost/"):
        raise Problem(f"image.repository = {repository!r} is no registry", f"name one in Pulumi.{stack_name}.yaml")
    eks = stack.cluster if isinstance(stack.cluster, EksCluster) and stack.cluster.registry == repository else None
    if eks:
        cluster_of(stack_name, stack)
        there = aws("ecr", "list-images", "--region", eks.region, "--repository-name", eks.name)["imageIds"]
        if any(image.get("imageTag") == tag for image in there):
            say(f"{name} is there already")
            return
    _require_pinned(stack_name, stack.image.base)
    build(stack)
    token = None
    if eks:
        # For twelve hours, in the form of HTTP's basic authentication.
        (found,) = aws("ecr", "get-authorization-token", "--region", eks.region)["authorizationData"]
        token = found["authorizationToken"]
    with step(f"pushing {name}"):
        (_push_with_docker if _docker_runs() else _push_with_buildah)(name, token)


def _require_pinned(stack_name: str, base: str) -> None:
    """Raises Problem, with the digest that it has today, when the stack names its base by a tag."""
    if "@sha256:" in base:
        return
    found = f"{base.rpartition(':')[0]}@{_digest(base)}"
    raise Problem(
        f"image.base = {base!r}: is another Debian by and by, and what is in a registry should be built again alike",
        f"set it in Pulumi.{stack_name}.yaml to {found}",
    )


def _digest(base: str) -> str:
    """What a registry has by this name, sha256:…, or just these dots where none answers."""
    if _docker_runs():
        subprocess.run(["docker", "pull", "--quiet", base], capture_output=True)
        command = ["docker", "image", "inspect", "--format", "{{index .RepoDigests 0}}", base]
        found = subprocess.run(command, capture_output=True, text=True).stdout
        return found.strip().partition("@")[2] or "sha256:…"
    try:
        buildah("pull", "--quiet", base)
    except Problem:
        return "sha256:…"
    return buildah("images", "--format", "{{.Digest}}", base).strip()


def _push_with_docker(name: str, token: str | None) -> None:
    if token:
        user, _, password = base64.b64decode(token).decode().partition(":")
        _docker("login", "--username", user, "--password-stdin", name.partition("/")[0], stdin=password)
    _docker("push", name)


def _push_with_buildah(name: str, token: str | None) -> None:
    with tempfile.TemporaryDirectory() as private:
        arguments = []
        if token:
            auth = Path(private) / "auth.json"
            auth.write_text(json.dumps({"auths": {name.partition("/")[0]: {"auth": token}}}))
            arguments = [f"--authfile={auth}"]
        buildah("push", "--quiet", *arguments, name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stack")
    parser.add_argument("--push", action="store_true")
    given = parser.parse_args()

    def run() -> None:
        stack = stack_file.read(given.stack)
        push(given.stack, stack) if given.push else build(stack)

    main(run)
