"""Who gets a core."""

import os
import subprocess
import sys

from app import cores
from scripts.bench.servers import role
from tests.app.conftest import Running, eventually

OURS = os.getpriority(os.PRIO_PROCESS, 0)
"""The niceness that all that is started here begins with."""

THREADS = """
import os, threading
from app import cores

over = threading.Event()
def shares():
    threads = [int(thread) for thread in os.listdir("/proc/self/task")]
    return {(os.sched_getscheduler(thread), os.getpriority(os.PRIO_PROCESS, thread)) for thread in threads}
threading.Thread(target=over.wait).start()
(policy, niceness), = shares()
assert policy == os.SCHED_OTHER
assert cores.NICENESS > 0
higher = cores.NICENESS = min(niceness + 1, 19)  # one that is not ours already, as CI's is
cores.leave_to_engines()
threading.Thread(target=over.wait).start()
assert len(os.listdir("/proc/self/task")) == 3
assert shares() == {(os.SCHED_BATCH, higher)}
cores.NICENESS = 0
cores.leave_to_engines()
assert shares() == {(os.SCHED_BATCH, higher)}
over.set()
"""


def test_all_threads_leave_their_cores_to_engines_those_of_later_too() -> None:
    subprocess.run([sys.executable, "-c", THREADS], check=True, timeout=60)


def test_what_passes_on_an_engines_tokens_leaves_it_its_core(server: Running) -> None:
    def shares() -> dict[str, set[tuple[int, int]]]:
        found: dict[str, set[tuple[int, int]]] = {}
        for process in server.processes():
            title = " ".join(process.cmdline())
            kind = role(title)
            if kind == "replica":
                kind = "language model" if "LLM:" in title or "Generate" in title else "another model"
            found.setdefault(kind, set()).add((os.sched_getscheduler(process.pid), process.nice()))
        return found

    working, passing = {(os.SCHED_OTHER, OURS)}, {(os.SCHED_BATCH, max(OURS, cores.NICENESS))}
    expected = {
        **{"engine": working, "another model": working},
        **{"language model": passing, "gateway": passing, "proxy": passing},
    }
    # A process that Ray keeps in reserve has no role yet.
    eventually("cores are left to engines", lambda: expected.items() <= shares().items())
