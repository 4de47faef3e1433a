"""``bdg-fast demo``: a photograph restored, known degradations undone, and what they do to the fingerprint."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from bdg_fast.data.convert import as_picture
from bdg_fast.data.images import as_unit_rgb, bundled_photographs, hazy_photograph, read_image
from bdg_fast.evaluation.figures import degraded_versions, fingerprint_table, plot_fingerprints
from bdg_fast.evaluation.showcase import case_table, cases, side_by_side
from bdg_fast.files import write_atomically
from bdg_fast.restorer import Restorer

from . import web

OWN = ("restored.png", "compared.png")
PICTURES = (*OWN, "degradations.png", "fingerprints.png")


def add_parser(subparsers: Any) -> None:
    """Add the command to ``bdg-fast``."""
    parser = subparsers.add_parser(
        "demo",
        help="restores a photograph and shows it beside what it was; --web: a page that does so",
        description=(
            "Restores a photograph, by default a hazy one that comes along; then also a clean one that is degraded in "
            "seven ways, with the gain of each in dB, and its fingerprints. Or serves a web page."
        ),
    )
    parser.add_argument("image", nargs="?", type=Path, metavar="IMAGE", help="your photograph, restored as it is")
    parser.add_argument("--output", type=Path, default=Path("demo"), metavar="FOLDER", help="default: demo")
    parser.add_argument("--checkpoint", metavar="PATH", help="trained weights (default: what comes along)")
    parser.add_argument("--backbone", metavar="MODULE:CLASS", help="class of a checkpoint's network that is not ours")
    parser.add_argument("--steps", type=int, help="network evaluations a picture (default: as the network was trained)")
    parser.add_argument(
        "--tile", type=int, metavar="PIXELS", help="largest side evaluated at once (default: by memory)"
    )
    web.add_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Restore, print tables, write pictures; or serve the page."""
    if arguments.web:
        return web.run(arguments)
    folder = arguments.output
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--output must name a folder, got the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    for name in PICTURES if arguments.image is None else OWN:
        if (folder / name).is_dir():
            raise IsADirectoryError(f"cannot write {folder / name}: it is a folder")
    restorer = web.load(arguments)
    _restored(restorer, arguments.image or hazy_photograph(), folder)
    if arguments.image is None:
        _known(restorer, folder)
    return 0


def _restored(restorer: Restorer, path: Path, folder: Path) -> None:
    """A photograph as it is."""
    picture = as_picture(path)
    began = time.perf_counter()
    pixels = restorer.restore(picture.pixels)
    seconds = time.perf_counter() - began
    result = picture.back(pixels)
    write_atomically(folder / OWN[0], lambda file: result.save(file))
    before = picture.pixels if picture.pixels.is_floating_point() else picture.pixels / 255
    _save(side_by_side([before[0].cpu(), pixels[0].clamp(0, 1)]), folder / OWN[1])
    height, width = pixels.shape[2:]
    print(f"{path.name}, {width} x {height}, restored in {seconds:.1f} s")
    print(f"{folder / OWN[1]}: before and after; {folder / OWN[0]}: after\n")


def _known(restorer: Restorer, folder: Path) -> None:
    """A clean photograph, degraded in known ways."""
    path = next(photo for photo in bundled_photographs() if photo.stem == "parrot")
    image = as_unit_rgb(read_image(path))
    print(f"{path.name}, {image.shape[2]} x {image.shape[1]}, degraded in seven ways and restored\n")
    found = cases(image, restorer.restore)
    print(case_table(found))
    rows = [one.degraded for one in found], [one.restored for one in found], [image] * len(found)
    _save(side_by_side(*rows), folder / PICTURES[2])
    print(f"\n{folder / PICTURES[2]}: degraded, restored, and the clean photograph below\n")
    print(fingerprint_table(degraded_versions(image)))
    picture = folder / PICTURES[3]
    write_atomically(picture, lambda file: plot_fingerprints(image, file))
    print(f"\n{picture}: in each column a degraded version, its gray and its residual fingerprint.")
    print("Noise and low light blow the residual's matrix up to four lobes, blur shrinks it to a point, JPEG thins")
    print("its middle, rain draws lines into it; haze lifts the gray matrix towards white.")


def _save(page: Tensor, path: Path) -> None:
    picture = Image.fromarray(page.permute(1, 2, 0).numpy())
    write_atomically(path, lambda file: picture.save(file))
