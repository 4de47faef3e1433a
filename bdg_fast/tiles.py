"""Large images tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .backends import Conditional, Network
from .models import UNetOutput

OVERLAP = 64
"""Pixels that neighbouring tiles share."""
STEP = 16
"""What tiles' sides are multiples of, where the largest one allows it: networks continue others to one."""
STRIP = 64
"""Rows that are given at once."""
Progress = Callable[[int, int], object]
"""Of evaluations of a network: how many are done, and how many there are."""
Part = Callable[[int, int, int, int], Tensor]
"""Images ``[B, 3, bottom - top, right - left]`` within ``top, bottom, left, right`` of larger ones."""


class TiledNetwork:
    """A network evaluated tile by tile, its predictions blended where tiles overlap.

    Blending in every step, rather than of finished tiles, leaves no seam: all tiles continue from the same image.
    """

    def __init__(self, network: Network, tile: int, overlap: int = OVERLAP) -> None:
        """Tiles of at most ``tile x tile`` pixels, more than twice ``overlap``."""
        if tile <= 2 * overlap:
            raise ValueError(f"tile must be more than twice the overlap of {overlap} pixels, got {tile}")
        self.network, self.tile, self.overlap = network, tile, overlap

    def __call__(self, x_t: Tensor, x_lq: Tensor, time: Tensor) -> UNetOutput:
        """As the network; without features."""
        height, width = x_t.shape[2:]
        if height <= self.tile and width <= self.tile:
            return self.network(x_t, x_lq, time)
        strips = self.strips(iter([x_t]), lambda a, b, c, d: x_lq[:, :, a:b, c:d], time, (height, width))
        residuals, noises = zip(*((found.residual, found.noise) for _, found in strips), strict=True)
        residual, noise = (None if parts[0] is None else torch.cat(parts, 2) for parts in (residuals, noises))
        return UNetOutput(residual, noise, x_t.new_zeros(0))

    def strips(
        self, x_t: Iterator[Tensor], x_lq: Part, time: Tensor, size: tuple[int, int]
    ) -> Iterator[tuple[Tensor, UNetOutput]]:
        """Predictions of a few rows at a time, from the top; only those of a tile's height are held.

        Args:
            x_t: rows ``[B, 3, h, W]`` from the top, any number at a time.
            x_lq: parts of the degraded images.
            time: ``[B]``.
            size: height and width of the whole.

        Yields:
            Rows of ``x_t`` and what is predicted of them, valid until the next are asked for.
        """
        height, width = size
        rows = _Rows(x_t)
        spans = self._spans(height)
        band = spans[0][1]
        x = rows.first.new_empty(*rows.first.shape[:2], band, width)
        weight = x.new_zeros(1, 1, band, width)
        sums: dict[str, Tensor] = {}
        kept = 0  # rows of the band that tiles above have seen, too
        for number, (top, bottom) in enumerate(spans):
            rows.into(x[:, :, kept:])
            for left, right in self._spans(width):
                part = (..., slice(left, right))
                found = self.network(x[part], x_lq(top, bottom, left, right), time)
                ramp = self._ramp(top, bottom, height, x)[:, None] * self._ramp(left, right, width, x)
                weight[part] += ramp
                for name in ("residual", "noise"):
                    prediction = getattr(found, name)
                    if prediction is not None:
                        sums.setdefault(name, torch.zeros_like(x))[part] += prediction * ramp
            done = (spans[number + 1][0] if number + 1 < len(spans) else height) - top
            for begin in range(0, done, STRIP):
                strip = slice(begin, min(begin + STRIP, done))
                blended = {name: total[:, :, strip] / weight[:, :, strip] for name, total in sums.items()}
                yield x[:, :, strip], UNetOutput(blended.get("residual"), blended.get("noise"), x.new_zeros(0))
            kept = band - done
            for held in (x, weight, *sums.values()):
                held[:, :, :kept] = held[:, :, done:].clone()
                held[:, :, kept:] = 0

    def evaluations(self, height: int, width: int) -> int:
        """How many tiles images of this size have."""
        return len(self._spans(height)) * len(self._spans(width))

    def _spans(self, size: int) -> list[tuple[int, int]]:
        return spans(size, self.tile, self.overlap, STEP)

    def _ramp(self, begin: int, end: int, size: int, like: Tensor) -> Tensor:
        return ramp(begin, end, size, self.overlap, like)


def spans(size: int, tile: int, overlap: int, step: int = 1) -> list[tuple[int, int]]:
    """Begin and end of the tiles along one side: few, of one size, that share ``overlap`` or little more.

    Tiles of ``tile`` pixels would share what they do not need: two of 1024 in an image of 1025 all but one.

    Args:
        size: of the side.
        tile: largest tile.
        overlap: least that neighbours share, below ``tile``.
        step: tiles are multiples of it, unless that is more than ``tile``.
    """
    if size <= tile:
        return [(0, size)]
    count = -(-(size - overlap) // (tile - overlap))
    tile = min(tile, -(-(size + (count - 1) * overlap) // (count * step)) * step)
    starts = [(size - tile) * i // (count - 1) for i in range(count)]
    return [(start, start + tile) for start in starts]


def ramp(begin: int, end: int, size: int, overlap: int, like: Tensor) -> Tensor:
    """Weights along a tile: rising over the overlap from each side that is not the image's own."""
    weights = like.new_ones(end - begin)
    rise = (torch.arange(overlap, device=like.device, dtype=like.dtype) + 1) / (overlap + 1)
    if begin > 0:
        weights[:overlap] = rise
    if end < size:
        weights[-overlap:] = torch.minimum(weights[-overlap:], rise.flip(0))
    return weights


class Counted:
    """A network that tells ``progress`` of its evaluations when they are done; what that raises ends the work."""

    def __init__(self, network: Conditional, progress: Progress) -> None:
        self.network, self.progress = network, progress
        self.done = self.total = 0

    def begin(self, total: int) -> None:
        """``total`` evaluations are to come."""
        self.done, self.total = 0, total
        self.progress(0, total)

    def __call__(self, x_t: Tensor, x_lq: Tensor, time: Tensor, condition: Tensor | None = None) -> UNetOutput:
        """As the network."""
        found = self.network(x_t, x_lq, time, condition)
        if x_t.is_cuda:  # else what is told runs ahead of what is done
            torch.cuda.synchronize(x_t.device)
        self.done += 1
        self.progress(self.done, self.total)
        return found


class _Rows:
    """Rows that come in pieces ``[B, 3, h, W]``."""

    def __init__(self, pieces: Iterator[Tensor]) -> None:
        self._pieces = pieces
        self.first = self._left = next(pieces)

    def into(self, target: Tensor) -> None:
        """Fill ``target`` with the next."""
        filled = 0
        while filled < target.shape[2]:
            if self._left.shape[2] == 0:
                self._left = next(self._pieces)
            piece = self._left[:, :, : target.shape[2] - filled]
            target[:, :, filled : filled + piece.shape[2]] = piece
            filled += piece.shape[2]
            self._left = self._left[:, :, piece.shape[2] :]
