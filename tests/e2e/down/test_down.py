"""Back to nothing. The last scenario: it takes the cluster of all others away."""

import subprocess
import sys

import pytest

from scripts import cluster
from tests.e2e.conftest import Stack


@pytest.mark.usefixtures("deployed")
def test_down_leaves_nothing(stack: Stack) -> None:
    done = stack.make("down")
    assert done.returncode == 0
    assert cluster.leftovers() == []
    assert not stack.state.exists()
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line for line in running if str(stack.state) in line and sys.executable not in line] == []
