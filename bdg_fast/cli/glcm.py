"""``bdg-fast glcm``: co-occurrence fingerprints of image files."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bdg_fast import __version__, mas_glcm, texture_features
from bdg_fast.data.images import as_unit_rgb, list_images
from bdg_fast.files import write_atomically
from bdg_fast.texture import PROPS

from . import manifests
from .common import PICTURES, Failures, read_all, writable

EXAMPLES = """examples:
  bdg-fast glcm photo.jpg                                 texture features as a table
  bdg-fast glcm photos/ --output fingerprints.safetensors all matrices in one file
  bdg-fast glcm 'photos/*.png' --output features.csv      texture features of each image
  bdg-fast glcm photo.jpg --plot fingerprints.png         the photograph degraded in seven ways
  bdg-fast glcm --manifest files.jsonl --output features.csv      a list; on a cluster: docs/howto/cluster.md

The safetensors file holds one tensor `matrices` [images, levels, levels]; its metadata, as JSON, `names` of the files
in the same order, `settings` and the version. Entropy is in nats. Images too small for every distance have no pixel
pairs; they are named at the end, and their features are `nan`.

exit code: 0 done, 1 some files could not be read (named at the end; the rest is done), 2 bad usage
"""
SUFFIXES = (".safetensors", ".csv")
MAX_BATCH_PIXELS = 1 << 24


def add_parser(subparsers: Any) -> None:
    """Add the command to ``bdg-fast``."""
    parser = subparsers.add_parser(
        "glcm",
        help="co-occurrence matrices and texture features of images",
        description="Multi-angle multi-scale co-occurrence matrix (MAS-GLCM) of each image.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    paths = parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="image file, folder (with all below it), or quoted glob"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help=".safetensors: matrices and names; .csv: texture features"
    )
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="PNG",
        help="fingerprints and features of degraded versions of the first image (of its middle 512 x 512 pixels)",
    )
    parser.add_argument("--force", action="store_true", help="replace existing outputs")
    parser.add_argument("--levels", type=int, default=32, help="gray levels, 2..256 (default 32)")
    parser.add_argument("--angles", type=int, default=9, help="number of angles in [0, pi) (default 9)")
    parser.add_argument(
        "--scales", default="1,2,3,4,5,6", metavar="LIST", help="distances in pixels (default 1,2,3,4,5,6)"
    )
    parser.add_argument(
        "--source", choices=("gray", "laplacian"), default="gray", help="gray levels, or the high-pass residual"
    )
    parser.add_argument(
        "--quantizer",
        choices=("uniform", "companded"),
        default=None,
        help="default: uniform for gray, companded for laplacian",
    )
    parser.add_argument("--symmetric", action="store_true", help="count each pair in both directions")
    parser.add_argument("--no-normalize", action="store_true", help="counts instead of frequencies")
    parser.add_argument("--impl", default="auto", help="auto (default), reference, cpu or triton")
    parser.add_argument("--device", type=_device, default="cpu", help="cpu (default), cuda, cuda:1, mps ...")
    manifests.add_arguments(parser, 256, (paths,))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compute, write, and name the files that failed."""
    output, plot = arguments.output, arguments.plot
    manifests.check(arguments, ("paths", "plot"), "output")
    if arguments.manifest is not None:
        from . import manifest_glcm

        return manifest_glcm.run(arguments)
    if output is not None:
        writable("--output", output, SUFFIXES, arguments.force)
    if plot is not None:
        from bdg_fast.evaluation.figures import require_matplotlib

        require_matplotlib()
        writable("--plot", plot, PICTURES, arguments.force)
    paths = list_images(arguments.paths)
    settings = settings_of(arguments)
    failures = Failures()
    images = read_all(paths, failures, "glcm")
    one = next(images, None)
    whole = () if one is None else chain([one], images)
    done = list(matrices_of(whole, settings, arguments.impl, arguments.device))
    if output is not None and done:
        write_atomically(output, lambda file: write_all(file, done, settings))
        print(f"{output}: {len(done)} of {len(paths)} images")
    if plot is not None and one is not None:
        from bdg_fast.evaluation.figures import MAX_SIDE, plot_fingerprints

        first = one[1]
        image = as_unit_rgb(first)
        write_atomically(plot, lambda file: plot_fingerprints(image, file, arguments.levels))
        height, width = first.shape[1:]
        part = (
            f" (its middle {min(MAX_SIDE, width)} x {min(MAX_SIDE, height)})" if max(height, width) > MAX_SIDE else ""
        )
        print(f"{plot}: {done[0][0]}{part} degraded in seven ways")
    if output is None and plot is None and done:
        print(_table(done))
    for path, shape, matrix in done:
        if not matrix.any():
            print(f"bdg-fast: no pixel pairs: {path}: {shape[2]} x {shape[1]} is too small", file=sys.stderr)
    return failures.report()


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Of the matrices; bad ones end here, before any file is read."""
    settings = {
        "levels": arguments.levels,
        "angles": arguments.angles,
        "scales": _integers(arguments.scales),
        "source": arguments.source,
        "quantizer": arguments.quantizer or ("companded" if arguments.source == "laplacian" else "uniform"),
        "symmetric": arguments.symmetric,
        "normalize": not arguments.no_normalize,
    }
    mas_glcm(torch.zeros(1, 1, 1, 1, device=arguments.device), **settings, impl=arguments.impl)
    return settings


def matrices_of(
    images: Iterable[tuple[Path, Tensor]], settings: dict[str, Any], impl: str, device: torch.device
) -> Iterator[tuple[Path, list[int], Tensor]]:
    """Files' names, shapes and matrices; what follows one another in one size is counted together."""
    pending: list[tuple[Path, Tensor]] = []

    def flush() -> Iterator[tuple[Path, list[int], Tensor]]:
        if pending:
            batch = torch.stack([image for _, image in pending]).to(device)
            matrices = mas_glcm(batch, **settings, impl=impl).cpu()
            for (path, image), matrix in zip(pending, matrices, strict=True):
                yield path, list(image.shape), matrix
            pending.clear()

    for path, image in images:
        same = not pending or (pending[0][1].shape == image.shape and pending[0][1].dtype == image.dtype)
        if not same or sum(i.numel() for _, i in pending) + image.numel() > MAX_BATCH_PIXELS:
            yield from flush()
        pending.append((path, image))
    yield from flush()


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
    except RuntimeError:
        device = None
    if device is None or device.type == "meta":  # meta tensors have no values
        raise argparse.ArgumentTypeError(f"must be cpu, cuda, cuda:N, mps or the like, got {text!r}")
    return device


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--scales must be integers separated by commas, got {text!r}") from None


