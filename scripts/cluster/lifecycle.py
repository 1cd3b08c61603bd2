"""Start and stop the native cluster. What runs in it is `node`'s business, what it leaves behind `traces`'."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from app.builtin import cache_dir
from infra.clusters import native_kubeconfig, state_dir
from scripts.cluster import config, images, pki, preflight, traces
from scripts.cluster.layout import (
    MARK,
    NAMESPACES,
    PATH,
    PAUSE_IMAGE,
    Record,
    api_port,
    home,
    image_store,
    log_file,
    log_tail,
    ready_file,
)
from scripts.console import Problem, say, step

leftovers = traces.leftovers


def running() -> bool:
    """Whether this user's cluster is up."""
    return Record.load() is not None and ready_file().exists()


def _prepare() -> None:
    home().mkdir(parents=True)
    home().chmod(0o711)  # the user who said sudo reads the kubeconfig; all else is root's
    for name in ("logs", "config", "etcd", "kubelet", "pods"):
        (home() / name).mkdir(mode=0o700)
    image_store().mkdir(mode=0o700, parents=True, exist_ok=True)
    pki.create(home() / "pki")
    config.write(preflight.containerd_major())
    user, group = (int(os.environ.get(f"SUDO_{kind}", "0")) for kind in ("UID", "GID"))
    os.chown(native_kubeconfig(), user, group)
    traces.remember_network()
    traces.make_cgroups()


def _run(*command: str, stdin: int) -> "subprocess.Popen[bytes]":
    """One of the cluster's own processes, apart from the caller's session."""
    with log_file("cluster").open("ab") as log:
        return subprocess.Popen(
            command,
            cwd=Path(__file__).parents[2],
            # Not the caller's environment: a proxy set there would come between the components.
            env={
                "PATH": PATH,
                "HOME": str(home()),
                "BLUEPRINT_STATE": str(state_dir()),
                "BLUEPRINT_CACHE": str(cache_dir()),
                "BLUEPRINT_API_PORT": str(api_port()),
                MARK: str(state_dir()),
            },
            stdin=stdin,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _wait(supervisor: "subprocess.Popen[bytes]") -> None:
    while not running():
        if supervisor.poll() is not None:
            raise Problem(
                f"the cluster did not start:\n{log_tail('cluster', 30)}",
                f"see the lines above and {home() / 'logs'}",
            )
        time.sleep(0.2)


def start(bin_dir: Path) -> None:
    """Start the cluster with the executables in `bin_dir`, unless it runs; returns when it takes pods."""
    if running():
        say(f"the native cluster runs already; its kubeconfig is {native_kubeconfig()}")
        return
    preflight.check()
    traces.remove()
    with step("native Kubernetes cluster"):
        _prepare()
        command = (sys.executable, "-m", "scripts.cluster.supervisor", str(bin_dir.resolve()))
        supervisor = _run(*command, stdin=subprocess.DEVNULL)
        try:
            _wait(supervisor)
            if not images.has(PAUSE_IMAGE):
                images.from_binary(bin_dir / "pause", PAUSE_IMAGE)
                images.load(PAUSE_IMAGE)
        except BaseException:
            # Nothing half done; the logs stay for the user to read.
            supervisor.terminate()
            supervisor.wait()
            traces.wait_for_end(10)
            traces.remove_cgroups()
            raise
    say(f"kubeconfig: {native_kubeconfig()}")


def _forget_containers() -> None:
    """After a cluster that was killed and did not come to it itself."""
    command = (*NAMESPACES, sys.executable, "-m", "scripts.cluster.node")
    with _run(*command, stdin=subprocess.PIPE) as node:  # which ends when its standard input does
        node.wait()


def stop() -> None:
    """End the cluster with all that runs in it, and look whether anything is left."""
    if not any(directory.exists() for directory in traces.directories()):
        say("the native cluster is not running")
        return
    preflight.root()
    with step("stopping the native cluster"):
        if record := Record.load():
            os.kill(record.supervisor, signal.SIGTERM)
            if not traces.wait_for_end(90):
                os.kill(record.supervisor, signal.SIGKILL)
        if traces.wait_for_end(10) and traces.containers() and (home() / "config").exists():
            _forget_containers()
        before = traces.remembered_network()
        traces.remove()
        shutil.rmtree(images.run_directory(), ignore_errors=True)
    if left := leftovers(before):
        raise Problem(
            "the native cluster left something behind:\n" + "\n".join(left),
            "remove it by hand, and please report it",
        )
