"""What is done to the images of a job, a chunk at a time, and how often if workers die of it."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from .record import Line, line_text

ATTEMPTS = 3
"""At a chunk, by workers that die; then its images are tried one by one, and those that it dies of are named."""


class Item(NamedTuple):
    """An image of a job: what it is called, its file, where its result goes, and whether one there is replaced."""

    id: str
    path: str
    target: str
    again: bool


Chunk = Callable[[Sequence[Item], Path], Iterator[Line]]
"""Works through images and yields a line of each, in any order; files beside their targets go into the folder.

``seconds`` are what has passed since the line before, unless a line tells them itself.
"""


class Work(Protocol):
    """Settings of a job, which processes send each other."""

    def load(self) -> Chunk:
        """Prepare to work, once in a process; errors end the job."""


class WorkerLost(RuntimeError):
    """Workers die before they begin."""


def failed(item: Item, error: str) -> Line:
    """The line of an image whose work failed."""
    return {"id": item.id, "status": "failed", "error": error}


class Worker:
    """A process at work.

    Args:
        work: what it does; loaded at the first chunk.
        parts: folder of a job's lines. Each image's is written as soon as it is done, into a file of this worker's own.
        name: of the process; default: of its machine and its number.
        clock: tells seconds.
    """

    def __init__(
        self, work: Work, parts: Path, name: str | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.work, self.parts, self.clock = work, parts, clock
        self.name = name or f"{socket.gethostname()}-{os.getpid()}"
        self._chunk: Chunk | None = None
        self._lines = parts / f"{self.name}-{secrets.token_hex(4)}.jsonl"

    def __call__(self, items: Sequence[Item], token: str) -> Iterator[Line]:
        """The lines of a chunk's images as they are done; ``token`` is the same if others have died of it before.

        Raises:
            WorkerLost: all who tried died before they had begun. Others: of loading.
        """
        begun, loaded = self.parts / f"{token}.begun", self.parts / "loaded"
        tried = _count(begun)
        if tried >= ATTEMPTS and not loaded.exists():
            raise WorkerLost(f"a worker died {tried} times before it had begun (of memory?)")
        if tried >= ATTEMPTS + len(items):  # not of any image, then
            yield from map(self._told, (failed(item, f"{item.path}: its worker died {tried} times") for item in items))
            return
        _add(begun)
        if self._chunk is None:
            self._chunk = self.work.load()
            loaded.touch()
        before = self.clock()
        for line in self._chunk(items, self.parts) if tried < ATTEMPTS else self._alone(items, token, self._chunk):
            now = self.clock()
            yield self._told({"seconds": round(now - before, 4)} | line)
            before = self.clock()
        begun.unlink()

    def _alone(self, items: Sequence[Item], token: str, chunk: Chunk) -> Iterator[Line]:
        for number, item in enumerate(items):
            begun = self.parts / f"{token}-{number}.begun"
            if begun.exists():
                yield failed(item, f"{item.path}: its worker died {ATTEMPTS + 1} times, at last of this image alone")
                continue
            _add(begun)
            yield from chunk([item], self.parts)
            begun.unlink()

    def _told(self, line: Line) -> Line:
        """The line with the worker's name, on disk."""
        line = line | {"worker": self.name}
        with open(self._lines, "a", encoding="utf-8") as file:
            file.write(line_text(line))
        return line


def _count(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _add(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"1")
