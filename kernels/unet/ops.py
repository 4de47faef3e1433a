"""Which backend computes the parts of a network."""

from __future__ import annotations

import importlib
import importlib.util
import platform
from types import ModuleType

import torch


def unavailable(impl: str) -> str | None:
    """Why a backend cannot run here; None if it can."""
    if impl != "cpu":
        return None
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed"
    intel = platform.machine().lower() in ("x86_64", "amd64", "i686")
    if intel and not torch.backends.cpu.get_cpu_capability().startswith("AVX"):  # fused multiplications came with it
        return "the processor has no AVX2"
    try:
        importlib.import_module(".cpu", __package__)
    except Exception as error:  # numba and NumPy that do not go together, for example
        return f"its loops cannot be loaded: {error}"
    return None


def parts(impl: str = "cpu") -> ModuleType:
    """The module of a backend: ``Buffers, Conv3x3, DirectConv, group_norm, Epilogue, LinearAttention``.

    Args:
        impl: ``"cpu"``, compiled, or ``"reference"``.

    Raises:
        ValueError: another name.
        RuntimeError: the backend cannot run here.
    """
    if impl not in ("cpu", "reference"):
        raise ValueError(f"impl must be 'cpu' or 'reference', got {impl!r}")
    reason = unavailable(impl)
    if reason is not None:
        raise RuntimeError(f"impl={impl!r} cannot run: {reason}")
    return importlib.import_module(f".{impl}", __package__)
