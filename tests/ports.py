"""Ports for what tests start."""

import random
import socket

# Not one that the kernel gives to whoever asks for any (from 32768 on), and none of Ray's workers (10002 to 19999):
# between this look and its use, another process would get it.
_RANGE = range(20_000, 32_768)


def free_port() -> int:
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port := random.choice(_RANGE)))  # noqa: S311 - no secret
            except OSError:
                continue
            return port
