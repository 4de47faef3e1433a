"""Launches of `triton_draws_kernels.py` (CUDA and ROCm)."""

from __future__ import annotations

import torch
from torch import Tensor

from . import triton_draws_kernels as kernels
from .spec import DRAW_STREAM, FEW, LAST_RANK, MOST, SEED_STREAM
from .triton import FLAT_PIXELS, INTERPRETED_PIXELS, on

OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


def uniforms(seed: Tensor, count: int, purpose: int) -> Tensor:
    """See `ops.uniforms`: the same bits."""
    out = torch.empty(len(seed), 4, count, device=seed.device)
    _words(out, seed, count, purpose, DRAW_STREAM, False)
    return out


def derived_seeds(seed: Tensor, number: int) -> Tensor:
    """See `ops.derived_seeds`: the same bits."""
    out = torch.empty_like(seed, memory_format=torch.contiguous_format)
    _words(out, seed, 1, number, SEED_STREAM, True)
    return out


def image_normals(seed: Tensor, height: int, width: int, purpose: int, channels: int) -> Tensor:
    """See `ops.image_normals`: the same to 1e-6 and a rounding, as elementary functions are float32 here."""
    out = torch.empty(len(seed), channels, height, width, device=seed.device)
    if out.numel():
        block, blocks = _blocks(height * width, out)
        with on(out.device):
            kernels.normals_kernel[(len(seed) * blocks,)](
                seed.contiguous(), out, height * width, blocks, purpose, DRAW_STREAM, channels, block, **OPTIONS
            )
    return out


def poisson(mean: Tensor, normal: Tensor) -> Tensor:
    """See `ops.poisson`: one in a million numbers may be the next one."""
    normal = normal.expand_as(mean)
    out = torch.empty(mean.shape, device=mean.device)
    if out.numel():
        block, blocks = _blocks(out.numel(), out)
        with on(out.device):
            kernels.poisson_kernel[(blocks,)](
                mean.contiguous(), normal.contiguous(), out, out.numel(), FEW, LAST_RANK, MOST, block, **OPTIONS
            )
    return out


def _words(out: Tensor, seed: Tensor, count: int, purpose: int, stream: int, seeds: bool) -> None:
    if out.numel():
        block, blocks = _blocks(count, out)
        with on(out.device):
            kernels.words_kernel[(len(seed) * blocks,)](
                seed.contiguous(), out, count, blocks, purpose, stream, seeds, block, **OPTIONS
            )


def _blocks(count: int, out: Tensor) -> tuple[int, int]:
    """Numbers of a program, and programs of a sample."""
    block = FLAT_PIXELS if out.is_cuda else INTERPRETED_PIXELS
    block = min(block, max(32, 1 << (count - 1).bit_length()))
    return block, -(-count // block)
