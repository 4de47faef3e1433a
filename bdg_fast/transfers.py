"""Copies between host and device that a GPU does beside its work."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

THREADS = 2
"""Batches whose results are made into pictures at the same time."""
STAGED = 1 << 28
"""Bytes of a tensor that is copied through page-locked memory, at most: none of it is given back."""
T = TypeVar("T")


class Transfers:
    """Copies on streams of their own through page-locked memory, in both directions at once.

    Everything is ordered against the device's current stream; the host waits for results alone, and for copies of what
    is larger than :data:`STAGED`, which wait for nothing else.
    """

    def __init__(self, device: torch.device) -> None:
        """Of a CUDA or ROCm device."""
        self.device = device
        self._up, self._down = (torch.cuda.Stream(device) for _ in range(2))  # type: ignore[no-untyped-call]
        self._threads = ThreadPoolExecutor(THREADS, "bdg_fast results")

    def beside(self, function: Callable[[], T]) -> Callable[[], T]:
        """Call ``function`` in a thread; what is returned waits for its result, or raises its error."""
        return self._threads.submit(function).result

    def close(self) -> None:
        """End the threads, when they are done."""
        self._threads.shutdown()

    def to_device(self, tensor: Tensor) -> Tensor:
        """``tensor`` on the device, which copies it while it works on what came before."""
        return self.begin(tensor)()

    def begin(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Begin to copy ``tensor`` in any thread; each call of what is returned has its current stream wait for it."""
        with torch.cuda.stream(self._up):  # of this device, in threads too
            staged = tensor
            if tensor.device.type == "cpu" and tensor.nbytes <= STAGED:
                # its allocator keeps it until the copy is done; dense, where `pin_memory` fails for expanded channels
                staged = torch.empty_like(tensor, pin_memory=True).copy_(tensor)
            there = staged.to(self.device, non_blocking=True)
            copied = self._up.record_event()

        def taken() -> Tensor:
            now = torch.cuda.current_stream(self.device)
            now.wait_event(copied)
            there.record_stream(now)
            return there

        return taken

    def to_host(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Begin to copy what the device is still computing; what is returned waits for it. Ordinary memory."""
        now = torch.cuda.current_stream(self.device)
        if tensor.nbytes > STAGED:
            computed = now.record_event()
            tensor.record_stream(self._down)

            def copied_now() -> Tensor:
                with torch.cuda.stream(self._down):
                    self._down.wait_event(computed)
                    return tensor.cpu()

            return copied_now
        staged = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._down.wait_stream(now)
        with torch.cuda.stream(self._down):
            staged.copy_(tensor, non_blocking=True)
            copied = self._down.record_event()
        tensor.record_stream(self._down)

        def wait() -> Tensor:
            copied.synchronize()
            return staged.clone()  # callers may keep it, and page-locked memory is scarce

        return wait
