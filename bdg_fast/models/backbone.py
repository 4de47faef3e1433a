"""What a network must offer to be sampled, trained, saved, loaded and restored with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing_extensions import Self

HEADS = ("residual", "noise", "both")
BYTES_PER_PIXEL = 5_000
"""Peak memory of a forward in float32 that a network is taken to need unless it tells: that of a `UNet` of width 64."""


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """What is asked of every network's configuration; a network's own is a frozen subclass that adds its shape.

    Attributes:
        heads: what is predicted: ``"residual"``, ``"noise"``, or ``"both"``.
        channels: of the images: 3, or those of latents.
        time: what the network takes for a time: ``"scaled"`` (``1000 A_t``, DiffUIR and BDG) or ``"index"``
            (``t``, RDDM).
        family: whose sampler the weights were made for: ``"bdg"`` (ours), ``"diffuir"`` (always ``"scaled"``) or
            ``"rddm"`` (``"index"`` over its own tables, ``"scaled"`` over the linear ones).
        delta_end: last increment of the schedule's delta that they were trained with; not for RDDM.
        sum_scale: RDDM's: variance of its noise in all, and at the start.
        sampler_steps: evaluations that restoring a picture takes unless told otherwise: what it was trained for.
    """

    heads: str = "residual"
    channels: int = 3
    time: str = "scaled"
    family: str = "bdg"
    delta_end: float = 1.8e-3
    sum_scale: float = 1.0
    sampler_steps: int = 3

    def __post_init__(self) -> None:
        """Refuse what cannot be built, by name."""
        if self.heads not in HEADS:
            raise ValueError(f"heads must be one of {', '.join(map(repr, HEADS))}, got {self.heads!r}")
        if self.channels < 1:
            raise ValueError(f"channels must be at least 1, got {self.channels}")
        if self.time not in ("scaled", "index"):
            raise ValueError(f"time must be 'scaled' or 'index', got {self.time!r}")
        if self.family not in ("bdg", "diffuir", "rddm"):
            raise ValueError(f"family must be 'bdg', 'diffuir' or 'rddm', got {self.family!r}")
        if self.family == "diffuir" and self.time != "scaled":
            raise ValueError(f"time must be 'scaled' for family='diffuir', got {self.time!r}")
        if not 0 <= self.delta_end < math.inf:
            raise ValueError(f"delta_end must not be negative, got {self.delta_end}")
        if not 0 < self.sum_scale <= 1:
            raise ValueError(f"sum_scale must be above 0 and at most 1, got {self.sum_scale}")
        if self.sampler_steps < 1:
            raise ValueError(f"sampler_steps must be at least 1, got {self.sampler_steps}")


class UNetOutput(NamedTuple):
    """What a network predicts of ``[B, C, H, W]``."""

    residual: Tensor | None  # [B, C, H, W], x_lq - x_0, of pixels in [-2, 2]
    noise: Tensor | None  # [B, C, H, W]
    features: Tensor  # [B, F, h, w], of the bottleneck


class Backbone(nn.Module):
    """A network that maps ``(x_t, x_lq, time)`` to residual, noise and features: the base of all that are taken.

    A subclass takes its configuration alone (``__init__(self, config)``), keeps it as :attr:`config`, sets
    :attr:`feature_channels`, and computes in :meth:`evaluate`. What follows has defaults that hold for any network.

    Attributes:
        config: a :attr:`config_class`, frozen.
        feature_channels: ``F`` of `UNetOutput.features`.
        multiple: that height and width are padded to before :meth:`evaluate`.
        told_width: of what a conditional network is told of an image's degradation (:meth:`told`); 0: it is none. One
            that is keeps what reads the degradation in an attribute ``condition``, and its encoder in
            ``condition.encoder``, which stages of (7) alone train.
        bytes_per_pixel: peak memory of an evaluation in float32, by which `Restorer` chooses its tiles.
    """

    config_class: ClassVar[type[BackboneConfig]] = BackboneConfig
    one_time: ClassVar[bool] = False
    """Whether :meth:`evaluate` takes one time of all images as ``[1]``, which costs less than ``[B]``."""
    compiles: ClassVar[bool] = True
    """Whether `torch.compile` may be given :meth:`evaluate`; ``"auto"`` goes on eagerly where it fails."""

    config: BackboneConfig
    feature_channels: int
    multiple: int = 1
    told_width: int = 0
    bytes_per_pixel: int = BYTES_PER_PIXEL

    def evaluate(self, x: Tensor, time: Tensor, condition: Tensor | None = None) -> UNetOutput:
        """The network itself, whose code is the same for every size: what trains, and what `torch.compile` gets.

        Args:
            x: ``[B, 2 C, H, W]``, noisy and degraded images joined, height and width multiples of :attr:`multiple`.
            time: float ``[B]`` in network units (`BackboneConfig.time`); or ``[1]`` with :attr:`one_time`.
            condition: ``[B, told_width]``, what :meth:`told` found; None: nothing is known of the degradation.

        Returns:
            Residual and noise (None without such a head) of the size of ``x``, and features.
        """
        raise NotImplementedError(f"{type(self).__name__} must have evaluate(x, time, condition)")

    def forward(self, x_t: Tensor, x_lq: Tensor, time: Tensor, condition: Tensor | None = None) -> UNetOutput:
        """Predict from a noisy image and the degraded one.

        Args:
            x_t: ``[B, C, H, W]`` in [-1, 1] and noise, of any height and width.
            x_lq: the degraded image, ``[B, C, H, W]`` in [-1, 1].
            time: float ``[B]`` in network units (`BackboneConfig.time`); one time for all images costs less as ``[1]``
                or expanded to ``[B]``.
            condition: ``[B or 1, told_width]``, what a conditional network is told of the degradation; default: what
                :meth:`told` finds in ``x_lq``.

        Returns:
            Residual and noise (None without such a head), and the features of the bottleneck.
        """
        height, width = x_t.shape[2:]
        condition = self.told(x_lq) if condition is None else condition
        found = self.evaluate(self.joined(x_t, x_lq), self.times(time, len(x_t)), condition)
        residual, noise = (
            None if part is None else part[:, :, :height, :width] for part in (found.residual, found.noise)
        )
        return UNetOutput(residual, noise, found.features)

    def times(self, time: Tensor, batch: int) -> Tensor:
        """What :meth:`evaluate` takes for the times of ``batch`` images, ``[B]`` or ``[1]``."""
        if self.one_time:
            return time[:1] if time.stride(0) == 0 else time
        return time.expand(batch)

    def joined(self, x_t: Tensor, x_lq: Tensor) -> Tensor:
        """What :meth:`evaluate` takes: both images ``[B, C, H, W]`` as one of ``2 C`` channels, padded."""
        return padded(torch.cat((x_t, x_lq), 1), self.multiple)

    def told(self, x_lq: Tensor) -> Tensor | None:
        """What a conditional network is told of degraded images, ``[B, told_width]``; None if it is none.

        ``x_lq``: pixels, float ``[B, 3, H, W]`` in [-1, 1], also where the network is one of latents.
        """
        return None

    def last_layers(self) -> Iterable[nn.Module]:
        """Whose outputs are the predictions: training begins with their weights at 0, from where the way is short."""
        return ()

    def shards(self) -> Sequence[Sequence[nn.Module]]:
        """Modules whose weights FSDP gathers together; each is called as a module, and none holds another.

        What is left stays gathered throughout a step.
        """
        return ()

    def fold(self) -> Self:
        """Prepare for inference, in place: the same results, no training."""
        return self.requires_grad_(False)

    @property
    def folded(self) -> bool:
        """Whether weights are no longer those that were trained, so that they cannot be saved."""
        return False

    @property
    def trained(self) -> bool:
        """Whether any gain of a norm has moved from 1, where all begin; one step of training moves them."""
        norms = (m for m in self.modules() if isinstance(m, nn.GroupNorm | nn.LayerNorm | nn.BatchNorm2d))
        gains = [norm.weight for norm in norms if norm.weight is not None]
        return not gains or any(bool((gain != 1).any()) for gain in gains)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **hub: Any) -> Self:
        """Load what :meth:`save_pretrained` wrote: see :func:`bdg_fast.models.checkpoints.load_backbone`."""
        from .checkpoints import load_backbone

        return load_backbone(pretrained_model_name_or_path, cls, **hub)

    def save_pretrained(self, save_directory: str | Path, *, dtype: torch.dtype | None = None) -> str | None:
        """Write ``config.json`` and ``model.safetensors``, with weights in ``dtype``, by default their own."""
        from .checkpoints import save_backbone

        save_backbone(self, save_directory, dtype)
        return None


def padded(x: Tensor, multiple: int) -> Tensor:
    """Continue ``[B, C, H, W]`` to the right and below by reflection, to multiples of ``multiple``."""
    for dim in (2, 3):
        size = x.shape[dim]
        if size % multiple:
            # back and forth, so that images smaller than their padding do too
            index = torch.arange(size + -size % multiple, device=x.device) % max(2 * size - 2, 1)
            x = x.index_select(dim, torch.minimum(index, 2 * size - 2 - index) if size > 1 else index)
    return x
