"""From an image to a row of a table; a picture that is searched for goes the same way."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bdg_fast.analysis.analyser import FINGERPRINT, SHIPPED, Analyser, matrices_of, pixels_of

FORMATS = ("safetensors", "parquet")
DTYPES = {"float16": torch.float16, "float32": torch.float32}
WIDTH = 2048
"""Numbers of a fingerprint."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the rows of a table depend on beside its images.

    Attributes:
        format: of its files, one of `FORMATS`.
        dtype: of fingerprints, ``"float16"`` or ``"float32"``.
        crop: side of the square in the middle that is looked at; None: all of the picture.
        max_side: larger pictures are shrunk to this, which hides noise and compression; None: they are not.
        project: 33 coordinates in the directions of the analysis's index instead of 2048 numbers.
        analyse: also kind, level and confidence (`bdg_fast.analysis`).
        per_part: images of a file, at most.
        index: digest of the analysis's index, where one is needed.

    Raises:
        ValueError: a value that is not allowed.
    """

    format: str = "safetensors"
    dtype: str = "float16"
    crop: int | None = None
    max_side: int | None = None
    project: bool = False
    analyse: bool = False
    per_part: int = 1000
    index: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("format", FORMATS), ("dtype", tuple(DTYPES))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be {' or '.join(allowed)}, got {getattr(self, name)!r}")
        for name, least in (("crop", 32), ("max_side", 32), ("per_part", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if self.crop is not None and self.max_side is not None:
            raise ValueError(f"max_side must be None with crop, got crop {self.crop} and max_side {self.max_side}")

    def as_dict(self) -> dict[str, Any]:
        """Of plain values."""
        return asdict(self)


class Row(NamedTuple):
    """Of one image."""

    width: int
    height: int
    fingerprint: Tensor  # [D] of the table's dtype
    kind: str = ""
    level: float = float("nan")  # of kinds that have none
    confidence: float = float("nan")


class Describer:
    """Makes rows.

    Args:
        settings: of the table; ``index`` is the digest that the index must have, if it is given.
        index: an index of one's own (see :meth:`bdg_fast.analysis.Analyser.from_pretrained`).

    Attributes:
        settings: with the index's digest.
        width: how many numbers a fingerprint has here.

    Raises:
        FileNotFoundError, ValueError: no such index, or not that of the settings.
    """

    def __init__(self, settings: Settings, index: Path | None = None) -> None:
        self._analyser: Analyser | None = None
        self.width = WIDTH
        if settings.project or settings.analyse:
            self._analyser = Analyser.from_pretrained(index)
            digest = hashlib.blake2b((index or SHIPPED).read_bytes(), digest_size=8).hexdigest()
            if settings.index not in (None, digest):
                raise ValueError(f"index must be that of the table, {settings.index}, got {digest}")
            settings = Settings(**{**settings.as_dict(), "index": digest})
        self.settings = settings
        if self._analyser is not None and settings.project:
            self.width = self._analyser.coordinates(torch.zeros(1, WIDTH)).shape[1]

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> Row:
        """Describe an image.

        Args:
            image: ``[C, H, W]``, C = 1 or 3, uint8 or uint16. It is looked at in 8 bits; of more than 768 x 768 pixels
                (once cropped or shrunk) about nine windows of 256 x 256 are.

        Raises:
            ValueError: a side is below 32 pixels.
        """
        height, width = image.shape[1:]
        gray, residual = matrices_of(self._part(pixels_of(image)))
        vector = FINGERPRINT.join(gray[None], residual[None])
        if self._analyser is not None and self.settings.project:
            vector = self._analyser.coordinates(vector)
        row = Row(width, height, vector[0].to(DTYPES[self.settings.dtype]))
        if self._analyser is None or not self.settings.analyse:
            return row
        report = self._analyser.report(gray, residual)
        level = row.level if report.level is None else report.level
        return row._replace(kind=report.kind, level=level, confidence=report.confidence)

    def _part(self, pixels: Tensor) -> Tensor:
        """What is looked at of uint8 ``[3, H, W]``."""
        height, width = pixels.shape[1:]
        if (side := self.settings.crop) is not None:
            top, left = max(height - side, 0) // 2, max(width - side, 0) // 2
            return pixels[:, top : top + side, left : left + side]
        most = self.settings.max_side
        if most is not None and max(height, width) > most:
            size = [max(32, round(one * most / max(height, width))) for one in (height, width)]
            return F.interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]
        return pixels
