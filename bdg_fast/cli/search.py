"""``bdg-fast search``: what in a table is like given images, or like each other."""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bdg_fast.data.images import list_images
from bdg_fast.files import write_atomically

from .common import Failures, read_all, writable

EXAMPLES = """examples:
  bdg-fast search table/ photo.jpg                    the 10 images whose fingerprints are nearest
  bdg-fast search table/ photos/ --top 3 --output near.csv
  bdg-fast search table/ --duplicates                 pairs that may show the same
  bdg-fast search table/ --duplicates --threshold 0.03 --backend tree   large tables of --project (extra: table)

What is near is degraded alike, first of all: docs/howto/collections.md tells how often. Pairs are to be looked at.

exit code: 0 done, 1 some images could not be read (named at the end; the rest is done), 2 bad usage
"""
THRESHOLD = 0.05
"""Of pairs: below it nearly all of a few hundred photographs' pairs were copies (docs/howto/collections.md)."""

TOGETHER = 100_000
"""Pairs whose images are named at once."""


def add_parser(subparsers: Any) -> None:
    """Add the command to ``bdg-fast``."""
    parser = subparsers.add_parser(
        "search",
        help="images of a table that are like given ones, or like each other",
        description="Nearest fingerprints in a table of `bdg-fast fingerprints`.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", type=Path, metavar="TABLE", help="folder of a finished table")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image file, folder, or quoted glob")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="neighbours of each image (default 10)")
    parser.add_argument("--duplicates", action="store_true", help="pairs of images of the table that are near")
    parser.add_argument(
        "--threshold", type=float, metavar="D", help=f"largest distance (default: none; with --duplicates {THRESHOLD})"
    )
    parser.add_argument(
        "--backend",
        choices=("auto", "exact", "tree", "faiss"),
        default="auto",
        help="tree: exact too, for tables of --project; faiss: an approximate index; auto (default) takes what is "
        "installed, a tree from a hundred million comparisons on, faiss from a billion on",
    )
    parser.add_argument("--index", type=Path, metavar="FILE", help="the index that the table was made with")
    parser.add_argument("--output", type=Path, metavar="CSV", help="write a .csv file instead of printing")
    parser.add_argument("--force", action="store_true", help="replace an existing output")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Search, tell, and name the images that failed."""
    from bdg_fast.table import Table

    if arguments.duplicates == bool(arguments.images):
        raise ValueError("search needs either IMAGE or --duplicates")
    if arguments.output is not None:
        writable("--output", arguments.output, (".csv",), arguments.force)
    table = Table(arguments.table)
    if arguments.duplicates:
        _tell(arguments.output, ("distance", "first", "second"), _pairs(table, arguments))
        return 0
    failures = Failures()
    header = ("image", "distance", "key", *(("kind", "level") if table.settings.analyse else ()))
    _tell(arguments.output, header, _neighbours(table, arguments, failures))
    return failures.report()


def _pairs(table: Any, arguments: argparse.Namespace) -> Iterator[list[str]]:
    import torch

    from bdg_fast.table import near_pairs

    threshold = THRESHOLD if arguments.threshold is None else arguments.threshold
    distances, pairs = near_pairs(table, threshold, arguments.top, backend=arguments.backend)
    for some, both in zip(torch.split(distances, TOGETHER), torch.split(pairs, TOGETHER), strict=True):
        keys = (table.column("key", both[:, side].tolist()) for side in range(2))
        yield from ([f"{distance:.4f}", *two] for distance, *two in zip(some.tolist(), *keys, strict=True))


def _neighbours(table: Any, arguments: argparse.Namespace, failures: Failures) -> list[list[str]]:
    import torch

    from bdg_fast.table import Describer, nearest

    describe = Describer(table.settings, arguments.index)
    names, vectors = list[str](), list[torch.Tensor]()
    for path, image in read_all(list_images(arguments.images), failures, "search"):
        try:
            vectors.append(describe(image).fingerprint)
        except ValueError as error:  # too small
            failures.messages.append(f"{path}: {error}")
        else:
            names.append(str(path))
    if not vectors:
        return []
    distances, rows = nearest(table, torch.stack(vectors), arguments.top, backend=arguments.backend)
    most = math.inf if arguments.threshold is None else arguments.threshold
    found = [
        (name, distance, row)
        for name, *both in zip(names, distances.tolist(), rows.tolist(), strict=True)
        for distance, row in zip(*both, strict=True)
        if distance <= most and row >= 0
    ]
    numbers = [row for _, _, row in found]
    columns = [table.column("key", numbers)]
    if table.settings.analyse:
        levels = table.column("level", numbers)
        columns += [table.column("kind", numbers), ["" if math.isnan(level) else f"{level:.3g}" for level in levels]]
    return [[name, f"{distance:.4f}", *rest] for (name, distance, _), *rest in zip(found, *columns, strict=True)]


def _tell(output: Path | None, header: Sequence[str], found: Iterable[list[str]]) -> None:
    if output is not None:
        written = list[int]()
        write_atomically(output, lambda file: written.append(_write_csv(file, header, found)))
        print(f"{output}: {written[0]} rows")
    elif rows := list(found):
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        for row in (header, *rows):
            print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    else:
        print("nothing is that near")


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[list[str]]) -> int:
    """How many rows."""
    number = 0
    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for row in rows:
            writer.writerow(row)
            number += 1
    return number
