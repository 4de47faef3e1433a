"""How well the averaged network restores images that it was not trained on: PSNR, SSIM and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bdg_fast.kernels.pixelwise import derived_seeds, image_normals

from ..data.loader import Batch
from ..models import UNet
from ..sampler import ResidualSampler
from .data import degraded_pair
from .ranks import Ranks

TOGETHER = 4
"""Images restored at once."""
WINDOW, SIGMA = 11, 1.5
"""Of SSIM's Gaussian."""
DEGRADED, START = 0, 1
"""What an image's seeds are for."""


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


class Scores(NamedTuple):
    """Of held-out images, means over them."""

    psnr: float  # dB, restored
    ssim: float
    psnr_degraded: float  # dB, of what was to be restored
    picture: Tensor | None  # uint8 [3, H, W]: columns of degraded, restored and clean images


class HeldOut:
    """Held-out images, degraded once and for all, shared out among the ranks.

    Args:
        batch: the images; those without degraded ones are given all degradations in turn.
        names: of the degradations.
        ranks: of the run.
        pictures: how many are shown.
    """

    def __init__(self, batch: Batch, names: Sequence[str], ranks: Ranks, pictures: int) -> None:
        """Degrade them."""
        self.ranks, self.pictures = ranks, pictures
        seeds = derived_seeds(batch.seeds, DEGRADED)
        parts = []
        for row in range(len(seeds)):  # each alone: the same whatever the others
            one = slice(row, row + 1)
            degraded = None if batch.degraded is None else batch.degraded[one]
            alone = Batch(batch.clean[one], degraded, batch.kinds[one], seeds[one], batch.numbers[one])
            parts.append(degraded_pair(alone, seeds[one], ranks.device, names, [names[row % len(names)]]))
        self.clean, self.degraded = (torch.cat([part[i] for part in parts]) for i in range(2))
        self.seeds = derived_seeds(batch.seeds, START).to(ranks.device)

    @torch.no_grad()
    def score(self, network: UNet, sampler: ResidualSampler) -> Scores:
        """Restore all images; every rank has the result, the first one the picture too."""
        number = len(self.clean)
        own = list(range(self.ranks.rank, number, self.ranks.world))
        restored = torch.zeros_like(self.clean)
        for first in range(0, len(own), TOGETHER):
            rows = torch.tensor(own[first : first + TOGETHER], device=self.clean.device)
            x_lq = self.degraded[rows]
            noise = image_normals(self.seeds[rows], x_lq.shape[2], x_lq.shape[3], 0)
            start = sampler.start(x_lq, noise=noise)
            restored[rows] = sampler(network, x_lq, x_start=start, seed=self.seeds[rows] if sampler.draws else None)
        self.ranks.sum(restored)
        clean, degraded, restored = ((x.clamp(-1, 1) + 1) / 2 for x in (self.clean, self.degraded, restored))
        restored = (restored * 255).round() / 255
        shown = min(self.pictures, number)
        picture = None
        if shown and self.ranks.first:
            picture = _grid([x[:shown] for x in (degraded, restored, clean)])
        before, after, alike = psnr(degraded, clean), psnr(restored, clean), ssim(restored, clean)
        restored_to, similarity, degraded_to = (float(x.clamp_max(100).mean()) for x in (after, alike, before))
        return Scores(restored_to, similarity, degraded_to, picture)


def _grid(columns: list[Tensor]) -> Tensor:
    """uint8 ``[3, rows H, columns W]`` of ``[B, 3, H, W]`` in [0, 1], a column each."""
    table = torch.cat([torch.cat(list(column), 1) for column in columns], 2)
    return (table * 255).round().to(torch.uint8).cpu()
