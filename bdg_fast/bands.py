"""Large pictures from top to bottom: what is alive at once grows with their width, not with their pixels.

A step of a tile needs but its rows of the step before. So each step is a generator that takes rows from the one
before and gives its own as soon as no later tile adds to them; the first takes noise that is drawn as it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .sampler import ResidualSampler
from .tiles import STRIP, Part, TiledNetwork

Keep = Callable[[Tensor], Tensor]
"""Of rows of results, what is kept of them: `bdg_fast.data.convert.Picture.kept`."""
BLOCK = 1 << 20
"""Numbers drawn at once; a multiple of 16, by which PyTorch makes normals of uniform numbers."""


def restored_rows(
    sampler: ResidualSampler, network: TiledNetwork, x_lq: Part, noise: Iterator[Tensor], size: tuple[int, int]
) -> Iterator[Tensor]:
    """What ``sampler``, one that draws nothing between steps, makes of a picture; to the bit that of the whole.

    Args:
        sampler: of the steps.
        network: with its tiles.
        x_lq: parts of the degraded images, float ``[B, 3, h, w]`` in [-1, 1].
        noise: rows of the start's standard noise ``[1, 3, h, W]``, from the top.
        size: height and width of the whole.

    Yields:
        Rows of the restored images in [-1, 1], ``[B, 3, h, W]``, from the top.
    """
    rows = _started(sampler, x_lq, noise, size[1])
    for index in range(sampler.steps):
        rows = _stepped(sampler, network, index, rows, x_lq, size)
    return rows


def _started(sampler: ResidualSampler, x_lq: Part, noise: Iterator[Tensor], width: int) -> Iterator[Tensor]:
    top = 0
    for z in noise:
        bottom = top + z.shape[2]
        yield sampler.start(x_lq(top, bottom, 0, width), noise=z)
        top = bottom


def _stepped(
    sampler: ResidualSampler,
    network: TiledNetwork,
    index: int,
    rows: Iterator[Tensor],
    x_lq: Part,
    size: tuple[int, int],
) -> Iterator[Tensor]:
    """Rows of ``x_s``, of those of ``x_t``."""
    pixel = x_lq(0, 1, 0, 1)
    time = sampler.network_times(pixel.device)[index].expand(len(pixel))
    top = 0
    for x_t, found in network.strips(rows, x_lq, time, size):
        bottom = top + x_t.shape[2]
        yield sampler.step(index, x_t, x_lq(top, bottom, 0, size[1]), found)
        top = bottom


def scaled(pixels: Tensor) -> Tensor:
    """Float32 in [-1, 1], of floating ``pixels`` in [0, 1] or uint8."""
    plain = pixels.to(torch.float32, memory_format=torch.contiguous_format)
    if pixels.dtype == torch.uint8:
        plain = plain / plain.new_full((), 255)  # by a number of the host, GPUs multiply by its rounded reciprocal
    return plain * 2 - 1


def gathered(
    pieces: Iterator[Tensor], height: int, keep: Keep | None, order: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """Rows ``[B, C, h, W]``, or what ``keep`` makes of them, as one tensor ``[B, C, height, W]`` in ``order``."""
    whole: Tensor | None = None
    top = 0
    for piece in pieces:
        rows = piece if keep is None else keep(piece)
        if whole is None:
            shape = (*rows.shape[:2], height, rows.shape[3])
            whole = torch.empty(shape, dtype=rows.dtype, device=rows.device, memory_format=order)
        whole[:, :, top : top + rows.shape[2]] = rows
        top += rows.shape[2]
    assert whole is not None
    return whole


def noise_rows(seed: int, size: tuple[int, int]) -> Iterator[Tensor]:
    """Rows ``[1, 3, h, W]`` of what ``torch.randn((1, 3, H, W))`` draws on the CPU with ``seed``, to the bit."""
    height, width = size
    channels = [_Normals(seed, 3 * height * width, channel * height * width) for channel in range(3)]
    for top in range(0, height, STRIP):
        rows = min(STRIP, height - top)
        yield torch.stack([channel.take(rows * width).view(rows, width) for channel in channels])[None]


class _Normals:
    """The numbers of one ``torch.randn(total)`` from number ``begin`` on, some at a time."""

    def __init__(self, seed: int, total: int, begin: int) -> None:
        self._generator = torch.Generator("cpu").manual_seed(seed)
        self._undrawn = total
        self._drawn = torch.empty(0, device="cpu")
        while begin:
            begin -= len(self.take(min(begin, BLOCK)))

    def take(self, count: int) -> Tensor:
        """The next ``count``."""
        while len(self._drawn) < count:
            # the last numbers are drawn twice where they are no multiple of 16: never less than a block
            block = BLOCK if self._undrawn >= 2 * BLOCK else self._undrawn
            self._drawn = torch.cat([self._drawn, torch.randn(block, generator=self._generator, device="cpu")])
            self._undrawn -= block
        taken, self._drawn = self._drawn[:count], self._drawn[count:]
        return taken
