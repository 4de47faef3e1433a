"""What every backend agrees on: offsets, the integer quantizer, and the plan of what to count.

Plain Python and exact arithmetic, so that no backend can differ by a rounding. A *plan* turns the list of
requested offsets into the least set of counts: offsets that coincide after rounding are counted once with a
multiplicity, ``M_{-d} = M_d^T`` is read off the transpose, and offsets whose matrices enter the result with
the same weight are counted into one accumulator (a *group*).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

MAX_LEVELS = 256
FULL_SCALE = 65535
"""Largest 16-bit gray value: 1.0 in floating input, 255 in uint8, 65535 in uint16."""
LUMA = (19595, 38470, 7471)
"""ITU-R 601 luma weights in units of 1/65536."""
RESIDUAL_MAX = 4 * FULL_SCALE
"""The Laplacian residual lies in [-RESIDUAL_MAX, RESIDUAL_MAX]."""


class TooLarge(RuntimeError):
    """A backend's integers do not hold the positions or counts of a request."""


def offset_of(scale: int, angle: float) -> tuple[int, int]:
    """``(dy, dx)`` at distance ``scale`` (pixels) and ``angle`` (radians), as scikit-image rounds it."""
    return _round(scale * math.sin(angle)), _round(scale * math.cos(angle))


def _round(x: float) -> int:
    # not Python's round: adding 1/2 carries sin(pi / 6) = 0.49999999999999994 to 1, and scikit-image does so
    return int(x + 0.5) if x > 0 else int(x - 0.5)


def float32(value: float) -> float:
    """``value`` rounded to the nearest float32, as a Python float."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


def float_scale(low: float, high: float) -> tuple[float, float]:
    """``(lo, s)`` of ``v = rint(clamp((x - lo) * s, 0, 65535))``, both representable in float32."""
    return float32(low), float32(FULL_SCALE / (high - low))


@lru_cache(maxsize=64)
def residual_thresholds(levels: int, quantizer: str) -> tuple[int, ...]:
    """The ``levels - 1`` integer thresholds of a named residual quantizer: ``level = #{t : r >= t}``.

    ``"companded"``: ``clip(half + round(1.25 half sign(r) sqrt(|r| / 65535)), 0, levels - 1)`` with
    ``half = levels // 2`` (for 32 levels the published 16 and 20). ``"uniform"``: equal steps over the range.
    """
    if quantizer == "uniform":
        span = 2 * RESIDUAL_MAX + 1
        return tuple(-(-level * span // levels) - RESIDUAL_MAX for level in range(1, levels))
    half = levels // 2

    def largest_below(step: int, inclusive: bool) -> int:
        """Largest ``|r|`` with ``1.25 half sqrt(|r| / 65535) < step - 1/2`` (``<=`` if inclusive)."""
        whole, rest = divmod(4 * FULL_SCALE * (2 * step - 1) ** 2, 25 * half**2)
        return whole if inclusive or rest else whole - 1

    def threshold(level: int) -> int:
        step = level - half
        if step > 0:  # an exact tie rounds to the even neighbour, so up only if `step` is even
            return largest_below(step, inclusive=step % 2 == 1) + 1
        # round(g) <= -step: g may reach -step + 1/2 exactly if `-step` is even
        return -largest_below(1 - step, inclusive=step % 2 == 0)

    return tuple(threshold(level) for level in range(1, levels))


@dataclass(frozen=True)
class Group:
    """Offsets counted into one accumulator ``C = sum_d M_d``, and where ``C`` goes.

    ``uses`` holds ``(slot, transposed, multiplicity)``: ``out[slot] += multiplicity * (C or C^T)``.
    """

    offsets: tuple[tuple[int, int], ...]
    uses: tuple[tuple[int, bool, int], ...]

    def pairs(self, height: int, width: int) -> int:
        """Pixel pairs of each of the group's offsets in an unmasked ``height x width`` level image."""
        dy, dx = self.offsets[0]
        return max(height - abs(dy), 0) * max(width - abs(dx), 0)


@dataclass(frozen=True)
class Plan:
    """The groups to count and, for each output slot, how many matrices it averages."""

    groups: tuple[Group, ...]
    totals: tuple[int, ...]

    @property
    def reach(self) -> tuple[int, int]:
        """Largest ``dy`` (never negative in a plan) and largest ``|dx|``."""
        offsets = [offset for group in self.groups for offset in group.offsets]
        return max(dy for dy, _ in offsets), max(abs(dx) for _, dx in offsets)


@dataclass(frozen=True, eq=False)
class Request:
    """Offsets ``(dy, dx)`` and the output slot that each one's matrix goes to. Hashed by identity."""

    offsets: tuple[tuple[int, int], ...]
    slots: tuple[int, ...]
    slot_count: int

    @property
    def entries(self) -> Iterator[tuple[int, int, int]]:
        """``(dy, dx, slot)`` of each requested matrix."""
        return ((dy, dx, slot) for (dy, dx), slot in zip(self.offsets, self.slots, strict=True))


def encode(offsets: Sequence[tuple[int, int]], slots: Sequence[int]) -> str:
    """``"dy,dx,slot;..."``: what an op schema carries at no cost (162 integers cost 30 us a call)."""
    return ";".join([f"{dy},{dx},{slot}" for (dy, dx), slot in zip(offsets, slots, strict=True)])


@lru_cache(maxsize=256)
def decode(text: str) -> Request:
    """The request that :func:`encode` wrote; equal texts give the same object while it is cached."""
    entries = [tuple(map(int, entry.split(","))) for entry in text.split(";")]
    slots = tuple(slot for _, _, slot in entries)
    return Request(tuple((dy, dx) for dy, dx, _ in entries), slots, max(slots) + 1)


@lru_cache(maxsize=256)
def make_plan(request: Request, weighting: str) -> Plan:
    """The least set of groups that answers ``request``.

    ``weighting`` says when two offsets may share an accumulator: ``"sum"`` always (plain counts),
    ``"size"`` if they have the same number of pairs in any unmasked image, ``"pairs"`` never (with a mask the
    number of pairs depends on the data).
    """
    uses: dict[tuple[int, int], dict[tuple[int, bool], int]] = {}
    totals = [0] * request.slot_count
    for dy, dx, slot in request.entries:
        transposed = (dy, dx) < (0, 0)
        use = uses.setdefault((-dy, -dx) if transposed else (dy, dx), {})
        use[slot, transposed] = use.get((slot, transposed), 0) + 1
        totals[slot] += 1
    members: dict[tuple[object, ...], list[tuple[int, int]]] = {}
    signatures: dict[tuple[object, ...], tuple[tuple[int, bool, int], ...]] = {}
    for (dy, dx), use in uses.items():
        signature = tuple(sorted((slot, flip, count) for (slot, flip), count in use.items()))
        key = (signature, *{"sum": (), "size": (dy, abs(dx)), "pairs": (dy, dx)}[weighting])
        members.setdefault(key, []).append((dy, dx))
        signatures[key] = signature
    return Plan(tuple(Group(tuple(offsets), signatures[key]) for key, offsets in members.items()), tuple(totals))
