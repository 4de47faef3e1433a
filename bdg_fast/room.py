"""How much of pictures is evaluated at once, by the memory that is free."""

from __future__ import annotations

from typing import NamedTuple

from .models import Backbone, UNet
from .tiles import OVERLAP

BYTES_PER_PIXEL = {"native": {32: 1_300, 64: 1_800}, "eager": {32: 2_300, 64: 5_000}}
"""Peak memory of a forward in float32 by backend and network width, measured (benchmarks/notes.md)."""
SMALLEST_TILE = 128
LARGEST_TILE = 1024
"""Of what is chosen by memory: the attention between all pixels costs more than it is worth beyond."""
STEP = 16
"""Of the sides that are chosen."""


class Room(NamedTuple):
    """What a restoration may take: half of what is free.

    A tile has all of it, and batches get smaller for that: results do not depend on company.
    """

    free: int  # bytes
    network: float  # bytes a pixel of the picture that is evaluated
    codec: int = 0  # bytes a pixel of what a VAE is given, which is a tile at most, of however many pictures
    largest: int = LARGEST_TILE

    @property
    def tile(self) -> int:
        """Side of the largest square that there is room for, within limits."""
        side = int((self.free / 2 / max(self.network, self.codec)) ** 0.5)
        return min(max(side // STEP * STEP, 2 * OVERLAP + STEP), self.largest)

    def together(self, count: int, height: int, width: int, tile: int) -> int:
        """How many of ``count`` pictures of a size, or a tile of each, are evaluated at once, in batches alike."""
        high, wide = (-(-min(side, tile) // STEP) * STEP for side in (height, width))
        fit = max(int(self.free / 2 / (self.network * max(high * wide, 1))), 1)
        batches = max(-(-count // fit), 1)
        return max(-(-count // batches), 1)


def bytes_per_pixel(unet: Backbone, backend: str) -> int:
    """Peak memory of an evaluation by a backend, a pixel of what the network sees."""
    if not isinstance(unet, UNet):
        return unet.bytes_per_pixel
    known, width = BYTES_PER_PIXEL["native" if backend == "native" else "eager"], unet.config.width
    return known.get(width, width * max(known.values()) // 32)
