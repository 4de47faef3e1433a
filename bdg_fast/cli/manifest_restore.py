"""``bdg-fast restore --manifest``."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bdg_fast.data.images import EXTENSIONS
from bdg_fast.files import about, sha256_of
from bdg_fast.jobs import Entry, Item, Line, failed, read_manifest
from bdg_fast.jobs.work import Chunk
from bdg_fast.latent.space import LATENT_FILE
from bdg_fast.memory import keep_freed_memory
from bdg_fast.models import checkpoint_at
from bdg_fast.models.checkpoints import WEIGHTS_FILE
from bdg_fast.ranks import own_device
from bdg_fast.restorer import Restorer
from bdg_fast.video import is_video

from .common import Failures
from .manifests import run_job
from .restore import (
    GPU_WRITERS,
    WITHOUT_ALPHA,
    WRITERS,
    Job,
    behind,
    check_targets,
    has_alpha,
    make_folders,
    options_of,
    write_comparison,
    write_picture,
)

NAME = "_manifest"
"""By its underscore no picture of a folder, nor part of a data set."""
OPAQUE = "transparency lost"


def run(arguments: argparse.Namespace) -> int:
    """Restore, write, and name the files that failed."""
    folder = arguments.output_dir
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--output-dir must be a folder, got {folder}")
    items = _items(arguments)
    options = options_of(arguments)

    def settings() -> dict[str, Any]:  # by its checkpoint a VAE is known
        told = {name: value for name, value in options.items() if name not in ("device", "vae")}
        return {"checkpoint": _identity(arguments.checkpoint)} | told

    options["device"] = own_device(options["device"])
    checkpoint, options["vae"] = (_from_anywhere(path) for path in (arguments.checkpoint, options["vae"]))
    work = RestoreWork(checkpoint, options, arguments.batch, arguments.compare, arguments.force)

    def waiting(item: Item, line: Line | None) -> Item | None:
        new = item.again or line is None or line["status"] == "failed"
        if line is not None and not new and not _is(item.target, line):  # cut short, say
            return item._replace(again=True)
        return item if arguments.force or new or (arguments.compare and not _job(item).compared.exists()) else None

    def finish(lines: Sequence[Line]) -> None:
        opaque = [line["output"] for line in lines if line.get("note") == OPAQUE]
        if opaque:
            print(f"bdg-fast: {OPAQUE} in {len(opaque)}, as {opaque[0]} has a format without", file=sys.stderr)

    failures = Failures("not restored")
    whole = len(items)  # nothing is tried again together, and reading and writing never pause
    return run_job(arguments, "restore", work, settings, items, folder / NAME, waiting, finish, failures, whole)


def _items(arguments: argparse.Namespace) -> list[Item]:
    """Of the manifest, once nothing can be said against their targets, whose folders are made."""
    folder, entries = arguments.output_dir, read_manifest(arguments.manifest)
    outputs = [_output_of(entry, arguments.manifest) for entry in entries]
    jobs = [Job(entry.path, folder / path) for entry, path in zip(entries, outputs, strict=True)]
    check_targets(jobs, folder, arguments.compare)
    make_folders(jobs)
    return [  # texts take a third of what paths do
        Item(entry.id, str(job.source), str(job.target), arguments.force, output=path.as_posix())
        for entry, job, path in zip(entries, jobs, outputs, strict=True)
    ]


def _job(item: Item) -> Job:
    return Job(Path(item.path), Path(item.target))


def _identity(checkpoint: str | None) -> str:
    """The SHA-256 of its files; a name on the hub stands for itself."""
    path = checkpoint_at(checkpoint)
    folder, weights = (path, path / WEIGHTS_FILE) if path.is_dir() else (path.parent, path)
    if not weights.is_file():
        return str(checkpoint)
    return sha256_of(*(file for file in (weights, folder / LATENT_FILE) if file.is_file()))


def _from_anywhere(path: str | None) -> str | None:
    """Ray's workers have a working folder of their own."""
    return os.path.abspath(path) if path is not None and Path(path).exists() else path


