"""How near images are to others: PSNR and SSIM of batches, on their device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5
"""Of SSIM's Gaussian."""
UNIFORM = 7
"""Side of SSIM's window of equal weights."""
LUMA = (65.481, 128.553, 24.966)
"""ITU-R 601 as MATLAB's ``rgb2ycbcr`` has it: black is 16."""


def psnr(images: Tensor, target: Tensor, floor: float = 0.0) -> Tensor:
    """Peak signal to noise ratio in dB, ``[B]``; infinite where both are equal and ``floor`` is 0.

    Args:
        images, target: floating ``[B, C, H, W]`` in [0, 1].
        floor: added to the mean square error; pyiqa has 1e-8, which ends at 80 dB.
    """
    error = (images.double() - target.double()).square().flatten(1).mean(1)
    return -10 * (error + floor).log10()


def luma(images: Tensor) -> Tensor:
    """Y of YCbCr, float64 ``[B, 1, H, W]`` in [16/255, 235/255], not rounded.

    Args:
        images: floating RGB ``[B, 3, H, W]`` in [0, 1].
    """
    weights = torch.tensor(LUMA, dtype=torch.float64, device=images.device).view(1, 3, 1, 1)
    return ((images.double() * weights).sum(1, keepdim=True) + 16) / 255


def ssim(images: Tensor, target: Tensor, window: str = "gaussian", *, clamp: bool = False) -> Tensor:
    """Structural similarity (Wang et al., 2004), ``[B]``: the mean over the windows inside the image, and the channels.

    Args:
        images, target: floating ``[B, C, H, W]`` in [0, 1], as large as the window at least.
        window: ``"gaussian"``: of 11 x 11 pixels and 1.5, the original. ``"uniform"``: of 7 x 7 with sample variances,
            scikit-image's default.
        clamp: count a negative product of contrast and structure as 0, as pyiqa does.

    Raises:
        ValueError: images are smaller than the window, or an unknown one.
    """
    if window not in ("gaussian", "uniform"):
        raise ValueError(f"window must be 'gaussian' or 'uniform', got {window!r}")
    side = WINDOW if window == "gaussian" else UNIFORM
    if min(images.shape[2:]) < side:
        raise ValueError(f"images must have at least {side} x {side} pixels, got {list(images.shape[2:])}")
    x, y = (each.double().flatten(0, 1)[:, None] for each in (images, target))
    at = torch.arange(side, dtype=torch.float64, device=x.device) - side // 2
    weights = torch.exp(-at.square() / (2 * SIGMA**2)) if window == "gaussian" else torch.ones_like(at)
    weights = weights / weights.sum()

    def mean(z: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(z, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))

    sample = 1.0 if window == "gaussian" else side**2 / (side**2 - 1)
    m_x, m_y = mean(x), mean(y)
    v_x, v_y, v_xy = (
        sample * (mean(a * b) - m * n) for a, b, m, n in ((x, x, m_x, m_x), (y, y, m_y, m_y), (x, y, m_x, m_y))
    )
    c_1, c_2 = 0.01**2, 0.03**2
    structure = (2 * v_xy + c_2) / (v_x + v_y + c_2)
    found = (2 * m_x * m_y + c_1) / (m_x.square() + m_y.square() + c_1) * (structure.relu() if clamp else structure)
    return found.flatten(1).mean(1).view(images.shape[:2]).mean(1)
