"""Other ways to compute the same co-occurrence matrices, from libraries or as a user would write them.

Each peer takes gray images uint8 ``[B, H, W]``, levels and offsets, and returns counts int64
``[B, offsets, levels, levels]`` (normalized float64 where it says so). They are checked equal before timing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bdg_fast import glcm_offsets

Offsets = Sequence[tuple[int, int]]
ANGLES = [j * math.pi / 9 for j in range(9)]
SCALES = (1, 2, 3, 4, 5, 6)
OFFSETS = glcm_offsets()


def quantized(images: np.ndarray, levels: int) -> np.ndarray:
    """Gray levels uint8 of uint8 images, by the project's integer rule."""
    return ((images.astype(np.uint32) * 257 * levels) >> 16).astype(np.uint8)


def scikit_image(images: np.ndarray, levels: int, normed: bool = True) -> np.ndarray:
    """``graycomatrix`` in a loop over images, 54 pairs: ``[B, levels, levels, 6, 9]``."""
    from skimage.feature import graycomatrix

    return np.stack(
        [graycomatrix(image, SCALES, ANGLES, levels=levels, normed=normed) for image in quantized(images, levels)]
    )


def scikit_image_mean(images: np.ndarray, levels: int) -> np.ndarray:
    """MAS-GLCM from ``graycomatrix``: ``[B, levels, levels]``."""
    return scikit_image(images, levels).mean((3, 4))


@lru_cache(maxsize=1)
def _numba_kernel() -> Callable[..., None]:
    import numba

    @numba.njit(nogil=True)
    def count(levels_image: np.ndarray, offsets: np.ndarray, out: np.ndarray) -> None:
        height, width = levels_image.shape
        for k in range(offsets.shape[0]):
            dy, dx = offsets[k]
            for y in range(max(0, -dy), min(height, height - dy)):
                for x in range(max(0, -dx), min(width, width - dx)):
                    out[k, levels_image[y, x], levels_image[y + dy, x + dx]] += 1

    return count  # type: ignore[no-any-return]


def numba_loop(images: np.ndarray, levels: int, offsets: Offsets = OFFSETS) -> np.ndarray:
    """A plain compiled double loop, images spread over threads; counts ``[B, offsets, levels, levels]``."""
    count = _numba_kernel()
    table = np.array(offsets)
    out = np.zeros((len(images), len(offsets), levels, levels), np.int64)
    quantized_images = quantized(images, levels)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(lambda b: count(quantized_images[b], table, out[b]), range(len(images))))
    return out


def mahotas_cooccurrence(images: np.ndarray, levels: int) -> np.ndarray:
    """``mahotas.features.texture.cooccurence``, its four directions at distance 1: ``[B, 4, levels, levels]``."""
    from mahotas.features.texture import cooccurence

    def padded(matrix: np.ndarray) -> np.ndarray:
        missing = levels - len(matrix)
        return np.pad(matrix, ((0, missing), (0, missing)))

    return np.stack(
        [
            np.stack([padded(cooccurence(image, direction, symmetric=False)) for direction in range(4)])
            for image in quantized(images, levels)
        ]
    )


MAHOTAS_OFFSETS = ((0, 1), (1, 1), (1, 0), (1, -1))


def _codes(images: Tensor, levels: int, dy: int, dx: int) -> Tensor:
    batch, height, width = images.shape
    y0, x0 = max(-dy, 0), max(-dx, 0)
    y1, x1 = min(height, height - dy), min(width, width - dx)
    here, there = images[:, y0:y1, x0:x1], images[:, y0 + dy : y1 + dy, x0 + dx : x1 + dx]
    return (torch.arange(batch, device=images.device).view(-1, 1, 1) * levels + here) * levels + there


def _gray_levels(images: Tensor, levels: int) -> Tensor:
    return (images.to(torch.int64) * 257 * levels) >> 16


def torch_bincount(images: Tensor, levels: int, offset: tuple[int, int]) -> Tensor:
    """Counts of one offset by one batched ``bincount``, ``[B, levels, levels]`` from gray levels ``[B, H, W]``."""
    shape = (len(images), levels, levels)
    return torch.bincount(_codes(images, levels, *offset).flatten(), minlength=math.prod(shape)).view(shape)


def torch_scatter(images: Tensor, levels: int, offset: tuple[int, int]) -> Tensor:
    """As :func:`torch_bincount`, by ``scatter_add_``."""
    shape = (len(images), levels, levels)
    codes = _codes(images, levels, *offset).flatten()
    total = torch.zeros(math.prod(shape), dtype=torch.int32, device=images.device)
    return total.scatter_add_(0, codes, torch.ones_like(codes, dtype=torch.int32)).view(shape)


Count = Callable[[Tensor, int, tuple[int, int]], Tensor]


def torch_counts(count: Count, images: Tensor, levels: int, offsets: Offsets = OFFSETS) -> Tensor:
    """``count`` of each distinct offset: ``[B, offsets, levels, levels]`` of uint8 images, on any device."""
    gray = _gray_levels(images, levels)
    counts = {offset: count(gray, levels, offset) for offset in dict.fromkeys(offsets)}
    return torch.stack([counts[offset] for offset in offsets], 1)


def torch_mean(count: Count, images: Tensor, levels: int, offsets: Offsets = OFFSETS) -> Tensor:
    """MAS-GLCM float32 ``[B, levels, levels]``: each distinct offset is counted once and added with its weight."""
    gray = _gray_levels(images, levels)
    _, height, width = images.shape
    mean = torch.zeros((len(images), levels, levels), device=images.device)
    for (dy, dx), times in Counter(offsets).items():
        pairs = max(height - abs(dy), 0) * max(width - abs(dx), 0)
        if pairs:
            mean.add_(count(gray, levels, (dy, dx)), alpha=times / (pairs * len(offsets)))
    return mean


def available(*names: str) -> dict[str, Any]:
    """``{name: version or None}`` of installed packages."""
    from importlib import metadata

    versions: dict[str, Any] = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions
