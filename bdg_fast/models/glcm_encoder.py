"""What reads fingerprints in training: matrices of a batch, an encoder, projections, a classifier of degradation.

It teaches the UNet's inner features to tell degradations apart (`bdg_fast.losses`). Inference needs none of it,
but in a conditional network, which has a fingerprint and an encoder within (`bdg_fast.models.condition`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdg_fast.kernels.mas_glcm import MASGLCM

ROOT = 0.25
"""Power that matrices are raised to: with it their nearest neighbours tell degradations apart best (docs/probe.md)."""
SMALLEST = 8
"""Side of the grid that the encoder's convolutions reduce a matrix to, at most."""
GROUPS = 8
"""Of every group norm."""
SHORTEST = 1e-6
"""Features shorter than this are not stretched to length 1: their gradients would drown all others."""


class Fingerprint(nn.Module):
    """Co-occurrence matrices of a batch of training images, on their device and without gradients.

    The defaults are the published configuration: 9 angles, 6 scales, 32 levels.

    Args:
        angles, scales, levels: those of :func:`bdg_fast.mas_glcm`.
        residual: join the matrix of the high-pass residual, in companded levels, as a second channel: it tells noise,
            blur and compression apart far better than that of gray levels.
        impl: backend of the matrices.
        check_finite: refuse NaN and infinities, for which a GPU is waited for; else NaN counts as black.

    Raises:
        TypeError, ValueError: a bad setting, by name.
    """

    def __init__(
        self,
        angles: int | Sequence[float] = 9,
        scales: Sequence[int] = (1, 2, 3, 4, 5, 6),
        levels: int = 32,
        *,
        residual: bool = False,
        impl: str = "auto",
        check_finite: bool = False,
    ) -> None:
        """Keep the settings; nothing is learned."""
        super().__init__()
        limits = (-1.0, 1.0)
        self.levels = levels
        self.gray = MASGLCM(angles, scales, levels, limits, impl=impl, check_finite=check_finite)
        self.residual = (
            MASGLCM(
                angles, scales, levels, limits, source="laplacian", quantizer="companded", impl=impl,
                check_finite=check_finite,
            )
            if residual
            else None
        )  # fmt: skip

    @property
    def channels(self) -> int:
        """Matrices of an image."""
        return 1 if self.residual is None else 2

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Matrices of degraded images.

        Args:
            images: ``[B, 1 or 3, H, W]`` in [-1, 1], floating.

        Returns:
            float32 ``[B, levels, levels]``, or ``[B, 2, levels, levels]`` with the residual's.

        Raises:
            TypeError, ValueError: bad images, by name.
        """
        if not images.is_floating_point():
            raise TypeError(f"images must be floating, in [-1, 1], got {images.dtype}")
        gray: Tensor = self.gray(images.detach())
        return gray if self.residual is None else torch.stack((gray, self.residual(images.detach())), 1)


class GLCMEncoder(nn.Module):
    """Co-occurrence matrices to features.

    Frequencies span orders of magnitude and most of their variance is in a few cells of the diagonal, so their fourth
    roots are taken and scaled to mean square 1 a matrix, which also makes counts as good as frequencies. Convolutions
    halve the grid until it is small; it is flattened, not pooled, for where a cell lies is what it means.

    Args:
        levels: gray levels of the matrices, 2..256.
        channels: matrices of an image (`Fingerprint.channels`).
        width: of the features.
        base: channels of the first convolution, a multiple of 8; each halving doubles them up to four times.

    Raises:
        ValueError: a setting that cannot be built, by name.
    """

    def __init__(self, levels: int = 32, channels: int = 1, width: int = 256, base: int = 16) -> None:
        """Random weights."""
        super().__init__()
        if not 2 <= levels <= 256:
            raise ValueError(f"levels must be in 2..256, got {levels}")
        for name, value in (("channels", channels), ("width", width)):
            _check_positive(name, value)
        if base < GROUPS or base % GROUPS:
            raise ValueError(f"base must be a positive multiple of {GROUPS}, got {base}")
        self.levels, self.channels = levels, channels
        layers: list[nn.Module] = [nn.Conv2d(channels, base, 3, padding=1), nn.GroupNorm(GROUPS, base), nn.GELU()]
        now, side = base, levels
        while side > SMALLEST:
            out, side = min(2 * now, 4 * base), (side + 1) // 2
            layers += [nn.Conv2d(now, out, 3, stride=2, padding=1), nn.GroupNorm(GROUPS, out), nn.GELU()]
            now = out
        self.grid = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(now * side * side, width), nn.LayerNorm(width), nn.GELU())
        self.out = nn.Linear(width, width)

    def forward(self, matrix: Tensor) -> Tensor:
        """Features of matrices.

        Args:
            matrix: float32 or float64 ``[B, levels, levels]``, or ``[B, channels, levels, levels]``, not negative.

        Returns:
            ``[B, width]``, of the type of the weights.

        Raises:
            ValueError: another shape or type.
        """
        x = matrix[:, None] if matrix.ndim == 3 else matrix
        if x.ndim != 4 or x.shape[1:] != (self.channels, self.levels, self.levels):
            shape = f"[B, {self.channels}, {self.levels}, {self.levels}]"
            raise ValueError(f"matrix must be {shape}, got {list(matrix.shape)}")
        if x.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"matrix must be float32 or float64, got {x.dtype}")
        out: Tensor = self.out(self.head(self.grid(_conditioned(x).to(self.out.weight.dtype)).flatten(1)))
        return out


def _conditioned(matrix: Tensor) -> Tensor:
    """Fourth roots of ``[..., L, L]``, scaled to mean square 1; a matrix of zeros stays one."""
    positive = matrix > 0  # the root's gradient at 0 is infinite
    root = torch.where(positive, torch.where(positive, matrix, 1.0) ** ROOT, 0.0)
    return F.normalize(root.flatten(-2), dim=-1).view_as(root) * matrix.shape[-1]


class Projection(nn.Module):
    """Features to a space where they are compared: layer norm, one linear layer, length 1.

    Args:
        channels: of what comes in.
        width: of the space, the same for both sides of the comparison.

    Raises:
        ValueError: a width below 1, by name.
    """

    def __init__(self, channels: int, width: int = 128) -> None:
        """Random weights."""
        super().__init__()
        for name, value in (("channels", channels), ("width", width)):
            _check_positive(name, value)
        self.channels = channels
        self.norm = nn.LayerNorm(channels)
        self.linear = nn.Linear(channels, width, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Project.

        Args:
            features: ``[B, channels]``, or ``[B, channels, h, w]`` as `UNetOutput.features` has, which is averaged
                over its pixels.

        Returns:
            ``[B, width]`` of length 1, float32 (float64 if the weights are).

        Raises:
            ValueError: another shape.
        """
        if features.ndim not in (2, 4) or features.shape[1] != self.channels:
            shapes = f"[B, {self.channels}] or [B, {self.channels}, h, w]"
            raise ValueError(f"features must be {shapes}, got {list(features.shape)}")
        wide = torch.float64 if self.linear.weight.dtype == torch.float64 else torch.float32
        if features.ndim == 4:  # sums of many pixels need float32
            features = features.mean((2, 3), dtype=torch.promote_types(features.dtype, wide))
        found = self.linear(self.norm(features.to(self.linear.weight.dtype)))
        return F.normalize(found.to(wide), dim=1, eps=SHORTEST)


class DegradationClassifier(nn.Module):
    """Two linear layers from the encoder's features to classes; without its loss the encoder collapses.

    Args:
        channels: of the features.
        classes: of degradations, or of states of a chain of them.
        width: of the layer between, ``channels`` unless given.

    Raises:
        ValueError: a number below 1 (2 for ``classes``), by name.
    """

    def __init__(self, channels: int, classes: int, width: int | None = None) -> None:
        """Random weights."""
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes must be at least 2, got {classes}")
        width = channels if width is None else width
        for name, value in (("channels", channels), ("width", width)):
            _check_positive(name, value)
        self.layers = nn.Sequential(nn.Linear(channels, width), nn.GELU(), nn.Linear(width, classes))

    def forward(self, features: Tensor) -> Tensor:
        """``[B, channels]`` to logits ``[B, classes]``."""
        logits: Tensor = self.layers(features)
        return logits


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