def _features(done: list[tuple[Path, list[int], Tensor]]) -> list[list[float]]:
    matrices = torch.stack([matrix for _, _, matrix in done]).double()
    features = texture_features(matrices)
    features[~matrices.flatten(1).any(1)] = torch.nan  # nothing was counted: zeros would pass for a measurement
    rows: list[list[float]] = features.tolist()
    return rows


def write_all(file: Path, done: list[tuple[Path, list[int], Tensor]], settings: dict[str, Any]) -> None:
    """All matrices, or features, of files' names, shapes and matrices, as the file's suffix says."""
    if file.suffix == ".csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["name", "height", "width", *PROPS])
        for (path, shape, _), features in zip(done, _features(done), strict=True):
            writer.writerow([str(path), *shape[1:], *(f"{value:.9g}" for value in features)])
        # surrogateescape: the bytes of a file name that is not UTF-8 come out as they are
        file.write_text(text.getvalue(), encoding="utf-8", errors="surrogateescape")
        return
    from safetensors.torch import save_file

    metadata = {"names": [str(path) for path, _, _ in done], "settings": settings, "bdg_fast": __version__}
    save_file(
        {"matrices": torch.stack([matrix for _, _, matrix in done])},
        file,
        metadata={key: json.dumps(value) for key, value in metadata.items()},
    )


def _table(done: list[tuple[Path, list[int], Tensor]]) -> str:
    width = max(len("image"), *(len(str(path)) for path, _, _ in done))
    lines = [f"{'image':{width}}" + "".join(f"{prop:>14}" for prop in PROPS)]
    lines += [
        f"{path!s:{width}}" + "".join(f"{value:14.6g}" for value in features)
        for (path, _, _), features in zip(done, _features(done), strict=True)
    ]
    return "\n".join(lines)
