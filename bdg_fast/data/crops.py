"""What is seen of an image: crops, mirrored and turned, as functions of a seed.

Work on single images is numpy's: torch would start threads of its own in each thread that reads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .order import mixed

TOP, LEFT, TURN, NOISE = range(4)
"""What a sample's seed is mixed with, by what is drawn from it."""
Pixels = np.ndarray[Any, np.dtype[Any]]
"""``[C, H, W]``, uint8 or uint16, C = 1 or 3."""


class View(NamedTuple):
    """What is seen of an image: a window, continued by reflection, mirrored, then turned by quarters."""

    top: int
    left: int
    height: int
    width: int
    crop: int
    mirrored: bool
    quarters: int

    @staticmethod
    def drawn(seed: int | None, height: int, width: int, crop: int, *, flip: bool, rotate: bool) -> View:
        """The view of a ``height x width`` image that ``seed`` says; None: the middle, as it is."""
        tall, wide = min(crop, height), min(crop, width)
        if seed is None:
            return View((height - tall) // 2, (width - wide) // 2, tall, wide, crop, False, 0)
        turn = mixed(seed, TURN)
        return View(
            mixed(seed, TOP) % (height - tall + 1),
            mixed(seed, LEFT) % (width - wide + 1),
            tall,
            wide,
            crop,
            flip and bool(turn & 1),
            (turn >> 1) & 3 if rotate else 0,
        )

    def of(self, image: Pixels, factor: int = 1) -> Tensor:
        """uint8 ``[3, crop, crop]`` of ``[C, H / factor, W / factor]``, uint8 or uint16, C = 1 or 3."""
        if factor == 1:
            seen = eight_bits(image[:, self.top : self.top + self.height, self.left : self.left + self.width])
        else:
            seen = self._enlarged(eight_bits(image), factor)
        seen = seen.repeat(3, 0) if len(seen) == 1 else seen
        if self.height < self.crop:
            seen = seen[:, reflected(self.height, self.crop)]
        if self.width < self.crop:
            seen = seen[:, :, reflected(self.width, self.crop)]
        if self.mirrored:
            seen = seen[:, :, ::-1]
        return torch.from_numpy(np.ascontiguousarray(np.rot90(seen, self.quarters, (1, 2))))

    def _enlarged(self, image: Pixels, factor: int) -> Pixels:
        """The window of the image enlarged by bicubic interpolation, which sees beyond the window."""
        left, top = self.left / factor, self.top / factor
        box = (left, top, left + self.width / factor, top + self.height / factor)
        planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in image]
        size = (self.width, self.height)
        return np.stack([np.array(plane.resize(size, Image.Resampling.BICUBIC, box)) for plane in planes])


def eight_bits(image: Pixels) -> Pixels:
    """uint8 of uint8 or uint16, rounded."""
    return image if image.dtype == np.uint8 else ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)


def reflected(length: int, wanted: int) -> Pixels:
    """Indices ``0 .. length - 1``, there and back again (edges once) until there are ``wanted``."""
    period = max(2 * length - 2, 1)
    at = np.arange(wanted) % period
    return np.minimum(at, period - at)
