"""A run that is asked to stop ends after the step it is in: schedulers send SIGTERM before they take a machine away."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
REPEATED = 1.0
"""Seconds in which a signal counts as the same: a terminal and `torchrun` both pass one on to each process."""


class StopRequest:
    """Asks a run to save and stop after the step that it is in; one process of several is enough.

    Attributes:
        asked: number of the signal that asked for it in this process, 0 for none.
        agreed: the same of the processes together, for which all of them stopped after the same step. 0: none did.
    """

    def __init__(self) -> None:
        """Nothing is asked for."""
        self.asked = self.agreed = 0

    def ask(self, number: int = signal.SIGTERM) -> None:
        """Ask, for one of :data:`SIGNALS`.

        Raises:
            ValueError: another one.
        """
        if number not in SIGNALS:
            raise ValueError(f"number must be one of {', '.join(map(repr, SIGNALS))}, got {number!r}")
        self.asked = int(number)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """A request that SIGTERM and SIGINT make. Another signal later than :data:`REPEATED` ends the process at once.

    What handled them before does so again afterwards. Python lets the main thread alone handle signals: in others the
    request is one that nobody makes.
    """
    request, first = StopRequest(), 0.0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if not request.asked:
            first = time.monotonic()
            request.ask(number)
        elif time.monotonic() - first >= REPEATED:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
