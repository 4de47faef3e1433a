"""How often `bdg_fast.analysis` is right: ``python -m benchmarks.analysis_scores --photos DIR --manifest CSV``.

On photographs that nothing was learned from: the held-out collections and the bundled ones. ``--pictures`` adds
larger pictures: folders of whole photographs, halved, and cut to several shapes. Prints the tables of the model card;
about five minutes on one core.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bdg_fast.analysis import KINDS, UNKNOWN, Analyser, Report
from bdg_fast.data.degrade import RANGES
from bdg_fast.data.images import as_unit_rgb, bundled_photographs, list_images, read_image

from .analysis_data import degraded, groups_of, level_of
from .analysis_strange import STRANGE, strange

SHAPES = ((512, 512), (512, 384), (288, 512), (512, 176), (180, 512))
"""Heights and widths cut from larger pictures."""
BINS = 10
"""Of confidence, to measure its calibration."""


@dataclass(frozen=True)
class Case:
    """A degraded photograph and what was told of it."""

    kind: str
    level: float
    report: Report

    @property
    def error(self) -> float:
        """Of the level, in its unit; NaN where the kind was not found."""
        found = self.report.level
        return abs(found - self.level) if found is not None and self.report.kind == self.kind else float("nan")


def cases(analyser: Analyser, photographs: Sequence[Tensor], draws: int = 1, seed: int = 1) -> Iterator[Case]:
    """Reports on every photograph (float32 ``[3, H, W]`` in [0, 1]) in every kind, each at a random level."""
    for place, photograph in enumerate(photographs):
        for draw in range(draws):
            for kind in KINDS:
                rng = random.Random(f"{seed} {place} {draw} {kind}")
                level = level_of(kind, rng.random())
                image = degraded(photograph[None], kind, level, rng.getrandbits(62))[0]
                yield Case(kind, level, analyser(image))


def accuracy(found: Sequence[Case]) -> float:
    """Share of those not called unknown whose kind is right."""
    known = [case.report.kind == case.kind for case in found if case.report.kind != UNKNOWN]
    return sum(known) / max(len(known), 1)


def unknown(reports: Sequence[Report]) -> float:
    """Share that is called unknown."""
    return sum(report.kind == UNKNOWN for report in reports) / max(len(reports), 1)


def calibration_error(found: Sequence[Case]) -> float:
    """Mean difference of confidence and accuracy over bins of confidence, weighed by their sizes."""
    known = [case for case in found if case.report.kind != UNKNOWN]
    bins: dict[int, list[float]] = {}
    for case in known:
        at = min(int(case.report.confidence * BINS), BINS - 1)
        bins.setdefault(at, []).append((case.report.kind == case.kind) - case.report.confidence)
    return sum(abs(sum(part)) for part in bins.values()) / max(len(known), 1)


def table_of_sets(sets: dict[str, list[Case]]) -> str:
    """Accuracy by set and kind."""
    lines = ["| set | pictures | all | " + " | ".join(KINDS) + " | unknown | calibration error |", "|---" * 13 + "|"]
    for name, found in sets.items():
        each = [accuracy([case for case in found if case.kind == kind]) for kind in KINDS]
        told = " | ".join(f"{100 * value:.1f}" for value in (accuracy(found), *each))
        missed = 100 * unknown([case.report for case in found])
        lines.append(f"| {name} | {len(found)} | {told} | {missed:.1f} | {100 * calibration_error(found):.1f} |")
    return "\n".join(lines)


def table_of_levels(sets: dict[str, list[Case]]) -> str:
    """Mean absolute error of levels by set and kind: in units, and as a share of the range."""
    names = [kind for kind in KINDS if kind != "clean"]
    lines = ["| set | " + " | ".join(names) + " | all |", "|---" * (len(names) + 2) + "|"]
    for name, found in sets.items():
        cells, shares = [], []
        for kind in names:
            low, high = RANGES[kind]
            error = float(np.nanmean([case.error for case in found if case.kind == kind]))
            shares.append(100 * error / (high - low))
            cells.append(f"{error:.2g} ({shares[-1]:.1f} %)")
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {sum(shares) / len(shares):.1f} % |")
    return "\n".join(lines)


def table_of_confusions(found: Sequence[Case]) -> str:
    """What each kind was called, in percent."""
    told = (*KINDS, UNKNOWN)
    lines = ["| is \\ called | " + " | ".join(told) + " |", "|---" * (len(told) + 1) + "|"]
    for kind in KINDS:
        own = [case.report.kind for case in found if case.kind == kind]
        lines.append(f"| {kind} | " + " | ".join(f"{100 * own.count(name) / len(own):.1f}" for name in told) + " |")
    return "\n".join(lines)


def table_of_thirds(found: Sequence[Case]) -> str:
    """Accuracy by kind in the mild, middle and strong third of its range."""
    names = [kind for kind in KINDS if kind != "clean"]
    lines = ["| level | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for third, label in enumerate(("mild", "middle", "strong")):
        cells = []
        for kind in names:
            low, high = RANGES[kind]
            part = [
                case for case in found if case.kind == kind and int(2.999 * (case.level - low) / (high - low)) == third
            ]
            cells.append(f"{100 * accuracy(part):.1f}")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table_of_strange(analyser: Analyser, photographs: Sequence[Tensor]) -> str:
    """How often what is far from all known degradations is called unknown, and what else it is called."""
    lines = ["| input | unknown | else most often |", "|---|---|---|"]
    for name in STRANGE:
        reports = [
            analyser(strange(name, photograph.mul(255).round().to(torch.uint8), place))
            for place, photograph in enumerate(photographs)
        ]
        others = [report.kind for report in reports if report.kind != UNKNOWN]
        most = max(dict.fromkeys(others), key=others.count) if others else ""
        lines.append(f"| {name.replace('_', ' ')} | {100 * unknown(reports):.0f} % | {most} |")
    return "\n".join(lines)


def table_of_fixed(analyser: Analyser) -> str:
    """Reports on two bundled photographs in every kind, at the middle of its range: the same every time."""
    lines = ["| photograph | degraded by | kind | level | confidence | distance |", "|---" * 6 + "|"]
    for path in bundled_photographs()[::7]:
        photograph = as_unit_rgb(read_image(path))
        for kind in KINDS:
            level = level_of(kind, 0.5)
            report = analyser(degraded(photograph[None], kind, level, 0)[0])
            told = "" if report.level is None else f"{report.level:.2f}"
            cells = (
                path.stem,
                f"{kind} {level:g}",
                report.kind,
                told,
                f"{report.confidence:.3f}",
                f"{report.distance:.3f}",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def pictures_of(folder: Path) -> tuple[list[Tensor], list[Tensor]]:
    """Larger pictures, halved (what cameras make is soft pixel by pixel): cuts of `SHAPES`, and wholes."""
    cuts, wholes = [], []
    for place, path in enumerate(list_images([folder])):
        with Image.open(path) as file:
            pixels = np.array(file.convert("RGB").reduce(2))
        whole = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
        wholes.append(whole)
        for number in range(2):
            height, width = SHAPES[(2 * place + number) % len(SHAPES)]
            rng = random.Random(f"{place} {number}")
            top, left = rng.randint(0, whole.shape[1] - height), rng.randint(0, whole.shape[2] - width)
            cuts.append(whole[:, top : top + height, left : left + width].contiguous())
    return cuts, wholes


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, metavar="DIR", help="held-out ones among others")
    parser.add_argument("--manifest", type=Path, required=True, metavar="CSV", help="that of benchmarks.build_index")
    parser.add_argument(
        "--pictures", type=Path, nargs="+", default=[], metavar="DIR", help="larger ones that nothing was learned from"
    )
    parser.add_argument("--index", type=Path, metavar="FILE", help="default: what is shipped")
    arguments = parser.parse_args()
    analyser = Analyser.from_pretrained(arguments.index)
    paths = [path for _, group in groups_of(arguments.photos, arguments.manifest, held_out=True) for path in group]
    crops = [as_unit_rgb(read_image(path)) for path in paths]
    bundled = [as_unit_rgb(read_image(path)) for path in bundled_photographs()]
    sets = {
        "held-out, 256 x 256": list(cases(analyser, crops, draws=2)),
        "bundled, 256 x 256": list(cases(analyser, bundled, draws=6)),
    }
    for folder in arguments.pictures:
        cuts, wholes = pictures_of(folder)
        sets[f"{folder.name}, 512 in several shapes"] = list(cases(analyser, cuts, draws=2))
        sets[f"{folder.name}, whole"] = list(cases(analyser, wholes))
    every = [case for found in sets.values() for case in found]
    print(table_of_sets(sets), table_of_levels(sets), table_of_confusions(every), table_of_thirds(every), sep="\n\n")
    print(f"\nunknown, all sets: {100 * unknown([case.report for case in every]):.2f} %\n")
    print(table_of_strange(analyser, crops[::2]), table_of_fixed(analyser), sep="\n\n")


if __name__ == "__main__":
    main()
