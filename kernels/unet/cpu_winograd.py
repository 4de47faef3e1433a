"""Winograd's minimal filtering, F(4 x 4, 3 x 3): 36 products for 16 results of a 3 x 3 convolution, instead of 144.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015. Points 0, +-a, +-b and infinity. The usual
a = 1, b = 2 lose a digit more than a = sqrt(1/2), b = sqrt(2).
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
from __future__ import annotations

import numpy as np

from .cpu_simd import LANES, TILE, Vec, bytes_of, emitted, load, number, store

A, B = 0.5**0.5, 2.0**0.5
SIDE, FIELD = 4, 6
"""Of the tile of results, and of the pixels it comes from."""


def filter_matrix() -> np.ndarray:
    """``G``, float64 ``[6, 3]``: filters ``g`` become ``G g G^T``."""
    points = [0.0, A, -A, B, -B]
    rows = []
    for p in points:
        scale = np.prod([p - q for q in points if q != p])
        rows.append([1 / scale, p / scale, p * p / scale])
    return np.array([*rows, [0.0, 0.0, 1.0]])


def _input(d: list[Vec]) -> list[Vec]:
    """``B^T d``, six of six."""
    aa, bb = A * A, B * B
    even_a, odd_a = d[2].times(-bb, d[4]), d[1].times(-bb, d[3])
    even_b, odd_b = d[2].times(-aa, d[4]), d[1].times(-aa, d[3])
    return [
        d[0].times(aa * bb, d[2].times(-(aa + bb), d[4])),
        odd_a.times(A, even_a),
        odd_a.times(-A, even_a),
        odd_b.times(B, even_b),
        odd_b.times(-B, even_b),
        d[1].times(aa * bb, d[3].times(-(aa + bb), d[5])),
    ]


def _output(m: list[Vec]) -> list[Vec]:
    """``A^T m``, four of six."""
    sum_a, difference_a, sum_b, difference_b = m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]
    return [
        m[0] + sum_a + sum_b,
        difference_b.times(B, difference_a * A),
        sum_b.times(B * B, sum_a * (A * A)),
        difference_b.times(B**3, difference_a.times(A**3, m[5])),
    ]


PLANES = FIELD**2


def _transform_input(builder, source, row, target, plane):
    """36 values of a tile of 16 channels: ``f(source, row stride, target, plane stride)``, pixels side by side."""
    row, plane = bytes_of(builder, row), bytes_of(builder, plane)
    rows = [builder.add(source, builder.mul(row, number(y))) for y in range(FIELD)]
    for half in range(0, TILE, LANES):
        columns = []
        for x in range(FIELD):
            offset = number(4 * (TILE * x + half))
            columns.append(_input([load(builder, builder.add(at, offset)) for at in rows]))
        for y in range(FIELD):
            for x, value in enumerate(_input([columns[x][y] for x in range(FIELD)])):
                at = builder.add(target, builder.mul(plane, number(FIELD * y + x)))
                store(builder, value, builder.add(at, number(4 * half)))


def _transform_output(builder, source, target, row, column, bias):
    """A tile's results, of 16 channels side by side: ``f(source, target, row stride, column stride, bias)``."""
    row, column = bytes_of(builder, row), bytes_of(builder, column)
    for half in range(0, TILE, LANES):
        columns = []
        for x in range(FIELD):
            offsets = [number(4 * (TILE * (FIELD * y + x) + half)) for y in range(FIELD)]
            columns.append(_output([load(builder, builder.add(source, offset)) for offset in offsets]))
        added = load(builder, builder.add(bias, number(4 * half)))
        for y in range(SIDE):
            at = builder.add(builder.add(target, number(4 * half)), builder.mul(row, number(y)))
            for x, value in enumerate(_output([columns[x][y] for x in range(FIELD)])):
                store(builder, value + added, builder.add(at, builder.mul(column, number(x))))


transform_input = emitted(4, _transform_input)
transform_output = emitted(5, _transform_output)
