"""Colours of the degraded image for the restored one, which a VAE shifts: statistics, or low frequencies.

adain      every channel gets the mean and the standard deviation of the degraded image's
wavelet    what is coarser than some 32 pixels is the degraded image's
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

COLOURS = ("none", "adain", "wavelet")
LEVELS = 5
"""Of the wavelet: blurs by 1, 2, ... 16 pixels, one after the other."""


def corrected(restored: Tensor, degraded: Tensor, colour: str) -> Tensor:
    """``restored`` with the colours of ``degraded``.

    Args:
        restored, degraded: float ``[B, 3, H, W]`` in [-1, 1].
        colour: one of :data:`COLOURS`.
    """
    if colour == "none":
        return restored
    if colour == "wavelet":
        return restored - low(restored) + low(degraded)
    (mean, std), (wanted_mean, wanted_std) = _statistics(restored), _statistics(degraded)
    return (restored - mean) * (wanted_std / std) + wanted_mean


def low(images: Tensor) -> Tensor:
    """Low frequencies of ``[B, C, H, W]``: binomial blurs of three taps with 1, 2, ... pixels between them."""
    taps = images.new_tensor([0.25, 0.5, 0.25])
    for level in range(LEVELS):
        apart = 2**level
        for dim, pad in ((2, (0, 0, apart, apart)), (3, (apart, apart, 0, 0))):
            x, size = F.pad(images, pad, mode="replicate"), images.shape[dim]
            images = sum((x.narrow(dim, k * apart, size) * taps[k] for k in (1, 2)), x.narrow(dim, 0, size) * taps[0])
    return images


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    std, mean = torch.std_mean(images, (2, 3), correction=0, keepdim=True)
    return mean, std + 1e-5
