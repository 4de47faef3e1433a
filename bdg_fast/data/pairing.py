"""Which degraded file belongs to which clean one, by their names."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from .images import list_images

RULES: dict[str, tuple[str, str]] = {
    "same": (r"(.+)", r"\1"),
    "scale": (r"(.+?)_?[xX]\d+m?", r"\1"),
    "rain100": (r"rain-?(\d+(?:x2)?)", r"norain-\1"),
    "reside": (r"([^_]+)_.+", r"\1"),
    "realsr": (r"(.+)_LR\d", r"\1_HR"),
    "drealsr": (r"(.+)_x1(_\d+)?", r"\1_x[234]\2"),
}
"""How a degraded file is called (without extension), and the clean one that belongs to it:

    same        alike
    scale       0801x4, 0801_x4           0801              DIV2K and its relatives
    rain100     rain-001                  norain-001        Rain100
    reside      0001_0.8_0.04             0001              RESIDE: what follows the first underline tells the haze
    realsr      Canon_001_LR4             Canon_001_HR      RealSR
    drealsr     DSC_01_x1_3, DSC_01_x1    DSC_01_x4_3, ...  DRealSR: crops and whole images, of any of its factors

Extensions do not matter. A clean file is looked for in the folder of the same name below the target first, then
anywhere below it.
"""
NAMED = 5
"""How many files an error names."""

Pairs = tuple[tuple[Path, Path], ...]


def match_pairs(inputs: Path, targets: Path, match: str, partial: bool) -> tuple[Pairs, tuple[Path, ...]]:
    """Degraded and clean files that belong together, and the files of either folder that belong to no pair.

    Args:
        inputs, targets: existing folders, searched to any depth; may be the same one for a rule that changes names.
        match: one of :data:`RULES`, or ``"auto"``: the first of them by which every degraded file finds a clean one.
        partial: go on without degraded files that have no clean one.

    Raises:
        FileNotFoundError: no image in a folder. ValueError: an unknown rule; degraded files without a clean one, or
            with several.
    """
    if match != "auto" and match not in RULES:
        raise ValueError(f"match must be 'auto' or one of {', '.join(RULES)}, got {match!r}")
    degraded, clean = list_images([inputs]), list_images([targets])
    index = _Index(targets, clean)
    best: tuple[Pairs, list[Path], str] | None = None
    several: ValueError | None = None
    for rule in RULES if match == "auto" else (match,):
        try:
            pairs, lost = _apply(rule, inputs, degraded, index, one_folder=inputs == targets)
        except ValueError as error:
            several = several or error
            continue
        if best is None or len(pairs) > len(best[0]):
            best = pairs, lost, rule
        if pairs and not lost:
            break
    if several is not None and (best is None or best[1] or not best[0]):
        raise several
    assert best is not None
    pairs, lost, rule = best
    if not pairs or (lost and not partial):
        names = ", ".join(str(path.relative_to(inputs)) for path in lost[:NAMED])
        more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
        raise ValueError(
            f"{len(lost)} of {len(degraded)} files in {str(inputs)!r} have no clean one in {str(targets)!r} by the "
            f"rule {rule!r}: {names}{more}; give match= one of {', '.join(RULES)}, or partial=True to leave them out"
        )
    used = {path for pair in pairs for path in pair}
    return pairs, tuple(dict.fromkeys(path for path in (*degraded, *clean) if path not in used))


class _Index:
    """Clean files by folder and stem, and by stem alone."""

    def __init__(self, root: Path, files: list[Path]) -> None:
        self.exact: dict[tuple[Path, str], list[Path]] = defaultdict(list)
        self.stem: dict[str, list[Path]] = defaultdict(list)
        for file in files:
            self.exact[file.parent.relative_to(root), file.stem].append(file)
            self.stem[file.stem].append(file)

    def find(self, parent: Path, stem: str) -> list[Path]:
        return self.exact.get((parent, stem)) or self.stem.get(stem) or []


def _apply(
    rule: str, inputs: Path, degraded: list[Path], index: _Index, *, one_folder: bool
) -> tuple[Pairs, list[Path]]:
    """Pairs by one rule, and degraded files without a clean one; of one folder, files not called like degraded ones are
    clean."""
    pattern, name = RULES[rule]
    pairs, lost = [], []
    for file in degraded:
        fits = re.fullmatch(pattern, file.stem)
        if fits is None:
            lost += [] if one_folder else [file]
            continue
        wanted = [fits.expand(name)]
        if rule == "drealsr":
            wanted = [wanted[0].replace("[234]", factor) for factor in "234"]
        found = [path for stem in wanted for path in index.find(file.parent.relative_to(inputs), stem) if path != file]
        if len(found) > 1:
            others = ", ".join(map(str, found[:NAMED]))
            raise ValueError(f"{str(file)!r} belongs to several clean files by the rule {rule!r}: {others}")
        if found:
            pairs.append((file, found[0]))
        else:
            lost.append(file)
    return tuple(pairs), lost
