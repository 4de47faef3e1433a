"""The registered op ``bdg_fast::glcm``: schema, shape inference, and the choice of a backend.

Backends are imported when first run, so that neither triton nor numba is needed to import the package.
"""

from __future__ import annotations

import importlib.util
import math
import os
import sys
import warnings
from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .spec import TooLarge, decode

IMPLS = ("auto", "reference", "cpu", "triton")
FAR, LOOKS = 0.5, 32
"""How far outside of 0..1 values are warned of, and in how many calls of a process they are looked at."""
_looked = 0


@lru_cache(maxsize=1)
def _missing() -> dict[str, str]:
    """What keeps a backend from running at all on this machine: ``{impl: reason}``."""
    reasons = {}
    for impl, package in (("cpu", "numba"), ("triton", "triton")):
        try:
            found = importlib.util.find_spec(package) is not None
        except ValueError:  # the module is blocked in sys.modules
            found = False
        if not found:
            reasons[impl] = f"the package {package!r} is not installed"
    return reasons


@lru_cache(maxsize=1)
def _cpu() -> ModuleType:
    from . import cpu

    return cpu


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def choose(impl: str, device: torch.device, impls: Sequence[str] = IMPLS) -> str:
    """The backend to run, one of ``impls``. Only ``"auto"`` chooses; else it runs as asked or raises RuntimeError."""
    missing = _missing()
    if impl in ("auto", "cpu") and device.type == "cpu" and "cpu" not in missing:
        return "cpu"
    if impl == "auto":
        wanted = {"cpu": "cpu", "cuda": "triton"}.get(device.type, "reference")
        return wanted if wanted in impls and wanted not in missing else "reference"
    reason = missing.get(impl)
    if reason is None and impl == "cpu" and device.type != "cpu":
        reason = f"it takes tensors on the CPU and images are on {device}"
    if reason is None and impl == "triton" and device.type != "cuda" and not _interpreted():
        reason = f"it takes tensors on a CUDA or ROCm device and images are on {device}"
    if reason is not None:
        raise RuntimeError(f"impl={impl!r} cannot run: {reason}; impl='auto' chooses one that can")
    return impl


def _glcm(
    images: Tensor,
    mask: Tensor | None,
    request: str,
    slot_count: int,
    levels: int,
    low: float,
    high: float,
    source: str,
    thresholds: Sequence[int],
    normalize: bool,
    check_finite: bool,
    impl: str,
) -> Tensor:
    """Co-occurrence matrices of ``images [B, 1 or 3, H, W]``, reduced into ``slot_count`` outputs.

    Args:
        images: uint8, uint16, float16, bfloat16 or float32, any strides.
        mask: bool ``[B, H, W]``, or None.
        request: :func:`spec.encode` of the offsets and the output slot of each; ``slot_count`` of them.
        low, high: floating values that map to 0 and 65535.
        thresholds: of the quantizer; empty for equal steps of gray.
        normalize: average of the matrices, each divided by its own count; else their sum.

    Returns:
        float32 (normalized) or int64 ``[B, slot_count, levels, levels]``.
    """
    chosen = choose(impl, images.device)
    arguments = (images, mask, decode(request), levels, low, high, source, thresholds, normalize)
    if chosen == "cpu":
        out: Tensor
        try:
            out, bad = _cpu().glcm(*arguments)  # sees whether pixels are finite while it quantizes them
        except TooLarge:
            if impl != "auto":
                raise
            chosen = "reference"
        else:
            if check_finite and bad is not None:
                report_not_finite(bad)
            return out
    if check_finite and images.is_floating_point():
        raise_if_not_finite(images)
    if chosen == "triton":
        from . import triton as backend
    else:
        from . import reference as backend  # type: ignore[no-redef]
    return backend.glcm(*arguments)


glcm = torch.library.custom_op("bdg_fast::glcm", _glcm, mutates_args=())


@glcm.register_fake
def _(images, mask, request, slot_count, levels, low, high, source, thresholds, normalize, check_finite, impl):  # type: ignore[no-untyped-def]
    dtype = torch.float32 if normalize else torch.int64
    return images.new_empty((images.shape[0], slot_count, levels, levels), dtype=dtype)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    raise RuntimeError("a co-occurrence matrix of hard gray levels has no gradient; pass images.detach()")


glcm.register_autograd(_backward)


