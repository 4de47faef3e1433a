"""What near fingerprints have in common: ``python -m benchmarks.table_scores --photos DIR --manifest CSV``.

Of photographs, one crop of each original: how often a changed copy is found among others' copies that were changed in
the same way, how often a neighbour is degraded alike, and how many of the exact neighbours an approximate index finds.
Prints the figures of docs/howto/collections.md; a few minutes on one core. The index needs faiss (extra: table).
"""

from __future__ import annotations

import argparse
import csv
import io
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bdg_fast.analysis import KINDS
from bdg_fast.data.images import as_unit_rgb, read_image
from bdg_fast.table import Describer, Settings, Table
from bdg_fast.table.search import Exact, Faiss

from .analysis_data import degraded, level_of

NEIGHBOURS = 10
THRESHOLDS = (0.02, 0.05, 0.1, 0.15, 0.2)


def _saved(image: Image.Image, **options: Any) -> Image.Image:
    file = io.BytesIO()
    image.save(file, **options)
    return Image.open(file)


def _resized(image: Image.Image, scale: float) -> Image.Image:
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "turned upside down": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "JPEG 95": lambda image: _saved(image, format="JPEG", quality=95),
    "JPEG 75": lambda image: _saved(image, format="JPEG", quality=75),
    "JPEG 40": lambda image: _saved(image, format="JPEG", quality=40),
    "WebP 80": lambda image: _saved(image, format="WEBP", quality=80),
    "cropped by 5 %": lambda image: image.crop((6, 6, image.width - 6, image.height - 6)),
    "cropped by half": lambda image: image.crop((37, 37, image.width - 38, image.height - 38)),
    "resized to 75 %": lambda image: _resized(image, 0.75),
    "resized to 50 %": lambda image: _resized(image, 0.5),
}


def photographs(folder: Path, manifest: Path) -> list[Path]:
    """One crop of each original."""
    found: dict[tuple[str, str], Path] = {}
    with open(manifest, encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found.setdefault((row["source_package"], row["source_file"]), folder / Path(row["crop"]).name)
    return [path for path in found.values() if path.is_file()]


def vectors(describe: Describer, images: Sequence[Image.Image]) -> Tensor:
    """float32 ``[n, D]``."""
    pixels = (torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) for image in images)
    return torch.stack([describe(image).fingerprint.float() for image in pixels])


def copies(describe: Describer, paths: Sequence[Path]) -> Iterator[str]:
    """Rows: how often a copy's nearest original is its own, and how pairs of a threshold are right."""
    images = [Image.open(path).convert("RGB") for path in paths]
    originals = vectors(describe, images)
    others = torch.cdist(originals, originals).fill_diagonal_(torch.inf).min(1).values
    yield f"{len(images)} photographs; to the nearest other: median {others.median():.3f}, least {others.min():.3f}"
    for name, change in COPIES.items():
        distances = torch.cdist(vectors(describe, [change(image) for image in images]), originals)
        own = distances.diagonal()
        place = (distances < own[:, None]).sum(1)
        first, ten = ((place < count).double().mean() for count in (1, 10))
        yield f"| {name} | {own.median():.3f} | {first:.0%} | {ten:.0%} |"
    changed = [vectors(describe, [change(image) for image in images]) for change in COPIES.values()]
    # a collection of originals and all their copies
    rows = torch.cat([originals, *changed])
    owner = torch.arange(len(images)).repeat(1 + len(changed))
    near = torch.cdist(rows, rows).fill_diagonal_(torch.inf)
    same = (owner[:, None] == owner).fill_diagonal_(False)
    for threshold in THRESHOLDS:
        pairs = near <= threshold
        right = (pairs & same).sum()
        precision, share = right / pairs.sum().clamp_min(1), right / same.sum()
        yield f"| {threshold} | {precision:.1%} | {share:.0%} | {pairs.sum() // 2} |"


def alike(describe: Describer, paths: Sequence[Path]) -> tuple[str, Tensor]:
    """A row: how often a neighbour, of another photograph, is degraded in the same way; and all fingerprints."""
    rows, kinds, owners = list[Tensor](), list[int](), list[int]()
    for place, path in enumerate(paths):
        image = as_unit_rgb(read_image(path))[None]
        for number, kind in enumerate(KINDS):
            rng = random.Random(f"{place} {kind}")
            shown = degraded(image, kind, level_of(kind, rng.random()), rng.getrandbits(62))[0]
            pixels = shown.mul(255).round().to(torch.uint8) if shown.is_floating_point() else shown
            rows.append(describe(pixels).fingerprint.float())
            kinds.append(number)
            owners.append(place)
    table, kind, owner = torch.stack(rows), torch.tensor(kinds), torch.tensor(owners)
    distances = torch.cdist(table, table)
    distances[owner[:, None] == owner] = torch.inf
    near = distances.topk(NEIGHBOURS, 1, largest=False).indices
    right = kind[near] == kind[:, None]
    each = ", ".join(f"{name} {right[kind == number, 0].double().mean():.0%}" for number, name in enumerate(KINDS))
    first, all_ = right[:, 0].double().mean(), right.double().mean()
    return f"{len(table)} images: nearest {first:.1%}, of {NEIGHBOURS} {all_:.1%}; nearest by kind: {each}", table


class Rows:
    """Fingerprints in memory, as a table has them."""

    def __init__(self, rows: Tensor, settings: Settings) -> None:
        self._rows, self.settings = rows, settings

    def __len__(self) -> int:
        return len(self._rows)

    def vectors(self) -> Iterator[Tensor]:
        """In parts."""
        yield from self._rows.split(1000)


def recall(rows: Tensor, settings: Settings) -> str:
    """A row: how many of the exact neighbours the approximate index finds, and how long both take."""
    table = cast(Table, Rows(rows, settings))
    times, found = [], []
    for kind in (Exact, Faiss):
        begin = time.perf_counter()
        index = kind(table)
        built = time.perf_counter()
        found.append(index.search(rows, NEIGHBOURS + 1)[1])
        times += [built - begin, time.perf_counter() - built]
    share = (found[0][:, :, None] == found[1][:, None]).any(2).double().mean()
    return (
        f"{len(rows)} rows of {rows.shape[1]}: recall of {NEIGHBOURS + 1} {share:.2%}; exact {times[1]:.2f} s, "
        f"index built in {times[2]:.2f} s, searched in {times[3]:.2f} s"
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=None, help="photographs at most")
    arguments = parser.parse_args()
    paths = photographs(arguments.photos, arguments.manifest)[: arguments.limit]
    for project in (False, True):
        describe = Describer(Settings(project=project))
        print(f"\n{describe.width} numbers")
        for line in copies(describe, paths):
            print(line)
        line, rows = alike(describe, paths)
        print(line)
        print(recall(rows, describe.settings), flush=True)


if __name__ == "__main__":
    main()
