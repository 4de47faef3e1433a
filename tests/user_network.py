"""A network as a user writes one, and the settings of a small UNet of diffusers."""

from dataclasses import dataclass

import torch
from torch import nn

from bdg_fast import Backbone, BackboneConfig, UNet, UNetOutput


@dataclass(frozen=True, kw_only=True)
class PlainConfig(BackboneConfig):
    width: int = 8

    def __post_init__(self):
        super().__post_init__()
        if self.width < 1:
            raise ValueError(f"width must be at least 1, got {self.width}")


class Plain(Backbone):
    """Half the size inside; the time is a further channel."""

    config_class = PlainConfig
    multiple = 2

    def __init__(self, config):
        super().__init__()
        self.config, self.feature_channels = config, config.width
        self.inner = nn.Conv2d(2 * config.channels + 1, config.width, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(1, config.width)
        heads = 2 if config.heads == "both" else 1
        self.head = nn.Conv2d(config.width, 4 * heads * config.channels, 3, padding=1)

    def evaluate(self, x, time, condition=None):
        moment = (time / 1000).view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        features = self.norm(self.inner(torch.cat((x, moment), 1))).relu()
        found = nn.functional.pixel_shuffle(self.head(features), 2)
        parts = found.chunk(2, 1) if self.config.heads == "both" else (found, None)
        return UNetOutput(*parts, features)

    def last_layers(self):
        return [self.head]


class Informed(Plain):
    """Told of degradations by what is no encoder."""

    compiles = False

    def __init__(self, config):
        super().__init__(config)
        self.told_width = 3

    def told(self, x_lq):
        return x_lq.mean((2, 3))


class Halved(UNet):
    """Ours with something else done to what it predicts."""

    def evaluate(self, x, time, condition=None):
        found = super().evaluate(x, time, condition)
        return found._replace(residual=found.residual / 2)


class NoNetwork(nn.Module):
    pass


SHAPE = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 8}
DIFFUSERS = {
    "UNet2DModel": {
        **SHAPE,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    },
    "UNet2DConditionModel": {
        **SHAPE,
        "attention_head_dim": 2,
        "cross_attention_dim": 12,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    },
}
"""Options of each class."""
