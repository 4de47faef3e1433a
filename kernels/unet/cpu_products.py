"""Matrix products of the compiled loops, 16 columns at a time, and how loops become functions of a thread."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, call-arg"
from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
from llvmlite import binding
from numba import types

from ..mas_glcm.cpu_jit import can_cache
from .cpu_simd import chunked_tile, product_tile

ARGUMENTS = 28
"""Numbers that a loop can be given."""
jit = numba.njit(nogil=True, error_model="numpy", boundscheck=False)

ROWS = 12 if binding.get_host_cpu_features().get("avx512f") else 6
"""Of the tallest tile: its sums fill three quarters of the registers, one vector of AVX-512 or two of AVX2 a row."""
ROOM = 8
"""Rows of a product beyond those asked for, which a tile may write."""


@cache
def _sources() -> str:
    """What tells these sources from others."""
    digest = hashlib.sha256()
    with contextlib.suppress(OSError):  # in an archive, which does not change
        for path in sorted(Path(__file__).parent.glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


class Entry:
    """What a thread runs, ``f(address of arguments)``: compiled when first asked for, and kept on disk."""

    def __init__(self, function: Callable[[Any], None]) -> None:
        # numba notices a change of the function's own file alone, so that others become part of its name
        function.__qualname__ += f"_{_sources()}"
        self.function = function
        self._lock = threading.Lock()
        self._compiled: Any = None

    @property
    def address(self) -> int:
        """Of the machine code."""
        with self._lock:
            if self._compiled is None:
                kind = types.void(types.CPointer(types.int64))
                options: dict[str, Any] = {"error_model": "numpy", "boundscheck": False}
                self._compiled = numba.cfunc(kind, cache=can_cache(), **options)(self.function)
            return int(self._compiled.address)


def products(tile: Callable[[int], Any], turned: bool = False, tallest: int = ROWS) -> Any:
    """``f(a, lda, b, ldb, k, c, ldc, rows, bias)`` for any number of rows, from tiles of some.

    Of an odd number of rows one more is read and written. ``turned``: A is stored ``[k, rows]``.
    """
    tall, four, two = tile(tallest), tile(4), tile(2)
    awkward = 8 if tallest == 6 else -1  # 4 and 4 rows instead of 6 and 2

    @jit
    def product(a, lda, b, ldb, k, c, ldc, rows, bias):
        step = 1 if turned else lda
        i = 0
        while i < rows:
            left = rows - i
            at, to = a + 4 * i * step, c + 4 * i * ldc
            if left >= tallest - 1 and left != awkward:
                tall(at, lda, b, ldb, k, to, ldc, bias)
                i += tallest
            elif left >= 3:
                four(at, lda, b, ldb, k, to, ldc, bias)
                i += 4
            else:
                two(at, lda, b, ldb, k, to, ldc, bias)
                i += 2

    return product


product = products(lambda rows: product_tile(rows, "zero", "k"))
"""``C = A B``."""
product_and_bias = products(lambda rows: product_tile(rows, "bias", "k"))
"""``C = A B + bias``."""
add_product = products(lambda rows: product_tile(rows, "sum", "k"))
"""``C += A B``."""
add_turned_product = products(lambda rows: product_tile(rows, "sum", "rows"), turned=True)
"""``C += A^T B``."""
chunked_product = products(chunked_tile)
"""``C = A B`` of a multiple of 16 ``k``, B without gaps: faster for few ``k``."""
