"""Memory for images of the compiled UNet, used again and in huge pages where the system has them.

Fresh memory costs more than the work done in it: a page fault for every 4 KiB, and an address translation for each
afterwards.
"""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

HUGE = 1 << 22
"""Bytes from which NumPy asks Linux for huge pages."""


def fresh(floats: int) -> Tensor:
    """Uninitialized float32, in huge pages if it fills some."""
    return torch.from_numpy(np.empty(floats, np.float32))


def kept(values: Tensor) -> Tensor:
    """A copy, float32 and contiguous, for weights."""
    result = fresh(values.numel()).view(values.shape)
    return result.copy_(values)


class Buffers:
    """Images that come and go. Not for two threads at once."""

    def __init__(self) -> None:
        self._free: dict[int, list[Tensor]] = defaultdict(list)
        self._scratch = fresh(0)

    @property
    def held(self) -> int:
        """Bytes that are kept for later calls."""
        free = sum(size * len(images) for size, images in self._free.items())
        return 4 * (free + len(self._scratch))

    def take(self, *shape: int) -> Tensor:
        """An image of any content."""
        size = math.prod(shape)
        free = self._free[size]
        return (free.pop() if free else fresh(size)).view(shape)

    def give(self, *images: Tensor) -> None:
        """Images that were taken and are not needed any more."""
        for image in images:
            self._free[image.numel()].append(image.view(-1))

    def scratch(self, floats: int) -> Tensor:
        """Room for the length of one call."""
        if len(self._scratch) < floats:
            self._scratch = fresh(max(floats, HUGE // 4))
        return self._scratch

    def clear(self) -> None:
        """Free all that is not in use."""
        self._free.clear()
        self._scratch = fresh(0)
