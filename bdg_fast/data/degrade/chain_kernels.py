"""Blur kernels of the two-order chain: Gaussian, generalized Gaussian, plateau, and sinc, of 7 to 21 pixels.

With ``q`` the squared distance in standard deviations along both axes: ``exp(-q / 2)``, ``exp(-q^beta / 2)`` and
``1 / (1 + q^beta)``. Sinc is the low pass of cut-off ``w`` whatever the direction, ``w J1(w r) / (2 pi r)``, with ``w``
up to pi, from pi/3 in kernels below 13 pixels and in the last filter, and from pi/5 in other kernels.
Numbers are uniform in [0, 1), ``[B, 1, 1]`` each, like all results ``[B, 1, 1]`` or ``[B, 21, 21]``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .common import offsets, sent

RADIUS = 10
RADII = (3, 10)
SHARES = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
"""Of Gaussians, generalized ones and plateaus, round and oblong each."""
GENERALIZED, PLATEAU = (0.5, 4.0), (1.0, 2.0)
"""Exponents: one half of them up to 1, one half from there."""


def chain_kernel(draw: tuple[Tensor, ...], blur: float, sinc: float, sigma: tuple[float, float]) -> Tensor:
    """A kernel of sum 1 for each sample, of twelve numbers; the identity with probability ``1 - blur``."""
    kind, shape, size, first, second, turn, half, power, cut, whether, *_ = draw
    radius = _radius(size)
    wide = sigma[0] + (sigma[1] - sigma[0]) * first
    limits = sent(torch.tensor(SHARES).cumsum(0)[:-1], kind.device)
    which = torch.bucketize(shape.contiguous(), limits, right=True)  # 0..5
    tall = torch.where(which % 2 == 1, sigma[0] + (sigma[1] - sigma[0]) * second, wide)
    q = _distance(wide, tall, math.pi * (2 * turn - 1))
    gaussian = torch.exp(-q / 2)
    generalized = torch.exp(-(q ** _power(half, power, GENERALIZED)) / 2)
    plateau = 1 / (1 + q ** _power(half, power, PLATEAU))
    kernel = torch.where(which < 2, gaussian, torch.where(which < 4, generalized, plateau))
    least = torch.where(radius < 6, math.pi / 3, math.pi / 5)  # large kernels show what lower cut-offs do
    kernel = torch.where(kind < sinc, _sinc(least, cut), kernel)
    return _finished(kernel, radius, whether < blur)


def sinc_kernel(size: Tensor, cut: Tensor, present: Tensor) -> Tensor:
    """The last sinc filter, of sum 1 for each sample, of two numbers; the identity where it is not ``present``.

    Its cut-offs are from pi/3 whatever its size, as published.
    """
    return _finished(_sinc(torch.full_like(cut, math.pi / 3), cut), _radius(size), present)


def _radius(size: Tensor) -> Tensor:
    return (RADII[0] + (RADII[1] + 1 - RADII[0]) * size).floor()


def _power(half: Tensor, power: Tensor, limits: tuple[float, float]) -> Tensor:
    low, high = limits
    return torch.where(half < 0.5, low + (1 - low) * power, 1 + (high - 1) * power)


def _distance(wide: Tensor, tall: Tensor, angle: Tensor) -> Tensor:
    """Squared, in standard deviations ``wide`` along ``angle`` and ``tall`` across."""
    at = offsets(RADIUS, wide.device)
    y, x = at[:, None], at[None, :]
    along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    return (along / wide) ** 2 + (across / tall) ** 2


def _sinc(least: Tensor, cut: Tensor) -> Tensor:
    """Cut-offs from ``least`` up to pi."""
    w = least + (math.pi - least) * cut
    at = offsets(RADIUS, cut.device)
    r = (at[:, None] ** 2 + at[None, :] ** 2).sqrt()
    beyond = w * torch.special.bessel_j1(w * r) / (2 * math.pi * r.clamp_min(1))
    return torch.where(r == 0, w**2 / (4 * math.pi), beyond)


def _finished(kernel: Tensor, radius: Tensor, present: Tensor) -> Tensor:
    at = offsets(RADIUS, kernel.device).abs()
    kernel = kernel * (torch.maximum(at[:, None], at[None, :]) <= radius)
    middle = (torch.maximum(at[:, None], at[None, :]) == 0).to(kernel.dtype)
    return torch.where(present, kernel / kernel.sum((1, 2), keepdim=True), middle)
