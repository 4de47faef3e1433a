"""Networks and photographs that restorations are timed and compared on."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bdg_fast import SIZES, UNet
from bdg_fast.data.images import bundled_photographs
from bdg_fast.models.blocks import Attention, LinearAttention

SIDE = 256


@cache
def images(count: int, side: int = SIDE) -> Tensor:
    """Photographs ``[count, 3, side, side]`` in [0, 1], of other parts of the bundled ones each."""
    found = []
    for path in bundled_photographs():
        with Image.open(path) as file:
            image = torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)
        found.append(image.repeat(1, -(-side // image.shape[1]), -(-side // image.shape[2]))[:, :side, :side])
    return torch.stack([found[i % len(found)].roll(17 * i, 2) for i in range(count)]) / 255


def network(size: str) -> UNet:
    """Random weights whose attention counts, as in a trained network.

    Linear attention divides values by the number of pixels, and a norm follows a bias: with plain random weights its
    loss changes an image by 80 dB, which no limit would see. With these it is 9 dB of T, and 15 of L.
    """
    torch.manual_seed(0)
    unet = UNet(SIZES[size]).eval()
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if name.endswith(("gain", "norm1.weight", "norm2.weight")):
                parameter.add_(0.25 * torch.randn_like(parameter))
        for name, module in unet.named_modules():
            if isinstance(module, LinearAttention):
                part, number = name.split(".")[:2]
                level = int(number) if part == "encoder" else len(unet.encoder) - 1 - int(number)
                module.qkv.weight.mul_(3)
                module.out.weight.mul_(SIDE**2 / 4**level)
            elif isinstance(module, Attention):
                module.qkv.weight.mul_(4)
                module.out.weight.mul_(6)
    return unet
