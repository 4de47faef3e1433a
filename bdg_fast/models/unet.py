"""The residual-diffusion UNet of DiffUIR, RDDM and BDG: predicts what degraded an image, and its noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from huggingface_hub import ModelHubMixin
from torch import Tensor, nn

from .backbone import Backbone, BackboneConfig, UNetOutput
from .blocks import Attention, Level, ResidualBlock, StandardizedConv2d, TimeEmbedding
from .condition import Condition

if TYPE_CHECKING:
    from typing_extensions import Self

PAPER = "https://arxiv.org/abs/2602.00579"


@dataclass(frozen=True, kw_only=True)
class UNetConfig(BackboneConfig):
    """Shape of a UNet, and what `BackboneConfig` asks of all networks.

    Attributes:
        width: channels of the first level, a multiple of 8.
        multipliers: width of each level relative to the first.
        shared_encoder: RDDM's variant of ``heads="both"``: the residual has a decoder of its own, without skip
            connections.
        condition: width of the features of an image's fingerprint that the network is told (`Condition`); 0: none, as
            published.
        condition_residual: whether that fingerprint is of the high-pass residual too, not of gray levels alone.
    """

    width: int = 32
    multipliers: tuple[int, ...] = (1, 1, 1, 1)
    shared_encoder: bool = False
    condition: int = 0
    condition_residual: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be built, by name."""
        if self.width < 8 or self.width % 8:
            raise ValueError(
                f"width must be a positive multiple of 8 (of the groups that are normalized), got {self.width}"
            )
        if not self.multipliers or any(m < 1 for m in self.multipliers):
            raise ValueError(f"multipliers must be integers >= 1, one a level, got {self.multipliers}")
        BackboneConfig.__post_init__(self)
        if self.shared_encoder and self.heads != "both":
            raise ValueError(f"shared_encoder=True is for heads='both', got heads={self.heads!r}")
        if self.condition < 0:
            raise ValueError(f"condition must not be negative, got {self.condition}")
        if self.condition and self.channels != 3:
            raise ValueError(f"condition must be 0 for channels={self.channels}: fingerprints are of pixels")
        object.__setattr__(self, "multipliers", tuple(self.multipliers))  # JSON has lists


SIZES = {
    "T": UNetConfig(width=32, multipliers=(1, 1, 1, 1)),
    "S": UNetConfig(width=32, multipliers=(1, 2, 2, 4)),
    "B": UNetConfig(width=64, multipliers=(1, 2, 2, 4)),
    "L": UNetConfig(width=64, multipliers=(1, 2, 4, 8)),
}
"""The published sizes, of 0.9, 3.3, 12.4 and 36.3 million parameters."""


