"""Who gets a core, where there are fewer than there is to do."""

import contextlib
import os
from pathlib import Path

NICENESS = 10
"""Of what passes on an engine's tokens: where it wants an engine's core, it has a tenth of it. That is enough where
engines want all cores, too; by a thirtieth, they would wait for it (docs/performance.md). Ray gives all of its workers
15, engines too; one that starts with our environment (app/settings.py) gives them none."""


def leave_to_engines() -> None:
    """Have this process leave its cores to an engine that wants them. To be called when its engine runs.

    After each of an engine's steps as many events as it has streams go through replica, gateway and proxy. Each of them
    would wake one of these, and interrupt the engine, which is then late with the next step of all streams. Linux does
    not interrupt for SCHED_BATCH. And who is refused takes of the cores what answers come from, so these have a smaller
    share when there are not enough; they still have one, and nobody starves.
    Threads inherit both, as would an engine. https://man7.org/linux/man-pages/man7/sched.7.html
    """
    if not hasattr(os, "SCHED_BATCH"):  # on macOS, where one tries things
        return
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            number = int(thread.name)
            os.sched_setscheduler(number, os.SCHED_BATCH, os.sched_param(0))
            # Where Ray has given it more, it may not have less.
            os.setpriority(os.PRIO_PROCESS, number, max(os.getpriority(os.PRIO_PROCESS, number), NICENESS))
