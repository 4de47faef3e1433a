"""What a conditional network is told, averaged over frames: one fingerprint each would make a scene flicker."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

THUMBNAIL = 16
CUT = 0.1
"""Mean difference of thumbnails, of 1, beyond which a frame begins a new scene: motion and noise stay below."""


class Steady:
    """An exponential average of features, begun anew with every scene."""

    def __init__(self, weight: float, state: dict[str, Tensor] | None = None) -> None:
        """Begin, or go on.

        Args:
            weight: of the past, 0 to below 1; 0 leaves features as they are.
            state: :attr:`state` of an earlier one.

        Raises:
            ValueError: ``weight`` is out of its range.
        """
        if not 0 <= weight < 1:
            raise ValueError(f"steady must be at least 0 and below 1, got {weight}")
        self.weight = weight
        self.state = dict(state or {})

    def __call__(self, told: Tensor, frames: Tensor) -> Tensor:
        """Averages up to each frame.

        Args:
            told: features of successive frames, ``[B, width]``.
            frames: the frames ``[B, 3, H, W]``, float in [0, 1] or uint8.

        Returns:
            ``[B, width]``.
        """
        small = F.adaptive_avg_pool2d(frames.float() / (255 if frames.dtype == torch.uint8 else 1), THUMBNAIL).cpu()
        found = []
        for features, thumbnail in zip(told.float().cpu(), small, strict=True):
            before = self.state.get("thumbnail")
            if before is not None and float((before - thumbnail).abs().mean()) <= CUT:
                features = self.weight * self.state["told"] + (1 - self.weight) * features
            self.state = {"told": features, "thumbnail": thumbnail.clone()}
            found.append(features)
        return torch.stack(found).to(told)
