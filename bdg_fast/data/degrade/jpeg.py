"""JPEG compression on the device (ITU-T T.81 with its tables K.1 and K.2; JFIF colours, chroma halved both ways).

What a file of that quality decodes to: only the lossy steps are computed. Integer roundings are those of libjpeg but
within the cosine transforms, which are exact here: now and then a coefficient rounds to the other step. The tests hold
it against Pillow: flat blocks as its file decodes to, photographs at least 45 dB from that.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import extended, sent

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

ONE, HALF = 65536.0, 32768.0
"""Colours are converted in whole numbers of 1/65536, all below 2^24 and so exact in float32 on any device."""
TIE = 1e-4
"""What rounding of float32 may take from a number that lies half between two others."""


def jpeg(images: Tensor, level: Tensor, seed: Tensor) -> Tensor:
    """What a JPEG file of quality ``100 - level``, rounded to whole numbers, decodes to."""
    return decoded(images, level)


def decoded(images: Tensor, level: Tensor, own_height: Tensor | None = None, own_width: Tensor | None = None) -> Tensor:
    """As :func:`jpeg`, or of samples of their own sizes, float32 ``[B]``, that were ``extended`` to ``images``."""
    height, width = images.shape[2:]
    red, green, blue = (images.clamp(0, 1) * 255).round().unbind(1)
    luma = ((19595 * red + 38470 * green + 7471 * blue + HALF) / ONE).floor()
    chroma_blue = ((32768 * blue - 11059 * red - 21709 * green + 128 * ONE + HALF - 1) / ONE).floor()
    chroma_red = ((32768 * red - 27439 * green - 5329 * blue + 128 * ONE + HALF - 1) / ONE).floor()
    planes = torch.stack((luma, chroma_blue, chroma_red), 1)
    planes = F.pad(planes, [0, -width % 16, 0, -height % 16], mode="replicate")

    luma_table, chroma_table = (_table(base, level) for base in (LUMA, CHROMA))
    luma = _coded(planes[:, :1], luma_table)[:, 0, :height, :width]
    chroma = _coded(_halved(planes[:, 1:]), chroma_table)[:, :, : (height + 1) // 2, : (width + 1) // 2]
    if own_height is not None and own_width is not None:  # a file has no chroma beyond its image to interpolate with
        chroma = extended(chroma, ((own_height + 1) / 2).floor(), ((own_width + 1) / 2).floor())
    chroma = _doubled(chroma)[:, :, :height, :width] - 128
    chroma_blue, chroma_red = chroma.unbind(1)
    channels = (
        luma + ((91881 * chroma_red + HALF) / ONE).floor(),
        luma + ((HALF - 22554 * chroma_blue - 46802 * chroma_red) / ONE).floor(),
        luma + ((116130 * chroma_blue + HALF) / ONE).floor(),
    )
    return torch.stack(channels, 1).clamp(0, 255) / 255


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
    return (found + (128.5 + TIE)).floor().clamp(0, 255).view(planes.shape)  # halves up


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
    """Twice the size by weights 3/4 and 1/4, edges replicated, halves up and down in turn: libjpeg's smooth one."""
    full = F.interpolate(planes, scale_factor=2.0, mode="bilinear", align_corners=False)
    turn = torch.arange(full.shape[3], device=planes.device) % 2
    return ((full * 16 + 8 - turn) / 16).floor()
