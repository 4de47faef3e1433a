"""Matrices of overlapping windows against cropping each: ours and scikit-image in a loop, checked equal first."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bdg_fast import local_mas_glcm, mas_glcm

from . import peers

WINDOW = 64


def corners(stride: int) -> list[tuple[int, int]]:
    return [(y, x) for y in range(0, 257 - WINDOW, stride) for x in range(0, 257 - WINDOW, stride)]


def windows(image: np.ndarray, stride: int) -> np.ndarray:
    return np.stack([image[0, y : y + WINDOW, x : x + WINDOW] for y, x in corners(stride)])


def ours_cropped(image: np.ndarray, stride: int) -> torch.Tensor:
    return mas_glcm(torch.from_numpy(windows(image, stride))[:, None], impl="cpu")


def scikit_image_cropped(image: np.ndarray, stride: int) -> np.ndarray:
    return peers.scikit_image_mean(windows(image, stride), 32)


IMPLS = {
    "bdg_fast local_mas_glcm": lambda image, stride: local_mas_glcm(
        torch.from_numpy(image)[:, None], WINDOW, stride, impl="cpu"
    ),
    "bdg_fast mas_glcm, cropped": ours_cropped,
    "scikit-image, cropped": scikit_image_cropped,
}


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
@pytest.mark.parametrize("name", IMPLS)
def test_map(benchmark, one, name, stride):  # type: ignore[no-untyped-def]
    benchmark.group = f"map: windows of 64 x 64, stride {stride}, of one image 256 x 256, 54 pairs, 32 levels"
    found = np.asarray(IMPLS[name](one, stride)).reshape(-1, 32, 32)
    np.testing.assert_allclose(found, ours_cropped(one, stride).numpy(), rtol=1e-6)
    rounds = 1 if "scikit" in name and stride == 4 else 5
    benchmark.pedantic(lambda: IMPLS[name](one, stride), rounds=rounds, iterations=1, warmup_rounds=1)
