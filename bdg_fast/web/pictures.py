"""Uploaded files to pictures, with a message for people where that fails; and pictures to what a browser shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from PIL import Image

from bdg_fast.data.convert import as_picture, shown
from bdg_fast.files import write_atomically

from .limits import Limits

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
"""Of Pillow's decoders; others run programs, or few have looked at them."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm")
KEPT_MODES = ("L", "LA", "RGB", "RGBA", "P", "1", "PA", "La", "RGBa")
"""Whose colours stay what they are; `I;16` besides."""
PREVIEW = 2048
"""Longest side of what is shown, in pixels."""
LONGEST = 48
"""Letters of a name that are kept."""


class Refused(Exception):
    """A file that is not taken; the message is for whoever sent it."""


def open_upload(path: Path, limits: Limits) -> tuple[Image.Image, list[str]]:
    """A decoded picture within the limits, and what to tell of it. Nothing is decoded before its size is known.

    Raises:
        Refused: anything else.
    """
    if path.stat().st_size == 0:
        raise Refused("The file is empty.")
    if path.stat().st_size > limits.bytes:
        raise Refused(f"The file is too large: at most {limits.megabytes:g} MB are taken.")
    try:
        image: Image.Image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError:
        raise Refused(f"The picture is far too large: at most {limits.megapixels:g} megapixels are taken.") from None
    except Exception:  # decoders raise many types on damaged files
        raise Refused("This is no picture that can be read: PNG, JPEG, WebP, TIFF, BMP, GIF, PPM or PGM.") from None
    with image:
        pixels = image.width * image.height / 1e6
        if pixels > limits.megapixels:
            size = f"{image.width} × {image.height} pixels, {pixels:.1f} megapixels"
            raise Refused(f"The picture is too large: {size}, where {limits.megapixels:g} are taken.")
        try:
            animated = bool(getattr(image, "is_animated", False))
            image.load()
            image = image.copy() if animated else image  # of the first frame, without its file
            as_picture(image)
        except (ValueError, TypeError) as error:
            if str(error).startswith("image must"):
                raise Refused(f"The picture is of a kind that cannot be restored: {error}.") from None
            raise Refused("The picture is damaged.") from None
        except Exception:
            raise Refused("The picture is damaged or incomplete.") from None
    notes = []
    if animated:
        notes.append("Of several frames the first is restored.")
    if image.mode not in KEPT_MODES and not image.mode.startswith("I"):
        notes.append(f"Its colours ({image.mode}) become RGB.")
    return image, notes


def write_preview(image: Image.Image, path: Path) -> None:
    """As a viewer shows it, no larger than :data:`PREVIEW`; JPEG of high quality."""
    small = shown(image)
    small.thumbnail((PREVIEW, PREVIEW), Image.Resampling.LANCZOS)
    write_atomically(path, lambda file: small.save(file, "JPEG", quality=95, subsampling=0))


def write_png(image: Image.Image, path: Path) -> None:
    """All of it, with colour profile, resolution and EXIF data."""
    options: dict[str, Any] = {str(key): value for key, value in image.info.items()}
    write_atomically(path, lambda file: image.save(file, "PNG", **options))


def restored_name(upload: str) -> str:
    """``NAME_restored.png``, of letters, digits and ``-_.`` of the name that came."""
    stem = re.sub(r"[^\w.-]+", "_", Path(upload).stem)[:LONGEST].strip("._-")
    return f"{stem or 'picture'}_restored.png"
