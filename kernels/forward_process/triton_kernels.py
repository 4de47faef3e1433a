"""Triton backend: noisy images by the closed form; each element is read and written once, by one thread."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
from __future__ import annotations

import triton
import triton.language as tl

from ..pixelwise.triton_kernels import load, normals, pixels, side_by_side, store


@triton.jit
def _diffuse(images, row, eps, b, c, y, x, inside, DRAW: tl.constexpr, COMPUTE: tl.constexpr):
    """Channel ``c``: see `forward_kernel`."""
    x_0, x_lq, noise, x_t = images
    clean = load(x_0, b, c, y, x, inside, COMPUTE)
    degraded = load(x_lq, b, c, y, x, inside, COMPUTE)
    if DRAW:
        eps = eps.to(noise[0].dtype.element_ty)
        store(noise, b, c, y, x, eps, inside)
        eps = eps.to(COMPUTE)
    else:
        eps = load(noise, b, c, y, x, inside, COMPUTE)
    found = clean + row[0] * (degraded - clean) + row[1] * eps - row[2] * degraded
    store(x_t, b, c, y, x, found, inside)


@triton.jit(do_not_specialize=["steps", "blocks"])
def forward_kernel(
    x_0,
    x_lq,
    noise,
    x_t,
    seeds,
    times,
    table,
    steps,
    size,
    width,
    blocks,
    DRAW: tl.constexpr,
    STREAM: tl.constexpr,
    COMPUTE: tl.constexpr,
    FLAT: tl.constexpr,
    WIDE: tl.constexpr,
    LAST: tl.constexpr,
    P: tl.constexpr,
):
    """``x_t = x_0 + A (x_lq - x_0) + B eps - D x_lq``; images are tuples (`pixelwise.triton_kernels`).

    ``DRAW``: ``eps`` is drawn, rounded to the type of ``noise`` and written there. NaN where ``times`` is no row of
    ``table [steps, 3]``. ``LAST``: channels before columns, as ``[P, 4]``; else one after the other.
    """
    b, at, y, x, inside = pixels(size, width, blocks, FLAT, WIDE, P)
    t = tl.load(times + b)
    exists = (t >= 0) & (t < steps)
    row = (
        tl.load(table + 3 * t, mask=exists, other=float("nan")).to(COMPUTE),
        tl.load(table + 3 * t + 1, mask=exists, other=float("nan")).to(COMPUTE),
        tl.load(table + 3 * t + 2, mask=exists, other=float("nan")).to(COMPUTE),
    )
    images = (x_0, x_lq, noise, x_t)
    red = tl.zeros((P,), tl.float32)
    green, blue, spare = red, red, red
    if DRAW:
        red, green, blue, spare = normals(tl.load(seeds + b), at, 0, STREAM, WIDE)
    if LAST:
        c = tl.arange(0, 4)[None, :]
        there = inside[:, None] & (c < 3)
        eps = side_by_side(red, green, blue, spare)
        _diffuse(images, row, eps, b, c, y[:, None], x[:, None], there, DRAW, COMPUTE)
    else:
        _diffuse(images, row, red, b, 0, y, x, inside, DRAW, COMPUTE)
        _diffuse(images, row, green, b, 1, y, x, inside, DRAW, COMPUTE)
        _diffuse(images, row, blue, b, 2, y, x, inside, DRAW, COMPUTE)
