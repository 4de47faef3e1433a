"""Vector instructions for the compiled loops of the UNet, as LLVM code that numba inlines. Float32.

Addresses are int64; strides and counts are in elements. A compiler that vectorizes loops by itself keeps neither a
tile of a product nor the 36 values of a Winograd tile in registers, and knows no vector form of exp.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .spec import EPS

LANES = 8
"""Of the vectors of element-wise work. Processors with wider ones take two at a time in `TILE`."""
TILE = 16
"""Columns of a product made together: two vectors of AVX2, one of AVX-512."""

F32, I32, I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)


class Vec:
    """A vector and the builder that works on it, with operators."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    def _other(self, other: Vec | float) -> Any:
        return other.value if isinstance(other, Vec) else constant(other, self.value.type)

    def __add__(self, other: Vec | float) -> Vec:
        return Vec(self.builder, self.builder.fadd(self.value, self._other(other)))

    def __sub__(self, other: Vec | float) -> Vec:
        return Vec(self.builder, self.builder.fsub(self.value, self._other(other)))

    def __mul__(self, other: Vec | float) -> Vec:
        return Vec(self.builder, self.builder.fmul(self.value, self._other(other)))

    def __truediv__(self, other: Vec | float) -> Vec:
        return Vec(self.builder, self.builder.fdiv(self.value, self._other(other)))

    def times(self, factor: Vec | float, plus: Vec | float) -> Vec:
        """``self * factor + plus``, rounded once."""
        return self._call("fma", self._other(factor), self._other(plus))

    def max(self, other: Vec | float) -> Vec:
        """The larger of each pair."""
        return self._choose(">", other)

    def min(self, other: Vec | float) -> Vec:
        """The smaller of each pair."""
        return self._choose("<", other)

    def _choose(self, operator: str, other: Vec | float) -> Vec:
        value = self._other(other)
        test = self.builder.fcmp_unordered(operator, self.value, value)  # true for NaN, of either
        chosen = self.builder.select(test, self.value, value)
        if isinstance(other, Vec):  # where the other is NaN, NaN
            nan = self.builder.fcmp_unordered("uno", value, value)
            chosen = self.builder.select(nan, value, chosen)
        return Vec(self.builder, chosen)

    def _call(self, name: str, *others: Any) -> Vec:
        kind = self.value.type
        signature = ir.FunctionType(kind, [kind] * (1 + len(others)))
        function = cgutils.get_or_insert_function(self.builder.module, signature, f"llvm.{name}.v{kind.count}f32")
        return Vec(self.builder, self.builder.call(function, [self.value, *others]))

    def exp(self) -> Vec:
        """Natural exponential within 2 ulp, from -87.3 to 88 and held there beyond.

        ``2^n exp(r)`` with ``n`` read off the bits of a float that is too large for a fraction.
        """
        builder, kind = self.builder, self.value.type
        bits = ir.VectorType(I32, kind.count)
        x = self.min(88.0).max(-87.3)
        shifted = x.times(1 / math.log(2), 1.5 * 2**23)
        n = shifted - 1.5 * 2**23
        r = n.times(-0.693359375, x)  # ln 2 in two parts, the first exact
        r = n.times(2.12194440e-4, r)
        y = r.times(1.9875691500e-4, 1.3981999507e-3)  # minimax, Cephes' expf
        for c in (8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
            y = y.times(r, c)
        y = (y * r).times(r, r) + 1.0
        power = builder.shl(builder.bitcast(shifted.value, bits), ir.Constant(bits, [23] * kind.count))
        return Vec(builder, builder.bitcast(builder.add(builder.bitcast(y.value, bits), power), kind))

    def silu(self) -> Vec:
        """``x / (1 + exp(-x))``."""
        return self / ((self * -1.0).exp() + 1.0)

    def halves(self) -> tuple[Vec, Vec]:
        """The first and the last half of the lanes."""
        count = self.value.type.count // 2
        low, high = (ir.Constant(ir.VectorType(I32, count), list(range(first, first + count))) for first in (0, count))
        first, last = (self.builder.shuffle_vector(self.value, self.value, lanes) for lanes in (low, high))
        return Vec(self.builder, first), Vec(self.builder, last)

    def total(self) -> Any:
        """Sum of the lanes, a scalar."""
        value = self
        while value.value.type.count > 1:
            low, high = value.halves()
            value = low + high
        return self.builder.extract_element(value.value, ir.Constant(I32, 0))

    def largest(self) -> Any:
        """Of the lanes, a scalar."""
        value = self
        while value.value.type.count > 1:
            low, high = value.halves()
            value = low.max(high)
        return self.builder.extract_element(value.value, ir.Constant(I32, 0))


def vector(lanes: int) -> Any:
    """Type of that many floats."""
    return ir.VectorType(F32, lanes)


def constant(value: float, kind: Any) -> Any:
    """In every lane."""
    return ir.Constant(kind, [value] * kind.count)


def number(value: int) -> Any:
    """An int64."""
    return ir.Constant(I64, value)


def load(builder: Any, address: Any, lanes: int = LANES) -> Vec:
    """From any address."""
    kind = vector(lanes)
    return Vec(builder, builder.load(builder.inttoptr(address, kind.as_pointer()), align=4))


def load_one(builder: Any, address: Any) -> Any:
    """One float."""
    return builder.load(builder.inttoptr(address, F32.as_pointer()), align=4)


def splat(builder: Any, value: Any, lanes: int = LANES) -> Vec:
    """One float in every lane."""
    nothing = ir.Constant(vector(lanes), ir.Undefined)
    one = builder.insert_element(nothing, value, ir.Constant(I32, 0))
    return Vec(builder, builder.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)))


