"""Ports on this machine's loopback."""

import socket

from scripts.console import Problem


def number(variable: str, text: str) -> int:
    """The port in `text`, the value of `variable`."""
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise Problem(f"{variable} is {text!r}", "set it to a port number, or leave it out")
    return int(text)


def is_taken(port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False
