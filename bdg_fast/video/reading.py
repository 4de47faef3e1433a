"""What a clip is, and its frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .formats import load_av

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

UNKNOWN = 2
"""FFmpeg's "unspecified" of matrix, primaries and transfer."""
BT709, BT601 = 1, 6
LIMITED, FULL = 1, 2
MATRICES = (BT709, 4, 5, BT601, 7, 9)
"""Between RGB and YUV that FFmpeg's scaler knows: 709, FCC, 470BG, 170M, 240M, 2020."""
HD = 720
"""Lines from which an unnamed matrix is BT.709's, as players take it."""
DISPLAY = "DISPLAYMATRIX"
MISSING = 0.25
"""Seconds, and a frame, by which a file may end before its header says."""
EXACT = ("matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2")
"""Formats whose header is no guess."""


class VideoReadError(Exception):
    """A file that is no readable video; the message names it."""


@dataclass(frozen=True)
class Look:
    """What stays as it is in a restored clip. Colours are FFmpeg's numbers, as they stand in the file."""

    width: int
    height: int
    pixels: str  # FFmpeg's name of the pixel format
    deep: bool  # more than 8 bits
    matrix: int
    range: int
    primaries: int
    transfer: int
    aspect: Fraction | None  # of a pixel
    turns: int  # quarters, counterclockwise, until it is upright
    display: tuple[int, ...] | None  # the matrix that says so
    time_base: Fraction
    rate: Fraction
    frames: int  # as its header says, or 0

    @property
    def rgb(self) -> str:
        """Pixel format between decoder, network and encoder."""
        return "rgb48le" if self.deep else "rgb24"

    @property
    def in_rgb(self) -> bool:
        """Whether the source has no matrix."""
        return "rgb" in self.pixels or "bgr" in self.pixels or "gbr" in self.pixels or self.pixels == "pal8"

    @property
    def used_matrix(self) -> int:
        """What takes YUV to RGB and back."""
        if self.matrix in MATRICES and not self.in_rgb:
            return self.matrix
        return BT709 if self.height >= HD else BT601

    @property
    def used_range(self) -> int:
        """Of YUV: limited where nothing says otherwise."""
        return FULL if not self.in_rgb and (self.range == FULL or "yuvj" in self.pixels) else LIMITED


class Frame(NamedTuple):
    """A decoded frame and its time in units of :attr:`Look.time_base`."""

    pts: int
    duration: int
    decoded: VideoFrame


@dataclass
class Clip:
    """An opened video.

    Attributes:
        trouble: what could not be read, in words, after its frames are.
    """

    path: Path
    look: Look = field(init=False)
    trouble: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        """Look at the first frame.

        Raises:
            ImportError: PyAV is missing. VideoReadError: no frame can be read. ValueError: it is interlaced.
        """
        with open_clip(self.path) as container:
            stream = video_stream(container, self.path)
            first = next(_decoded(container, stream, []), None)
            if first is None:
                raise VideoReadError(f"{self.path}: no frame can be read")
            if first.interlaced_frame:
                raise ValueError(f"{self.path}: interlaced video is not restored; deinterlace it before")
            rate = stream.average_rate or stream.guessed_rate or Fraction(25)
            display: Any = first.side_data.get(DISPLAY)
            bits = max(part.bits for part in first.format.components)
            self.look = Look(
                width=first.width,
                height=first.height,
                pixels=first.format.name,
                deep=bits > 8,
                matrix=int(first.colorspace),
                range=int(first.color_range),
                primaries=int(first.color_primaries),
                transfer=int(first.color_trc),
                aspect=stream.sample_aspect_ratio,
                turns=round(first.rotation / 90) % 4,
                display=None if display is None else tuple(np.frombuffer(bytes(display), np.int32).tolist()),
                time_base=stream.time_base or 1 / rate,
                rate=rate,
                frames=stream.frames,
            )

    def frames(self, skip: int = 0) -> Iterator[Frame]:
        """All frames in the order they are shown, times rising; the first ``skip`` are left out.

        What cannot be decoded is left out and told in :attr:`trouble`; a frame of another size or format ends them.
        """
        self.trouble, problems, last, count = [], list[str](), -(2**62), 0
        usual = max(round(1 / (self.look.rate * self.look.time_base)), 1)
        with open_clip(self.path) as container:
            for decoded in _decoded(container, video_stream(container, self.path), problems):
                if (decoded.width, decoded.height, decoded.format.name) != (
                    self.look.width,
                    self.look.height,
                    self.look.pixels,
                ):
                    size = f"{decoded.width} x {decoded.height} {decoded.format.name}"
                    problems.append(f"frames from {count} on, which are {size}")
                    break
                pts = decoded.pts
                if pts is None:
                    pts = last + usual if count else 0
                last = max(pts, last + 1)
                count += 1
                if count > skip:
                    yield Frame(last, decoded.duration or usual, decoded)
        self.trouble = problems

    def upright(self, frame: Frame) -> np.ndarray:
        """RGB as the network sees it, ``[H, W, 3]``, uint8 or uint16."""
        plain = frame.decoded.reformat(
            format=self.look.rgb,
            interpolation=_scaling(),
            src_colorspace=None if self.look.in_rgb else self.look.used_matrix,
            src_color_range=None if self.look.in_rgb else self.look.used_range,
            dst_color_range=FULL,
        )
        return np.rot90(plain.to_ndarray(), self.look.turns)


