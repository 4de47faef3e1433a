"""How images of any strides are walked through: the same for every kernel that touches each pixel once."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from .checks import compute_dtype

FLAT_PIXELS, LAST_PIXELS, INTERPRETED_PIXELS = 512, 256, 4096
"""Pixels of a program: not fewer than threads, or several of them would handle one element, which must not be where
the output replaces the input. The interpreter pays by the operation."""

Image = tuple[Tensor, int, int, int, int]


class Layout(NamedTuple):
    """How a launch walks through images of one size ``[B, 3, H, W]``."""

    batch: int
    size: int  # pixels of an image
    width: int
    flat: bool  # rows follow each other at the distance of columns, in every image
    wide: bool  # 64-bit positions within an image
    last: bool  # channels before columns
    block: int

    @property
    def blocks(self) -> int:
        """Programs of an image."""
        return -(-self.size // self.block)

    @property
    def constants(self) -> dict[str, object]:
        """What all kernels take. Nothing is fused, so that results are those of the reference to the bit."""
        shape = {"FLAT": self.flat, "WIDE": self.wide, "LAST": self.last, "P": self.block}
        return {**shape, "num_warps": 4, "enable_fp_fusion": False}


def layout_of(images: Sequence[Tensor | None], out: Tensor) -> Layout:
    """Of inputs and output; neighbouring threads take what neighbours in ``out``."""
    present = [image for image in (*images, out) if image is not None]
    batch, _, height, width = out.shape
    flat = height == 1 or all(image.stride(2) == width * image.stride(3) for image in present)
    reach = max(sum((n - 1) * s for n, s in zip(x.shape[1:], x.stride()[1:], strict=True)) for x in present)
    last = width > 1 and out.stride(1) < out.stride(3)
    block = (LAST_PIXELS if last else FLAT_PIXELS) if out.is_cuda else INTERPRETED_PIXELS
    wide = max(reach, height * width) + block >= 2**31
    return Layout(batch, height * width, width, flat, wide, last, block)


def image_of(tensor: Tensor | None, absent: Tensor) -> Image:
    """What kernels take for an image; ``absent`` stands for none."""
    tensor = absent if tensor is None else tensor
    return (tensor, *tensor.stride())  # type: ignore[return-value]


def compute_type(*images: Tensor | None) -> tl.dtype:
    """Triton's name of `compute_dtype`."""
    return tl.float64 if compute_dtype(*images) == torch.float64 else tl.float32


def on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Launches go to ``device``."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
