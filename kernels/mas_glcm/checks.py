"""Argument checks: an error names the argument, what came, and what is allowed.

Plain comparisons only, so that `torch.compile` can follow them without a break in the graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from .spec import FULL_SCALE, MAX_LEVELS, RESIDUAL_MAX, offset_of, residual_thresholds

DTYPES = (torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float32, torch.float64)
MAX_SCALE = 2**31 - 1
REMEMBERED = 512
"""Settings that :func:`remembered` keeps."""
Checked = TypeVar("Checked")


def remembered(check: Callable[..., Checked]) -> Callable[..., Checked]:
    """``check``, which need not check the same plain values (numbers, texts, tuples of them) a second time.

    Lists, arrays and tensors may change between calls, so they are checked each time.
    """
    known: dict[tuple[object, ...], Checked] = {}

    def find(*arguments: object) -> Checked:
        if torch.compiler.is_compiling():
            return check(*arguments)
        key = (*arguments, *map(type, arguments))  # True is no number of angles, though it equals 1
        try:
            return known[key]
        except (KeyError, TypeError):  # TypeError: no hash
            pass
        found = check(*arguments)
        if _never_changes(arguments):
            if len(known) >= REMEMBERED:
                known.clear()
            known[key] = found
        return found

    return find


def _never_changes(value: object) -> bool:
    if type(value) is tuple:
        return all(map(_never_changes, value))
    return value is None or type(value) in (int, float, bool, str)


def as_integer(value: object) -> int | None:
    """``value`` as an int if it is a whole number of any numeric type, else None."""
    if isinstance(value, int):
        return int(value)  # True is 1
    try:
        whole = int(value)  # type: ignore[call-overload]
        return whole if whole == value else None
    except (TypeError, ValueError, OverflowError):  # no number; NaN; infinite
        return None


def as_real(value: object) -> float | None:
    """``value`` as a float if it is a number, else None."""
    try:
        return None if isinstance(value, str) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None


def as_tuple(values: object) -> tuple[object, ...] | None:
    """The elements of ``values``, or None if it has none to give."""
    try:
        return None if isinstance(values, str) else tuple(values)  # type: ignore[arg-type]
    except TypeError:
        return None


def materialized(values: object) -> object:
    """``values``, or the tuple of them if they can be gone through only once or may change under our hands."""
    if isinstance(values, (tuple, int, str)):  # an abstract class takes longer to ask
        return values
    return tuple(values) if isinstance(values, (list, Iterator)) else values


def checked_flag(name: str, value: object) -> bool:
    """``value`` if it is True or False, or a number that equals one of them."""
    if isinstance(value, bool):
        return value
    number = as_integer(value)
    if number not in (0, 1):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return number == 1


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """ValueError unless ``value`` is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        listed = " or ".join(repr(choice) for choice in choices) if len(choices) == 2 else ", ".join(map(repr, choices))
        raise ValueError(f"{name} must be {'' if len(choices) == 2 else 'one of '}{listed}, got {value!r}")


def grid_of_offsets(angles: object, scales: object) -> tuple[tuple[int, int], ...]:
    """Offsets ``(dy, dx)`` of all angles (a number of them, or radians) at all scales (pixels)."""
    count, given = None if isinstance(angles, bool) else as_integer(angles), as_tuple(angles)
    if count is not None and given is None:
        if count < 1:
            raise ValueError(f"angles must be at least 1 or a sequence of radians, got {angles!r}")
        radians = [j * math.pi / count for j in range(count)]
    elif given is None:
        raise ValueError(f"angles must be a whole number or a sequence of radians, got {angles!r}")
    else:
        if len(given) == 0:
            raise ValueError("angles must not be empty: give their number or a sequence of radians")
        radians = []
        for angle in given:
            value = as_real(angle)
            if value is None or not abs(value) < math.inf:  # math.isfinite would break the graph
                raise ValueError(f"angles must be finite radians, got {angle!r}")
            radians.append(value)
    distances = as_tuple(scales)
    if distances is None:
        raise ValueError(f"scales must be a sequence of distances in pixels, integers >= 1, got {scales!r}")
    if len(distances) == 0:
        raise ValueError("scales must not be empty: give distances in pixels, integers >= 1")
    offsets = []
    for scale in distances:
        distance = as_integer(scale)
        if distance is None or not 1 <= distance <= MAX_SCALE:
            raise ValueError(f"scales must be integers >= 1 (pixels, below 2**31), got {scale!r}")
        offsets += [offset_of(distance, angle) for angle in radians]
    return tuple(offsets)


def list_of_offsets(offsets: object) -> tuple[tuple[int, int], ...]:
    """The pairs ``(dy, dx)`` of a sequence of them."""
    pairs = as_tuple(offsets)
    if pairs is None:
        raise ValueError(f"offsets must be a sequence of pairs of integers (dy, dx), got {offsets!r}")
    if len(pairs) == 0:
        raise ValueError("offsets must not be empty: give pairs (dy, dx) in pixels")
    checked = []
    for pair in pairs:
        components = as_tuple(pair)
        if components is None or len(components) != 2:
            raise ValueError(f"offsets must be pairs of integers (dy, dx), got {pair!r}")
        dy, dx = as_integer(components[0]), as_integer(components[1])
        if dy is None or dx is None:
            raise ValueError(f"offsets must be pairs of integers (dy, dx), got {pair!r}")
        checked.append((dy, dx))
    return tuple(checked)


