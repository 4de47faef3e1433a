"""How near images are to others: PSNR and SSIM of batches, on their device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5
"""Of SSIM's Gaussian."""


def psnr(images: Tensor, target: Tensor) -> Tensor:
    """Peak signal to noise ratio in dB, ``[B]``; infinite where both are equal.

    Args:
        images, target: floating ``[B, C, H, W]`` in [0, 1].
    """
    error = (images.double() - target.double()).square().flatten(1).mean(1)
    return -10 * error.log10()


def ssim(images: Tensor, target: Tensor) -> Tensor:
    """Structural similarity (Wang et al., 2004), ``[B]``: a Gaussian window of 11 and 1.5, the mean of the channels'.

    Args:
        images, target: floating ``[B, C, H, W]`` in [0, 1], of 11 x 11 pixels at least.

    Raises:
        ValueError: they are smaller.
    """
    if min(images.shape[2:]) < WINDOW:
        raise ValueError(f"images must have at least {WINDOW} x {WINDOW} pixels, got {list(images.shape[2:])}")
    x, y = (each.double().flatten(0, 1)[:, None] for each in (images, target))
    at = torch.arange(WINDOW, dtype=torch.float64, device=x.device) - WINDOW // 2
    window = torch.exp(-at.square() / (2 * SIGMA**2))
    window = window / window.sum()

    def mean(z: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(z, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1))

    m_x, m_y = mean(x), mean(y)
    v_x, v_y, v_xy = mean(x * x) - m_x * m_x, mean(y * y) - m_y * m_y, mean(x * y) - m_x * m_y
    c_1, c_2 = 0.01**2, 0.03**2
    found = (2 * m_x * m_y + c_1) * (2 * v_xy + c_2) / ((m_x.square() + m_y.square() + c_1) * (v_x + v_y + c_2))
    return found.flatten(1).mean(1).view(images.shape[:2]).mean(1)
