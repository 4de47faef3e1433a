"""The differentiable matrix against what one writes without it: forward and backward, checked equal first."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from bdg_fast import soft_mas_glcm

from . import peers


def product_of_weights(images: Tensor, levels: int) -> Tensor:
    """A plane of hat-function weights per level, one batched matrix product per distinct offset, for autograd."""
    position = (images[:, 0] * levels - 0.5).clamp(0, levels - 1)
    index = torch.arange(levels, dtype=images.dtype, device=images.device).view(1, -1, 1, 1)
    weights = (1 - (position[:, None] - index).abs()).clamp(min=0)
    height, width = images.shape[2:]
    total = 0
    for dy, dx in dict.fromkeys(peers.OFFSETS):
        y, x = max(-dy, 0), max(-dx, 0)
        h, w = height - abs(dy), width - abs(dx)
        here, there = weights[:, :, y : y + h, x : x + w], weights[:, :, y + dy : y + dy + h, x + dx : x + dx + w]
        times = peers.OFFSETS.count((dy, dx))
        total = total + here.flatten(2) @ there.flatten(2).mT * (times / (h * w * len(peers.OFFSETS)))
    return total


IMPLS = {
    "bdg_fast cpu": lambda images, levels: soft_mas_glcm(images, levels=levels, impl="cpu"),
    "torch index_add (our reference)": lambda images, levels: soft_mas_glcm(images, levels=levels, impl="reference"),
    "torch matrix products": product_of_weights,
}


def step(function, images: Tensor, levels: int) -> Tensor:
    """Gradient of a loss."""
    leaf = images.clone().requires_grad_()
    function(leaf, levels).square().sum().backward()
    return leaf.grad


@pytest.fixture(scope="module")
def images(one: np.ndarray) -> Tensor:
    return torch.from_numpy(one)[:, None].float() / 255


@pytest.mark.parametrize("levels", [8, 32])
@pytest.mark.parametrize("name", IMPLS)
def test_forward_and_backward(benchmark, images, name, levels):  # type: ignore[no-untyped-def]
    benchmark.group = f"soft: forward and backward of one image 256 x 256, 54 pairs, {levels} levels"
    expected = step(IMPLS["torch index_add (our reference)"], images, levels)
    found = step(IMPLS[name], images, levels)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    benchmark.pedantic(lambda: step(IMPLS[name], images, levels), rounds=7, iterations=1, warmup_rounds=1)


@pytest.mark.parametrize("name", IMPLS)
@pytest.mark.benchmark(group="soft: forward and backward of 8 images 256 x 256, 54 pairs, 32 levels")
def test_batch_forward_and_backward(benchmark, batch, name):  # type: ignore[no-untyped-def]
    images = torch.from_numpy(batch[:8])[:, None].float() / 255
    benchmark.pedantic(lambda: step(IMPLS[name], images, 32), rounds=3, iterations=1, warmup_rounds=1)
