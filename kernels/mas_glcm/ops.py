"""The registered op ``bdg_fast::glcm``: schema, shape inference, and the choice of a backend.

Backends are imported when first run, so that neither triton nor numba is needed to import the package.
"""

from __future__ import annotations

import importlib.util
import math
import os
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
FAR = 1.0
"""How far above ``value_range`` values are warned of, as a share of its width."""


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
    if check_finite:
        warn_if_outside(images, low, high)
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
    # its dispatch keys tell wrappers of torch.func, functional, fake, sparse and negated tensors, and the device
    return (
        type(tensor) is Tensor
        and not tensor.requires_grad
        and torch._C._dispatch_keys(tensor) in _dispatch_keys_of_plain_tensors()
    )


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


def warn_if_outside(images: Tensor, low: float, high: float) -> None:
    """Warn of images on the CPU whose largest value is far above ``high``: most are clamped to one level.

    Nearly always they are in 0..255 where 0..1 was meant. On a GPU it would be one more pass and one more wait.
    """
    if images.device.type != "cpu" or not images.is_floating_point() or not images.numel():
        return
    largest = float(images.amax())
    if high + FAR * (high - low) < largest < math.inf:
        warnings.warn(
            f"images reach {largest:g}, far above value_range ({low:g}, {high:g}), and what lies outside is clamped; "
            "pass their own value_range, such as (0, 255), or uint8 images",
            stacklevel=6,  # whoever called the public function
        )


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
