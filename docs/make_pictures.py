"""Draw the pictures of `concepts.md` with the package itself: ``python docs/make_pictures.py [FOLDER]``.

Written to ``docs/images``, in 256 colours, so that each stays below 150 KB.
"""

from __future__ import annotations

import io
import math
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from bdg_fast import ResidualSchedule, glcm_offsets
from bdg_fast.data.degrade import degrade
from bdg_fast.data.images import as_unit_rgb, bundled_photographs, read_image
from bdg_fast.evaluation.figures import degraded_versions, fingerprints
from bdg_fast.files import write_atomically
from bdg_fast.tiles import OVERLAP, TiledNetwork

PURPLE, ORANGE = "#7a3b8f", "#d9822b"
SCALES, ANGLES = 6, 9


def photograph(name: str = "parrot") -> Tensor:
    """float32 ``[3, H, W]`` in [0, 1], of those that come along."""
    return as_unit_rgb(read_image(next(path for path in bundled_photographs() if path.stem == name)))


def _bare(axis: object) -> None:
    axis.set_xticks([])  # type: ignore[attr-defined]
    axis.set_yticks([])  # type: ignore[attr-defined]


def offsets() -> Figure:
    """All 54 offsets of the published configuration on the grid of pixels, and how many meet in each."""
    found = glcm_offsets(ANGLES, tuple(range(1, SCALES + 1)))
    count = Counter(found)
    figure = Figure(figsize=(7.6, 4.3), dpi=100, facecolor="white", layout="constrained")
    axis = figure.subplots()
    for radius in range(1, SCALES + 1):
        arc = [j * math.pi / 180 for j in range(181)]
        axis.plot([radius * math.cos(a) for a in arc], [radius * math.sin(a) for a in arc], color="#dddddd", lw=0.8)
    for number in range(ANGLES):
        a = number * math.pi / ANGLES
        axis.plot([0, 6.6 * math.cos(a)], [0, 6.6 * math.sin(a)], color="#dddddd", lw=0.8)
    for (dy, dx), times in count.items():
        axis.add_patch(Rectangle((dx - 0.5, dy - 0.5), 1, 1, facecolor=PURPLE, alpha=0.35 + 0.3 * (times - 1), lw=0))
        if times > 1:
            axis.text(dx, dy, f"{times}", ha="center", va="center", fontsize=9, color="white", fontweight="bold")
    for scale in range(1, SCALES + 1):
        for number in range(ANGLES):
            a = number * math.pi / ANGLES
            axis.plot(scale * math.cos(a), scale * math.sin(a), ".", color="black", ms=2.5)
    axis.add_patch(Rectangle((-0.5, -0.5), 1, 1, facecolor=ORANGE, lw=0))
    axis.text(0, 0, "p", ha="center", va="center", color="white", fontsize=11)
    axis.set_xticks([x + 0.5 for x in range(-7, 7)], minor=True)
    axis.set_yticks([y + 0.5 for y in range(-2, 7)], minor=True)
    axis.grid(which="minor", color="#eeeeee", lw=0.6)
    axis.tick_params(which="minor", length=0)
    axis.set_xticks(range(-6, 7, 2))
    axis.set_yticks(range(0, 7, 2))
    axis.set(xlim=(-6.8, 6.8), ylim=(6.8, -0.8), aspect="equal", xlabel="dx", ylabel="dy")
    axis.set_title(
        f"{ANGLES} angles x {SCALES} scales = {len(found)} offsets (dots) in {len(count)} pixels; numbers: dots in one",
        fontsize=10,
    )
    return figure


def degradations() -> Figure:
    """Clean and degraded versions of a photograph, and the fingerprint of each."""
    image = photograph()[:, 32:224, 32:224]
    versions = {name: each for name, each in degraded_versions(image).items() if name not in ("rain", "snow")}
    gray, residual = fingerprints(versions)
    figure = Figure(figsize=(1.55 * len(versions) + 0.5, 4.9), dpi=100, facecolor="white", layout="constrained")
    grid = figure.subplots(3, len(versions))
    for column, (name, version) in enumerate(versions.items()):
        grid[0, column].set_title(name, fontsize=11)
        grid[0, column].imshow(version.permute(1, 2, 0).numpy())
        for row, matrices in ((1, gray), (2, residual)):  # the fourth root shows rare pairs too
            grid[row, column].imshow(matrices[column].numpy() ** 0.25, cmap="magma", origin="lower")
        for row, label in enumerate(("photograph", "gray levels", "residual")):
            _bare(grid[row, column])
            if column == 0:
                grid[row, column].set_ylabel(label, fontsize=11)
    return figure


