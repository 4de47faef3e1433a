"""A run that is asked to stop ends after the step it is in: schedulers send SIGTERM before they take a machine away."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
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

    Ignored signals stay ignored, as those of jobs in the background are. What handled the others before does so again
    afterwards. Python lets the main thread alone handle signals: in others the request is one that nobody makes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if not request.asked:
            request.ask(number)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    handled = [number for number, handler in before.items() if handler != signal.SIG_IGN]
    with contextlib.ExitStack() as leaving:
        leaving.enter_context(_watched(frozenset(map(int, handled))))
        for number in handled:
            # a handler that is not Python's (None) cannot be put back
            leaving.callback(signal.signal, number, before[number] or signal.SIG_DFL)
            signal.signal(number, handle)
        yield request


@contextlib.contextmanager
def _watched(numbers: frozenset[int]) -> Iterator[None]:
    """Within it a thread ends the process at a second signal.

    Handlers run when the main thread comes back from what it calls: late, after a step on a GPU, so that what arrived
    together would seem to be two, or never, where processes wait for each other in vain. A thread sees when they come.
    """
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)

    def watch() -> None:
        first: float | None = None
        while came := ours.recv(1):
            if came[0] not in numbers:
                continue
            if first is None:
                first = time.monotonic()
            elif time.monotonic() - first >= REPEATED:
                os._exit(1)

    thread = threading.Thread(target=watch, name="bdg_fast signals", daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        theirs.close()
        thread.join()
        ours.close()