def run(images: Tensor, mask: Tensor | None, *settings: Any) -> Tensor:
    """The op, called without the dispatcher (which costs more than a small image's counts) where that cannot be told.

    That is for plain tensors on the CPU while nothing follows or changes calls: no gradient, compiler, tracer,
    profiler, transform or mode.
    """
    if _nothing_follows() and _is_plain(images) and (mask is None or _is_plain(mask)):
        return _glcm(images, mask, *settings)
    out: Tensor = glcm(images, mask, *settings)
    return out


def _is_plain(tensor: Tensor) -> bool:
    return not tensor.requires_grad and _is_readable(tensor)


def _is_readable(tensor: Tensor) -> bool:
    # its dispatch keys tell wrappers of torch.func, functional, fake, sparse and negated tensors, and the device
    return type(tensor) is Tensor and torch._C._dispatch_keys(tensor) in _dispatch_keys_of_plain_tensors()


@lru_cache(maxsize=1)
def _dispatch_keys_of_plain_tensors() -> tuple[object, ...]:
    with torch.inference_mode():
        inference = torch.empty(0, device="cpu")
    with torch.inference_mode(False):
        return torch._C._dispatch_keys(torch.empty(0, device="cpu")), torch._C._dispatch_keys(inference)


def _nothing_follows() -> bool:
    c = torch._C
    return (
        not torch.compiler.is_compiling()
        and c._len_torch_dispatch_stack() == 0
        and c._len_torch_function_stack() == 0
        and c._functorch.peek_interpreter_stack() is None
        and forward_ad._current_level < 0
        and not c._autograd._profiler_enabled()
        and c._get_tracing_state() is None
    )


def refuse_tangent(images: Tensor) -> None:
    """RuntimeError if ``images`` carry a tangent of forward-mode differentiation: the ops would drop it silently."""
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(images).tangent is not None:  # type: ignore[no-untyped-call]
        raise RuntimeError("a co-occurrence matrix has no forward-mode derivative (jvp); pass images.detach()")


def warn_if_outside(images: Tensor, mask: Tensor | None, value_range: tuple[float, float]) -> None:
    """Warn of floating images on the CPU that are far outside of the default range: what is there is clamped.

    Nearly always they are in 0..255, or in -1..1 as networks have them, and so from the first call on: later ones are
    not looked at, as it would take a quarter of the time of a few offsets. Whoever gives a range means it. On a GPU it
    would be one more pass and one more wait.

    Args:
        images: ``[B, C, H, W]``.
        mask: bool ``[B, H, W]``: what is outside of it may hold anything.
        value_range: as it was given.
    """
    global _looked
    if torch.compiler.is_compiling():  # a compiler would compile anew whenever the number has changed
        return
    if _looked >= LOOKS or value_range != (0.0, 1.0) or not images.is_floating_point() or not images.numel():
        return
    if not (_nothing_follows() and _is_readable(images)):
        return
    _looked += 1
    least, largest = (float(x) for x in images.detach().aminmax())
    if least >= -FAR and largest <= 1 + FAR:
        return
    if mask is not None:
        inside = images.detach().movedim(1, -1)[mask]
        least, largest = (float(x) for x in inside.aminmax()) if len(inside) else (0.0, 1.0)
    if (least < -FAR or largest > 1 + FAR) and math.isfinite(least) and math.isfinite(largest):
        warnings.warn(
            f"images are in {least:g}..{largest:g}, far outside of value_range (0, 1): what is outside is clamped; "
            "give value_range=(0, 255), (-1, 1) or what theirs is, or uint8 images",
            stacklevel=_level_of_caller(),
        )


def _level_of_caller() -> int:
    """Of whoever called the package, through whatever frames of it and of torch."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in ("bdg_fast", "torch"):
        level, frame = level + 1, frame.f_back
    return level


def raise_if_not_finite(images: Tensor) -> None:
    """ValueError naming the first image that holds a NaN or an infinity (waits for the device)."""
    if images.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "check_finite=True waits for the device, which a CUDA graph cannot: pass check_finite=False to capture"
        )
    bad = ~images.isfinite().flatten(1).all(1)
    if bool(bad.any()):
        report_not_finite(int(bad.to(torch.uint8).argmax()))


def report_not_finite(index: int) -> None:
    """Raise the ValueError that names the image."""
    raise ValueError(
        f"images must be finite (in float32), got NaN or infinity in images[{index}]; check_finite=False skips "
        "this check (NaN then counts as value_range[0], infinities as the ends of the range)"
    )
