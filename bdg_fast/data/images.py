"""Finding and reading image files."""

from __future__ import annotations

import glob
import io
import os
import threading
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif")
"""Files that a folder is searched for; a file named explicitly may have any name."""

ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by its EXIF orientation."""


_OPENING = threading.Lock()
"""Filters of warnings belong to the process, not to a thread."""


class ImageReadError(Exception):
    """A file that is not a readable image; the message names it."""


def list_images(paths: Iterable[str | os.PathLike[str]], extensions: tuple[str, ...] = EXTENSIONS) -> list[Path]:
    """The image files that files, folders (searched to any depth) and glob patterns name.

    Args:
        paths: files, folders, patterns.
        extensions: what a folder is searched for.

    Returns:
        Sorted within each argument, each file once. Hidden ones of a folder (``.name``) are left out.

    Raises:
        FileNotFoundError: an argument matches no file or folder, or a folder holds no image.
    """
    found: dict[Path, None] = {}
    for given in paths:
        argument = os.fspath(given)
        if not argument:  # Path("") would be the current folder
            raise FileNotFoundError("an empty text names no file or folder")
        path = Path(argument)
        if path.is_dir():
            files = sorted(f for f in path.rglob("*") if _is_wanted(f.relative_to(path), extensions) and _is_file(f))
            if not files:
                raise FileNotFoundError(f"no image in folder {argument!r}; looked for {', '.join(extensions)}")
        elif path.exists():
            files = [path]
        else:
            files = [f for f in map(Path, sorted(glob.glob(argument, recursive=True))) if _is_file(f)]
            if not files:
                raise FileNotFoundError(f"no such file, folder or match: {argument!r}")
        found.update(dict.fromkeys(files))
    return list(found)


def _is_wanted(below: Path, extensions: tuple[str, ...]) -> bool:
    """By its name below a folder; hidden are previews, and what other systems keep beside a file (``._photo.jpg``)."""
    return below.suffix.lower() in extensions and not any(part.startswith(".") for part in below.parts)


def _is_file(path: Path) -> bool:
    """Also of a link to nothing: reading it names it, leaving it out would hide it."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def read_image(path: str | os.PathLike[str]) -> Tensor:
    """Pixels of an image file.

    EXIF orientation is applied, palettes and CMYK become RGB, alpha is dropped; of an animation the first
    frame is read.

    Returns:
        ``[C, H, W]``, C = 1 or 3: uint8, or uint16 for 16-bit gray files.

    Raises:
        ImageReadError: the file is missing, damaged, not an image, of floating-point or 32-bit pixels, or
            suspiciously large.
    """
    return _pixels(path, os.fspath(path))


def decode_image(data: bytes, name: str) -> Tensor:
    """As :func:`read_image`, of a file's bytes; ``name`` is what errors call it."""
    return _pixels(io.BytesIO(data), name)


def _pixels(file_or_path: str | os.PathLike[str] | io.BytesIO, name: str) -> Tensor:
    try:
        with _opened(file_or_path) as file:
            file.load()
            # not ImageOps.exif_transpose: it writes EXIF anew and so fails on any ill-typed entry
            turn = turn_of(file)
            image = file if turn is None else file.transpose(turn)
            if image.mode.startswith("I;16") or image.mode == "I":
                pixels = np.array(image)
                if pixels.min(initial=0) < 0 or pixels.max(initial=0) > 65535:
                    raise ImageReadError(f"{name}: gray values beyond 16 bits are not supported")
                pixels = pixels.astype(np.uint16)
            elif image.mode == "F":  # floating pixels have no defined white
                raise ImageReadError(f"{name}: floating-point pixels are not supported")
            else:
                if image.mode == "P" and "transparency" in image.info:
                    image = image.convert("RGBA")
                gray = image.mode in ("1", "L", "LA", "La")
                pixels = np.array(image.convert("L" if gray else "RGB"))
    except ImageReadError:
        raise
    except Exception as error:  # Pillow's decoders raise many types on damaged files, struct.error among them
        raise ImageReadError(f"{name}: {error}") from error
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy())


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """A decoded PIL image (of an animation the first frame), with its metadata.

    Raises:
        ImageReadError: the file is missing, damaged, not an image, or suspiciously large.
    """
    try:
        image = _opened(path)
        image.load()
    except Exception as error:  # as in read_image
        raise ImageReadError(f"{os.fspath(path)}: {error}") from error
    return image


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """What turns an image upright; None if it is, or its EXIF data are damaged."""
    try:
        return UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Pillow raises many types on them; the pixels may be good
        return None


def _opened(path: str | os.PathLike[str] | io.BytesIO) -> Image.Image:
    """The file with its header read; a suspiciously large one is an error rather than a warning."""
    with _OPENING, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(path)


def bundled_photographs() -> list[Path]:
    """Eleven photographs, public domain or CC0, that come with the package (see ``photos/manifest.csv``)."""
    return sorted(Path(__file__).with_name("photos").glob("*.jpg"))


def hazy_photograph() -> Path:
    """A photograph of hazy mountains, hazy as it was taken; CC BY 4.0 (see ``real/README.md``)."""
    return Path(__file__).with_name("real") / "aitzgorri.jpg"


def as_unit_rgb(image: Tensor) -> Tensor:
    """``[C, H, W]`` uint8 or uint16 to float32 ``[3, H, W]`` in [0, 1]."""
    full = 255 if image.dtype == torch.uint8 else 65535
    return (image.to(torch.float32) / full).expand(3, -1, -1)