def forward() -> Figure:
    """``x_t`` of the three stages, at four times, for a hazy photograph."""
    x_0 = photograph("owl")[None, :, 32:224, 32:224]
    x_lq = degrade(x_0, "haze", 2.0, torch.tensor([3]))
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    schedule = ResidualSchedule.linear()
    times = (0, 150, 400, 999)
    figure = Figure(figsize=(6.6, 4.3), dpi=90, facecolor="white", layout="constrained")
    grid = figure.subplots(3, len(times) + 1)
    for row, stage in enumerate(("generation", "bridging", "restoration")):
        own = schedule.stage(stage)
        for column, t in enumerate(times):
            x_t = own.diffuse(x_0 * 2 - 1, x_lq * 2 - 1, noise, torch.tensor([t]))
            grid[row, column].imshow((x_t[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1).numpy())
            a, b, d = own.at(t)
            grid[row, column].set_xlabel(f"A {a:.2f}  B {b:.2f}  D {d:.2f}", fontsize=8)
        grid[row, 0].set_ylabel(stage, fontsize=11)
        grid[row, -1].imshow(x_lq[0].permute(1, 2, 0).numpy())
    for axis, title in zip(grid[0], [*(f"t = {t}" for t in times), "x_lq"], strict=True):
        axis.set_title(title, fontsize=11)
    for axis in grid.flat:
        _bare(axis)
    return figure


def tiles() -> Figure:
    """Where tiles lie and what their predictions weigh, and the rows that three steps hold at a moment."""
    height, width, tile = 640, 448, 256
    cut = TiledNetwork(lambda *_: None, tile)  # type: ignore[arg-type,return-value]
    rows, columns = cut._spans(height), cut._spans(width)
    figure = Figure(figsize=(8.6, 3.9), dpi=100, facecolor="white", layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    photo = torch.nn.functional.interpolate(photograph("cat")[None], (height, width), mode="bilinear")[0]
    left.imshow(photo.permute(1, 2, 0).clamp(0, 1).numpy())
    for number, (top, bottom) in enumerate(rows):
        for other, (begin, end) in enumerate(columns):
            colour = (PURPLE, ORANGE, "#2b7bba")[(number + other) % 3]
            inset = 3 + 3 * ((number + other) % 3)
            size = (end - begin - 2 * inset, bottom - top - 2 * inset)
            left.add_patch(Rectangle((begin + inset, top + inset), *size, fill=False, edgecolor=colour, lw=2))
    left.set_title(f"{len(rows)} x {len(columns)} tiles of {tile} pixels", fontsize=10)
    like = torch.zeros(1)
    for number, (top, bottom) in enumerate(rows):
        ramp = cut._ramp(top, bottom, height, like).tolist()
        middle.plot(ramp, range(top, bottom), color=(PURPLE, ORANGE, "#2b7bba")[number % 3], lw=2)
    middle.set(ylim=(height, 0), ylabel="row", xlabel="before division by their sum")
    middle.set_title(f"weights; overlap {OVERLAP} or more", fontsize=10)
    edges = [height]
    for step in range(3):  # a step has seen what the one before has finished
        ends = [top for top, _ in rows[1:]]  # what no later tile adds to is finished
        finished = max((end for end, (_, bottom) in zip(ends, rows, strict=False) if bottom < edges[-1]), default=0)
        right.add_patch(Rectangle((step + 0.1, 0), 0.8, finished, facecolor="#dddddd"))
        right.add_patch(Rectangle((step + 0.1, finished), 0.8, min(tile, edges[-1] - finished), facecolor=PURPLE))
        edges.append(finished)
    right.set(xlim=(0, 3), ylim=(height, 0), xticks=[0.5, 1.5, 2.5], xticklabels=[f"step {n}" for n in (1, 2, 3)])
    right.set_title("rows held, and handed on (gray)", fontsize=10)
    _bare(left)
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    "offsets.png": offsets,
    "degradations.png": degradations,
    "forward.png": forward,
    "tiles.png": tiles,
}


def main(folder: Path) -> None:
    """Draw all of them."""
    for name, draw in PICTURES.items():
        drawn = io.BytesIO()
        draw().savefig(drawn, format="png")
        picture = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
        write_atomically(folder / name, lambda file, picture=picture: picture.save(file, "PNG", optimize=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("images"))
