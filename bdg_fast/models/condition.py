"""What a conditional network is told of an image's degradation: features of its fingerprint.

The published network sees the degraded image alone; only its inner features are aligned with fingerprints. In a short
training it does not find out what is wrong with an image (benchmarks/notes.md): a fingerprint tells at once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdg_fast.kernels.mas_glcm import mas_glcm

from .glcm_encoder import Fingerprint, GLCMEncoder


class Condition(nn.Module):
    """Fingerprint of a whole image, gray and residual as published, to features; these to what is added to the time.

    Args:
        width: of the features.
        time_width: of the embedding of times.
    """

    def __init__(self, width: int, time_width: int) -> None:
        """Random weights."""
        super().__init__()
        self.fingerprint = Fingerprint(residual=True)
        self.encoder = GLCMEncoder(self.fingerprint.levels, self.fingerprint.channels, width)
        self.embed = nn.Linear(width, time_width)

    def features(self, images: Tensor) -> Tensor:
        """Features of degraded images, which tell how they are degraded.

        Args:
            images: ``[B, 3, H, W]`` of any size, floating in [-1, 1], or uint8.

        Returns:
            ``[B, width]``.
        """
        if images.dtype == torch.uint8:  # large pictures stay as small as they are
            with torch.no_grad():
                residual = mas_glcm(images, source="laplacian", quantizer="companded")
                matrices = torch.stack((mas_glcm(images), residual), 1)
        else:
            matrices = self.fingerprint(images)
        found: Tensor = self.encoder(matrices)
        return found

    def forward(self, features: Tensor) -> Tensor:
        """``[B, width]`` to ``[B, time_width]``."""
        found: Tensor = self.embed(F.gelu(features.to(self.embed.weight.dtype)))
        return found
