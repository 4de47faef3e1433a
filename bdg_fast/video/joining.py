"""Encoded parts, sound and subtitles to one file."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from .encoding import add_stream
from .formats import Choice, load_av
from .parts import Parts
from .reading import Look, demuxed, open_clip, video_stream
from .scheduling import scheduled_as_before

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer

COPIED = ("audio", "subtitle", "attachment")
"""Streams that go along, as they are."""
OF_FILE = ("major_brand", "minor_version", "compatible_brands", "encoder", "creation_time", "duration")
"""Tags that are of the file that was, not of what it shows."""


def streams_of(source: Path, suffix: str) -> tuple[list[int], list[str]]:
    """Which streams of ``source`` a file of type ``suffix`` can hold beside its video.

    Returns:
        Their numbers, and what is left out, in words.

    Raises:
        ValueError: it cannot hold the sound.
    """
    av = load_av()
    kept, left = [], []
    with open_clip(source) as container:
        restored = video_stream(container, source)
        known = _codecs(suffix)
        for stream in container.streams:
            if stream.index == restored.index:
                continue
            name = "" if stream.type == "attachment" else getattr(stream.codec_context, "name", "") or ""
            codec = av.codec.Codec(name, "r").canonical_name if name else stream.type
            fits = suffix == ".mkv" if stream.type == "attachment" else codec in known
            if stream.type in COPIED and fits:
                kept.append(stream.index)
            elif stream.type == "audio":
                raise ValueError(f"{source}: a {suffix} file cannot hold its {codec} sound; write .mkv")
            else:
                left.append(f"stream {stream.index} ({stream.type}{f', {codec}' if name else ''})")
    return kept, left


def decode_times(shown: list[int]) -> list[int]:
    """When packets are decoded: their times of display in order, delayed until none is late.

    Args:
        shown: display times in the order of decoding, all different.
    """
    order = sorted(shown)
    rank = {time: place for place, time in enumerate(order)}
    delay = max((place - rank[time] for place, time in enumerate(shown)), default=0)
    step = order[1] - order[0] if len(order) > 1 else 1
    return [order[i - delay] if i >= delay else order[0] - (delay - i) * step for i in range(len(order))]


def join(parts: Parts, look: Look, choice: Choice, source: Path, kept: list[int], target: Path) -> list[str]:
    """Write ``target``: the parts' packets, and of ``source`` the streams ``kept``, its tags and chapters.

    Returns:
        What could not be read of ``source``, in words.
    """
    av = load_av()
    problems: list[str] = []
    with ExitStack() as leaving:
        container = leaving.enter_context(open_clip(source))
        output = leaving.enter_context(av.open(str(target), "w"))
        stream = add_stream(output, look, choice)
        original = video_stream(container, source)
        stream.metadata.update(_tags(original.metadata))
        output.metadata.update(_tags(container.metadata))
        copies = {index: _copy(output, container.streams[index]) for index in kept}
        if chapters := container.chapters():
            output.set_chapters(chapters)
        with scheduled_as_before():
            output.start_encoding()
        flowing = [container.streams[index] for index in copies if copies[index].type != "attachment"]
        copied = _copied(container, flowing, copies, problems) if flowing else iter(())
        for packet in heapq.merge(_restored(parts, look, stream), copied, key=_time):
            output.mux_one(packet)
    return problems


def _restored(parts: Parts, look: Look, stream: Any) -> Iterator[Any]:
    av = load_av()
    for coded, decoded in zip(parts.packets(), decode_times(parts.times()), strict=True):
        packet = av.Packet(coded.data)
        packet.stream, packet.time_base = stream, look.time_base
        packet.pts, packet.dts, packet.duration, packet.is_keyframe = coded.pts, decoded, coded.duration, coded.key
        yield packet


def _copied(
    container: InputContainer, streams: list[Any], copies: dict[int, Any], problems: list[str]
) -> Iterator[Any]:
    for packet in demuxed(container, streams, problems):
        if packet.dts is None and packet.pts is None:
            continue
        packet.stream = copies[packet.stream_index]
        yield packet


def _copy(output: OutputContainer, stream: Any) -> Any:
    if stream.type == "attachment":
        return output.add_attachment(stream.name or "attachment", stream.mimetype or "", stream.data or b"")
    copy = output.add_stream_from_template(stream)
    copy.metadata.update(_tags(stream.metadata))
    copy.disposition = stream.disposition
    return copy


def _tags(found: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in found.items() if key.lower() not in OF_FILE}


def _time(packet: Any) -> float:
    return float((packet.dts if packet.dts is not None else packet.pts) * packet.time_base)


@cache
def _codecs(suffix: str) -> frozenset[str]:
    """Names of the codecs that a file of this type holds."""
    with TemporaryDirectory() as folder, load_av().open(str(Path(folder, f"any{suffix}")), "w") as output:
        return frozenset(output.supported_codecs)
