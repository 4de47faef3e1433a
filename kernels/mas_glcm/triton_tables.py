"""Triton backend: what a request needs on the device, made once and kept.

Copying tables at every call would stall the stream, and could not be captured in a CUDA graph. They are never
evicted, because a captured graph holds their addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from .spec import Request, make_plan

PER_COLUMN = 2
"""Offsets of a column: those of a mirrored pair, which have the same number of pairs."""
NOWHERE = 1 << 29
"""Displacement of an absent offset: outside every image."""

T = TypeVar("T")


class Tables(NamedTuple):
    """What a request needs on the device, beyond the offsets."""

    uses: Tensor  # int32 [uses, 5]
    starts: Tensor  # int32 [slots + 1]
    totals: Tensor  # int64 [slots]


class Entries(NamedTuple):
    """Offsets by group, for `bins_kernel`."""

    entries: Tensor  # int32 [offsets, 3]: group, dy, dx
    starts: Tensor  # int32 [groups + 1], of entries


def kept(device: torch.device, make: Callable[[], T]) -> T:
    """Tensors on ``device`` that outlive the call, made on a thread of their own.

    Under ``torch.compile(mode="reduce-overhead")`` whatever this thread allocates lies in the memory pool of a
    CUDA graph, and the compiler raises where anything but the graph's outputs stays alive there.
    """
    if device.type != "cuda":
        return make()
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError("mas_glcm must run once with the same settings before a CUDA graph captures it")
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(make).result()


def _int32(rows: Sequence[object], device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32, device=device)


def _within(dy: int, dx: int) -> tuple[int, int]:
    """The offset, or one as good that 32 bits hold."""
    return min(dy, NOWHERE), max(-NOWHERE, min(dx, NOWHERE))


@cache
def tables_for(request: Request, weighting: str, device: torch.device) -> Tables:
    """What `combine_kernel` needs, for either way to count."""
    plan = make_plan(request, weighting)
    uses: list[list[list[int]]] = [[] for _ in plan.totals]
    for g, group in enumerate(plan.groups):
        dy, dx = _within(*group.offsets[0])
        for slot, flip, times in group.uses:
            uses[slot].append([g, flip, times, dy, abs(dx)])
    starts = [sum(map(len, uses[:slot])) for slot in range(len(uses) + 1)]
    return kept(
        device,
        lambda: Tables(
            _int32([use for slot in uses for use in slot], device),
            _int32(starts, device),
            torch.tensor(plan.totals, dtype=torch.int64, device=device),
        ),
    )


@cache
def entries_for(
    request: Request, weighting: str, device: torch.device, height: int = NOWHERE + 1, width: int = NOWHERE + 1
) -> Entries:
    """The offsets that lie within a ``height x width`` image."""
    entries, starts = [], [0]
    for g, group in enumerate(make_plan(request, weighting).groups):
        offsets = [_within(dy, dx) for dy, dx in group.offsets]
        entries += [[g, dy, dx] for dy, dx in offsets if dy < height and abs(dx) < width]
        starts.append(len(entries))
    return kept(device, lambda: Entries(_int32(entries or [[0, 0, 0]], device), _int32(starts, device)))


@cache
def columns_for(request: Request, weighting: str, columns: int, device: torch.device) -> Tensor:
    """int32 ``[columns, 1 + 2 PER_COLUMN]``: group, then the offsets of each column of `product_kernel`."""
    rows = []
    for g, group in enumerate(make_plan(request, weighting).groups):
        mirrored = sorted((_within(*offset) for offset in group.offsets), key=lambda at: (at[0], abs(at[1])))
        for start in range(0, len(mirrored), PER_COLUMN):
            offsets = mirrored[start : start + PER_COLUMN]
            offsets += [(NOWHERE, 0)] * (PER_COLUMN - len(offsets))
            rows.append([g, *(component for offset in offsets for component in offset)])
    rows += [[0, *([NOWHERE, 0] * PER_COLUMN)]] * (-len(rows) % columns)
    return kept(device, lambda: _int32(rows, device))


@cache
def threshold_table(thresholds: tuple[int, ...], device: torch.device) -> tuple[Tensor, int]:
    """Thresholds padded to ``2**steps - 1`` entries, and ``steps``."""
    steps = len(thresholds).bit_length()
    padded = [*thresholds, *[2**31 - 1] * (2**steps - 1 - len(thresholds))]
    return kept(device, lambda: _int32(padded or [0], device)), steps
