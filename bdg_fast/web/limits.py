"""What the page takes from those who visit it."""

from __future__ import annotations

from dataclasses import dataclass

MOST_MEGAPIXELS = 80.0
"""Beyond, Pillow itself takes a file for an attack (`Image.MAX_IMAGE_PIXELS`)."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Sizes, times and numbers; all positive.

    Attributes:
        megabytes: of an uploaded file, each of 2^20 bytes.
        megapixels: of a picture, at most :data:`MOST_MEGAPIXELS`; read off its header, before anything is decoded.
        seconds: that restoring one picture may take, without the wait for those before it. It is looked at between
            evaluations of the network (a tile of a step).
        waiting: jobs that wait for their turn; one runs at a time.
        gigabytes: of all files together.
        minutes: that files are kept.
    """

    megabytes: float = 20
    megapixels: float = 12
    seconds: float = 300
    waiting: int = 16
    gigabytes: float = 2
    minutes: float = 60

    def __post_init__(self) -> None:
        """Refuse what is no limit, by name."""
        for name in ("megabytes", "megapixels", "seconds", "waiting", "gigabytes", "minutes"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if self.megapixels > MOST_MEGAPIXELS:
            raise ValueError(f"megapixels must be at most {MOST_MEGAPIXELS:g}, got {self.megapixels:g}")

    @property
    def bytes(self) -> int:
        """Of an uploaded file."""
        return int(self.megabytes * 2**20)