def store(builder: Any, value: Vec, address: Any) -> None:
    """To any address."""
    builder.store(value.value, builder.inttoptr(address, value.value.type.as_pointer()), align=4)


def bytes_of(builder: Any, elements: Any) -> Any:
    """Of that many floats."""
    return builder.shl(elements, number(2))


def loop(
    builder: Any, count: Any, step: int, body: Callable[[Any, Sequence[Any]], Sequence[Any]], start: Sequence[Any] = ()
) -> list[Any]:
    """``for i in range(0, count, step): carried = body(i, carried)``; returns what was carried out."""
    before = builder.block
    inside, after = builder.append_basic_block("loop"), builder.append_basic_block("after")
    builder.cbranch(builder.icmp_signed(">", count, number(0)), inside, after)
    builder.position_at_end(inside)
    index = builder.phi(I64)
    index.add_incoming(number(0), before)
    carried = [builder.phi(value.type) for value in start]
    for phi, value in zip(carried, start, strict=True):
        phi.add_incoming(value, before)
    results = list(body(index, carried))
    end = builder.block
    following = builder.add(index, number(step))
    index.add_incoming(following, end)
    for phi, value in zip(carried, results, strict=True):
        phi.add_incoming(value, end)
    builder.cbranch(builder.icmp_signed("<", following, count), inside, after)
    builder.position_at_end(after)
    out = []
    for value, result in zip(start, results, strict=True):
        phi = builder.phi(value.type)
        phi.add_incoming(value, before)
        phi.add_incoming(result, end)
        out.append(phi)
    return out


def emitted(arguments: int, emit: Callable[..., Any], returns: Any = types.void) -> Any:
    """A function for compiled loops, of that many int64 arguments; its code is what ``emit(builder, *args)`` builds."""

    def typed(_context, *given):
        signature = returns(*[types.int64] * arguments)

        def codegen(context, builder, _signature, args):
            result = emit(builder, *args)
            return context.get_dummy_value() if result is None else result

        return signature, codegen

    names = ", ".join(f"a{i}" for i in range(arguments))
    scope: dict[str, Any] = {"typed": typed}
    exec(f"def function(context, {names}): return typed(context, {names})", scope)  # intrinsics count parameters
    return intrinsic(scope["function"])


def product_tile(rows: int, start: str, along: str) -> Any:
    """``C[rows, 16] = start + A[rows, k] B[k, 16]``: ``f(a, stride, b, ldb, k, c, ldc, bias)``.

    ``start``: "zero", "bias" (a row of 16) or "sum" (what is in C). ``along`` which axis A is contiguous: "k", with
    ``stride`` from row to row, or "rows", with ``stride`` from k to k.
    """

    def emit(builder, a, stride, b, ldb, k, c, ldc, bias):
        stride, ldb, ldc = (bytes_of(builder, n) for n in (stride, ldb, ldc))
        row, step = (stride, number(4)) if along == "k" else (number(4), stride)
        sources = [builder.add(a, builder.mul(row, number(r))) for r in range(rows)]
        targets = [builder.add(c, builder.mul(ldc, number(r))) for r in range(rows)]
        if start == "sum":
            begin = [load(builder, target, TILE).value for target in targets]
        elif start == "bias":
            begin = [load(builder, bias, TILE).value] * rows
        else:
            begin = [constant(0.0, vector(TILE))] * rows

        def body(i, sums):
            factors = load(builder, builder.add(b, builder.mul(i, ldb)), TILE)
            offset = builder.mul(i, step)
            results = []
            for source, total in zip(sources, sums, strict=True):
                one = splat(builder, load_one(builder, builder.add(source, offset)), TILE)
                results.append(one.times(factors, Vec(builder, total)).value)
            return results

        for target, result in zip(targets, loop(builder, k, 1, body, begin), strict=True):
            store(builder, Vec(builder, result), target)

    return emitted(8, emit)


