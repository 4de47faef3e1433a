"""The two-order chain of Real-ESRGAN (Wang et al., 2021): blur, resize, noise and JPEG, twice, at random strengths.

Each sample runs through eight states, and is taken at one of them: the state's number is a pseudo-label of how far
degradation of a real picture has come. While it lasts, every sample has a size of its own, in the upper left corner of
a canvas common to all. The last step, as published, brings samples back to their size before JPEG or after it: half of
those of the last state show the blocks of a file as it was written.

What differs from the published code: images are not sharpened first; each step ends clamped to [0, 1]; resizing takes
exact areas, and ratios of whole sizes; bicubic weights beyond the image go to the pixels there are; Poisson noise has
256 photons, whatever the number of levels, of images not rounded; JPEG is that of files, of whole qualities.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bdg_fast.kernels.pixelwise import derived_seeds, image_normals, poisson, uniforms

from .chain_kernels import RADIUS, chain_kernel, sinc_kernel
from .common import Purpose, extended, filtered
from .jpeg import decoded
from .registry import check_batch
from .resize import METHODS, resampler, resized

STATES = 8
"""After blur, resize, noise and JPEG, of the first order and of the second."""
PHOTONS = 256.0
"""Of Poisson noise at white, before it is scaled."""
STEPS = 4
"""Of one order."""


@dataclass(frozen=True, kw_only=True)
class ChainOrder:
    """Ranges and probabilities of one order; the defaults are the published first order's.

    Attributes:
        blur: probability that there is a blur.
        sinc: probability that a blur is a sinc filter.
        sigma: standard deviations of the other blurs, in pixels.
        resize: probabilities of growing and of shrinking; else the size is the original one.
        size: least and largest size, relative to the original one.
        noise: standard deviations of Gaussian noise, in 1/255; half of all noise is Gaussian.
        poisson: scales of Poisson noise of 256 photons, the other half.
        gray: probability that noise is the same in all channels.
        quality: least and largest JPEG quality.
        final: probability of one more sinc filter, before JPEG or after; in the second order where samples have their
            size again.
    """

    blur: float = 1.0
    sinc: float = 0.1
    sigma: tuple[float, float] = (0.2, 3.0)
    resize: tuple[float, float] = (0.2, 0.7)
    size: tuple[float, float] = (0.15, 1.5)
    noise: tuple[float, float] = (1.0, 30.0)
    poisson: tuple[float, float] = (0.05, 3.0)
    gray: float = 0.4
    quality: tuple[float, float] = (30.0, 95.0)
    final: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no probability or no range, by name."""
        for name in ("blur", "sinc", "gray", "final"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a probability, got {getattr(self, name)}")
        if min(self.resize) < 0 or sum(self.resize) > 1:
            raise ValueError(f"resize must be probabilities of sum at most 1, got {self.resize}")
        if not 0 < self.size[0] <= 1 <= self.size[1]:
            raise ValueError(f"size must be a range around 1, above 0, got {self.size}")
        for name, least in (("sigma", 0.05), ("noise", 0), ("poisson", 0), ("quality", 1)):
            low, high = getattr(self, name)
            if not least <= low <= high < math.inf:
                raise ValueError(f"{name} must be a range from at least {least}, got {(low, high)}")
        if self.quality[1] > 100:
            raise ValueError(f"quality must be at most 100, got {self.quality}")


ORDERS = (
    ChainOrder(),
    ChainOrder(
        blur=0.8,
        sigma=(0.2, 1.5),
        resize=(0.3, 0.4),
        size=(0.3, 1.2),
        noise=(1.0, 25.0),
        poisson=(0.05, 2.5),
        final=0.8,
    ),
)
"""The published ranges of both orders."""


class _Canvas(NamedTuple):
    """Samples of their own sizes, whole numbers float32 ``[B]``, each in the upper left corner of its image."""

    images: Tensor
    height: Tensor
    width: Tensor


@torch.no_grad()
def two_order_chain(
    images: Tensor, seeds: Tensor, states: Tensor | None = None, orders: tuple[ChainOrder, ChainOrder] = ORDERS
) -> tuple[Tensor, Tensor]:
    """Batch through the chain, each sample taken at one of its eight states and brought back to its size.

    What is random in a sample depends on its own seed and size alone.

    Args:
        images: float32 ``[B, 3, H, W]`` in [0, 1], on any device.
        seeds: int64 ``[B]``.
        states: int64 ``[B]`` in 0..7: after which step each is taken (blur, resize, noise, JPEG; blur, ...); drawn
            evenly from the seeds if not given. On a GPU they are not checked: beyond 7, a sample stays what it was.
        orders: ranges of both orders.

    Returns:
        float32 ``[B, 3, H, W]``, multiples of 1/255 in [0, 1], and the states.

    Raises:
        TypeError, ValueError: a bad argument, by name.
    """
    check_batch(images, seeds)
    seeds = seeds.to(images.device)
    if states is None:
        first = uniforms(derived_seeds(seeds, STATES), 1, Purpose.CHAIN)[:, 0, 0]
        states = (first * STATES).to(torch.int64)
    elif states.dtype != torch.int64 or states.shape != seeds.shape:
        raise ValueError(f"states must be int64 [{len(images)}], got {states.dtype} {list(states.shape)}")
    elif states.device.type == "cpu" and bool(((states < 0) | (states >= STATES)).any()):
        raise ValueError(f"states must be in 0..{STATES - 1}, got {states.tolist()}")
    if len(images) == 0:
        return images.clone(), states
    states = states.to(images.device)
    height, width = images.shape[2:]
    most = max(order.size[1] for order in orders)
    full_height, full_width = (torch.full_like(seeds, size, dtype=torch.float32) for size in (height, width))
    canvas = images.new_zeros(len(images), 3, math.ceil(height * most), math.ceil(width * most))
    canvas[:, :, :height, :width] = images
    now = _Canvas(canvas, full_height, full_width)
    taken = now
    for state in range(STATES):
        order, own = orders[state // STEPS], derived_seeds(seeds, state)
        draw = uniforms(own, 3, Purpose.CHAIN).flatten(1).view(-1, 12, 1, 1).unbind(1)  # twelve of [B, 1, 1]
        if state % STEPS == 0:
            now = _blurred(now, chain_kernel(draw, order.blur, order.sinc, order.sigma))
        elif state % STEPS == 1:
            now = _scaled(now, draw, order, full_height, full_width)
        elif state % STEPS == 2:
            now = _noisy(now, draw, order, own)
        else:
            now = _compressed(now, draw, order, (full_height, full_width) if state == STATES - 1 else None)
        taken = _chosen(states == state, now, taken)
    rows = resampler(taken.height, full_height, canvas.shape[2], height)
    columns = resampler(taken.width, full_width, canvas.shape[3], width)
    return (resized(taken.images, rows, columns).clamp(0, 1) * 255).round() / 255, states


def mirrored(canvas: Tensor, height: Tensor, width: Tensor, margin: int) -> Tensor:
    """Every sample continued by its mirror images, without its last row and column, and so for ``margin`` more pixels.

    As often as it takes: of a sample of three pixels, ``abc``, to ``...cbabcbabc...``.
    """
    found = canvas
    for dim, size in ((2, height), (3, width)):
        last = size.view(-1, 1).long() - 1
        at = torch.arange(-margin, canvas.shape[dim] + margin, device=canvas.device).abs() % (2 * last).clamp_min(1)
        index = at.minimum(2 * last - at).clamp_min(0)
        shape = [len(canvas), 3, -1, found.shape[3]] if dim == 2 else [len(canvas), 3, found.shape[2], -1]
        index = index[:, None, :, None] if dim == 2 else index[:, None, None, :]
        found = found.gather(dim, index.expand(shape))
    return found


def _blurred(now: _Canvas, kernel: Tensor) -> _Canvas:
    images = filtered(mirrored(*now, RADIUS), kernel, None).clamp(0, 1)
    return now._replace(images=images)


def _chosen(which: Tensor, first: _Canvas, second: _Canvas) -> _Canvas:
    """Samples of ``first`` where ``which [B]`` is true, else of ``second``."""
    return _Canvas(
        *(torch.where(which.view(-1, *[1] * (x.ndim - 1)), x, y) for x, y in zip(first, second, strict=True))
    )


def _scaled(now: _Canvas, draw: tuple[Tensor, ...], order: ChainOrder, height: Tensor, width: Tensor) -> _Canvas:
    """Another size of each sample, relative to the original ``height`` and ``width``, by a method of its own."""
    (low, high), (grow, shrink) = order.size, order.resize
    way, share, which = (number.view(-1) for number in draw[:3])
    scale = torch.where(way < grow, 1 + (high - 1) * share, 1.0)
    scale = torch.where((way >= grow) & (way < grow + shrink), low + (1 - low) * share, scale)
    return _of_size(now, which, *((size * scale).floor().clamp_min(1) for size in (height, width)))


def _of_size(now: _Canvas, which: Tensor, height: Tensor, width: Tensor) -> _Canvas:
    """Samples of sizes ``height`` and ``width [B]``, by methods, equally likely, that the numbers ``which [B]`` say."""
    chosen = (which * len(METHODS)).long().clamp_max(len(METHODS) - 1)
    axes = []
    for before, after, most in zip((now.height, now.width), (height, width), now.images.shape[2:], strict=True):
        axes.append(resampler(before, after, most, most, chosen))
    return _Canvas(resized(now.images, axes[0], axes[1]).clamp(0, 1), height, width)


def _noisy(now: _Canvas, draw: tuple[Tensor, ...], order: ChainOrder, seeds: Tensor) -> _Canvas:
    """Gaussian noise or Poisson's, in colour or gray."""
    kind, strength, gray = (number.view(-1, 1, 1, 1) for number in draw[:3])
    images = now.images
    normal = image_normals(seeds, images.shape[2], images.shape[3], Purpose.NOISE)
    normal = torch.where(gray < order.gray, normal[:, :1], normal)
    weights = images.new_tensor((0.299, 0.587, 0.114)).view(1, 3, 1, 1)
    bright = torch.where(gray < order.gray, (images * weights).sum(1, keepdim=True), images)
    (low, high), (least, most) = order.noise, order.poisson
    gaussian = (low + (high - low) * strength) / 255 * normal
    shot = (poisson(bright * PHOTONS, normal) / PHOTONS - bright) * (least + (most - least) * strength)
    return now._replace(images=(images + torch.where(kind < 0.5, gaussian, shot)).clamp(0, 1))


def _compressed(
    now: _Canvas, draw: tuple[Tensor, ...], order: ChainOrder, back: tuple[Tensor, Tensor] | None
) -> _Canvas:
    """JPEG. Before it or after, at even chances: the sizes ``back [B]`` if they are given, and a last sinc filter."""
    low, high = order.quality
    level = 100 - (low + (high - low) * draw[0].view(-1))

    def coded(canvas: _Canvas) -> _Canvas:
        return canvas._replace(images=decoded(extended(*canvas), level, canvas.height, canvas.width))

    if back is None and order.final == 0:
        return coded(now)
    kernel = sinc_kernel(draw[1], draw[2], draw[3] < order.final)
    before = draw[4].view(-1) < 0.5

    def finished(canvas: _Canvas) -> _Canvas:
        return _blurred(canvas if back is None else _of_size(canvas, draw[5].view(-1), *back), kernel)

    found = coded(_chosen(before, finished(now), now))
    return _chosen(before, found, finished(found))
