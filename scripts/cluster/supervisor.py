"""The cluster's only process outside its namespaces: starts the node, and passes the API port through to it.

`lifecycle` starts it as a daemon. SIGTERM ends it and the cluster; when it is killed, the kernel ends the cluster.
"""

import asyncio
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from scripts.cluster import traces
from scripts.cluster.layout import API_PORT, NAMESPACES, NODE_IP, Record, api_port, start_time
from scripts.console import Problem, main

_CLONE_NEWNET = 0x40000000


def _spawn(bin_dir: Path) -> subprocess.Popen[bytes]:
    """Start the node. It stops in good order when its standard input ends, and dies when this process dies."""
    return subprocess.Popen(
        [
            *("setpriv", "--pdeathsig", "KILL", *NAMESPACES),
            *(sys.executable, "-m", "scripts.cluster.node", str(bin_dir)),
        ],
        stdin=subprocess.PIPE,
    )


def _join_network(pid: int) -> None:
    """From now on, new sockets of this process belong to the network of `pid`; open ones stay where they are."""
    own = Path("/proc/self/ns/net").readlink()
    theirs = Path(f"/proc/{pid}/ns/net")
    for _ in range(100):
        if start_time(pid) and theirs.readlink() != own:
            break
        time.sleep(0.1)
    else:
        raise Problem("the node did not enter its namespaces", "see the lines above")
    libc = ctypes.CDLL(None, use_errno=True)  # os.setns came with Python 3.12
    with theirs.open() as namespace:
        if libc.setns(namespace.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()
    except OSError:  # one end went away; the other learns it below
        pass
    finally:
        sink.close()


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        server = await asyncio.open_connection(NODE_IP, API_PORT)
    except OSError:  # the API server is not there yet
        writer.close()
        return
    await asyncio.gather(_pump(reader, server[1]), _pump(server[0], writer))


async def _serve(listener: socket.socket, node: subprocess.Popen[bytes]) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGCHLD, stop.set)
    async with await asyncio.start_server(_forward, sock=listener):
        if node.poll() is None:
            await stop.wait()


def command() -> None:
    try:
        listener = socket.create_server(("127.0.0.1", api_port()))
    except OSError as error:
        raise Problem(f"cannot listen on 127.0.0.1:{api_port()}: {error}", "free the port") from error
    node = _spawn(Path(sys.argv[1]))
    assert node.stdin
    pid = os.getpid()
    started = start_time(pid)
    assert started
    _join_network(node.pid)
    Record(pid, started, node.pid).save()
    asyncio.run(_serve(listener, node))
    node.stdin.close()
    try:
        node.wait(60)
    except subprocess.TimeoutExpired:
        node.kill()
        node.wait()
    traces.remove_cgroups()
    sys.exit(node.returncode)


if __name__ == "__main__":
    main(command)
