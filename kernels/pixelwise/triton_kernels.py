"""What kernels share that touch each pixel once: addresses, and noise.

An *image* is a tuple ``(pointer, batch, channel, row, column)`` of a pointer and strides in elements.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def pixels(size, width, blocks, FLAT: tl.constexpr, WIDE: tl.constexpr, P: tl.constexpr):
    """This program's image (int64) and pixels ``[P]``: index, row, column, and which are among the image's ``size``.

    Grid: ``blocks`` programs an image. ``FLAT``: columns go on from row to row (`Layout`), so nothing is divided.
    """
    program = tl.program_id(0)
    at = tl.arange(0, P)
    at = (program % blocks).to(tl.int64) * P + at if WIDE else program % blocks * P + at
    if FLAT:
        y, x = tl.zeros_like(at), at
    else:
        y, x = at // width, at % width
    return (program // blocks).to(tl.int64), at, y, x, at < size


@triton.jit
def addresses(image, b, c, y, x):
    """Addresses of channel ``c`` at ``(y, x)``; 64-bit where the coordinates are."""
    c = tl.cast(c, y.dtype)
    return image[0] + b * image[1] + (c * image[2] + y * image[3] + x * image[4])


@triton.jit
def load(image, b, c, y, x, inside, COMPUTE: tl.constexpr):
    """Values in the type of the computation."""
    value = tl.load(addresses(image, b, c, y, x), mask=inside, other=0.0)
    if value.dtype.primitive_bitwidth == 16:
        value = value.to(tl.float32)  # the interpreter knows no other way from bfloat16
    return value.to(COMPUTE)


@triton.jit
def store(image, b, c, y, x, value, inside):
    """Write values in the type of the image."""
    dtype: tl.constexpr = image[0].dtype.element_ty
    if dtype.primitive_bitwidth == 16:
        value = value.to(tl.float32)  # as PyTorch rounds float64
    tl.store(addresses(image, b, c, y, x), value.to(dtype), mask=inside)


@triton.jit
def box_muller(first, second):
    """Two standard normals, float32, of two uint32 words: see `reference.box_muller`.

    Sine and cosine by polynomials (Cephes) around the nearest quarter turn, which is exact in integers: the library's
    reserve local memory for angles that do not occur here.
    """
    u = first.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10  # 2^-32, 2^-33
    radius = tl.sqrt(-2.0 * tl.log(u))
    quarter = (second + 0x20000000) >> 30  # wraps around
    rest = (second - (quarter << 30)).to(tl.int32, bitcast=True)  # in -2^29..2^29 - 1
    angle = rest.to(tl.float32) * 1.4629180792671596e-09  # 2 pi / 2^32
    square = angle * angle
    sine = (-1.9515295891e-4 * square + 8.3321608736e-3) * square - 1.6666654611e-1
    sine = sine * square * angle + angle
    cosine = (2.443315711809948e-5 * square - 1.388731625493765e-3) * square + 4.166664568298827e-2
    cosine = cosine * square * square - 0.5 * square + 1.0
    odd = (quarter & 1) != 0
    x, y = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
    x = tl.where(((quarter + 1) & 2) != 0, -x, x)
    y = tl.where((quarter & 2) != 0, -y, y)
    return radius * x, radius * y


@triton.jit
def normals(seed, at, step, STREAM: tl.constexpr, WIDE: tl.constexpr):
    """Four standard normals float32 ``[P]`` of each pixel ``at``: see `reference.normals`; ``seed`` int64."""
    low = at.to(tl.uint32)
    high = (at >> 32).to(tl.uint32) if WIDE else tl.zeros_like(low)
    turn = tl.cast(step, tl.uint32) + tl.zeros_like(low)
    a, b, c, d = tl.philox(seed, low, high, turn, tl.full(low.shape, STREAM, tl.uint32))
    first, second = box_muller(a, b)
    third, fourth = box_muller(c, d)
    return first, second, third, fourth


@triton.jit
def side_by_side(a, b, c, d):
    """``[P, 4]`` of four ``[P]``."""
    return tl.join(tl.join(a, c), tl.join(b, d)).reshape(a.shape[0], 4)
