"""Containers, encoders and pixel formats: what a restored clip is written as."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import NamedTuple


@dataclass(frozen=True)
class Codec:
    """An encoder and how it is set: constant quality, no bit rate."""

    encoder: str
    crf: int | None  # default; None: lossless
    worst: int = 51  # the largest crf
    even: bool = True  # takes subsampled chroma of even sizes alone
    least: int = 1  # smallest side
    options: dict[str, str] = field(default_factory=dict)


CODECS = {
    "h264": Codec("libx264", 17, options={"preset": "medium"}),
    # x265 4.2 writes beyond its memory where 10 bits are less than 64 pixels wide
    "hevc": Codec("libx265", 19, least=64, options={"preset": "medium", "x265-params": "log-level=error"}),
    "vp9": Codec("libvpx-vp9", 24, 63, even=False, options={"b": "0", "cpu-used": "3", "row-mt": "1"}),
    "av1": Codec("libsvtav1", 24, 63, options={"preset": "6"}),
    "ffv1": Codec("ffv1", None, even=False, options={"level": "3"}),
}
CONTAINERS = {
    ".mp4": ("h264", "hevc", "av1", "vp9"),
    ".m4v": ("h264",),
    ".mov": ("h264", "hevc"),
    ".mkv": ("h264", "hevc", "av1", "vp9", "ffv1"),
    ".webm": ("vp9", "av1"),
}
"""What each may hold; the first that takes the pixel format of the source is the default."""
READ_ONLY = (".avi", ".mpg", ".mpeg", ".ts", ".mts", ".wmv", ".flv")
"""Other files that a folder is searched for; restored, they are Matroska files."""
VIDEOS = (*CONTAINERS, *READ_ONLY)
NOT_WRITTEN = ("yuvj", "yuva", "gbrap", "ya", "rgba", "bgra", "argb", "abgr")
"""Pixel formats of full range by name, which is told elsewhere, and with alpha, which is not kept."""


class Choice(NamedTuple):
    """What a clip is encoded by."""

    codec: str
    crf: int | None
    pixels: str  # FFmpeg's name of the pixel format


def is_video(path: Path) -> bool:
    """By its name."""
    return path.suffix.lower() in VIDEOS


def load_av() -> ModuleType:
    """PyAV.

    Raises:
        ImportError: it is missing.
    """
    os.environ.setdefault("SVT_LOG", "1")  # errors alone; it writes to standard error by itself
    try:
        import av
        import av.codec.codec
        import av.codec.context
    except ImportError:
        raise ImportError("videos need PyAV: pip install 'bdg-fast[video]'") from None
    return av


def choose(suffix: str, source: str, size: tuple[int, int], codec: str | None = None, crf: int | None = None) -> Choice:
    """The encoder of a container, and the pixel format that keeps most of the source's.

    Args:
        suffix: of the file, a key of :data:`CONTAINERS`.
        source: FFmpeg's name of the source's pixel format.
        size: width and height. Where one is odd and the encoder takes none such, chroma is not subsampled.
        codec: a key of :data:`CODECS`; default: the container's first that takes ``source``, else its first.
        crf: default: the codec's.

    Raises:
        ValueError: the container does not hold ``codec``, or ``crf`` is out of its range.
    """
    known = CONTAINERS[suffix]
    if codec is not None and codec not in known:
        raise ValueError(f"codec must be one of {', '.join(known)} in {suffix} files, got {codec!r}")
    wanted = source.replace("yuvj", "yuv")  # full range, which is told elsewhere
    if codec is None:
        codec = next((name for name in known if wanted in _formats(name, size)), known[0])
    most = CODECS[codec].worst
    if crf is not None and (CODECS[codec].crf is None or not 0 <= crf <= most):
        allowed = "left out, as it is lossless" if CODECS[codec].crf is None else f"0 to {most}"
        raise ValueError(f"crf of {codec} must be {allowed}, got {crf}")
    formats = _formats(codec, size)
    if not formats:
        raise ValueError(f"codec must be one that takes {size[0]} x {size[1]} pixels, got {codec!r}")
    pixels = wanted if wanted in formats else _nearest(formats, wanted)
    return Choice(codec, CODECS[codec].crf if crf is None else crf, pixels)


def _formats(name: str, size: tuple[int, int]) -> list[str]:
    """Pixel formats that an encoder takes of a size: integers without alpha; none if the size is none of its."""
    av, codec = load_av(), CODECS[name]
    if min(size) < codec.least:
        return []
    found = [form.name for form in av.codec.Codec(codec.encoder, "w").video_formats or ()]
    found = [form for form in found if not form.startswith(NOT_WRITTEN) and "f16" not in form and "f32" not in form]
    if codec.even and any(side % 2 for side in size):
        found = [form for form in found if "444" in form or form.startswith(("gbr", "gray"))]
    return found


def _nearest(formats: list[str], source: str) -> str:
    best, _ = load_av().codec.codec.find_best_pix_fmt_of_list(formats, source)
    return str(best.name)
