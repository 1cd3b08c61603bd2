"""`make setup-docker` and `make remove-docker`: where no Docker engine answers, one of our own for test containers.

It runs in mount and process namespaces of its own, with which its containers, mounts and runtime files end. It leaves
iptables and the kernel's settings alone: a process passes on what containers publish, on 127.0.0.1.
"""

import argparse
import contextlib
import os
import platform
import shutil
import signal
import subprocess
import time
from pathlib import Path

import docker
from docker.errors import DockerException
from requests.exceptions import RequestException
from testcontainers.core.docker_client import DockerClient

from infra.clusters import state_dir
from scripts import packages
from scripts.cluster import traces
from scripts.cluster.layout import NAME, PATH, start_time
from scripts.console import Problem, main, say, step

PACKAGES = {"docker.io": "dockerd", "iproute2": "ip"}
BRIDGE = "docker0"
CGROUP = f"{NAME}-docker"
"""Holds its containers' cgroups, which no namespace takes along."""

# Covers what Docker writes to fixed places: sockets and process ids, and a key beside its settings. Process 1 is a
# small init, since containers leave zombies behind.
_ENGINE = """\
mount -t tmpfs tmpfs /run
mkdir -p /etc/docker
mount -t tmpfs tmpfs /etc/docker
exec docker-init -- dockerd "$@"
"""


def home() -> Path:
    """All that the engine writes, images included. Root's alone, and gone after `remove`."""
    return state_dir() / "docker"


def host() -> str:
    """The engine's DOCKER_HOST."""
    return f"unix://{home()}/docker.sock"


def _pings(client: docker.DockerClient) -> bool:
    with contextlib.closing(client):
        return client.ping()


def answers() -> bool:
    """Whether test containers find an engine by themselves: by DOCKER_HOST, a Docker context or the usual socket."""
    with contextlib.suppress(DockerException, RequestException):
        return _pings(DockerClient(timeout=10).client)
    return False


def running() -> bool:
    """Whether our own engine answers."""
    with contextlib.suppress(DockerException, RequestException):
        return _pings(docker.DockerClient(host(), timeout=10))
    return False


def check() -> None:
    """Whether an engine may be started on this machine."""
    address = os.environ.get("DOCKER_HOST", host())
    if address != host():
        raise Problem(f"no Docker engine answers at DOCKER_HOST={address}", "start it, or unset DOCKER_HOST")
    if platform.system() != "Linux":
        obstacle = "one can be started on Linux only"
    elif Path("/run/systemd/system").exists():
        obstacle = "starting one is systemd's business here"
    elif os.geteuid() != 0:
        obstacle = "only root can start one"
    else:
        return
    raise Problem(
        f"no Docker engine answers, and {obstacle}",
        "start Docker (Debian with systemd: sudo apt-get install docker.io), or set DOCKER_HOST to one elsewhere",
    )


def _start() -> None:
    home().mkdir(mode=0o700, parents=True)
    command = [
        *("unshare", "--mount", "--pid", "--fork", "--mount-proc", "--propagation=private", "--kill-child"),
        *("sh", "-e", "-c", _ENGINE, "sh"),
        *(f"--host={host()}", "--group=root", f"--data-root={home()}/data", f"--cgroup-parent=/{CGROUP}"),
        *("--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false", "--ip=127.0.0.1"),
        "--oom-score-adjust=0",  # lowering it takes a capability that containers and some machines lack
    ]
    log = home() / "engine.log"
    with log.open("wb") as file:
        unshare = subprocess.Popen(
            command,
            env={**os.environ, "PATH": PATH},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    (home() / "process").write_text(f"{unshare.pid} {start_time(unshare.pid)}")
    while not running():
        if unshare.poll() is not None:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-10:])
            raise Problem(f"Docker did not start:\n{tail}", "see the lines above; they are dockerd's")
        time.sleep(0.1)


def _remove_bridge() -> None:
    bridge = Path("/sys/class/net", BRIDGE)
    for _ in range(50):
        if not bridge.exists():
            return
        # The kernel takes a moment to remove the containers' ports; one that stays is another engine's.
        if not any(bridge.glob("brif/*")):
            subprocess.run(["ip", "link", "delete", BRIDGE], env={**os.environ, "PATH": PATH}, check=True)
            return
        time.sleep(0.1)


def _clean() -> None:
    """End the engine that `_start` has recorded, and remove what namespaces do not take along."""
    with contextlib.suppress(FileNotFoundError):
        unshare, started = map(int, (home() / "process").read_text().split())
        # A process id alone may by now be somebody else's.
        if start_time(unshare) == started:
            # All others end with process 1 of their namespace, and `unshare` when they have.
            for pid in Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split() or [unshare]:
                os.kill(int(pid), signal.SIGKILL)
            while start_time(unshare) == started:
                time.sleep(0.05)
    traces.remove_cgroups(CGROUP)
    _remove_bridge()
    if home().exists():
        shutil.rmtree(home())
    with contextlib.suppress(OSError):  # not there, or a cluster's
        state_dir().rmdir()


def setup() -> None:
    """Start an engine, unless one answers."""
    if answers():
        say("a Docker engine answers already")
        return
    if running():
        say(f"our Docker engine runs already: DOCKER_HOST={host()}")
        return
    check()
    packages.ensure(PACKAGES)
    _clean()  # after one that was killed
    with step("Docker engine"):
        try:
            _start()
        except BaseException:
            _clean()
            raise
    say(f"DOCKER_HOST={host()}")


def remove() -> None:
    """End the engine that `setup` has started, with its containers and images. Any other is left alone."""
    if not home().exists():
        say("there is no Docker engine that make setup-docker has started")
        return
    if os.geteuid() != 0:
        raise Problem("the Docker engine is root's", "sudo -E make remove-docker")
    with step("removing the Docker engine"):
        _clean()


if __name__ == "__main__":
    commands = {"setup": setup, "remove": remove}
    parser = argparse.ArgumentParser(prog="python -m scripts.docker_engine", description=__doc__)
    parser.add_argument("action", choices=commands)
    main(commands[parser.parse_args().action])