def checked_images(images: object) -> Tensor:
    """``[B, 1 or 3, H, W]`` of a type that the op takes; float64 becomes float32."""
    pixels = checked_pixels(images)
    return pixels.to(torch.float32) if pixels.dtype == torch.float64 else pixels


def checked_pixels(images: object) -> Tensor:
    """``[B, 1 or 3, H, W]`` of one of `DTYPES`."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a torch.Tensor [B, 1 or 3, H, W], got {type(images).__name__}")
    if images.layout != torch.strided:
        kind = str(images.layout).removeprefix("torch.")
        raise TypeError(f"images must be a dense tensor, got layout {kind}; images.to_dense() makes one")
    shape = images.shape
    if len(shape) != 4:
        raise ValueError(f"images must have rank 4, [B, 1 or 3, H, W], got shape {list(shape)}")
    if shape[1] not in (1, 3):
        hint = "; [B, H, W, C] is turned by images.permute(0, 3, 1, 2)" if shape[3] in (1, 3) else ""
        raise ValueError(f"images must have 1 (gray) or 3 (RGB) channels, got {shape[1]}{hint}")
    if images.dtype not in DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise TypeError(f"images must be one of {names}, got {str(images.dtype).removeprefix('torch.')}")
    return images


def checked_mask(mask: object, images: Tensor) -> Tensor | None:
    """The mask as bool ``[B, H, W]`` on the device of ``images``."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a torch.bool tensor, got {kind}")
    if mask.layout != torch.strided:
        raise TypeError(f"mask must be a dense tensor, got layout {str(mask.layout).removeprefix('torch.')}")
    batch, _, height, width = images.shape
    plane = mask[:, 0] if mask.ndim == 4 and mask.shape[1] == 1 else mask
    if plane.ndim != 3 or plane.shape[1:] != (height, width) or plane.shape[0] not in (1, batch):
        raise ValueError(
            f"mask must have shape [{batch if batch == 1 else f'{batch} or 1'}, {height}, {width}] (or [B, 1, H, W]) "
            f"to fit images, "
            f"got {list(mask.shape)}"
        )
    if mask.device != images.device:
        raise ValueError(f"mask must be on the device of images, {images.device}, got {mask.device}")
    return plane.expand(batch, height, width)


def checked_levels(levels: object) -> int:
    """The number of gray levels."""
    number = as_integer(levels)
    if number is None or not 2 <= number <= MAX_LEVELS:
        raise ValueError(f"levels must be an integer in 2..{MAX_LEVELS}, got {levels!r}")
    return number


def checked_range(value_range: object) -> tuple[float, float]:
    """``(low, high)``, representable in float32 and so is its scale."""
    ends = as_tuple(value_range)
    if ends is not None and len(ends) == 2:
        low, high = as_real(ends[0]), as_real(ends[1])
        if low is not None and high is not None and low < high and _fits_float32(low, high):
            return low, high
    raise ValueError(f"value_range must be (low, high), finite in float32 and with low < high, got {value_range!r}")


def _fits_float32(low: float, high: float) -> bool:
    largest = torch.finfo(torch.float32).max
    return abs(low) <= largest and abs(high) <= largest and FULL_SCALE / (high - low) <= largest


def checked_thresholds(levels: int, source: object, quantizer: object) -> Sequence[int]:
    """The integer thresholds of the quantizer; empty for equal steps of gray."""
    check_choice("source", source, ("gray", "laplacian"))
    if isinstance(quantizer, str):
        if quantizer not in ("uniform", "companded"):
            raise ValueError(f"quantizer must be 'uniform', 'companded' or thresholds, got {quantizer!r}")
        if source == "laplacian":
            # dynamo sees through a cache, but warns
            find = residual_thresholds.__wrapped__ if torch.compiler.is_compiling() else residual_thresholds
            return find(levels, quantizer)
        if quantizer == "companded":
            raise ValueError("quantizer='companded' is for source='laplacian', got source='gray'")
        return ()
    given = as_tuple(quantizer)
    if given is None:
        raise ValueError(f"quantizer must be 'uniform', 'companded' or thresholds, got {quantizer!r}")
    if len(given) != levels - 1:
        raise ValueError(f"quantizer must hold levels - 1 = {levels - 1} thresholds, got {len(given)}")
    low, high = (0, FULL_SCALE) if source == "gray" else (-RESIDUAL_MAX, RESIDUAL_MAX)
    thresholds: list[int] = []
    for threshold in given:
        value = as_integer(threshold)
        if value is None or not low <= value <= high:
            raise ValueError(f"quantizer must hold integers in {low}..{high}, got {threshold!r}")
        if thresholds and thresholds[-1] >= value:
            raise ValueError(f"quantizer must be strictly increasing, got {thresholds[-1]} before {value}")
        thresholds.append(value)
    return thresholds
