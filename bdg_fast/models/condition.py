"""What a conditional network is told of an image's degradation: features of its fingerprint.

The published network sees the degraded image alone; only its inner features are aligned with fingerprints. In a short
training it does not find out what is wrong with an image (benchmarks/notes.md): a fingerprint tells at once.
"""

from __future__ import annotations

from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdg_fast.kernels.mas_glcm import mas_glcm

from .glcm_encoder import Fingerprint, GLCMEncoder

WINDOW = 64
"""Side of what a fingerprint is read of, in pixels."""
TOGETHER = 128
"""Windows read at once, at most, unless there are more images."""


class Condition(nn.Module):
    """Fingerprints of an image to features; these to what is added to the time.

    Args:
        width: of the features.
        time_width: of the embedding of times.
        residual: read the matrix of the high-pass residual too.
    """

    def __init__(self, width: int, time_width: int, residual: bool = True) -> None:
        """Random weights."""
        super().__init__()
        self.fingerprint = Fingerprint(residual=residual)
        self.encoder = GLCMEncoder(self.fingerprint.levels, self.fingerprint.channels, width)
        self.embed = nn.Linear(width, time_width)

    def features(self, images: Tensor) -> Tensor:
        """Features of degraded images, which tell how they are degraded: the mean over windows of 64 x 64 pixels.

        Windows cover an image evenly, so that what is read is of the size that the network was trained on: a
        fingerprint of more pixels is sharper, and mild noise was taken for a dark scene's (benchmarks/notes.md).

        Args:
            images: ``[B, 3, H, W]`` of any size, floating in [-1, 1], or uint8.

        Returns:
            ``[B, width]``.
        """
        batch, _, height, width = images.shape
        tops, lefts = _starts(height), _starts(width)
        rows = (images[:, :, top : top + WINDOW] for top in tops)
        windows = (row[..., left : left + WINDOW] for row in rows for left in lefts)
        some = max(TOGETHER // max(batch, 1), 1)
        total: Tensor | None = None
        while part := list(islice(windows, some)):  # large pictures are not held twice
            found = self.encoder(self._matrices(torch.cat(part))).unflatten(0, (len(part), batch)).sum(0)
            total = found if total is None else total + found
        assert total is not None
        return total / (len(tops) * len(lefts))

    @torch.no_grad()
    def _matrices(self, windows: Tensor) -> Tensor:
        if windows.dtype != torch.uint8:
            matrices: Tensor = self.fingerprint(windows)
            return matrices
        gray = mas_glcm(windows)
        if self.fingerprint.residual is None:
            return gray
        return torch.stack((gray, mas_glcm(windows, source="laplacian", quantizer="companded")), 1)

    def forward(self, features: Tensor) -> Tensor:
        """``[B, width]`` to ``[B, time_width]``."""
        found: Tensor = self.embed(F.gelu(features.to(self.embed.weight.dtype)))
        return found


def _starts(size: int) -> list[int]:
    """Where the windows along a side of an image begin: as few as cover it, spread evenly."""
    count = -(-size // WINDOW)
    return [(size - WINDOW) * i // (count - 1) for i in range(count)] if count > 1 else [0]
