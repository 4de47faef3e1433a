"""Encoders stay what the process was: SVT-AV1 makes one of root's real-time as it opens.

All its threads, the caller's and whatever the process starts later would then run before everything else of a machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

TASKS = "/proc/self/task"


@contextmanager
def scheduled_as_before() -> Iterator[None]:
    """Give all threads of the process the calling one's scheduling of before, where the system tells it (Linux)."""
    if not hasattr(os, "sched_setscheduler") or not os.path.isdir(TASKS):
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        for task in map(int, os.listdir(TASKS)):
            with suppress(ProcessLookupError):  # it has ended meanwhile
                if os.sched_getscheduler(task) != policy:
                    os.sched_setscheduler(task, policy, parameters)