def _output_of(entry: Entry, manifest: Path) -> Path:
    """Where a result goes, below the folder of all: as told, or as the id or the path are named."""
    if entry.output is not None:
        path = Path(entry.output)
    else:
        path = Path(entry.id)
        if path.name in ("", ".."):
            told = f"id must end in a name unless output is given, got {entry.id!r}"
            raise ValueError(f"{manifest}, {entry.place}: {told}")
        if path.suffix.lower() not in EXTENSIONS:  # an id need be no file's name
            path = path.with_name(f"{path.name}{entry.path.suffix}")
        if path.is_absolute() or ".." in path.parts:
            path = Path(path.name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"output must be a path below --output-dir, got {entry.output!r} of {entry.id!r}")
    if path.parts and path.parts[0].lower().startswith(f"{NAME}."):
        raise ValueError(f"output of {entry.id!r} must not be where the job is recorded, got {path}")
    if is_video(entry.path) or path.suffix.lower() not in EXTENSIONS:
        raise ValueError(f"output of {entry.id!r} must tell a format by {', '.join(EXTENSIONS)}, got {path}")
    return path


def _is(target: str, line: Line) -> bool:
    """Whether a result is there as it was written."""
    return os.path.isfile(target) and os.path.getsize(target) == line["bytes"]


@dataclass(frozen=True)
class RestoreWork:
    """What workers are sent.

    Attributes:
        checkpoint, options: of :meth:`Restorer.from_pretrained`.
        batch: most pictures of one size evaluated together.
        compare: whether comparisons are written.
        force: whether those that exist are written again.
    """

    checkpoint: str | None
    options: dict[str, Any]
    batch: int
    compare: bool
    force: bool

    def load(self) -> Chunk:
        """Load the network."""
        keep_freed_memory()
        restorer = Restorer.from_pretrained(self.checkpoint, **self.options)
        count = WRITERS if restorer.device.type in ("cpu", "mps") else GPU_WRITERS
        writers = ThreadPoolExecutor(count)

        def chunk(items: Sequence[Item], parts: Path) -> Iterator[Line]:
            there = [item for item in items if not item.again and os.path.exists(item.target)]
            known = {item.id for item in there}
            waiting = [item for item in items if item.id not in known]
            for item in there:
                yield self._told(item, writers.submit(self._found, item))
            writing: deque[tuple[Item, Future[Line]]] = deque()
            for restored in restorer.stream((item.path for item in waiting), batch=self.batch):
                item = waiting[restored.number]
                if restored.error is not None:
                    yield failed(item, about(item.path, restored.error))
                    continue
                writing.append((item, writers.submit(self._written, item, restored.image)))
                while len(writing) > behind(count + self.batch, restored.image):
                    yield self._told(*writing.popleft())
            while writing:
                yield self._told(*writing.popleft())

        return chunk

    def _told(self, item: Item, future: Future[Line]) -> Line:
        try:
            return future.result()
        except Exception as error:  # as when reading
            return failed(item, f"{item.target}: not written: {error}")

    def _written(self, item: Item, image: Any) -> Line:
        job = _job(item)
        compare = self.compare and (self.force or item.again or not job.compared.exists())
        note = {"note": OPAQUE} if job.target.suffix.lower() in WITHOUT_ALPHA and has_alpha(image) else {}
        write_picture(job, image, compare)
        return self._line(item, "done") | note

    def _found(self, item: Item) -> Line:
        job = _job(item)
        if self.compare and not job.compared.exists():
            write_comparison(job)
        return self._line(item, "found")

    def _line(self, item: Item, status: str) -> Line:
        content = Path(item.target).read_bytes()
        return {
            "id": item.id,
            "output": item.output,
            "status": status,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