def open_clip(path: Path) -> InputContainer:
    """The file.

    Raises:
        ImportError: PyAV is missing. VideoReadError: it cannot be opened.
    """
    av = load_av()
    try:
        found: InputContainer = av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise VideoReadError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    return found


def video_stream(container: InputContainer, path: Path) -> VideoStream:
    """The first that is no cover."""
    attached = load_av().stream.Disposition.attached_pic
    for stream in container.streams.video:
        if not stream.disposition & attached:
            return stream
    raise VideoReadError(f"{path}: no video in this file")


def _decoded(container: InputContainer, stream: VideoStream, problems: list[str]) -> Iterator[VideoFrame]:
    """Frames that can be decoded; ``problems`` tells of the others at the end."""
    av = load_av()
    packets = damaged = 0
    end = 0.0
    for packet in demuxed(container, (), problems):  # of all streams, as any may be what lasts longest
        if packet.pts is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream_index != stream.index:
            continue
        try:
            for frame in stream.codec_context.decode(packet):
                damaged += frame.is_corrupt
                yield frame
        except av.error.FFmpegError:
            packets += 1
    with suppress(av.error.FFmpegError):
        yield from stream.codec_context.decode(None)
    if packets:
        problems.append(f"{packets} packets")
    if damaged:
        problems.append(f"all of {damaged} frames")
    missing = ((container.start_time or 0) + (container.duration or 0)) / av.time_base - end
    late = MISSING + float(1 / (stream.average_rate or 1))
    if missing > late and container.format.name in EXACT:
        problems.append(f"{missing:.1f} s at the end")


def demuxed(container: InputContainer, streams: Sequence[Any], problems: list[str]) -> Iterator[Any]:
    """Packets, of all streams if none is named, to the end or where the file is damaged, which ``problems`` tells."""
    av = load_av()
    try:
        for packet in container.demux(*streams):
            if packet.size:
                yield packet
    except (av.error.FFmpegError, OSError) as error:
        problems.append(f"the rest of the file ({getattr(error, 'strerror', None) or error})")


def _scaling() -> int:
    """Flags of the scaler, of reading and writing alike: exact rounding, chroma interpolated."""
    flags = load_av().video.reformatter.Interpolation
    return int(flags.BICUBIC | flags.ACCURATE_RND | flags.FULL_CHR_H_INT | flags.FULL_CHR_H_INP)


def as_coded(look: Look, upright: np.ndarray, pixels: str) -> VideoFrame:
    """The frame to encode of what :meth:`Clip.upright` gave; ``pixels``: its format."""
    av = load_av()
    rgb = np.ascontiguousarray(np.rot90(upright, -look.turns))
    frame: VideoFrame = av.VideoFrame.from_ndarray(rgb, format=look.rgb)
    to_rgb = "gbr" in pixels or "rgb" in pixels or "bgr" in pixels
    frame = frame.reformat(
        format=pixels,
        interpolation=_scaling(),
        src_color_range=FULL,
        dst_colorspace=None if to_rgb else look.used_matrix,
        dst_color_range=FULL if to_rgb else look.used_range,
    )
    frame.color_primaries, frame.color_trc = look.primaries, look.transfer
    return frame
