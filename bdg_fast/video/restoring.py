"""A clip through a `Restorer`: decoding and encoding in threads beside the network, resumable."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bdg_fast import __version__
from bdg_fast.data.convert import Picture, as_picture
from bdg_fast.files import write_atomically
from bdg_fast.restorer import Restorer

from .encoding import Coded, Encoder
from .formats import CONTAINERS, Choice, choose
from .joining import join, streams_of
from .parts import Parts
from .reading import Clip, Look
from .steady import Steady

PART = 48
"""Frames that are encoded together: what an interruption costs at most."""
AHEAD = 2
"""Frames that are decoded ahead, and that may wait to be encoded."""

Item = tuple[int, int, Picture]
"""When a frame is shown, for how long, and its pixels."""


class Done(NamedTuple):
    """What became of a clip."""

    frames: int
    trouble: list[str]  # what could not be read, in words: the rest is restored
    changed: list[str]  # what is not as in the source, in words


def restore_video(
    restorer: Restorer,
    source: Path,
    target: Path,
    *,
    codec: str | None = None,
    crf: int | None = None,
    batch: int = 1,
    steady: float = 0.9,
    part: int = PART,
    progress: Callable[[int, int], object] | None = None,
) -> Done:
    """Restore a clip: as many frames at the same times, colours as they are told, sound and subtitles copied.

    Parts are kept in ``TARGET.parts`` until all are there; a call with the same settings goes on behind the last.

    Args:
        restorer: the noise is the same for every frame, so what does not change stays still.
        source: the video.
        target: what to write; its name tells the container (:data:`~bdg_fast.video.CONTAINERS`).
        codec: a key of :data:`~bdg_fast.video.CODECS`; default: the container's first that keeps the pixel format.
        crf: constant quality, smaller is better; default: the codec's.
        batch: frames evaluated together.
        steady: what a conditional network is told of a frame is averaged with those before, by this weight of theirs;
            0: each by itself.
        part: frames of a part.
        progress: called with frames done and of the clip (0: unknown), at first with those of an earlier run.

    Raises:
        ImportError: PyAV is missing. VideoReadError: nothing can be read. ValueError: a bad argument, by name, or a
            clip that cannot be written so.
    """
    if restorer.scale != 1:
        raise ValueError(f"restorer must keep the size of frames, got one that enlarges them by {restorer.scale}")
    for name, value in (("batch", batch), ("part", part)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    suffix = target.suffix.lower()
    if suffix not in CONTAINERS:
        raise ValueError(f"target must end in {', '.join(CONTAINERS)}, got {target}")
    if target.exists() and target.samefile(source):
        raise ValueError(f"target must not be the source, got {target}")
    smooth = Steady(steady)
    clip = Clip(source)
    look = clip.look
    choice = choose(suffix, look.pixels, (look.width, look.height), codec, crf)
    kept, left = streams_of(source, suffix)
    key = _key(restorer, source, choice, look, batch, steady, part)
    parts = Parts(target.with_name(f"{target.name}.parts"), key)
    done = parts.frames
    smooth.state = parts.state()
    tell = progress or (lambda done, total: None)
    tell(done, look.frames)
    items = ((f.pts, f.duration, as_picture(clip.upright(f))) for f in clip.frames(done))
    with closing(_ahead(items, AHEAD + batch)) as frames, ThreadPoolExecutor(1) as thread:
        writer = _Writer(parts, look, choice)
        writing: deque[Future[None]] = deque()
        while together := list(islice(frames, min(batch, part - done % part))):  # no batch is of two parts
            images = _restored(restorer, smooth, [picture for _, _, picture in together])
            for (pts, duration, _), image in zip(together, images, strict=True):
                writing.append(thread.submit(writer.encode, image, pts, duration))
            done += len(together)
            if done % part == 0:
                writing.append(thread.submit(writer.finish, smooth.state))
            while len(writing) > AHEAD:
                writing.popleft().result()
            tell(done, look.frames)
        writing.append(thread.submit(writer.finish, smooth.state))
        for future in writing:
            future.result()
    trouble = list(clip.trouble)
    write_atomically(target, lambda file: trouble.extend(join(parts, look, choice, source, kept, file)))
    parts.delete()
    changed = [f"{name} is left out" for name in left]
    if choice.pixels != look.pixels.replace("yuvj", "yuv"):
        changed.append(f"{look.pixels} pixels became {choice.pixels}")
    return Done(done, list(dict.fromkeys(trouble)), changed)


class _Writer:
    """Encodes in a thread of its own, and writes a part when it is complete."""

    def __init__(self, parts: Parts, look: Look, choice: Choice) -> None:
        self.parts, self.look, self.choice = parts, look, choice
        self._encoder: Encoder | None = None
        self._packets: list[Coded] = []

    def encode(self, image: np.ndarray, pts: int, duration: int) -> None:
        if self._encoder is None:
            self._encoder = Encoder(self.look, self.choice)
        self._packets += self._encoder.encode(image, pts, duration)

    def finish(self, state: dict[str, Tensor]) -> None:
        if self._encoder is not None:
            self.parts.add(self._packets + self._encoder.flush(), state)
            self._encoder, self._packets = None, []


def _restored(restorer: Restorer, smooth: Steady, pictures: list[Picture]) -> list[np.ndarray]:
    pixels = torch.cat([picture.pixels for picture in pictures])
    told = restorer.told(pixels)
    told = None if told is None else smooth(told, pixels)
    kept = restorer.restore(pixels, pictures[0].kept, told)
    return [picture.whole(kept[i : i + 1]) for i, picture in enumerate(pictures)]


def _ahead(items: Generator[Item, None, None], count: int) -> Generator[Item, None, None]:
    """The same items, ``count`` of them made ahead in a thread."""
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(next, items, None) for _ in range(count))
        try:
            while (item := waiting.popleft().result()) is not None:
                waiting.append(thread.submit(next, items, None))
                yield item
        finally:
            thread.shutdown(wait=True, cancel_futures=True)


def _key(restorer: Restorer, source: Path, *settings: object) -> str:
    """Of all that results depend on."""
    state = source.stat()
    weights = hashlib.sha256()
    for name, tensor in restorer.unet.state_dict().items():
        weights.update(name.encode() + tensor.cpu().flatten().view(torch.uint8).numpy().tobytes())
    sampler = {name: str(value) for name, value in vars(restorer.sampler).items() if not isinstance(value, Tensor)}
    told = [__version__, str(source.resolve()), state.st_size, state.st_mtime_ns, weights.hexdigest(), sampler]
    told += [] if restorer.latent is None else [restorer.latent.sha256, restorer.latent.colour]
    told += [restorer.seed, restorer.backend, str(restorer.dtype), str(restorer.device), restorer.tile, *settings]
    return hashlib.sha256(json.dumps(told, default=str).encode()).hexdigest()
