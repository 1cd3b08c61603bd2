"""What the cluster has outside its namespaces: processes, cgroups, one directory. Finds, prepares and removes it."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from scripts.cluster.images import build_store, run_directory
from scripts.cluster.layout import MARK, NAME, NETWORK, PATH, home, image_store
from scripts.console import Problem

_TOP = Path("/sys/fs/cgroup")
_CONTROLLERS = ("cpu", "cpuset", "memory", "pids")


def _mounts() -> Iterator[tuple[Path, str, list[str]]]:
    """Every mount of this namespace: where, which type, which options."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, target, kind, options, *_ = line.split()
        yield Path(target.encode().decode("unicode_escape")), kind, options.split(",")


def _version_2() -> bool:
    return (_TOP / "cgroup.controllers").exists()


def _hierarchies() -> list[Path]:
    kinds = ("cgroup", "cgroup2")
    return [path for path, kind, _ in _mounts() if kind in kinds and path.is_relative_to(_TOP)]


def missing_controllers() -> list[str]:
    if _version_2():
        present = (_TOP / "cgroup.controllers").read_text().split()
    else:
        present = [name for _, kind, options in _mounts() if kind == "cgroup" for name in options]
    return [name for name in _CONTROLLERS if name not in present]


def make_cgroups() -> None:
    """The cgroup under which the kubelet makes those of the pods, with all that the kubelet asks of it."""
    if _version_2():
        present = (_TOP / "cgroup.controllers").read_text().split()
        wanted = [name for name in (*_CONTROLLERS, "hugetlb", "io") if name in present]
        try:
            (_TOP / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in wanted))
        except OSError as error:
            raise Problem(
                f"the cgroup controllers cannot be enabled in {_TOP}: {error.strerror}",
                "run it in a virtual machine; a container would need the machine's own cgroup root",
            ) from error
    for hierarchy in _hierarchies():
        group = hierarchy / NAME
        group.mkdir(exist_ok=True)
        # In version 1 a new cpuset is empty, and nothing can run in it.
        for file in () if _version_2() else ("cpuset.cpus", "cpuset.mems"):
            if (group / file).exists():
                (group / file).write_text((hierarchy / file).read_text())


def _cgroups(name: str = NAME) -> list[Path]:
    return [path for hierarchy in _hierarchies() if (path := hierarchy / name).exists()]


def remove_cgroups(name: str = NAME) -> None:
    """Remove them all; the kernel refuses for a moment after the last process has gone."""
    for group in _cgroups(name):
        for directory, _, _ in os.walk(group, topdown=False):
            for _ in range(50):
                try:
                    Path(directory).rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.1)


def processes() -> dict[int, str]:
    """Every process of a native cluster on this machine, by its id: what it is, and the state directory it serves."""
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
            state = [word.partition("=")[2] for word in environment if word.startswith(f"{MARK}=")]
            if state or f":/{NAME}/" in (entry / "cgroup").read_text():
                command = (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
                found[int(entry.name)] = f"{command.strip()[:80]} ({state[0] if state else 'in a pod'})"
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def wait_for_end(seconds: float) -> bool:
    """Whether all processes are gone within that time."""
    deadline = time.monotonic() + seconds
    while processes():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def directories() -> list[Path]:
    """All that a stopped cluster must not leave in the state directory."""
    return [home(), run_directory()]


def _output(*command: str) -> str:
    return subprocess.run(command, env={**os.environ, "PATH": PATH}, capture_output=True, text=True).stdout


def _foreign_lines(*command: str) -> list[str]:
    """Lines that name an address of the cluster, which belongs to its namespace alone."""
    found = _output(*command).splitlines()
    return [line.strip() for line in found if re.search(rf"\b{re.escape(NETWORK)}", line)]


def network() -> set[str]:
    """All on this machine that could be from a cluster's network, though it does not name its addresses.

    A cluster's own is in its namespace. So what is here was here before, or got out.
    """
    links = json.loads(_output("ip", "-json", "link", "show", "type", "veth") or "[]")
    rules = _output("iptables-save") + _output("ip6tables-save")
    return {
        # Those of Docker and other bridges have a master.
        *(f"network interface {link['ifname']}" for link in links if "ifname" in link and "master" not in link),
        *(f"iptables chain {name}" for name in re.findall(r"^:((?:KUBE|CNI)-\S+)", rules, re.MULTILINE)),
    }


def _before() -> Path:
    return home() / "network.json"


def remember_network() -> None:
    """What there is before the cluster's start, of another Kubernetes perhaps."""
    _before().write_text(json.dumps(sorted(network())))


def remembered_network() -> set[str]:
    return set(json.loads(_before().read_text())) if _before().exists() else set()


def containers() -> list[Path]:
    """containerd's directories of containers and pods. Of a store that nobody uses, only images are kept."""
    parts = ("io.containerd.grpc.v1.cri/containers", "io.containerd.grpc.v1.cri/sandboxes")
    return [
        path for part in (*parts, "io.containerd.runtime.v2.task/k8s.io") for path in image_store().glob(f"{part}/*")
    ]


def leftovers(before: Collection[str] = ()) -> list[str]:
    """What a stopped cluster has left on this machine, found by looking; the caches do not count.

    `before` is what `network` found before the start.
    """
    places = [path.resolve() for path in (*directories(), image_store(), build_store())]
    return [
        *(f"process {pid}: {command}" for pid, command in processes().items()),
        *(f"cgroup {path}" for path in _cgroups()),
        *(f"mount {at}" for at, _, _ in _mounts() if any(map(at.is_relative_to, places))),
        *(f"address {line}" for line in _foreign_lines("ip", "-oneline", "address")),
        *(f"route {line}" for line in _foreign_lines("ip", "route", "show", "table", "all")),
        *(f"iptables rule {line}" for line in _foreign_lines("iptables-save")),
        *(found for found in sorted(network()) if found not in before),
        *(f"container {path}" for path in containers()),
        *(f"directory {path}" for path in directories() if path.exists()),
    ]


def remove() -> None:
    """Remove what a stopped or killed cluster left. Refuses while something of it lives."""
    wait_for_end(10)
    for pid, process in processes().items():
        raise Problem(
            f"a process of a native cluster still runs: {pid}, {process}",
            f"if it is not another checkout's cluster, which its own `make down` ends: kill -KILL {pid}",
        )
    remove_cgroups()
    if home().exists():
        for at, _, _ in _mounts():
            if at.is_relative_to(home().resolve()):
                raise Problem(f"{at} is still mounted", f"umount {at}, then run this again")
        shutil.rmtree(home())
