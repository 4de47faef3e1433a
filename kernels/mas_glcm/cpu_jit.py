"""How loops are compiled: machine code is kept on disk where there is a place for it."""

# mypy: disable-error-code="no-untyped-call, call-arg"
from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numba

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False}


def _nothing() -> None:
    """A function to try with."""


@cache
def can_cache() -> bool:
    """Whether numba finds a folder to keep code in: beside the source, or in the user's cache."""
    try:
        numba.njit(cache=True)(_nothing)
    except RuntimeError:  # "no locator available", as in a container without a home
        return False
    return True


def jit(function: Callable[..., Any]) -> Any:
    """``numba.njit`` without the interpreter lock, kept on disk; compiled in every process where there is no place."""
    return numba.njit(cache=can_cache(), **OPTIONS)(function)
