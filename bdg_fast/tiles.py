"""Large images tile by tile."""

from __future__ import annotations

import torch
from torch import Tensor

from .backends import Network
from .models import UNetOutput

OVERLAP = 64
"""Pixels that neighbouring tiles share."""


class TiledNetwork:
    """A network evaluated tile by tile, its predictions blended where tiles overlap.

    Blending in every step, rather than of finished tiles, leaves no seam: all tiles continue from the same image.
    """

    def __init__(self, network: Network, tile: int, overlap: int = OVERLAP) -> None:
        """Tiles of ``tile x tile`` pixels, more than twice ``overlap``."""
        if tile <= 2 * overlap:
            raise ValueError(f"tile must be more than twice the overlap of {overlap} pixels, got {tile}")
        self.network, self.tile, self.overlap = network, tile, overlap

    def __call__(self, x_t: Tensor, x_lq: Tensor, time: Tensor) -> UNetOutput:
        """As the network; without features."""
        height, width = x_t.shape[2:]
        if height <= self.tile and width <= self.tile:
            return self.network(x_t, x_lq, time)
        sums: dict[str, Tensor] = {}
        weight = x_t.new_zeros(1, 1, height, width)
        features = x_t.new_zeros(0)
        for top, bottom in self._spans(height):
            for left, right in self._spans(width):
                part = (..., slice(top, bottom), slice(left, right))
                found = self.network(x_t[part], x_lq[part], time)
                ramp = self._ramp(top, bottom, height, x_t)[:, None] * self._ramp(left, right, width, x_t)
                weight[part] += ramp
                for name in ("residual", "noise"):
                    prediction = getattr(found, name)
                    if prediction is not None:
                        sums.setdefault(name, torch.zeros_like(x_t))[part] += prediction * ramp
        blended = {name: total / weight for name, total in sums.items()}
        return UNetOutput(blended.get("residual"), blended.get("noise"), features)

    def _spans(self, size: int) -> list[tuple[int, int]]:
        """Begin and end of the tiles along one side: as few as cover it, spread evenly."""
        if size <= self.tile:
            return [(0, size)]
        count = -(-(size - self.overlap) // (self.tile - self.overlap))
        starts = [(size - self.tile) * i // (count - 1) for i in range(count)]
        return [(start, start + self.tile) for start in starts]

    def _ramp(self, begin: int, end: int, size: int, like: Tensor) -> Tensor:
        """Weights along a tile: rising over the overlap from each side that is not the image's own."""
        ramp = like.new_ones(end - begin)
        rise = (torch.arange(self.overlap, device=like.device, dtype=like.dtype) + 1) / (self.overlap + 1)
        if begin > 0:
            ramp[: self.overlap] = rise
        if end < size:
            ramp[-self.overlap :] = torch.minimum(ramp[-self.overlap :], rise.flip(0))
        return ramp
