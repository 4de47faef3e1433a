"""A job in this process."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

from .record import Line
from .work import Item, Work, Worker


def run_here(
    work: Work,
    items: Sequence[Item],
    parts: Path,
    chunk: int,
    name: str | None = None,
    progress: Callable[[Line], object] = lambda line: None,
) -> None:
    """Work through images, ``chunk`` at a time.

    Args:
        work: what is done.
        items: of this process.
        parts: folder of the lines.
        chunk: images of a call of the work.
        name: of this process in the lines.
        progress: called with each line.
    """
    worker = Worker(work, parts, name)
    for start in range(0, len(items), chunk):
        for line in worker(items[start : start + chunk], secrets.token_hex(8)):
            progress(line)
