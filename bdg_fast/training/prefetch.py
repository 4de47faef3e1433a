"""Batches on their way to a GPU while it computes: page-locked memory, and copies on a stream of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator

import torch

from ..data.loader import Batch
from ..transfers import Transfers


def prefetched(batches: Iterator[Batch], device: torch.device) -> Generator[Batch, None, None]:
    """The same batches, with images that are on ``device`` already if it is a CUDA device, else as they come.

    A thread takes the next batch and begins to copy it while the caller computes; seeds, classes and numbers stay on
    the CPU, which reads them. Closing this closes ``batches``.
    """
    try:
        if device.type == "cuda":
            yield from _copied(batches, Transfers(device))
        else:
            yield from batches
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()


def _copied(batches: Iterator[Batch], transfers: Transfers) -> Iterator[Batch]:
    def begun() -> Callable[[], Batch] | None:
        batch = next(batches, None)
        if batch is None:
            return None
        clean = transfers.begin(batch.clean)
        degraded = None if batch.degraded is None else transfers.begin(batch.degraded)
        return lambda: batch._replace(clean=clean(), degraded=None if degraded is None else degraded())

    following = transfers.beside(begun)
    try:
        while (take := following()) is not None:
            following = transfers.beside(begun)
            yield take()
    finally:
        with contextlib.suppress(Exception):  # nobody wants this batch: its errors neither
            following()
        transfers.close()