class UNet(Backbone, ModelHubMixin, library_name="bdg-fast", pipeline_tag="image-to-image", paper_url=PAPER):
    """Residual-diffusion UNet: ``unet(x_t, x_lq, time) -> UNetOutput(residual, noise, features)``.

    Example:
        >>> unet = UNet(SIZES["T"])
        >>> image = torch.rand(2, 3, 37, 53) * 2 - 1
        >>> unet(image, image, torch.tensor([999.0, 10.0])).residual.shape
        torch.Size([2, 3, 37, 53])
    """

    config_class = UNetConfig
    one_time = True
    config: UNetConfig

    def __init__(self, config: UNetConfig | None = None) -> None:
        """A network of random weights; :meth:`from_pretrained` loads trained ones."""
        super().__init__()
        if not isinstance(config, UNetConfig | None):
            raise TypeError(f"config must be a UNetConfig, as SIZES['T'] is, got {config!r}")
        self.config = config = config or UNetConfig()
        width, time_width = config.width, 4 * config.width
        widths = [width * m for m in config.multipliers]
        self.feature_channels, self.multiple, self.told_width = widths[-1], 2 ** len(widths), config.condition
        self.stem = nn.Conv2d(2 * config.channels, width, 7, padding=3)
        self.time = TimeEmbedding(width)
        self.condition: Condition | None = None
        if config.condition:
            self.condition = Condition(config.condition, time_width, config.condition_residual)
        last = len(widths) - 1
        inner = [width, *widths[:-1]]
        self.encoder = nn.ModuleList(
            Level(inner[i], inner[i], widths[i], 0, time_width, "down" if i < last else "same")
            for i in range(len(widths))
        )
        self.middle1 = ResidualBlock(widths[-1], widths[-1], time_width)
        self.middle_attention = Attention(widths[-1])
        self.middle2 = ResidualBlock(widths[-1], widths[-1], time_width)
        self.decoder = _decoder(widths, inner, time_width, skips=True)
        self.final = ResidualBlock(2 * width, width, time_width)
        heads = 2 if config.heads == "both" and not config.shared_encoder else 1
        self.head = nn.Conv2d(width, heads * config.channels, 1)
        if config.shared_encoder:
            self.residual_decoder = _decoder(widths, inner, time_width, skips=False)
            self.residual_final = ResidualBlock(width, width, time_width)
            self.residual_head = nn.Conv2d(width, config.channels, 1)

    def joined(self, x_t: Tensor, x_lq: Tensor) -> Tensor:
        """What :meth:`evaluate` takes: images ``[B, C, H, W]`` as one of ``2 C`` channels, padded, channels_last."""
        x = super().joined(x_t, x_lq)
        return x.contiguous(memory_format=torch.channels_last)  # layer norms and attention read pixels as rows

    def told(self, x_lq: Tensor) -> Tensor | None:
        """What a conditional network is told of degraded images (:meth:`Condition.features`); None if it is none."""
        return None if self.condition is None else self.condition.features(x_lq)

    def embedding(self, time: Tensor, condition: Tensor | None = None) -> Tensor:
        """What all blocks are told: of the time, and of the degradation. ``[B or 1]`` to ``[B or 1, 4 width]``."""
        embedding: Tensor = self.time(time)
        if self.condition is not None and condition is not None:
            embedding = embedding + self.condition(condition)
        return embedding

    def evaluate(self, x: Tensor, time: Tensor, condition: Tensor | None = None) -> UNetOutput:
        """The network itself, whose code is the same for every size: what `torch.compile` gets.

        Args:
            x: ``[B, 2 C, H, W]``, height and width multiples of ``2 ** levels`` (:meth:`joined`).
            time: float ``[B]``, or ``[1]`` for one time of all images.
            condition: see :meth:`forward`; without it a conditional network knows nothing of the degradation.

        Returns:
            As :meth:`forward`, of the padded size.
        """
        embedding = self.embedding(time, condition)
        x = first = self.stem(x)
        skips: list[Tensor] = []
        for level in _levels(self.encoder):
            x = level.block1(x, embedding)
            skips.append(x)
            x = level.attention(level.block2(x, embedding))
            skips.append(x)
            x = level.resampled(x)
        x = self.middle2(self.middle_attention(self.middle1(x, embedding)), embedding)
        features = x
        for level in _levels(self.decoder):
            x = level.block1(torch.cat((x, skips.pop()), 1), embedding)
            x = level.attention(level.block2(torch.cat((x, skips.pop()), 1), embedding))
            x = level.resampled(x)
        found = self.head(self.final(torch.cat((x, first), 1), embedding))
        if not self.config.shared_encoder:
            channels = self.config.channels
            residual = found[:, :channels] if self.config.heads != "noise" else None
            noise = found[:, -channels:] if self.config.heads != "residual" else None
            return UNetOutput(residual, noise, features)
        x = features
        for level in _levels(self.residual_decoder):
            x = level.attention(level.block2(level.block1(x, embedding), embedding))
            x = level.resampled(x)
        return UNetOutput(self.residual_head(self.residual_final(x, embedding)), found, features)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, config: UNetConfig | None = None, **hub: Any
    ) -> UNet:
        """Load a checkpoint: see :func:`bdg_fast.models.checkpoints.load_unet`."""
        from .checkpoints import load_backbone, load_unet

        if cls is not UNet and config is None:
            return load_backbone(pretrained_model_name_or_path, cls, **hub)
        return load_unet(pretrained_model_name_or_path, config=config, **hub)

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        config: Any = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        **hub: Any,
    ) -> str | None:
        """Write ``config.json``, ``model.safetensors`` and, if there is none, a model card.

        Args:
            config: not used; the configuration is that of the network.
            dtype: of the weights in the file, by default their own: float16 takes half the space, and is float32 again
                when loaded.
            repo_id, push_to_hub, hub: also upload, as :meth:`push_to_hub` does (``repo_id`` defaults to the
                name of the folder).
            model_card_kwargs: values for the model card.

        Returns:
            The address of the commit on the hub, or None.
        """
        from .checkpoints import save_backbone

        folder = Path(save_directory)
        save_backbone(self, folder, dtype)
        if not (folder / "README.md").exists():
            self.generate_model_card(**(model_card_kwargs or {})).save(folder / "README.md")
        if push_to_hub:
            return self.push_to_hub(repo_id or folder.name, model_card_kwargs=model_card_kwargs, **hub)
        return None

    def last_layers(self) -> Sequence[nn.Module]:
        """The heads."""
        return [self.head, self.residual_head] if self.config.shared_encoder else [self.head]

    def shards(self) -> Sequence[Sequence[nn.Module]]:
        """A level each, by its parts, as levels are not called themselves; the middle."""
        levels = [*self.encoder, *self.decoder, *(self.residual_decoder if self.config.shared_encoder else ())]
        return [*(list(level.children()) for level in levels), [self.middle1, self.middle_attention, self.middle2]]

    def fold(self) -> Self:
        """Standardize the weights of all convolutions once, in place: the same results, faster, no training.

        Weights become channels_last, which is how the network evaluates images.
        """
        for module in self.modules():
            for name, child in list(module.named_children()):
                if isinstance(child, StandardizedConv2d):
                    setattr(module, name, child.folded())
        return self.to(memory_format=torch.channels_last).requires_grad_(False)

    @property
    def folded(self) -> bool:
        """Whether :meth:`fold` has replaced convolutions."""
        return not isinstance(self.middle1.conv1, StandardizedConv2d)

    @property
    def trained(self) -> bool:
        """Whether any gain of a norm has moved from 1, where all begin; one step of training moves them."""
        gains = (p for name, p in self.named_parameters() if name.endswith(("norm1.weight", "norm2.weight", ".gain")))
        return any(bool((gain != 1).any()) for gain in gains)

    def to_dict(self) -> dict[str, Any]:
        """The configuration, for JSON."""
        return asdict(self.config)


def _levels(levels: nn.ModuleList) -> list[Level]:
    return cast("list[Level]", list(levels))


def _decoder(widths: Sequence[int], inner: Sequence[int], time_width: int, skips: bool) -> nn.ModuleList:
    levels = []
    for i in reversed(range(len(widths))):
        skip = inner[i] if skips else 0
        levels.append(Level(widths[i], widths[i], inner[i], skip, time_width, "up" if i > 0 else "same"))
    return nn.ModuleList(levels)
