"""Process 1 of the cluster's namespaces: makes them look like a node, starts the components, watches over them.

Inside, paths are those of any Kubernetes node; outside, all that is written lies under `home()` and `image_store()`.
"""

import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from scripts.cluster import config, traces
from scripts.cluster.layout import (
    NODE,
    NODE_IP,
    POD_RANGE,
    home,
    image_store,
    log_file,
    log_tail,
    ready_file,
)
from scripts.console import Problem, main, step

_CTR = ("ctr", "--namespace", "k8s.io")

# What the kubelet would set for the whole machine (pkg/kubelet/cm: setupKernelTunables).
_TUNABLES = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1_000_000,
    "kernel/keys/root_maxbytes": 25_000_000,
}


def _do(*command: str) -> str:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise Problem(
            f"`{' '.join(command)}` failed in the cluster's namespaces: {done.stderr.strip()}",
            "if this machine forbids it, run the cluster in a virtual machine",
        )
    return done.stdout


def _succeeds(*command: str) -> bool:
    quiet = subprocess.DEVNULL
    return not subprocess.run(command, stdin=quiet, stdout=quiet, stderr=quiet).returncode


def _bind(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    _do("mount", "--bind", str(source), str(target))


def arrange_files() -> None:
    """Cover what components write to fixed places, so that nothing reaches the machine's own directories."""
    for directory in ("/run", "/var/log"):
        _do("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", directory)
    # An overlay, since the kubelet and CNI have directories here that may not exist on the machine.
    upper, work = Path("/run/lib/upper"), Path("/run/lib/work")
    upper.mkdir(parents=True)
    work.mkdir()
    layers = f"lowerdir=/var/lib,upperdir={upper},workdir={work}"
    _do("mount", "-t", "overlay", "-o", layers, "overlay", "/var/lib")
    _bind(image_store(), Path("/var/lib/containerd"))
    _bind(home() / "kubelet", Path("/var/lib/kubelet"))
    _bind(home() / "pods", Path("/var/log/pods"))
    # Show the kubelet the kernel settings that it wants, else it would change them for the machine.
    for name, value in _TUNABLES.items():
        shown = Path("/run") / name.replace("/", "-")
        shown.write_text(f"{value}\n")
        _do("mount", "--bind", str(shown), f"/proc/sys/{name}")


def arrange_network() -> None:
    """A network without a way out: the node's address on the loopback device, and pods behind it."""
    _do("ip", "link", "set", "lo", "up")
    _do("ip", "address", "add", f"{NODE_IP}/32", "dev", "lo")
    # kube-proxy rewrites a Service's address on the way out, so there must be a way. What stays on it, the
    # outside world and Services not programmed yet, is refused at once instead of timing out.
    _do("ip", "route", "add", "default", "dev", "lo", "src", NODE_IP)
    # Pods are excepted, since for what the node itself sends, the filter still sees the device of the old address.
    elsewhere = ("-o", "lo", "!", "-d", POD_RANGE, "-m", "addrtype", "!", "--dst-type", "LOCAL")
    _do("iptables", "--wait", "-A", "FORWARD", *elsewhere, "-j", "REJECT")
    # The node's own connections do not notice the ICMP message that REJECT sends by default.
    reset = ("-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset")
    _do("iptables", "--wait", "-A", "OUTPUT", *elsewhere, *reset)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


class Node:
    def __init__(self, bin_dir: Path) -> None:
        self.commands = config.commands(bin_dir)
        admin = home() / "config" / "admin.kubeconfig"
        self.kubectl = (str(bin_dir / "kube"), "kubectl", f"--kubeconfig={admin}")
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        with log_file(name).open("ab") as log:
            self.running[name] = subprocess.Popen(self.commands[name], stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def end(self, name: str) -> None:
        process = self.running.pop(name, None)
        if process is None:
            return
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def pause(self, seconds: float) -> None:
        """Wait, but notice a component that died, and the end of standard input, which means: stop."""
        self.rest(seconds)
        for name, process in self.running.items():
            if process.poll() is not None:
                raise Problem(
                    f"{name} ended with status {process.returncode}:\n{log_tail(name)}",
                    f"the whole log is {log_file(name)}",
                )

    def rest(self, seconds: float) -> None:
        if select.select([sys.stdin], [], [], seconds)[0]:
            sys.exit()

    def until(self, what: str, happened: Callable[[], bool], seconds: float = 240) -> None:
        with step(what):
            deadline = time.monotonic() + seconds
            while not happened():
                if time.monotonic() > deadline:
                    raise Problem(
                        f"no success after {seconds:.0f} s: {what}",
                        f"look for the reason in {home() / 'logs'}",
                    )
                self.pause(0.2)

    def start_runtime(self) -> None:
        self.start("containerd")
        self.until("containerd answers", lambda: _succeeds(*_CTR, "version"))

    def forget_containers(self) -> bool:
        """Remove every container with its writable layer, and CRI's own files on them; images stay."""
        containers = _do(*_CTR, "containers", "ls", "--quiet").split()
        if containers:
            _succeeds(*_CTR, "tasks", "delete", "--force", *containers)  # not each has a task
            _do(*_CTR, "containers", "delete", *containers)
            # Their files go with the next garbage collection, and ending a lease is how to ask for one.
            lease = _do(*_CTR, "leases", "create").strip()
            _do(*_CTR, "leases", "delete", "--sync", lease)
        for directory in traces.containers():
            shutil.rmtree(directory, ignore_errors=True)
        return bool(containers)

    def open(self) -> None:
        self.start("etcd")
        self.start_runtime()
        if self.forget_containers():  # of a cluster that was killed; CRI reads them at its start only
            self.end("containerd")
            self.start_runtime()
        self.start("kube-apiserver")
        self.until("the API server is ready", lambda: self.asked("get", "--raw=/readyz"))
        _do(*self.kubectl, "apply", f"--filename={home() / 'config' / 'addons.yaml'}")
        for name in list(self.commands)[3:]:
            self.start(name)
        condition = ("wait", "--for=condition=Ready", "--timeout=1s", f"node/{NODE}")
        self.until("the node is ready", lambda: self.asked(*condition))
        account = ("get", "serviceaccount", "default")
        self.until("namespaces have their service account", lambda: self.asked(*account))

    def asked(self, *arguments: str) -> bool:
        return _succeeds(*self.kubectl, "--request-timeout=5s", *arguments)

    def watch(self) -> None:
        while True:
            self.rest(0.5)
            # On other nodes systemd brings it back (Restart=always); pods live on in their shims meanwhile.
            if self.running["containerd"].poll() is not None:
                self.start_runtime()
            self.pause(0)
            self.reap()

    def reap(self) -> None:
        """Collect processes whose parents are gone: the duty of process 1. Components are `pause`'s."""
        own = {process.pid for process in self.running.values()}
        while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if found.si_pid in own:
                return
            os.waitpid(found.si_pid, 0)

    def close(self) -> None:
        """Leave nothing in the image store but images."""
        self.end("kubelet")  # it would start again what is removed
        if "containerd" in self.running and self.running["containerd"].poll() is None:
            self.forget_containers()
        self.end("containerd")


def command() -> None:
    """With the directory of the executables, the whole node; without, only what `forget_containers` needs."""
    node = Node(Path(*sys.argv[1:]))
    arrange_files()
    if not sys.argv[1:]:
        node.start_runtime()
        node.close()
        return
    arrange_network()
    try:
        node.open()
        ready_file().touch()
        node.watch()
    finally:
        ready_file().unlink(missing_ok=True)
        node.close()


if __name__ == "__main__":
    main(command)
