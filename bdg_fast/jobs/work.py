"""What is done to the images of a job, a chunk at a time, and how often if workers die of it."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from .record import LOADED, Line, line_text, lines_below

ATTEMPTS = 3
"""At a chunk, by workers that die; then its images are tried one by one, and those that it dies of are named."""


class Item(NamedTuple):
    """An image of a job.

    Fields:
        id: what it is called.
        path, target: its file, and where its result goes, as this process finds them.
        again: whether a result that is there is replaced.
        source, output: both as lines tell them; no ``output`` where results have no files of their own.
    """

    id: str
    path: str
    target: str
    again: bool = False
    source: str = ""
    output: str = ""


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
        begun, loaded = self.parts / f"{token}.begun", self.parts / LOADED
        tried = _count(begun)
        if tried >= ATTEMPTS and not loaded.exists():
            raise WorkerLost(f"a worker died {tried} times before it had begun (of memory?)")
        if tried >= ATTEMPTS + len(items):  # not of any image, then
            for item in items:
                yield self._told(failed(item, f"{item.path}: its worker died {tried} times") | {"seconds": 0.0}, item)
            return
        _add(begun)
        if self._chunk is None:
            self._chunk = self.work.load()
            loaded.touch()
        asked = {item.id: item for item in items}
        if tried:  # by others, who have left lines
            for line in lines_below(self.parts, asked).values():
                if line["status"] != "failed":
                    del asked[line["id"]]
                    yield line
        todo = list(asked.values())
        before = self.clock()
        for line in self._chunk(todo, self.parts) if tried < ATTEMPTS else self._alone(todo, token, self._chunk):
            now = self.clock()
            yield self._told({"seconds": round(now - before, 4)} | line, asked[line["id"]])
            before = self.clock()
        begun.unlink()

    def _alone(self, items: Sequence[Item], token: str, chunk: Chunk) -> Iterator[Line]:
        for item in items:
            number = hashlib.sha256(item.id.encode("utf-8", "surrogatepass")).hexdigest()[:16]
            begun = self.parts / f"{token}-{number}.begun"
            if begun.exists():
                yield failed(item, f"{item.path}: its worker died {ATTEMPTS + 1} times, at last of this image alone")
                continue
            _add(begun)
            yield from chunk([item], self.parts)
            begun.unlink()

    def _told(self, line: Line, item: Item) -> Line:
        """The line with its file and the worker's name, on disk."""
        told: Line = {"id": item.id, "path": item.source}
        line = told | line | {"worker": self.name}
        if item.again and line["status"] == "failed":  # what is there is still none of its
            line["again"] = True
        try:
            with open(self._lines, "a", encoding="utf-8") as file:
                file.write(line_text(line))
        except OSError as error:  # a full disk tells no name
            raise OSError(f"{self._lines}: not written: {error}") from error
        return line


def _count(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _add(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"1")
