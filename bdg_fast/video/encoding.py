"""Frames to packets, a part of the clip by an encoder of its own: parts follow each other as they are."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from .formats import CODECS, Choice, load_av
from .reading import UNKNOWN, Look, as_coded
from .scheduling import scheduled_as_before

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream


class Coded(NamedTuple):
    """A packet: what a file needs of it."""

    data: bytes
    pts: int
    duration: int
    key: bool


class Encoder:
    """Encodes frames, the first as a key frame that no later one looks beyond."""

    def __init__(self, look: Look, choice: Choice) -> None:
        """Nothing is encoded yet."""
        av = load_av()
        self.look, self.choice = look, choice
        self._context: VideoCodecContext = av.CodecContext.create(CODECS[choice.codec].encoder, "w")
        self._context.flags |= av.codec.context.Flags.global_header  # as containers have it
        _set(self._context, look, choice)
        with scheduled_as_before():
            self._context.open()
        self._durations: dict[int, int] = {}

    def encode(self, upright: np.ndarray, pts: int, duration: int) -> list[Coded]:
        """Of the next frame, ``[H, W, 3]`` RGB, upright (`Clip.upright`): what is ready."""
        frame = as_coded(self.look, upright, self.choice.pixels)
        frame.pts, frame.time_base = pts, self.look.time_base
        self._durations[pts] = duration
        return self._taken(self._context.encode(frame))

    def flush(self) -> list[Coded]:
        """The rest."""
        return self._taken(self._context.encode(None))

    def _taken(self, packets: list[Any]) -> list[Coded]:
        found = []
        for packet in packets:
            pts = int(packet.pts)
            found.append(Coded(bytes(packet), pts, self._durations.pop(pts, 1), bool(packet.is_keyframe)))
        return found


def add_stream(output: OutputContainer, look: Look, choice: Choice) -> VideoStream:
    """A stream for packets of :class:`Encoder`, with all that a header tells."""
    stream = cast("VideoStream", output.add_stream(CODECS[choice.codec].encoder, rate=look.rate))
    _set(stream.codec_context, look, choice)
    stream.time_base = look.time_base
    if choice.codec == "hevc" and output.format.name in ("mp4", "mov"):
        stream.codec_context.codec_tag = "hvc1"  # the tag that all players take
    if look.display is not None:
        stream.set_display_matrix(look.display)
    return stream


def _set(context: VideoCodecContext, look: Look, choice: Choice) -> None:
    codec = CODECS[choice.codec]
    context.width, context.height = look.width, look.height
    context.pix_fmt = choice.pixels
    context.time_base, context.framerate = look.time_base, look.rate
    context.sample_aspect_ratio = look.aspect or Fraction(0)
    in_rgb = "gbr" in choice.pixels or "rgb" in choice.pixels or "bgr" in choice.pixels
    if not in_rgb:  # what had no matrix has one now
        context.colorspace = look.used_matrix if look.in_rgb else look.matrix
        context.color_range = look.used_range if look.in_rgb or look.range else 0
    context.color_primaries, context.color_trc = look.primaries or UNKNOWN, look.transfer or UNKNOWN
    context.options = codec.options | ({} if choice.crf is None else {"crf": str(choice.crf)})
