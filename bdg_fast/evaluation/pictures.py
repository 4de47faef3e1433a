"""Pictures of the best and the worst cases of a comparison, by Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw
from torch import Tensor

from .cases import Case
from .evaluate import INPUT, Method

SIDE = 320
"""Longest side of an image in a picture."""
GAP, HEAD = 6, 18
"""Pixels between images, and of a line of text."""


class Line(NamedTuple):
    """One case in a picture."""

    case: Case
    text: str


def extremes(
    found: Sequence[tuple[Case, float]], count: int, *, lower_better: bool
) -> tuple[list[tuple[Case, float]], list[tuple[Case, float]]]:
    """The ``count`` largest gains and losses of differences, none in both, the largest first."""
    ordered = sorted(found, key=lambda one: one[1] if lower_better else -one[1])
    best = ordered[:count]
    return best, ordered[max(len(best), len(ordered) - count) :][::-1]


def compare(methods: Sequence[Method], lines: Sequence[Line]) -> Image.Image:
    """A row for each line: the degraded image, what each method made of it, and the clean one.

    Args:
        methods: whose results are computed again; what is called ``input`` is the first column anyway.
        lines: cases, and what is written above them.

    Raises:
        ValueError: no line.
    """
    if not lines:
        raise ValueError("lines must hold at least one case")
    cases = list(dict.fromkeys(line.case for line in lines))
    shown: dict[Case, list[Tensor | None]] = {case: [case.read()[0]] for case in cases}
    others = [method for method in methods if method.name != INPUT]
    for method in others:
        for outcome in method.results(cases):
            shown[outcome.case].append(outcome.restored)
    for case in cases:
        shown[case].append(case.read()[1])
    heads = [INPUT, *(method.name for method in others), "clean"]
    rows = [_row([None if image is None else _small(image) for image in shown[line.case]], line.text) for line in lines]
    width = max(max(row.width for row in rows), len(heads) * 60)
    picture = Image.new("RGB", (width, HEAD + sum(row.height for row in rows)), "white")
    draw, place = ImageDraw.Draw(picture), 0
    first = _small(next(image for image in shown[lines[0].case] if image is not None))
    for head in heads:
        draw.text((place + 2, 2), head, fill="black")
        place += first.width + GAP
    top = HEAD
    for row in rows:
        picture.paste(row, (0, top))
        top += row.height
    return picture


def _row(images: Sequence[Image.Image | None], text: str) -> Image.Image:
    size = next(image.size for image in images if image is not None)
    row = Image.new("RGB", (len(images) * (size[0] + GAP) - GAP, size[1] + HEAD + GAP), "white")
    ImageDraw.Draw(row).text((2, 2), text, fill="black")
    for number, image in enumerate(images):
        if image is not None:
            row.paste(image, (number * (size[0] + GAP), HEAD))
    return row


def _small(image: Tensor) -> Image.Image:
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return picture
