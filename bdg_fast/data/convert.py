"""Pictures of any kind to the network's pixels and back: the caller gets the type that came."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .images import ORIENTATION, UPRIGHT, open_image, turn_of

KEPT = {"icc_profile": bytes, "exif": bytes, "dpi": tuple}
"""Entries of ``Image.info`` that stay with a picture, and their types: a PNG file may have texts of these names."""
ROTATE = Image.Transpose
INVERSE = {ROTATE.ROTATE_90: ROTATE.ROTATE_270, ROTATE.ROTATE_270: ROTATE.ROTATE_90}
"""Of the turns that are not their own inverse."""
FULL = {torch.uint8: 255.0, torch.uint16: 65535.0}
"""White of integer types; floating ones have 1."""

WITH_ALPHA = {"PA": "RGBA", "La": "LA", "RGBa": "RGBA"}
"""Modes that come back as another one with alpha."""
OVERSHOOT = 0.5
"""Beyond [0, 1] that floating images may have: more than resampling leaves, less than [-1, 1] or [0, 255] do."""


def _same(rows: Tensor) -> Tensor:
    return rows


@dataclass(frozen=True)
class Picture:
    """Pixels to restore, and how to make of the result what came.

    In two parts, so that of a large picture nothing is held in float32: ``kept`` takes any rows of the result, float32
    ``[B, 3, h, W]`` in [0, 1], to as many of what ``whole`` takes, ``[B, C, H, W]``. A result of super-resolution is a
    multiple as large; alpha is enlarged to it.
    """

    pixels: Tensor  # [B, 3, H, W], float32 in [0, 1] or uint8
    whole: Callable[[Tensor], Any]
    kept: Callable[[Tensor], Tensor] = _same

    def back(self, result: Tensor) -> Any:
        """What came, of all of the result, float32 ``[B, 3, H, W]``."""
        return self.whole(self.kept(result))


def as_picture(image: Any) -> Picture:
    """Take a PIL image, an array, a tensor, or the path of an image file.

    - PIL: modes L, LA, RGB, RGBA and 16-bit gray come back as they are, 1 as L, all others as RGB or, with alpha or a
      clear colour, as LA or RGBA; of an animation the first frame. Alpha, ICC profile, resolution and EXIF data stay;
      pixels are turned upright for the network and back, or left upright where the orientation stands elsewhere than in
      EXIF data (TIFF).
    - array: ``[H, W]`` or ``[H, W, C]``, C = 1, 3 or 4 (the last is alpha), uint8, uint16, or floating in [0, 1].
      What overshoots that by up to 0.5, as resampling does, is clamped.
    - tensor: ``[C, H, W]`` or ``[B, C, H, W]`` of the same types.
    - path: read, then as a PIL image.

    Raises:
        TypeError, ValueError: anything else, by name. ImageReadError: an unreadable file.
    """
    if isinstance(image, (str, os.PathLike)):
        with open_image(image) as file:
            return _from_pil(file)
    if isinstance(image, Image.Image):
        return _from_pil(image)
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, Tensor):
        return _from_tensor(image)
    raise TypeError(f"image must be a PIL image, an array, a tensor or a path, got {type(image).__name__}")


def shown(image: Image.Image) -> Image.Image:
    """As a viewer shows it: RGB of 8 bits, upright."""
    turn = turn_of(image)
    image = eight_bits(image).convert("RGB")
    return image if turn is None else image.transpose(turn)


def eight_bits(image: Image.Image) -> Image.Image:
    """Gray of 16 bits as gray of 8; any other image as it is."""
    if not image.mode.startswith("I"):
        return image
    plain = Image.fromarray((np.array(image) >> 8).astype(np.uint8))
    plain.info.update(image.info)
    return plain


def _from_tensor(image: Tensor) -> Picture:
    if image.ndim not in (3, 4) or image.shape[-3] not in (1, 3, 4) or 0 in image.shape[-2:]:
        raise ValueError(f"image must have shape [C, H, W] or [B, C, H, W], C = 1, 3 or 4, got {list(image.shape)}")
    if image.dtype not in FULL and not image.is_floating_point():
        raise TypeError(f"image must be uint8, uint16 or floating, got {str(image.dtype).removeprefix('torch.')}")
    full = FULL.get(image.dtype, 1.0)
    whole = image.detach() if image.ndim == 4 else image.detach()[None]
    channels = whole.shape[1]
    colour = whole[:, :3]
    if image.dtype != torch.uint8:
        colour = colour.to(torch.float32) / full
        if not bool(colour.isfinite().all()):
            raise ValueError("image must be finite, got NaN or infinity")
        if full == 1 and colour.numel():
            low, high = float(colour.min()), float(colour.max())
            if low < -OVERSHOOT or high > 1 + OVERSHOOT:
                raise ValueError(f"image must be in [0, 1] where it is floating, got {low:.4g} to {high:.4g}")
        colour = colour.clamp(0, 1)

    def kept(rows: Tensor) -> Tensor:
        if channels == 1:
            rows = rows.mean(1, keepdim=True)
        scaled = rows.clamp(0, 1).to(torch.float32) * full
        return (scaled.round().to(torch.int32) if full > 1 else scaled).to(image.dtype)

    def back(out: Tensor) -> Tensor:
        out = out.to(whole.device)
        if channels == 4:
            # torch.cat does not know uint16
            joined = torch.empty(len(out), 4, *out.shape[2:], dtype=whole.dtype, device=whole.device)
            joined[:, :3], joined[:, 3:] = out, _as_large(whole[:, 3:], out.shape[2:])
            out = joined
        return out if image.ndim == 4 else out[0]

    return Picture(colour.expand(-1, 3, -1, -1), back, kept)


def _from_array(image: np.ndarray) -> Picture:
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise ValueError(f"image must have shape [H, W] or [H, W, C], C = 1, 3 or 4, got {list(image.shape)}")
    if image.dtype not in (np.uint8, np.uint16, np.float16, np.float32, np.float64):
        raise TypeError(f"image must be uint8, uint16 or floating, got {image.dtype}")
    planes = image[:, :, None] if image.ndim == 2 else image
    planes = np.ascontiguousarray(planes)
    # what cannot be written to, torch warns of
    inner = _from_tensor(torch.from_numpy(planes if planes.flags.writeable else planes.copy()).permute(2, 0, 1))

    def back(kept: Tensor) -> np.ndarray:
        out: np.ndarray = inner.whole(kept).numpy().transpose(1, 2, 0)
        return np.ascontiguousarray(out[:, :, 0] if image.ndim == 2 else out)

    return Picture(inner.pixels, back, inner.kept)


def _from_pil(image: Image.Image) -> Picture:
    image.load()  # PNG files may tell orientation and profile behind their pixels
    kept = {key: image.info[key] for key, kind in KEPT.items() if isinstance(image.info.get(key), kind)}
    turn = turn_of(image)  # from XMP too, which is not kept
    told = turn is not None and UPRIGHT.get(_orientation(kept.get("exif"))) is turn
    if image.mode == "F":
        raise ValueError("image must not have floating-point pixels (mode F): they have no defined white")
    if image.mode.startswith("I"):
        deep = np.array(image)
        if deep.min(initial=0) < 0 or deep.max(initial=0) > 65535:
            raise ValueError("image must have gray values of 16 bits, got some beyond")
        inner, mode = _from_array(deep.astype(np.uint16)), "I;16"
    else:
        plain = image
        if "transparency" in image.info and image.mode in ("1", "L", "RGB"):  # one value is clear
            plain = image.convert("RGBA" if image.mode == "RGB" else "LA")
        elif image.mode == "1":
            plain = image.convert("L")
        elif image.mode not in ("L", "LA", "RGB", "RGBA"):
            if image.mode == "CMYK":
                kept.pop("icc_profile", None)  # of inks, not of the RGB that comes back
            plain = image.convert(WITH_ALPHA.get(image.mode, "RGBA" if "transparency" in image.info else "RGB"))
        pixels = np.array(plain)
        if plain.mode == "LA":  # gray and alpha: as RGBA and back
            inner = _from_array(np.concatenate([np.repeat(pixels[:, :, :1], 3, 2), pixels[:, :, 1:]], 2))
        else:
            inner = _from_array(pixels)
        mode = plain.mode

    def back(rows: Tensor) -> Image.Image:
        if told:
            assert turn is not None
            rows = _turned(rows, INVERSE.get(turn, turn))
        if mode == "LA":
            alpha = _as_large(torch.from_numpy(pixels[None, None, :, :, 1]), rows.shape[2:])
            out = Image.fromarray(np.stack([rows[0, 0].numpy(), alpha[0, 0].numpy()], 2))
        else:
            out = Image.fromarray(inner.whole(rows))
        out.info.update(kept)
        return out

    def gray(rows: Tensor) -> Tensor:
        return rows.mean(1, keepdim=True).clamp(0, 1).mul(255).round().to(torch.uint8)

    upright = inner.pixels if turn is None else _turned(inner.pixels, turn)
    return Picture(upright, back, gray if mode == "LA" else inner.kept)


def _as_large(alpha: Tensor, size: torch.Size) -> Tensor:
    """What is not restored, ``[B, 1, H, W]``, bicubic where the result's ``size`` is a multiple of its own."""
    scale = size[0] // alpha.shape[2]
    if scale < 2 or [side * scale for side in alpha.shape[2:]] != list(size):
        return alpha
    full = FULL.get(alpha.dtype, 1.0)
    found = F.interpolate(alpha.to(torch.float32), list(size), mode="bicubic", antialias=True).clamp(0, full)
    return (found.round().to(torch.int32) if full > 1 else found).to(alpha.dtype)


def _orientation(exif: bytes | None) -> int:
    found = Image.Exif()
    if exif:
        found.load(exif)
    orientation: int = found.get(ORIENTATION, 1)
    return orientation


def _turned(pixels: Tensor, turn: Image.Transpose) -> Tensor:
    """As ``Image.transpose``, for ``[B, C, H, W]``."""
    if turn is ROTATE.FLIP_LEFT_RIGHT:
        return pixels.flip(3)
    if turn is ROTATE.FLIP_TOP_BOTTOM:
        return pixels.flip(2)
    if turn is ROTATE.TRANSPOSE:
        return pixels.mT
    if turn is ROTATE.TRANSVERSE:
        return pixels.mT.flip(2, 3)
    return pixels.rot90({ROTATE.ROTATE_90: 1, ROTATE.ROTATE_180: 2, ROTATE.ROTATE_270: 3}[turn], (2, 3))
