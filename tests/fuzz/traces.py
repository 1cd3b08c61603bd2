"""Traffic for `make plan`: a CSV file of the user's."""

from pathlib import Path

import numpy as np

from scripts.console import Problem
from scripts.plan import traffic

SEEDS = [
    b"second,rate\n0,1\n60,2.5\n120,0\n",
    b'rate,"second"\r\n1,0\r\n1e3,1e-3\r\n',
    b"second,rate\n0,1e308\n1e308,1\n",
]
FILE = Path("trace.csv")
FEW = 1000
"""Requests that are drawn for real; more would take the time of all inputs."""


def run(data: bytes) -> None:
    """Spans that follow each other, each with a rate, of which requests can be drawn; or a Problem."""
    FILE.write_bytes(data)
    try:
        found = traffic.read(str(FILE), 1)
        expected = float(np.sum(found.rates * np.diff(found.edges)))
        if not FEW < expected <= traffic.MOST:
            load = found.load()
            assert np.all((load.arrivals >= 0) & (load.arrivals <= found.seconds))
    except Problem:
        return
    assert len(found.edges) == len(found.rates) + 1
    assert found.edges[0] == 0
    assert np.all(np.diff(found.edges) > 0)
    assert np.all((found.rates >= 0) & np.isfinite(found.rates))
