"""What the commands share: files that fail are named at the end, outputs are checked first."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from bdg_fast.data.images import ImageReadError, read_image


class Failures:
    """Files that failed, and the exit code that follows from them."""

    def __init__(self, what: str = "not read") -> None:
        """No failure so far; ``what`` happened to those that will be."""
        self.what = what
        self.messages: list[str] = []

    def report(self) -> int:
        """Name them on standard error; 1 if there are any, else 0."""
        for message in self.messages:
            print(f"bdg-fast: {self.what}: {message}", file=sys.stderr)
        return 1 if self.messages else 0


def read_all(paths: Iterable[Path], failures: Failures, label: str) -> Iterator[tuple[Path, Tensor]]:
    """Readable images in turn, with a progress bar if standard error is a terminal."""
    for path in tqdm(list(paths), desc=label, unit="image", disable=not sys.stderr.isatty()):
        try:
            image = read_image(path)
        except ImageReadError as error:
            failures.messages.append(str(error))
            continue
        yield path, image


PICTURES = (".png", ".pdf", ".svg")
"""File types that pictures are written as."""


def writable(option: str, path: Path, suffixes: Sequence[str], force: bool) -> Path:
    """``path``, if of a known type and nothing is there or ``force`` is given; its folder must exist.

    Raises:
        ValueError, OSError: says so before any work is done.
    """
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{option} must end in {' or '.join(suffixes)}, got {path}")
    if path.is_dir():
        raise IsADirectoryError(f"{option} must name a file, got the folder {path}")
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists; --force replaces it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"folder {path.parent} of {path.name} does not exist")
    return path
