"""Names, addresses and directories of the native cluster, and who runs it. It changes nothing but its record."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from app.builtin import cache_dir
from infra.clusters import NATIVE_ADDRESS, state_dir
from scripts import ports

NAME = "ray-serve-blueprint"
"""The kubeconfig's context, and the cgroup that holds every pod."""
NODE = "local"

# One block for everything, so that an address that got out of the namespaces can be recognised.
NETWORK = "10.219."
NODE_IP = NATIVE_ADDRESS
POD_RANGE = f"{NETWORK}1.0/24"
SERVICE_RANGE = f"{NETWORK}128.0/17"
API_SERVICE_IP = f"{NETWORK}128.1"
API_PORT = 6443
"""The API server's port inside the cluster's network; outside it is `api_port()`."""

NAMESPACES = [
    *("unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc"),
    *("--propagation", "private", "--kill-child"),
]
"""All that the cluster does to network, mounts and processes ends with these namespaces."""

PAUSE_IMAGE = "localhost/pause:1"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where the distribution's tools are, also for a root shell that kept its user's PATH."""
MARK = "BLUEPRINT_NATIVE_CLUSTER"
"""Environment variable of every process of the cluster but the pods'; its value is the state directory."""


def home() -> Path:
    """Everything that the cluster writes, but for the images. Gone after `stop`."""
    return state_dir() / "cluster"


def image_store() -> Path:
    """containerd's root, kept between runs: importing the application's image takes minutes."""
    return cache_dir() / "containerd"


def ready_file() -> Path:
    return home() / "ready"


def log_file(name: str) -> Path:
    return home() / "logs" / f"{name}.log"


def log_tail(name: str, lines: int = 12) -> str:
    log = log_file(name)
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""


def api_port() -> int:
    """The API server's port on the user's 127.0.0.1."""
    return ports.number("BLUEPRINT_API_PORT", os.environ.get("BLUEPRINT_API_PORT", "16443"))


def start_time(pid: int) -> int | None:
    """When the process began, in clock ticks since boot; None when there is no such process.

    https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else int(fields[18])


@dataclass(frozen=True)
class Record:
    """Who runs the cluster. A process id alone may by now be somebody else's."""

    supervisor: int
    started: int
    node: int
    """A process in the cluster's network and mount namespaces, by its id outside."""

    def save(self) -> None:
        scratch = home() / "record.new"
        scratch.write_text(json.dumps(asdict(self)))
        scratch.replace(home() / "record.json")

    @staticmethod
    def load() -> "Record | None":
        """The record of a cluster whose supervisor lives; what a dead one left does not count."""
        try:
            record = Record(**json.loads((home() / "record.json").read_text()))
        except FileNotFoundError:
            return None
        return record if start_time(record.supervisor) == record.started else None
