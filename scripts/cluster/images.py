"""Images: built by buildah in a store of the blueprint's own, and handed to the node. Nothing is pulled."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from app.builtin import cache_dir
from infra.clusters import state_dir
from scripts.cluster.layout import Record
from scripts.console import Problem


def build_store() -> Path:
    """buildah's images, among them the layers that make the next build short."""
    return cache_dir() / "buildah"


def run_directory() -> Path:
    """buildah's locks and scratch files."""
    return state_dir() / "buildah"


def _buildah() -> tuple[list[str], dict[str, str]]:
    run = run_directory()
    (run / "tmp").mkdir(parents=True, exist_ok=True)
    settings = run / "containers.conf"
    # By default even a build without a network makes /etc/cni.
    settings.write_text(f'[network]\nnetwork_config_dir = "{run}/networks"\n')
    # In a mount namespace of its own, since it leaves its store mounted on itself.
    namespace = ["unshare", "--mount", "--propagation", "private"]
    store = [f"--root={build_store()}", f"--runroot={run}", "--storage-driver=overlay"]
    environment = {**os.environ, "TMPDIR": str(run / "tmp"), "CONTAINERS_CONF": str(settings)}
    return [*namespace, "buildah", *store], environment


def buildah(*arguments: str) -> str:
    """Run buildah on the blueprint's own store; returns its standard output."""
    command, environment = _buildah()
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise Problem(
            f"buildah {arguments[0]} failed:\n{done.stderr.strip()[-3000:]}",
            "see the lines above; they are buildah's",
        )
    return done.stdout


def from_binary(binary: Path, ref: str, user: str = "65532:65532", entrypoint: str | None = None) -> None:
    """An image of one static executable and an empty /tmp; `entrypoint` is its path, by default /<its name>."""
    path = entrypoint or f"/{binary.name}"
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(binary, target)
        target.chmod(0o755)
        (Path(scratch) / "tmp").mkdir()
        (Path(scratch) / "tmp").chmod(0o1777)
        container = buildah("from", "scratch").strip()
        try:
            buildah("copy", "--quiet", container, scratch, "/")
            buildah("config", "--user", user, "--entrypoint", json.dumps([path]), container)
            buildah("commit", "--quiet", container, ref)
        finally:
            buildah("rm", container)


def _ctr() -> list[str]:
    record = Record.load()
    if record is None:
        raise Problem("the native cluster does not run", "start it: make up")
    # The runtime's socket, seen through a process of the node, whose /run is its own.
    socket = f"/proc/{record.node}/root/run/containerd/containerd.sock"
    return ["ctr", "--address", socket, "--namespace", "k8s.io"]


def has(ref: str) -> bool:
    """Whether the node has an image of this name."""
    command = [*_ctr(), "images", "list", "--quiet", f"name=={ref}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Problem(f"containerd did not answer: {done.stderr.strip()}", "make down, then make up")
    return ref in done.stdout.split()


def load(ref: str) -> None:
    """Stream an image from buildah's store into the node, without an archive on the disk."""
    source, sink = os.pipe()
    command, environment = _buildah()
    push = [*command, "push", "--quiet", ref, f"docker-archive:/dev/fd/{sink}:{ref}"]
    with tempfile.TemporaryFile("w+") as said:
        with subprocess.Popen(push, env=environment, pass_fds=[sink], stdout=said, stderr=said) as pushing:
            os.close(sink)
            done = subprocess.run([*_ctr(), "images", "import", "-"], stdin=source, capture_output=True, text=True)
            os.close(source)
        if pushing.returncode or done.returncode:
            said.seek(0)
            raise Problem(
                f"the image {ref} did not reach the node:\n{said.read().strip()}\n{done.stderr.strip()}",
                "see the lines above: the first are buildah's, the others containerd's",
            )
