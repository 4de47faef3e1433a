"""Random numbers for whoever is no kernel: functions of a sample's seed alone, by the Philox of ``reference``.

On GPUs each is one launch, by Triton if it is installed. Uniform numbers and seeds are the same bits everywhere, and
normals agree to 1e-6 and a rounding.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from . import reference
from .reference import WORD, normals, philox
from .spec import DRAW_STREAM, SEED_STREAM

REACH = 2**31
"""Of 32-bit positions."""


def uniforms(seed: Tensor, count: int, purpose: int) -> Tensor:
    """Uniform numbers in [0, 1), of 24 bits.

    Args:
        seed: int64 ``[B]``.
        count: how many fours of numbers.
        purpose: in 0..2^32 - 1; another one draws other numbers from the same seed.

    Returns:
        float32 ``[B, 4, count]``.
    """
    if _one_launch(seed, 4 * count):
        from . import triton_draws

        return triton_draws.uniforms(seed, count, purpose)
    index = torch.arange(count, device=seed.device)
    return torch.stack(
        [(word >> 8).to(torch.float32) * 2.0**-24 for word in _words(seed, index, purpose, DRAW_STREAM)], 1
    )


def image_normals(seed: Tensor, height: int, width: int, purpose: int, channels: int = 3) -> Tensor:
    """Standard normals float32 ``[B, channels, height, width]``; ``seed``, ``purpose`` as for :func:`uniforms`."""
    if _one_launch(seed, channels * height * width):
        from . import triton_draws

        return triton_draws.image_normals(seed, height, width, purpose, channels)
    return normals(seed, height, width, purpose, DRAW_STREAM, channels)


def derived_seeds(seed: Tensor, number: int) -> Tensor:
    """Seeds int64 ``[B]`` for the ``number``-th of several uses that would draw the same from ``seed [B]``."""
    if _one_launch(seed, 1):
        from . import triton_draws

        return triton_draws.derived_seeds(seed, number)
    high, low, _, _ = _words(seed, torch.zeros(1, dtype=torch.int64, device=seed.device), number, SEED_STREAM)
    return (high[:, 0] << 32) | low[:, 0]


def poisson(mean: Tensor, normal: Tensor) -> Tensor:
    """Poisson numbers of ``mean`` >= 0 from standard normals: the quantile of the same rank.

    Args:
        mean: float32 of any shape, not negative.
        normal: float32 of the same shape, as of :func:`image_normals`.

    Returns:
        float32, whole numbers. On a GPU now and then the next one: sums of probabilities round differently.
    """
    if mean.is_cuda and mean.dtype == normal.dtype == torch.float32 and mean.numel() < REACH and _has_triton():
        from . import triton_draws

        return triton_draws.poisson(mean, normal)
    return reference.poisson(mean, normal)


def _one_launch(seed: Tensor, numbers: int) -> bool:
    """Whether a kernel draws, so many numbers of each seed."""
    return seed.is_cuda and seed.ndim == 1 and numbers < REACH and _has_triton()


@cache
def _has_triton() -> bool:
    return torch.cuda.is_available() and find_spec("triton") is not None


def _words(seed: Tensor, index: Tensor, step: int, stream: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four words of 32 bits, int64 ``[B, count]`` each."""
    key = (seed[:, None] & WORD, (seed[:, None] >> 32) & WORD)
    counter = (index & WORD, index >> 32, torch.full_like(index, step), torch.full_like(index, stream))
    return philox(counter, key)
