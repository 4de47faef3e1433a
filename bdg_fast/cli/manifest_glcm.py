"""``bdg-fast glcm --manifest``."""

from __future__ import annotations

import argparse
import hashlib
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bdg_fast.data.images import ImageReadError, read_image
from bdg_fast.files import write_atomically
from bdg_fast.jobs import Item, Line, failed, read_manifest
from bdg_fast.jobs.work import Chunk
from bdg_fast.ranks import own_device

from .common import Failures, writable
from .glcm import SUFFIXES, matrices_of, settings_of, write_all
from .manifests import run_job

OPEN = 64
"""Parts that are read from in turn."""


def run(arguments: argparse.Namespace) -> int:
    """Compute, write, and name the files that failed."""
    output: Path = arguments.output
    base = output.with_name(f"{output.name}.manifest")
    mine = base.with_name(f"{base.name}.json").exists()  # it goes on then
    writable("--output", output, SUFFIXES, arguments.force or mine)
    entries = read_manifest(arguments.manifest)
    settings = settings_of(arguments)
    device = own_device(str(arguments.device))
    work = MatrixWork(settings, arguments.impl, device)

    @lru_cache(None)
    def rows(name: str) -> int:
        try:
            return int(_opened(base.parent / name).get_shape()[0])
        except Exception:  # safetensors raises its own type; what is lost or damaged is made again
            return 0

    def waiting(item: Item, line: Line | None) -> Item | None:
        there = line is not None and line["status"] != "failed" and line["row"] < rows(line["output"])
        return None if there else item

    def finish(lines: Sequence[Line]) -> None:
        done = list(_matrices([entry.path for entry in entries], lines, base.parent))
        if done:
            write_atomically(output, lambda file: write_all(file, done, settings))
            print(f"{output}: {len(done)} of {len(lines)} images")
        for path, shape, matrix in done:
            if not matrix.any():
                print(f"bdg-fast: no pixel pairs: {path}: {shape[2]} x {shape[1]} is too small", file=sys.stderr)

    items = [Item(entry.id, str(entry.path), str(output)) for entry in entries]
    return run_job(arguments, "glcm", work, lambda: settings, items, base, waiting, finish, Failures())


def _matrices(paths: Sequence[Path], lines: Sequence[Line], folder: Path) -> Iterator[tuple[Path, list[int], Tensor]]:
    """Files' names, shapes and matrices, in order."""
    opened = lru_cache(OPEN)(lambda name: _opened(folder / name))  # processes of torchrun take turns
    for path, line in zip(paths, lines, strict=True):
        if line["status"] != "failed":
            yield path, line["shape"], opened(line["output"])[line["row"]]


def _opened(file: Path) -> Any:
    """The matrices of a part, ``[images, levels, levels]``, which are read when they are indexed."""
    from safetensors import safe_open

    opened: Any = safe_open(file, "pt")
    return opened.get_slice("matrices")


@dataclass(frozen=True)
class MatrixWork:
    """What workers are sent.

    Attributes:
        settings: of :func:`bdg_fast.mas_glcm`.
        impl, device: how and where.
    """

    settings: dict[str, Any]
    impl: str
    device: str

    def load(self) -> Chunk:
        """There is nothing to load."""
        return self._chunk

    def _chunk(self, items: Sequence[Item], parts: Path) -> Iterator[Line]:
        from safetensors.torch import save_file

        begin = time.monotonic()
        errors: list[Line] = []
        read: list[Item] = []

        def images() -> Iterator[tuple[Path, Tensor]]:
            for item in items:
                try:
                    image = read_image(item.path)
                except ImageReadError as error:
                    errors.append(failed(item, str(error)))
                    continue
                read.append(item)
                yield Path(item.path), image

        found = list(matrices_of(images(), self.settings, self.impl, torch.device(self.device)))
        if not found:
            yield from errors
            return
        file = parts / f"{secrets.token_hex(8)}.safetensors"
        stack = torch.stack([matrix for _, _, matrix in found])
        write_atomically(file, lambda path: save_file({"matrices": stack}, path))
        each = round((time.monotonic() - begin) / len(items), 6)
        yield from (line | {"seconds": each} for line in errors)
        for row, (item, (_, shape, matrix)) in enumerate(zip(read, found, strict=True)):
            yield {
                "id": item.id,
                "output": f"{parts.name}/{file.name}",
                "row": row,
                "shape": shape,
                "status": "done",
                "seconds": each,
                "bytes": matrix.nbytes,
                "sha256": hashlib.sha256(matrix.numpy().tobytes()).hexdigest(),
            }
