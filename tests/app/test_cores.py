"""Who gets a core."""

import os
import subprocess
import sys

from scripts.bench.servers import role
from tests.app.conftest import Running, eventually

THREADS = """
import os, threading
from app import cores

over = threading.Event()
def policies(): return {os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task")}
threading.Thread(target=over.wait).start()
assert policies() == {os.SCHED_OTHER}
cores.leave_to_engines()
threading.Thread(target=over.wait).start()
assert len(os.listdir("/proc/self/task")) == 3
assert policies() == {os.SCHED_BATCH}
over.set()
"""


def test_all_threads_leave_their_cores_to_engines_those_of_later_too() -> None:
    subprocess.run([sys.executable, "-c", THREADS], check=True, timeout=60)


def test_what_passes_on_an_engines_tokens_does_not_interrupt_it(server: Running) -> None:
    def interrupting() -> dict[str, set[bool]]:
        found: dict[str, set[bool]] = {}
        for process in server.processes():
            title = " ".join(process.cmdline())
            kind = role(title)
            if kind == "replica":
                kind = "language model" if "LLM:" in title or "Generate" in title else "another model"
            found.setdefault(kind, set()).add(os.sched_getscheduler(process.pid) == os.SCHED_OTHER)
        return found

    kinds = ("engine", "another model", "language model", "gateway", "proxy")
    expected = [{True}, {True}, {False}, {False}, {False}]
    # A process that Ray keeps in reserve has no role yet.
    eventually("cores are left to engines", lambda: [interrupting().get(kind) for kind in kinds] == expected)
