"""JPEG compression on the device (ITU-T T.81 with its tables K.1 and K.2; JFIF colours, chroma halved both ways).

What a file of that quality decodes to: only the lossy steps are computed. Integer roundings are those of libjpeg but
within the cosine transforms, which are exact here: now and then a coefficient rounds to the other step. The tests hold
it against Pillow: at least 45 dB from what its file decodes to.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import sent

LUMA = (
    16, 11, 10, 16, 24, 40, 51, 61,
    12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77,
    24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
CHROMA = (
    17, 18, 24, 47, 99, 99, 99, 99,
    18, 21, 26, 66, 99, 99, 99, 99,
    24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99,
    *(99,) * 32,
)  # fmt: skip
COSINES = [
    [math.sqrt((1 if k == 0 else 2) / 8) * math.cos(math.pi * k * (2 * i + 1) / 16) for i in range(8)] for k in range(8)
]
"""The orthonormal cosine transform, row ``k`` of frequency ``k``."""

TIE = 1e-4
"""What rounding of float32 may take from a coefficient that lies half between two steps."""


def jpeg(images: Tensor, level: Tensor, seed: Tensor) -> Tensor:
    """What a JPEG file of quality ``100 - level``, rounded to whole numbers, decodes to."""
    height, width = images.shape[2:]
    red, green, blue = (images.clamp(0, 1) * 255).round().unbind(1)
    luma = (0.299 * red + 0.587 * green + 0.114 * blue).round()
    chroma_blue = (-0.168735892 * red - 0.331264108 * green + 0.5 * blue + 128).round()
    chroma_red = (0.5 * red - 0.418687589 * green - 0.081312411 * blue + 128).round()
    planes = torch.stack((luma, chroma_blue, chroma_red), 1)
    planes = F.pad(planes, [0, -width % 16, 0, -height % 16], mode="replicate")

    luma_table, chroma_table = (_table(base, level) for base in (LUMA, CHROMA))
    luma = _coded(planes[:, :1], luma_table)[:, 0, :height, :width]
    chroma = _coded(_halved(planes[:, 1:]), chroma_table)[:, :, : (height + 1) // 2, : (width + 1) // 2]
    chroma = _doubled(chroma)[:, :, :height, :width] - 128
    chroma_blue, chroma_red = chroma.unbind(1)
    decoded = (
        luma + 1.402 * chroma_red,
        luma - 0.344136286 * chroma_blue - 0.714136286 * chroma_red,
        luma + 1.772 * chroma_blue,
    )
    return torch.stack(decoded, 1).round().clamp(0, 255) / 255


def _table(base: tuple[int, ...], level: Tensor) -> Tensor:
    """Steps of each sample, ``[B, 1, 1, 8, 1, 8]``: libjpeg's scaling of the standard table by the quality."""
    quality = (100 - level).round().clamp(1, 100).view(-1, 1, 1)
    scale = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality)
    steps = sent(torch.tensor(base, dtype=torch.float32).view(8, 8), level.device)
    return ((steps * scale + 50) / 100).floor().clamp(1, 255).view(-1, 1, 1, 8, 1, 8)


def _coded(planes: Tensor, table: Tensor) -> Tensor:
    """Coefficients of blocks of 8 x 8 rounded to multiples of ``table``, for planes ``[B, C, 8 h, 8 w]`` in 0..255."""
    batch, channels, height, width = planes.shape
    matrix = sent(torch.tensor(COSINES, dtype=torch.float32), planes.device)
    blocks = planes.reshape(batch, channels, height // 8, 8, width // 8, 8) - 128
    found = _product(_product(blocks, matrix, 5), matrix, 3)
    steps = (found.abs() / table + (0.5 + TIE)).floor() * table  # halves away from zero, as libjpeg
    found = steps.copysign(found)
    found = _product(_product(found, matrix.mT, 5), matrix.mT, 3)
    return (found + 128).round().clamp(0, 255).view(planes.shape)


def _product(blocks: Tensor, matrix: Tensor, dim: int) -> Tensor:
    """``matrix [8, 8]`` times the axis ``dim`` of ``blocks``.

    Term by term: a matrix product's order of summation may depend on the batch, and rounding would show it.
    """
    shape = [1] * 6
    shape[dim] = 8
    terms = [blocks.select(dim, k).unsqueeze(dim) * matrix[:, k].reshape(shape) for k in range(8)]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _halved(planes: Tensor) -> Tensor:
    """Means of 2 x 2 pixels in whole numbers, halves up and down in turn, as libjpeg has it."""
    total = planes[..., ::2, ::2] + planes[..., ::2, 1::2] + planes[..., 1::2, ::2] + planes[..., 1::2, 1::2]
    turn = torch.arange(total.shape[3], device=planes.device) % 2
    return ((total + 1 + turn) / 4).floor()


def _doubled(planes: Tensor) -> Tensor:
    """Twice the size by weights 3/4 and 1/4, edges replicated (libjpeg's smooth upsampling)."""
    return F.interpolate(planes, scale_factor=2.0, mode="bilinear", align_corners=False).round()
