"""Argument checks: an error names the argument, what came, and what is allowed.

Plain comparisons only, so that `torch.compile` can follow them without a break in the graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TABLES = (torch.float32, torch.float64)


def check_tensor(name: str, value: object, dtypes: Sequence[torch.dtype], like: Tensor | None = None) -> Tensor:
    """``value`` if it is a tensor of one of ``dtypes``, on the device of ``like``; else TypeError or ValueError."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        raise TypeError(f"{name} must be one of {', '.join(map(str, dtypes))}, got {value.dtype}")
    if like is not None and value.device != like.device:
        raise ValueError(f"{name} must be on {like.device} like the images, got {value.device}")
    return value


def check_images(name: str, value: object, like: Tensor | None = None, channels: int | None = None) -> Tensor:
    """``value`` if it is floating ``[B, channels, H, W]``, of the other sizes of ``like``.

    ``channels``: default: those of ``like``, or any number where there is none.
    """
    images = check_tensor(name, value, DTYPES, like)
    if channels is None and like is not None:
        channels = like.shape[1]
    if images.ndim != 4 or images.shape[1] != (channels or images.shape[1]) or images.shape[1] == 0:
        raise ValueError(f"{name} must have shape [B, {channels or 'C'}, H, W], got {list(images.shape)}")
    if like is not None and (images.shape[0] != like.shape[0] or images.shape[2:] != like.shape[2:]):
        wanted = [like.shape[0], channels, like.shape[2], like.shape[3]]
        raise ValueError(f"{name} must have shape {wanted} like the other images, got {list(images.shape)}")
    return images


def check_per_image(name: str, value: object, like: Tensor) -> Tensor:
    """``value`` if it is int64 ``[B]``."""
    numbers = check_tensor(name, value, (torch.int64,), like)
    if numbers.ndim != 1 or numbers.shape[0] != like.shape[0]:
        raise ValueError(f"{name} must have shape [{like.shape[0]}], one an image, got {list(numbers.shape)}")
    return numbers


def check_table(value: object, columns: int, like: Tensor) -> Tensor:
    """``value`` if it is a table ``[rows >= 1, columns]``."""
    table = check_tensor("table", value, TABLES, like)
    if table.ndim != 2 or table.shape[0] == 0 or table.shape[1] != columns:
        raise ValueError(f"table must have shape [rows, {columns}], got {list(table.shape)}")
    return table


def refuse_gradients(function: str, name: str, *tensors: Tensor | None) -> None:
    """RuntimeError if autograd would have to go through ``function`` to ``tensors``."""
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        raise RuntimeError(f"{function} has no gradient with respect to {name}: detach it, or use torch.no_grad()")


def written_for_triton(impl: str, images: Tensor, bound: float = 1.0) -> str:
    """``impl`` for images: Triton's kernels are of three channels and clamp to [-1, 1]; ``"auto"`` knows others for the
    reference. What is not of pixels is small: latents are a 64th of them.

    Raises:
        RuntimeError: ``"triton"`` is asked for something else.
    """
    if images.shape[1] == 3 and bound == 1:
        return impl
    if impl == "triton":
        told = f"of {images.shape[1]} channels with bound={bound:g}"
        raise RuntimeError(f"impl='triton' cannot run: images are {told}, its kernels of 3 with 1; impl='auto' can")
    return "reference"


def compute_dtype(*images: Tensor | None) -> torch.dtype:
    """float64 where one of ``images`` is, else float32."""
    wide = any(image is not None and image.dtype == torch.float64 for image in images)
    return torch.float64 if wide else torch.float32
