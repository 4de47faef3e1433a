"""A small pool of threads for compiled loops that release the interpreter lock.

Not numba's own: its OpenMP layer ends a forked child (a data loader's worker) and its default layer ends a
process in which two threads call it at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_pool: tuple[int, ThreadPoolExecutor] | None = None
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _forget_pool() -> None:
    global _pool
    _pool = None


# threads do not survive fork(): a child makes its own
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _processor() -> int:
    """The processor this thread runs on, -1 if that cannot be told."""
    return _libc.sched_getcpu() if _libc is not None and hasattr(_libc, "sched_getcpu") else -1


def _leave(processor: int, allowed: set[int]) -> None:
    """Keep this thread of ours off the caller's ``processor``, and within those ``allowed`` to the caller.

    Linux likes to wake a thread on its waker's processor, where it then waits until the waker is done: with
    two processors half the speed is lost. A thread that has left is not woken there again, so it stays away, which
    costs nothing while the caller does its own share there, until it meets a caller elsewhere or callers may run on
    other processors than before.
    """
    own = os.sched_getaffinity(0)
    if _processor() == processor or not own <= allowed or len(own) < len(allowed) - 1:
        with contextlib.suppress(OSError):  # a sandbox may forbid it, and it is only faster
            os.sched_setaffinity(0, allowed - {processor} or allowed)


def in_parallel(threads: int, job: Callable[[int], None]) -> None:
    """Run ``job(0) .. job(threads - 1)``, the first on the calling thread; the first error is raised."""
    global _pool
    if threads == 1:
        job(0)
        return
    if _pool is None or _pool[0] < threads - 1:
        _pool = (threads - 1, ThreadPoolExecutor(threads - 1, thread_name_prefix="bdg_fast"))
    caller = _processor()
    allowed = os.sched_getaffinity(0) if caller >= 0 else set()

    def elsewhere(index: int) -> None:
        if allowed:
            _leave(caller, allowed)
        job(index)

    futures = [_pool[1].submit(elsewhere, index) for index in range(1, threads)]
    try:
        job(0)
    finally:
        for future in futures:
            future.result()
