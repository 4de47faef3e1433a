"""The specification of the noise: Philox-4x32-10 (Salmon et al., 2011), then Box and Muller.

The key is an image's 64-bit seed; the counter is ``(p mod 2^32, p >> 32, step, stream)`` of the pixel ``p = y W + x``.
The four words of a block become four normals, of which the first three are the pixel's channels; latents take as many
as they have, each four further ones from a block with 256 more in the counter's last word. So the noise of an image
depends on its seed, size and step alone: not on memory format, batch, launch or device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .spec import FEW, LAST_RANK, MOST

WORD = 0xFFFFFFFF
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
WITHOUT_FLOAT64 = ("mps",)
"""Devices whose normals are computed on the CPU, so that they are everybody's."""

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """One block of four random 32-bit words; all tensors int64 in ``0..2^32 - 1``, broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # products wrap around at 64 bits: their words are right whatever the sign
        low, high = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c2 = (high >> 32) & WORD ^ c1 ^ k0, (low >> 32) & WORD ^ c3 ^ k1
        c1, c3 = high & WORD, low & WORD
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD, (k1 + KEY_STEPS[1]) & WORD
    return c0, c1, c2, c3


def box_muller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two standard normals, float32, of two words: at most 6.8 in size.

    ``sqrt(-2 ln u) (cos, sin)(2 pi second / 2^32)`` with ``u = first / 2^32 + 2^-33`` rounded to float32.
    """
    device = first.device
    if device.type in WITHOUT_FLOAT64:
        first, second = first.cpu(), second.cpu()
    u = first.to(torch.float32) * 2.0**-32 + 2.0**-33
    radius = (-2 * u.to(torch.float64).log()).sqrt()
    angle = second.to(torch.float64) * (2 * math.pi / 2**32)
    cosine, sine = (radius * angle.cos()).to(torch.float32), (radius * angle.sin()).to(torch.float32)
    return cosine.to(device), sine.to(device)


def normals(seed: Tensor, height: int, width: int, step: Tensor | int, stream: int, channels: int = 3) -> Tensor:
    """Standard noise float32 ``[B, channels, height, width]`` of the seeds, int64 ``[B]``."""
    pixel = torch.arange(height * width, device=seed.device)
    key = (seed[:, None] & WORD, (seed[:, None] >> 32) & WORD)
    drawn: list[Tensor] = []
    for group in range(-(-channels // 4)):
        last = torch.full_like(pixel, stream + (group << 8))
        a, b, c, d = philox((pixel & WORD, pixel >> 32, torch.zeros_like(pixel) + step & WORD, last), key)
        drawn += [*box_muller(a, b), *box_muller(c, d)]
    return torch.stack(drawn[:channels], 1).view(seed.shape[0], channels, height, width)


def poisson(mean: Tensor, normal: Tensor) -> Tensor:
    """Poisson numbers of ``mean`` >= 0 from standard normals: the quantile of the same rank, whole numbers in float32.

    Small means count the distribution up; large ones take the first terms of its expansion in ``1 / sqrt(mean)``
    (Cornish and Fisher), less the variance 1/12 that rounding to whole numbers adds.
    """
    small = mean.clamp_max(FEW)
    rank = (0.5 * torch.erfc(-normal / math.sqrt(2))).clamp_max(LAST_RANK)
    probability = torch.exp(-small)
    below, count = probability.clone(), torch.zeros_like(mean)
    for k in range(1, MOST + 1):
        count += rank > below
        probability = probability * (small / k)
        below += probability
    great = mean.clamp_min(FEW)
    skewed = (normal**2 - 1) / 6 + normal * (1 - normal**2) / (72 * great.sqrt())
    large = (great + (great - 1 / 12).sqrt() * normal + skewed).round().clamp_min(0)
    return torch.where(mean <= FEW, count, large)
