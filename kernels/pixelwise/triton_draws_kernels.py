"""Random numbers in a launch each: hundreds of launches, where operations of PyTorch do what a block of Philox does."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
from __future__ import annotations

import triton
import triton.language as tl

from .triton_kernels import normals


@triton.jit(do_not_specialize=["purpose"])
def words_kernel(seeds, out, count, blocks, purpose, STREAM: tl.constexpr, SEED: tl.constexpr, P: tl.constexpr):
    """Blocks of each seed: four uniform numbers, float32 ``[B, 4, count]``, or an int64 seed, ``[B, count]``.

    Grid: ``blocks`` programs a seed.
    """
    program = tl.program_id(0)
    sample = (program // blocks).to(tl.int64)
    at = program % blocks * P + tl.arange(0, P)
    inside = at < count
    low = at.to(tl.uint32)
    step, stream = tl.cast(purpose, tl.uint32) + tl.zeros_like(low), tl.full(low.shape, STREAM, tl.uint32)
    a, b, c, d = tl.philox(tl.load(seeds + sample), low, tl.zeros_like(low), step, stream)
    if SEED:
        tl.store(out + sample * count + at, (a.to(tl.int64) << 32) | b.to(tl.int64), mask=inside)
    else:
        row = out + sample * 4 * count + at
        tl.store(row, (a >> 8).to(tl.float32) * 5.9604644775390625e-08, mask=inside)  # 2^-24
        tl.store(row + count, (b >> 8).to(tl.float32) * 5.9604644775390625e-08, mask=inside)
        tl.store(row + 2 * count, (c >> 8).to(tl.float32) * 5.9604644775390625e-08, mask=inside)
        tl.store(row + 3 * count, (d >> 8).to(tl.float32) * 5.9604644775390625e-08, mask=inside)


@triton.jit(do_not_specialize=["purpose"])
def normals_kernel(seeds, out, size, blocks, purpose, STREAM: tl.constexpr, CHANNELS: tl.constexpr, P: tl.constexpr):
    """Standard normals float32 ``[B, CHANNELS, size]``: see `reference.normals`. Grid: ``blocks`` programs a seed."""
    program = tl.program_id(0)
    sample = (program // blocks).to(tl.int64)
    at = program % blocks * P + tl.arange(0, P)
    inside = at < size
    seed = tl.load(seeds + sample)
    row = out + sample * CHANNELS * size + at
    for group in tl.static_range((CHANNELS + 3) // 4):
        first, second, third, fourth = normals(seed, at, purpose, STREAM + (group << 8), False)
        tl.store(row + (4 * group) * size, first, mask=inside)
        if 4 * group + 1 < CHANNELS:
            tl.store(row + (4 * group + 1) * size, second, mask=inside)
        if 4 * group + 2 < CHANNELS:
            tl.store(row + (4 * group + 2) * size, third, mask=inside)
        if 4 * group + 3 < CHANNELS:
            tl.store(row + (4 * group + 3) * size, fourth, mask=inside)


@triton.jit
def poisson_kernel(
    mean, normal, out, size, FEW: tl.constexpr, LAST_RANK: tl.constexpr, MOST: tl.constexpr, P: tl.constexpr
):
    """Poisson numbers float32 ``[size]``: see `reference.poisson`. Grid: a program for each ``P``."""
    at = tl.program_id(0) * P + tl.arange(0, P)
    inside = at < size
    expected, z = tl.load(mean + at, mask=inside, other=0.0), tl.load(normal + at, mask=inside, other=0.0)
    small = tl.minimum(expected, FEW)
    rank = tl.minimum(0.5 + 0.5 * tl.erf(z * 0.7071067811865476), LAST_RANK)
    probability = tl.exp(-small)
    below, count = probability, tl.zeros_like(probability)
    for k in tl.static_range(1, MOST + 1):
        count += (rank > below).to(tl.float32)
        probability = probability * small * (1.0 / k)
        below += probability
    great = tl.maximum(expected, FEW)
    square = z * z
    skewed = (square - 1.0) * 0.16666666666666666 + z * (1.0 - square) / (72.0 * tl.sqrt(great))
    large = great + tl.sqrt(great - 0.08333333333333333) * z + skewed
    whole = tl.floor(large + 0.5)  # halves are as rare as any number
    tl.store(out + at, tl.where(expected <= FEW, count, tl.maximum(whole, 0.0)), mask=inside)
