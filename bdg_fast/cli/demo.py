"""``bdg-fast demo``: what a degradation does to the fingerprint, on a bundled photograph."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bdg_fast.data.images import as_unit_rgb, bundled_photographs, read_image
from bdg_fast.evaluation.figures import degraded_versions, fingerprint_table, plot_fingerprints
from bdg_fast.files import write_atomically

from . import web


def add_parser(subparsers: Any) -> None:
    """Add the command to ``bdg-fast``."""
    parser = subparsers.add_parser(
        "demo",
        help="fingerprints of a degraded photograph, as a table and a picture; --web: a page that restores pictures",
        description="Degrades a bundled photograph in seven ways and shows each fingerprint, or serves a web page.",
    )
    parser.add_argument("--output", type=Path, default=Path("demo"), metavar="FOLDER", help="default: demo")
    web.add_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the table, write the picture; or serve the page."""
    if arguments.web:
        return web.run(arguments)
    folder = arguments.output
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--output must name a folder, got the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "fingerprints.png"
    if picture.is_dir():
        raise IsADirectoryError(f"cannot write {picture}: it is a folder")
    path = next(photo for photo in bundled_photographs() if photo.stem == "parrot")
    image = as_unit_rgb(read_image(path))
    print(f"{path.name}, {image.shape[2]} x {image.shape[1]}, degraded in seven ways\n")
    print(fingerprint_table(degraded_versions(image)))
    write_atomically(picture, lambda file: plot_fingerprints(image, file))
    print(f"\n{picture}: in each column a degraded version, its gray and its residual fingerprint.")
    print("Noise and low light blow the residual's matrix up to four lobes, blur shrinks it to a point, JPEG thins")
    print("its middle, rain draws lines into it; haze lifts the gray matrix towards white.")
    return 0
