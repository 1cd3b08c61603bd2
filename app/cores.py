"""Who gets a core, where there are fewer than there is to do."""

import contextlib
import os
from pathlib import Path


def leave_to_engines() -> None:
    """Have this process take no core from another one when something wakes it. To be called when its engine runs.

    After each of an engine's steps as many events as it has streams go through replica, gateway and proxy. Each of them
    would wake one of these, and interrupt the engine, which is then late with the next step of all streams. Linux does
    not interrupt for SCHED_BATCH, and gives those threads as much of the cores as others all the same: nobody starves.
    Threads inherit it, as would an engine. https://man7.org/linux/man-pages/man7/sched.7.html
    """
    if not hasattr(os, "SCHED_BATCH"):  # on macOS, where one tries things
        return
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setscheduler(int(thread.name), os.SCHED_BATCH, os.sched_param(0))
