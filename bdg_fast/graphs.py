"""CUDA graphs of a whole sampling loop: one launch for all steps, for the sizes that come again and again."""

from __future__ import annotations

import contextlib
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .memory import out_of_memory

Loop = Callable[..., Tensor]
KEPT = 4
"""Graphs, the most recently used; they share their memory."""
REMEMBERED = 256
"""Kinds of inputs whose occurrences are counted."""


class Captured(NamedTuple):
    """A loop that is repeated by :attr:`replay`, from its own inputs to its own output."""

    inputs: tuple[Tensor, ...]
    output: Tensor
    replay: Callable[[], object]


class LoopGraphs:
    """Calls a loop of tensors, as a graph where shapes repeat.

    A kind of inputs is captured when it comes for the second time: capturing costs more than a call. Each time its
    graph had to make room for another, it must come twice as often before it is captured again. What cannot be captured
    is called as it is.
    """

    def __init__(self, loop: Loop, capture: Callable[[Loop, tuple[Tensor, ...]], Captured], keep: int = KEPT) -> None:
        """``loop`` reads its tensors and what never changes; ``capture`` is that of the device."""
        self.loop, self.capture, self.keep = loop, capture, keep
        self._graphs: OrderedDict[Any, Captured] = OrderedDict()
        self._wanted: OrderedDict[Any, tuple[int, int]] = OrderedDict()  # calls that it takes, and those since
        self._lock = threading.Lock()  # graphs have one set of inputs

    def __call__(self, *inputs: Tensor) -> Tensor:
        """``loop(*inputs)``, in memory of its own."""
        key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        with self._lock:
            graph = self._graphs.get(key)
            if graph is None and self._due(key):
                graph = self._captured(key, inputs)
            if graph is not None:
                self._graphs.move_to_end(key)
                for own, given in zip(graph.inputs, inputs, strict=True):
                    own.copy_(given)
                graph.replay()
                return graph.output.clone()
        return self.loop(*inputs)

    def clear(self) -> None:
        """Give back the memory of all graphs."""
        with self._lock:
            self._graphs.clear()

    def _due(self, key: Any) -> bool:
        takes, since = self._wanted.pop(key, (2, 0))
        self._wanted[key] = takes, since + 1
        if len(self._wanted) > REMEMBERED:
            self._wanted.popitem(last=False)
        return 0 < takes <= since + 1

    def _captured(self, key: Any, inputs: tuple[Tensor, ...]) -> Captured | None:
        while len(self._graphs) >= self.keep:
            oldest, _ = self._graphs.popitem(last=False)
            takes, _ = self._wanted.get(oldest, (2, 0))
            self._wanted[oldest] = 2 * takes, 0
        try:
            self._graphs[key] = self.capture(self.loop, inputs)
        except RuntimeError as error:
            self._graphs.clear()  # what they hold may be what was missing
            self._wanted[key] = 0, 0  # never again
            if not out_of_memory(error):
                warnings.warn(f"a loop was not captured as a CUDA graph and runs without: {error}", stacklevel=3)
            return None
        return self._graphs[key]


class CudaCapture:
    """Captures on a stream of its own, into one pool of memory.

    Graphs may share it, in whatever order they run: they run one after the other, inputs are not of the pool and are
    written before, and the output is copied at once after.
    """

    def __init__(self, device: torch.device) -> None:
        """Nothing happens before the first capture."""
        self.device = device
        self._pool: Any = None
        self._alive: weakref.WeakSet[Any] = weakref.WeakSet()  # graphs of the pool, which ends with the last
        self._stream: Any = None  # graphs share memory on one stream alone

    def __call__(self, loop: Loop, inputs: tuple[Tensor, ...]) -> Captured:
        """Run once, so that what is made at the first call is there and too little memory is told in time; capture.

        Raises:
            RuntimeError: what a graph cannot hold, or memory ran out.
        """
        with torch.cuda.device(self.device):
            own = tuple(tensor.clone() for tensor in inputs)
            if self._stream is None:
                self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream = self._stream
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                loop(*own)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            pool = self._pool if self._alive else torch.cuda.graph_pool_handle()
            alive, self._alive = self._alive, weakref.WeakSet()  # after a failure a pool of its own
            try:
                # other threads may go on using the device; a capture that fails leaves its stream the current one
                with (
                    torch.cuda.stream(stream),
                    torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
                ):
                    output = loop(*own)
            except BaseException:
                del graph
                self._abandon(pool, own[0])
                raise
            alive.add(graph)
            self._pool, self._alive = pool, alive
        return Captured(own, output, graph.replay)

    def _abandon(self, pool: Any, some: Tensor) -> None:
        """What PyTorch does at the end of a capture, but not of one that failed.

        Else blocks that other streams used are never free again, and the device's generator refuses to draw.
        """
        index = torch.cuda.current_device()
        with contextlib.suppress(RuntimeError):  # the first of these tells so where it was done
            torch._C._cuda_endAllocateToPool(index, pool)
            torch._C._cuda_releasePool(index, pool)
        with contextlib.suppress(RuntimeError):  # only a capture that succeeds lets the generator go on
            again = torch.cuda.CUDAGraph()
            with (
                torch.cuda.stream(self._stream),
                torch.cuda.graph(again, stream=self._stream, capture_error_mode="thread_local"),
            ):
                some.zero_()