def chunked_tile(rows: int) -> Any:
    """``C[rows, 16] = A[rows, k] B[k, 16]`` as `product_tile`, for a multiple of 16 ``k`` and ``ldb = 16``."""

    def emit(builder, a, lda, b, _ldb, k, c, ldc, _bias):
        lda, ldc = bytes_of(builder, lda), bytes_of(builder, ldc)
        sources = [builder.add(a, builder.mul(lda, number(r))) for r in range(rows)]

        def body(i, sums):
            offset, sums = builder.mul(i, number(4)), list(sums)
            factors = builder.add(b, builder.mul(i, number(4 * TILE)))
            begins = [builder.add(source, offset) for source in sources]
            for n in range(TILE):
                row = load(builder, builder.add(factors, number(4 * TILE * n)), TILE)
                for r, begin in enumerate(begins):
                    one = splat(builder, load_one(builder, builder.add(begin, number(4 * n))), TILE)
                    sums[r] = one.times(row, Vec(builder, sums[r])).value
            return sums

        begin = [constant(0.0, vector(TILE))] * rows
        for r, result in enumerate(loop(builder, k, TILE, body, begin)):
            store(builder, Vec(builder, result), builder.add(c, builder.mul(ldc, number(r))))

    return emitted(8, emit)


def elementwise(arguments: int, apply: Callable[..., Vec]) -> Any:
    """``f(target, count, *sources)``: a row of results, each from as many sources; ``count`` a multiple of 8."""

    def emit(builder, target, count, *sources):
        def body(i, _carried):
            offset = bytes_of(builder, i)
            values = [load(builder, builder.add(source, offset)) for source in sources]
            store(builder, apply(*values), builder.add(target, offset))
            return ()

        loop(builder, count, LANES, body)

    return emitted(2 + arguments, emit)


copy = elementwise(1, lambda x: x)
scaled = elementwise(2, lambda x, factor: x * factor)
plus = elementwise(2, lambda x, y: x + y)
largest_of = elementwise(2, lambda x, y: x.max(y))
exp_of_difference = elementwise(2, lambda x, y: (x - y).exp())
activated_plus = elementwise(4, lambda x, gain, offset, y: x.times(gain, offset).silu() + y)


def filled(value: float) -> Any:
    """``f(target, count)``: a row of one value; ``count`` a multiple of 8."""

    def emit(builder, target, count):
        def body(i, _carried):
            store(builder, Vec(builder, constant(value, vector(LANES))), builder.add(target, bytes_of(builder, i)))
            return ()

        loop(builder, count, LANES, body)

    return emitted(2, emit)


zero = filled(0.0)


def _normalized(builder, target, channels, source, gain, and_offset=None, and_sum=None):
    """Layer norm of one row: ``f(target, channels, source, gain)``."""
    count = splat(builder, builder.sitofp(channels, F32))
    nothing = constant(0.0, vector(LANES))

    def read(i):
        value = load(builder, builder.add(source, bytes_of(builder, i)))
        if and_offset is not None:
            value = value + load(builder, builder.add(and_offset, bytes_of(builder, i)))
        return value

    def add(i, sums):
        return [(Vec(builder, sums[0]) + read(i)).value]

    total = Vec(builder, loop(builder, channels, LANES, add, [nothing])[0]).total()
    mean = splat(builder, total) / count

    def add_square(i, sums):
        distance = read(i) - mean
        return [distance.times(distance, Vec(builder, sums[0])).value]

    squares = Vec(builder, loop(builder, channels, LANES, add_square, [nothing])[0]).total()
    variance = splat(builder, squares) / count + EPS
    scale = Vec(builder, constant(1.0, vector(LANES))) / variance._call("sqrt")

    def write(i, _carried):
        offset = bytes_of(builder, i)
        value = (read(i) - mean) * scale * load(builder, builder.add(gain, offset))
        if and_sum is not None:
            value = value + load(builder, builder.add(and_sum, offset))
        store(builder, value, builder.add(target, offset))
        return ()

    loop(builder, channels, LANES, write)


normalized = emitted(4, _normalized)
normalized_plus = emitted(6, _normalized)
"""Of a row and an offset, added to another: ``f(target, channels, source, gain, offset, other)``."""


def _softmax32(builder, row, parts):
    """Softmax of each 32 neighbours of a row, in place: ``f(row, parts)``."""

    def body(i, _carried):
        start = builder.add(row, builder.mul(i, number(128)))
        places = [builder.add(start, number(4 * LANES * n)) for n in range(32 // LANES)]
        values = [load(builder, place) for place in places]
        top = values[0]
        for value in values[1:]:
            top = top.max(value)
        most = splat(builder, top.largest())
        values = [(value - most).exp() for value in values]
        total = values[0]
        for value in values[1:]:
            total = total + value
        share = Vec(builder, constant(1.0, vector(LANES))) / splat(builder, total.total())
        for value, place in zip(values, places, strict=True):
            store(builder, value * share, place)
        return ()

    loop(builder, parts, 1, body)


softmax32 = emitted(2, _softmax32)


def _take(builder, address):
    """Count an int64 up and return what it was, whatever other threads do: ``f(address)``."""
    return builder.atomic_rmw("add", builder.inttoptr(address, I64.as_pointer()), number(1), "monotonic")


take = emitted(1, _take, types.int64)
