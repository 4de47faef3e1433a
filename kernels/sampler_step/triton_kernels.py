"""Triton backend: one reverse step; each element is read and written once, by one thread."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
from __future__ import annotations

import triton
import triton.language as tl

from ..pixelwise.triton_kernels import load, normals, pixels, side_by_side, store


@triton.jit
def _clamp(value, limit):
    return tl.clamp(value, -limit, limit, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _column(table, column: tl.constexpr, exists, COMPUTE: tl.constexpr):
    return tl.load(table + column, mask=exists, other=float("nan")).to(COMPUTE)


@triton.jit
def _row(table, step, steps, COMPUTE: tl.constexpr):
    """Coefficients in groups as in `spec.StepRow`; NaN if there is no row ``step``."""
    exists = (step >= 0) & (step < steps)
    table += step * 16
    complete = (
        _column(table, 0, exists, COMPUTE),
        _column(table, 1, exists, COMPUTE),
        _column(table, 2, exists, COMPUTE),
    )
    clean = (
        _column(table, 3, exists, COMPUTE),
        _column(table, 4, exists, COMPUTE),
        _column(table, 5, exists, COMPUTE),
        _column(table, 6, exists, COMPUTE),
    )
    following = (
        _column(table, 7, exists, COMPUTE),
        _column(table, 8, exists, COMPUTE),
        _column(table, 9, exists, COMPUTE),
        _column(table, 10, exists, COMPUTE),
        _column(table, 11, exists, COMPUTE),
    )
    return complete, clean, following, _column(table, 12, exists, COMPUTE), _column(table, 13, exists, COMPUTE)


@triton.jit
def _advance(images, row, z, b, c, y, x, inside, HEADS: tl.constexpr, NOISE: tl.constexpr, COMPUTE: tl.constexpr):
    """The step for channel ``c``: see `spec.py` and `step_kernel`."""
    x_t, x_lq, predicted, second, fresh, out = images
    complete, clean, following, sigma, limit = row
    x_t = load(x_t, b, c, y, x, inside, COMPUTE)
    x_lq = load(x_lq, b, c, y, x, inside, COMPUTE)
    predicted = load(predicted, b, c, y, x, inside, COMPUTE)
    if HEADS != "noise":
        predicted = _clamp(predicted, limit)
    if HEADS == "both":
        residual, noise = predicted, load(second, b, c, y, x, inside, COMPUTE)
    else:
        completed = complete[0] * x_t + complete[1] * x_lq + complete[2] * predicted
        if HEADS == "residual":
            residual, noise = predicted, completed
        else:
            residual, noise = completed, predicted
    x_0 = clean[0] * x_t + clean[1] * x_lq + clean[2] * residual + clean[3] * noise
    x_0 = _clamp(x_0, 1.0)
    x_s = following[0] * x_t + following[1] * x_lq
    x_s = x_s + following[2] * residual + following[3] * noise + following[4] * x_0
    z = z.to(COMPUTE)
    if NOISE == "fresh":  # noqa: SIM102  (known to the compiler; whether it is due only to the device)
        if sigma != 0.0:
            z = load(fresh, b, c, y, x, inside, COMPUTE)
    x_s = tl.where(sigma != 0.0, x_s + sigma * z, x_s)
    store(out, b, c, y, x, x_s, inside)


@triton.jit(do_not_specialize=["index", "steps", "blocks"])
def step_kernel(
    x_t,
    x_lq,
    predicted,
    second,
    fresh,
    out,
    seeds,
    table,
    step,
    index,
    steps,
    size,
    width,
    blocks,
    HEADS: tl.constexpr,
    NOISE: tl.constexpr,
    INDEXED: tl.constexpr,
    STREAM: tl.constexpr,
    COMPUTE: tl.constexpr,
    FLAT: tl.constexpr,
    WIDE: tl.constexpr,
    LAST: tl.constexpr,
    P: tl.constexpr,
):
    """``out = x_s``; images are tuples (`pixelwise.triton_kernels`).

    ``predicted`` is the residual (the noise with ``HEADS == "noise"``), ``second`` the noise with ``"both"``.
    ``NOISE``: ``"seed"``, ``"fresh"``, or ``"none"``, which gives NaN where noise is due. ``INDEXED``: the row is
    ``index``, not what ``step`` points to. ``LAST``: channels before columns, as ``[P, 4]``; else one after the other.
    """
    b, at, y, x, inside = pixels(size, width, blocks, FLAT, WIDE, P)
    number = tl.cast(index, tl.int64) if INDEXED else tl.load(step)
    row = _row(table, number, steps, COMPUTE)
    images = (x_t, x_lq, predicted, second, fresh, out)
    due = row[3] != 0.0  # NaN too
    if LAST:
        c = tl.arange(0, 4)[None, :]
        z = tl.full((P, 4), float("nan"), tl.float32)
        if NOISE == "seed":  # noqa: SIM102  (known to the compiler; whether it is due only to the device)
            if due:
                first, other, third, fourth = normals(tl.load(seeds + b), at, number, STREAM, WIDE)
                z = side_by_side(first, other, third, fourth)
        there = inside[:, None] & (c < 3)
        _advance(images, row, z, b, c, y[:, None], x[:, None], there, HEADS, NOISE, COMPUTE)
    else:
        red = tl.full((P,), float("nan"), tl.float32)
        green, blue = red, red
        if NOISE == "seed":  # noqa: SIM102  (known to the compiler; whether it is due only to the device)
            if due:
                red, green, blue, _ = normals(tl.load(seeds + b), at, number, STREAM, WIDE)
        _advance(images, row, red, b, 0, y, x, inside, HEADS, NOISE, COMPUTE)
        _advance(images, row, green, b, 1, y, x, inside, HEADS, NOISE, COMPUTE)
        _advance(images, row, blue, b, 2, y, x, inside, HEADS, NOISE, COMPUTE)
