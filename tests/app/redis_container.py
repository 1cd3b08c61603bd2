"""A real Redis in a container: the published image, or, where no registry answers, the same made from Debian."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from docker.errors import DockerException, ImageNotFound
from redis import Redis
from redis.exceptions import RedisError
from requests.exceptions import RequestException
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.docker_client import DockerClient
from testcontainers.core.image import DockerImage

from scripts import docker_engine
from scripts.console import Problem
from tests.app.conftest import eventually
from tests.ports import free_port

PASSWORD = uuid.uuid4().hex

PUBLISHED = "redis:7.0.15"
"""The version in Debian 12."""

# Newer releases have /lib64 from base-files; usr-is-merged takes the place of a script that would bring Perl.
PACKAGES = ("base-files", "usr-is-merged", "redis-server")
DOCKERFILE = """\
FROM scratch
COPY root /
USER 65532:65532
"""
LOCAL = f"localhost/redis:{hashlib.sha256(repr((PACKAGES, DOCKERFILE)).encode()).hexdigest()[:12]}"
REGISTRY_SECONDS = 10

# It would itself be an image from a registry; here the containers are removed by those who start them.
testcontainers_config.ryuk_disabled = True


@contextlib.contextmanager
def engine() -> Iterator[None]:
    """A Docker engine that test containers find: the one that answers, or one of our own for as long as this lasts."""
    if docker_engine.answers():
        yield
        return
    ran = docker_engine.running()
    docker_engine.setup()
    try:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("DOCKER_HOST", docker_engine.host())
            yield
    finally:
        if not ran:
            docker_engine.remove()


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, env={**os.environ, "LC_ALL": "C"}, capture_output=True, text=True)
    if done.returncode:
        raise Problem(f"{command[0]} failed: {done.stderr.strip()[-500:]}", "apt-get update, as root, and try again")


def _make() -> None:
    """LOCAL, from the packages that apt would install on a machine that has none. Nothing is installed here."""
    if not shutil.which("apt-get"):
        raise Problem(f"{PUBLISHED} cannot be pulled, nor made without apt", f"docker pull {PUBLISHED}, or docker load")
    with tempfile.TemporaryDirectory() as scratch:
        archives, context = Path(scratch, "archives"), Path(scratch, "context")
        for directory in (archives / "partial", context / "root"):
            directory.mkdir(parents=True)
        options = {"Dir::State::status": "/dev/null", "Dir::Cache::archives": archives, "Debug::NoLocking": 1}
        _run(
            *("apt-get", "install", "--yes", "--no-install-recommends", "--download-only"),
            *(f"--option={name}={value}" for name, value in options.items()),
            *PACKAGES,
        )
        for package in archives.glob("*.deb"):
            _run("dpkg-deb", "--extract", package, context / "root")
        (context / "Dockerfile").write_text(DOCKERFILE)
        DockerImage(context, tag=LOCAL, clean_up=False).build()


def image() -> str:
    """An image of Redis that the engine has, or gets."""
    # A registry that keeps silent for longer is none.
    with contextlib.closing(DockerClient(timeout=REGISTRY_SECONDS).client) as client:
        for name in (PUBLISHED, LOCAL):
            with contextlib.suppress(ImageNotFound):
                client.images.get(name)
                return name
        with contextlib.suppress(DockerException, RequestException):
            client.images.pull(PUBLISHED)
            return PUBLISHED
    _make()
    return LOCAL


class Server:
    """A Redis that asks for a password and keeps nothing on disk, on ports of 127.0.0.1 that stay the same."""

    def __init__(self, container: DockerContainer, port: int, tls_port: int, certificate: Path) -> None:
        self.url = f"redis://127.0.0.1:{port}/0"
        self.tls_url = f"rediss://127.0.0.1:{tls_port}/0"
        self.certificate = certificate
        """Of its own making."""
        self.client = Redis(port=port, password=PASSWORD)
        self._container = container.get_wrapped_container()

    def _answers(self) -> bool:
        with contextlib.suppress(RedisError):
            return bool(self.client.ping())
        return False

    def start(self) -> None:
        self._container.start()
        eventually("Redis answers", self._answers)

    def stop(self) -> None:
        self._container.stop(timeout=0)

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """It takes connections and requests, and answers none."""
        self._container.pause()
        try:
            yield
        finally:
            self._container.unpause()


@contextlib.contextmanager
def started() -> Iterator[Server]:
    """A Redis, removed at the end."""
    port, tls_port = free_port(), free_port()
    with tempfile.TemporaryDirectory() as directory:
        certificate, key = Path(directory, "server.crt"), Path(directory, "server.key")
        _run(
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc"),
            *("-subj", "/CN=redis", "-addext", "subjectAltName=IP:127.0.0.1", "-out", certificate, "-keyout", key),
        )
        Path(directory).chmod(0o755)
        key.chmod(0o644)  # Redis is another user
        container = (
            DockerContainer(image())
            .with_volume_mapping(directory, "/tls", "ro")
            .with_command(
                [
                    *("redis-server", "--save", "", "--requirepass", PASSWORD),
                    *("--tls-port", "6380", "--tls-auth-clients", "no", "--tls-ca-cert-file", "/tls/server.crt"),
                    *("--tls-cert-file", "/tls/server.crt", "--tls-key-file", "/tls/server.key"),
                ]
            )
        )
        # with_bind_ports would open them on every address of the machine.
        ports = cast(dict[str, Any], container.ports)
        ports |= {"6379": ("127.0.0.1", port), "6380": ("127.0.0.1", tls_port)}
        with container:
            server = Server(container, port, tls_port, certificate)
            server.start()
            yield server
