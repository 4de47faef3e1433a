"""What the instructions of PTX do: as many of them as Triton makes of the kernels here. For `ptx.py`."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from ptx import Machine

Array: TypeAlias = npt.NDArray[Any]
Kind: TypeAlias = "np.dtype[Any]"
Operand: TypeAlias = "int | str | Address | tuple[int | str, ...]"
Mask: TypeAlias = "Array | None"  # of threads; None: all
Run: TypeAlias = "Callable[[Machine, tuple[Any, ...], Mask], None]"

WARP = 32
TYPES: dict[str, Kind] = {
    f"{kind}{8 * size}": np.dtype(f"{code}{size}") for kind, code in ("bu", "uu", "si") for size in (1, 2, 4, 8)
}
TYPES |= {"f16": np.dtype("f2"), "f32": np.dtype("f4"), "f64": np.dtype("f8"), "pred": np.dtype("?")}
B32, U32, S32, F16 = TYPES["b32"], TYPES["u32"], TYPES["s32"], TYPES["f16"]
STEERING = ("bra", "bra.uni", "ret", "bar.sync")
"""What `Machine` does itself."""
HINTS = {"gpu", "relaxed", "L1::evict_first", "L1::evict_last", "L1::no_allocate"}
"""Words of memory instructions that change no value here."""


class PtxError(Exception):
    """What went wrong, at which instruction and thread."""


class Fault(Exception):
    """What went wrong, and the thread: `Machine` adds the instruction."""

    def __init__(self, what: str, thread: int):
        super().__init__(what)
        self.thread = thread


class Address(NamedTuple):
    """``[base + offset]``."""

    base: int | str
    offset: int


def decode(opcode: str) -> Run | None:
    """What runs the instruction; None if it steers."""
    if opcode in STEERING:
        return None
    head, *words = opcode.split(".")
    try:
        if head in COMPOUND:
            return COMPOUND[head](*words)
        *modifiers, kind = (word for word in words if word != "rn")
        return _arithmetic(".".join([head, *modifiers]), TYPES[kind.removesuffix("x2")], kind == "f32x2")
    except (KeyError, ValueError, TypeError):
        raise PtxError(f"unknown instruction {opcode}") from None


def _wider(kind: Kind) -> Kind:
    return np.dtype(f"{kind.kind}{2 * kind.itemsize}")


# --- arithmetic: results by operands, all vectors


def _divide(a: Array, b: Array) -> Array:
    quotient: Array = (a - np.fmod(a, b)) // b if a.dtype.kind != "f" else a / b
    return quotient


def _multiply_wide(a: Array, b: Array) -> Array:
    product: Array = a.astype(_wider(a.dtype)) * b.astype(_wider(b.dtype))
    return product


def _fma(a: Array, b: Array, c: Array) -> Array:
    """Rounded once: products of float32 are exact in float64, and their sum is rounded to odd there first."""
    if a.dtype != np.float32:
        raise PtxError(f"unknown instruction fma of {a.dtype}")
    product, addend = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = np.asarray(product + addend)
    part = total - product
    error = (product - (total - part)) + (addend - part)
    odd = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    return np.where((error != 0) & (total.view(np.int64) & 1 == 0), odd, total).astype(np.float32)


def _shift_left(a: Array, by: Array) -> Array:
    bits = 8 * a.dtype.itemsize
    return np.where(by < bits, a << (by % bits).astype(a.dtype), 0)


def _shift_right(a: Array, by: Array) -> Array:
    last = 8 * a.dtype.itemsize - 1
    kept = a >> np.minimum(by, last).astype(a.dtype)
    return kept if a.dtype.kind == "i" else np.where(by <= last, kept, 0)


def _bits(a: Array, start: Array, length: Array) -> Array:
    wide = a.astype(f"{a.dtype.kind}8")
    up, down = 64 - (start & 255) - (length & 255), 64 - (length & 255)
    return np.where(length & 255 == 0, 0, wide << up.astype(wide.dtype) >> down.astype(wide.dtype)).astype(a.dtype)


def _permute(a: Array, b: Array, selector: Array) -> Array:
    both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    result = np.zeros(both.shape, np.uint32)
    for place in range(4):
        choice = selector >> np.uint32(4 * place)
        byte = (both >> (8 * (choice & 7)).astype(np.uint64)).astype(np.uint8)
        sign = np.where(byte >= 128, np.uint8(255), np.uint8(0))
        result = result | np.where(choice & 8 != 0, sign, byte).astype(np.uint32) << np.uint32(8 * place)
    return result


def _of_pairs(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*pairs: Array) -> Array:
        floats = [np.ascontiguousarray(pair).reshape(-1, 1).view(np.float32) for pair in pairs]
        return np.asarray(function(*floats)).view(np.uint64)[:, 0]

    return run


ARITHMETIC: dict[str, tuple[Callable[..., Any], str]] = {
    # and the types of the operands: t, that of the instruction; w, twice as wide; else as written
    "add": (np.add, "t t"),
    "sub": (np.subtract, "t t"),
    "mul": (np.multiply, "t t"),
    "mul.lo": (np.multiply, "t t"),
    "mul.wide": (_multiply_wide, "t t"),
    "mad.lo": (lambda a, b, c: a * b + c, "t t t"),
    "mad.wide": (lambda a, b, c: _multiply_wide(a, b) + c, "t t w"),
    "fma": (_fma, "t t t"),
    "div": (_divide, "t t"),
    "rem": (np.fmod, "t t"),
    "neg": (np.negative, "t"),
    "abs": (np.abs, "t"),
    "min": (np.fmin, "t t"),
    "max": (np.fmax, "t t"),
    "and": (np.bitwise_and, "t t"),
    "or": (np.bitwise_or, "t t"),
    "xor": (np.bitwise_xor, "t t"),
    "not": (np.invert, "t"),
    "shl": (_shift_left, "t u32"),
    "shr": (_shift_right, "t u32"),
    "bfe": (_bits, "t u32 u32"),
    "prmt": (_permute, "t t t"),
    "popc": (lambda a: np.bitwise_count(a).astype(np.uint32), "t"),
    "selp": (lambda a, b, p: np.where(p, a, b), "t t pred"),
}


def _arithmetic(name: str, kind: Kind, pairs: bool) -> Run:
    function, spelled = ARITHMETIC[name]
    if pairs:  # of floats in 64 bits
        function, kind = _of_pairs(function), TYPES["b64"]
    kinds = [kind if k == "t" else _wider(kind) if k == "w" else TYPES[k] for k in spelled.split()]

    def run(machine: Machine, operands: tuple[Any, ...], mask: Mask) -> None:
        target, *rest = operands
        values = [machine.read(operand, k) for operand, k in zip(rest, kinds, strict=True)]
        machine.write(target, function(*values), mask)

    return run


COMPARISONS = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip


def _setp(comparison: str, spelled: str) -> Run:
    kind = TYPES[spelled]
    unordered = kind.kind == "f" and comparison.endswith("u")  # true of NaN
    compare = COMPARISONS[comparison.removesuffix("u") if unordered else comparison]

    def run(machine: Machine, operands: tuple[Any, ...], mask: Mask) -> None:
        target, left, right = operands
        a, b = machine.read(left, kind), machine.read(right, kind)
        result = compare(a, b)
        if kind.kind == "f":
            nan = np.isnan(a) | np.isnan(b)
            result = result | nan if unordered else result & ~nan
        machine.write(target, result, mask)

    return run


def _cvt(*words: str) -> Run:
    *rounding, target, source = words
    into, bfloat = TYPES[target], source == "bf16"
    kind = TYPES["b16" if bfloat else source]
    floats = ("f" if bfloat else kind.kind) + into.kind
    if rounding not in ([["rzi"]] if floats in ("fi", "fu") else [[], ["rn"]]):
        raise ValueError(rounding)

    def run(machine: Machine, operands: tuple[Any, ...], mask: Mask) -> None:
        value = machine.read(operands[1], kind)
        if bfloat:
            value = (value.astype(np.uint32) << np.uint32(16)).view(np.float32)
        if rounding == ["rzi"]:  # saturates, and makes 0 of NaN
            low, high = np.iinfo(into).min, np.iinfo(into).max
            whole = np.trunc(np.nan_to_num(value.astype(np.float64), posinf=np.inf, neginf=-np.inf))
            result = np.where(whole >= float(high), high, np.clip(whole, low, float(high)).astype(into))
            value = np.where(whole <= float(low), low, result)
        elif into == F16 and value.dtype.kind != "f":
            value = value.astype(np.float64)
        machine.write(operands[0], value.astype(into), mask)

    return run


def _mov(spelled: str) -> Run:
    kind = TYPES[spelled]

    def run(machine: Machine, operands: tuple[Any, ...], mask: Mask) -> None:
        target, source = operands
        if isinstance(source, tuple):
            part = np.dtype(f"u{kind.itemsize // len(source)}")
            parts = np.broadcast_arrays(*(machine.read(name, part) for name in source))
            machine.write(target, np.stack(parts, 1).view(kind)[:, 0], mask)
        elif isinstance(target, tuple):
            whole = np.ascontiguousarray(np.broadcast_to(machine.read(source, kind), machine.count))
            split = whole.view(f"u{kind.itemsize // len(target)}").reshape(machine.count, -1)
            for name, part in zip(target, split.T, strict=True):
                machine.write(name, np.ascontiguousarray(part), mask)
        else:
            machine.write(target, machine.read(source, kind), mask)

    return run


# --- memory


def _words(words: tuple[str, ...]) -> tuple[str, int, Kind]:
    """Space, length of the vector, and type."""
    space, *rest, kind = words
    length = int(rest.pop()[1:]) if rest and re.fullmatch("v[248]", rest[-1]) else 1
    if set(rest) - HINTS or space.removesuffix("::cta") not in ("global", "shared", "param"):
        raise ValueError(words)
    return space.removesuffix("::cta"), length, TYPES[kind]


def _names(operand: Any) -> tuple[Any, ...]:
    return operand if isinstance(operand, tuple) else (operand,)


def _ld(*words: str) -> Run:
    space, length, kind = _words(words)

    def run(machine: Machine, operands: tuple[Any, ...], mask: Mask) -> None:
        names, address = _names(operands[0]), operands[1]
        if space == "param":
            return machine.write(names[0], machine.parameters[address.base].view(kind), mask)
        threads, at = machine.locate(space, address, length * kind.itemsize, mask)
        if space == "shared":
            machine.touch("read", at, length * kind.itemsize, threads)
        content = machine.content(space).view(kind)
        for i, name in enumerate(names):
            value = np.zeros(machine.count, kind)
            value[threads] = content[at // kind.itemsize + i]
            machine.write(name, value, mask)
        return None

    return run


def _st(*words: str) -> Run:
    space, length, kind = _words(words)

    def run(machine: Machine, operands: tuple[Any, ...], mask: Mask) -> None:
        threads, at = machine.locate(space, operands[0], length * kind.itemsize, mask)
        if space == "shared":
            machine.touch("write", at, length * kind.itemsize, threads)
        content = machine.content(space).view(kind)
        for i, name in enumerate(_names(operands[1])):
            content[at // kind.itemsize + i] = np.broadcast_to(machine.read(name, kind), machine.count)[threads]

    return run


def _red(*words: str) -> Run:
    space, length, kind = _words(tuple(word for word in words if word != "add"))
    if length != 1 or "add" not in words or kind.kind == "f":
        raise ValueError(words)

    def run(machine: Machine, operands: tuple[Any, ...], mask: Mask) -> None:
        *old, address, addend = operands
        threads, at = machine.locate(space, address, kind.itemsize, mask)
        if space == "shared":
            machine.touch("add", at, kind.itemsize, threads)
        content, at = machine.content(space).view(kind), at // kind.itemsize
        value = np.broadcast_to(machine.read(addend, kind), machine.count)[threads]
        if old:
            found = np.zeros(machine.count, kind)
            for thread, place, one in zip(threads, at, value, strict=True):
                found[thread] = content[place]
                content[place] += one
            machine.write(old[0], found, mask)
        else:
            np.add.at(content, at, value)

    return run


# --- exchanges within a warp


def _lanes(value: Array) -> Array:
    return value.reshape(-1, WARP)


def _require(machine: Machine, members: Any, mask: Mask) -> None:
    machine.whole_warps(mask)
    told = np.broadcast_to(machine.read(members, S32), machine.count)
    if not (told == -1)[... if mask is None else mask].all():
        raise Fault("a part of a warp is not known here", 0)


def _shfl(*words: str) -> Run:
    sync, mode, kind = words
    if sync != "sync" or kind != "b32" or mode not in ("up", "down", "bfly", "idx"):
        raise ValueError(words)

    def run(machine: Machine, operands: tuple[Any, ...], mask: Mask) -> None:
        target, value, by, clamp, members = operands
        _require(machine, members, mask)
        lane, b, c = machine.read("%laneid", S32), machine.read(by, S32) & 31, machine.read(clamp, S32)
        segment = c >> 8 & 31
        most = lane & segment | c & 31 & ~segment
        source = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": lane & segment | b & ~segment}[mode]
        valid = source >= most if mode == "up" else source <= most
        source = np.where(valid, source, lane)
        name, _, predicate = target.partition("|")
        bits = np.broadcast_to(machine.read(value, B32), machine.count)
        machine.write(name, np.take_along_axis(_lanes(bits), _lanes(source), 1).ravel(), mask)
        if predicate:
            machine.write(predicate, valid, mask)

    return run


REDUCTIONS = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or}


def _redux(sync: str, name: str, spelled: str) -> Run:
    function, kind = REDUCTIONS[name], TYPES[spelled]
    if sync != "sync" or kind.itemsize != 4:
        raise ValueError(spelled)

    def run(machine: Machine, operands: tuple[Any, ...], mask: Mask) -> None:
        target, value, members = operands
        _require(machine, members, mask)
        lanes = _lanes(np.broadcast_to(machine.read(value, kind), machine.count))
        machine.write(target, np.repeat(function.reduce(lanes, axis=1, dtype=kind), WARP), mask)

    return run


def _warp_barrier(*words: str) -> Run:
    if words != ("warp", "sync"):
        raise ValueError(words)
    return lambda machine, operands, mask: _require(machine, operands[0], mask)


def _vote(sync: str, mode: str, spelled: str) -> Run:
    if (sync, mode, spelled) != ("sync", "ballot", "b32"):
        raise ValueError(mode)

    def run(machine: Machine, operands: tuple[Any, ...], mask: Mask) -> None:
        target, predicate, members = operands
        _require(machine, members, mask)
        bits = _lanes(np.broadcast_to(machine.read(predicate, TYPES["pred"]), machine.count))
        ballots = (bits.astype(np.uint32) << np.arange(WARP, dtype=np.uint32)).sum(1, dtype=np.uint32)
        machine.write(target, np.repeat(ballots, WARP), mask)

    return run


LANE = np.arange(WARP)


def _matrix(store: bool, *words: str) -> Run:
    """Matrices of 8 x 8 halves: lanes ``8 m ..`` say where the rows of the m-th begin; each lane has a pair of each."""
    *start, size, last, kind = words
    transposed = size == "trans"
    size = start.pop() if transposed else size
    if start != ["sync", "aligned", "m8n8"] or size not in ("x1", "x2", "x4") or (last, kind) != ("shared", "b16"):
        raise ValueError(words)
    row, column = LANE[:, None] // 4, LANE[:, None] % 4 * 2 + np.arange(2)  # of a lane's pair
    row, column = (column, row) if transposed else (row, column)

    def run(machine: Machine, operands: tuple[Any, ...], mask: Mask) -> None:
        address, registers = operands if store else operands[::-1]
        names = _names(registers)
        _require(machine, -1, mask)
        telling = machine.thread % WARP < 8 * len(names)
        threads, at = machine.locate("shared", address, 16, telling if mask is None else telling & mask)
        machine.touch("write" if store else "read", at, 16, threads)
        content, at = machine.content("shared").view(np.uint16), at[:, None] // 2 + np.arange(8)
        matrices = np.zeros((machine.count // WARP, len(names), 8, 8), np.uint16)
        place = threads // WARP, threads % WARP // 8, threads % 8
        if store:
            for m, name in enumerate(names):
                bits = np.ascontiguousarray(np.broadcast_to(machine.read(name, B32), machine.count))
                matrices[:, m, row, column] = bits.view(np.uint16).reshape(-1, WARP, 2)
            content[at] = matrices[place]
        else:
            matrices[place] = content[at]
            for m, name in enumerate(names):
                machine.write(name, np.ascontiguousarray(matrices[:, m, row, column]).view(B32).ravel(), mask)

    return run


def _mma(*words: str) -> Run:
    """``D = A B + C`` of 16 x 16, 16 x 8 and 16 x 8; a lane holds pairs of neighbours (PTX ISA, m16n8k16)."""
    if words != ("sync", "aligned", "m16n8k16", "row", "col", "f32", "f16", "f16", "f32"):
        raise ValueError(words)
    group, pair = LANE[:, None] // 4, LANE[:, None] % 4 * 2 + np.arange(2)  # [lane, 2]

    def gather(machine: Machine, names: tuple[Any, ...], shape: tuple[int, int], places: Any, kind: Kind) -> Array:
        matrix = np.zeros((machine.count // WARP, *shape), np.float64)
        values = np.stack([np.broadcast_to(machine.read(name, B32), machine.count) for name in names], 1)
        values = values.view(kind).reshape(machine.count // WARP, WARP, len(places), 2)
        for i, (row, column) in enumerate(places):
            matrix[:, row, column] = values[:, :, i]
        return matrix

    def run(machine: Machine, operands: tuple[Any, ...], mask: Mask) -> None:
        target, a, b, c = operands
        _require(machine, -1, mask)
        halves = [(group + 8 * (i % 2), pair + 8 * (i // 2)) for i in range(4)]
        sums = [(group + 8 * i, pair) for i in range(2)]
        left = gather(machine, a, (16, 16), halves, F16)
        right = gather(machine, b, (16, 8), [(pair + 8 * i, group) for i in range(2)], F16)
        result = (left @ right + gather(machine, c, (16, 8), sums, TYPES["f32"])).astype(np.float32)
        for i, (row, column) in enumerate(sums):
            for j in range(2):
                value = np.broadcast_to(result[:, row, column], (machine.count // WARP, WARP, 2))[:, :, j]
                machine.write(target[2 * i + j], np.ascontiguousarray(value).ravel(), mask)

    return run


def _dot(bytes_each: int, *words: str) -> Run:
    """``d = c + sum of a_i b_i``: of the four bytes of each, or of the two halves of ``a`` and low bytes of ``b``."""
    if words != ("lo",) * (bytes_each == 2) + ("u32", "u32"):
        raise ValueError(words)

    def run(machine: Machine, operands: tuple[Any, ...], mask: Mask) -> None:
        a, b, c = (machine.read(operand, B32).astype(np.uint32) for operand in operands[1:])
        for i in range(4 // bytes_each):
            one = a >> np.uint32(8 * bytes_each * i) & np.uint32(256**bytes_each - 1)
            c = c + one * (b >> np.uint32(8 * i) & np.uint32(255))
        machine.write(operands[0], c, mask)

    return run


COMPOUND: dict[str, Callable[..., Run]] = {
    "setp": _setp, "cvt": _cvt, "mov": _mov, "ld": _ld, "st": _st, "red": _red, "atom": _red, "shfl": _shfl,
    "redux": _redux, "vote": _vote, "bar": _warp_barrier, "mma": _mma,
    "dp4a": partial(_dot, 1), "dp2a": partial(_dot, 2),
    "ldmatrix": partial(_matrix, False), "stmatrix": partial(_matrix, True),
}  # fmt: skip
