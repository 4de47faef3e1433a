"""Published collections by name: where each keeps its images, and how much of each a run sees."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from .datasets import Dataset, ImageFolder, Mixture, NoisyFolder, PairedFolder, folder_at
from .degrade import CDD11

LISTED = 12
"""How many entries of a folder an error shows."""


class Part(NamedTuple):
    """One degradation of a collection.

    Fields:
        kind: its name; None where degradations are made later.
        target: folder of the clean images.
        input: folder of the degraded ones; None if there are none.
        match: how their names belong together (:data:`bdg_fast.data.pairing.RULES`).
        shown: names of a degraded file and its clean one, for whoever looks for them.
        times: how often an image comes in an epoch.
        sigma: of the noise that is made of clean images.
        set: name of the test set, where a degradation has several.
    """

    kind: str | None
    target: str
    input: str | None = None
    match: str = "same"
    shown: tuple[str, str] = ("1.png", "1.png")
    times: int = 1
    sigma: float | None = None
    set: str | None = None


class Layout(NamedTuple):
    """A collection.

    Fields:
        parts: its degradations, for a split and a factor of enlargement.
        splits: those that it has.
        factors: of enlargement that it has; the first is taken if none is given.
        below: where its folders may begin, below the root that a user gives.
        even: as many samples of each part, whatever their number of images.
    """

    parts: Callable[[str, int | None], list[Part]]
    splits: tuple[str, ...] = ("train",)
    factors: tuple[int | None, ...] = (None,)
    below: tuple[str, ...] = ("",)
    even: bool = False


def open_layout(
    name: str,
    root: str | os.PathLike[str],
    *,
    split: str = "train",
    factor: int | None = None,
    partial: bool = False,
    flip: bool = True,
    rotate: bool = True,
) -> Dataset:
    """A collection of images, as it is published.

    ========== ===========================================================================================
    folder     clean images, at any depth; degradations are made later
    paired     ``input`` and ``target``, or a folder of both for each degradation, named after it
    diffuir-5  DiffUIR's haze, low light, rain, snow and blur, a fifth of the samples each
    airnet-3   AirNet's and PromptIR's noise (15, 25, 50, made when read), rain and haze
    promptir-5 the same, with blur and low light (AdaIR's folders)
    cdd11      CDD-11's eleven compositions; kinds are those of :data:`bdg_fast.data.degrade.CDD11`
    div2k      DIV2K's clean images; with ``factor`` 2, 3, 4 or 8 those reduced by bicubic interpolation, too
    realsr     RealSR's two cameras, ``factor`` 4 (or 2, 3)
    drealsr    DRealSR, ``factor`` 4 (or 2, 3)
    stablesr   StableSR's test sets: crops of RealSR, DRealSR and DIV2K, to be enlarged 4 times
    ========== ===========================================================================================

    Images of airnet-3 and promptir-5 come as often as in their authors' programs (rain 120 times an epoch, each noise
    3 times, blur 5, low light 20). DiffUIR's program also equalizes histograms of low-light images; this does not.

    Args:
        name: one of the above.
        root: folder of the collection; a wrong one is told with what was expected.
        split: "train"; all but folder, paired and stablesr, which has no other, have "test" too.
        factor: of enlargement.
        partial: leave out degraded images that have no clean one rather than raise.
        flip, rotate: as :class:`~bdg_fast.data.datasets.ImageFolder`'s.

    Raises:
        ValueError: an unknown name, split or factor; degraded images without a clean one.
        FileNotFoundError: folders are missing (the message shows the expected tree and what is there), or empty.
    """
    names = ("folder", "paired", *LAYOUTS)
    if name not in names:
        raise ValueError(f"name must be one of {', '.join(names)}, got {name!r}")
    if name in LAYOUTS:
        base, parts = find_parts(name, root, split, factor)
        even = LAYOUTS[name].even and split == "train"
    else:
        _check(name, Layout(lambda split, factor: []), split, factor)
        base, even = folder_at(root), False
        if name == "folder":
            return ImageFolder(base, flip=flip, rotate=rotate)
        parts = _paired_parts(base)
        _complete(name, [base], parts)
    opened = [_open(base, part, partial, flip, rotate) for part in parts]
    if len(opened) == 1:
        return opened[0]
    weights = [1.0 if even else len(one) * part.times for one, part in zip(opened, parts, strict=True)]
    return Mixture(opened, weights)


def find_parts(
    name: str,
    root: str | os.PathLike[str],
    split: str,
    factor: int | None = None,
    kinds: Sequence[str] | None = None,
) -> tuple[Path, list[Part]]:
    """The degradations of a collection of :data:`LAYOUTS`, and the folder that theirs lie in.

    Args:
        name, root, split, factor: as :func:`open_layout`'s.
        kinds: only these, whose folders alone must be there; default: all.

    Raises:
        ValueError: an unknown split, factor or kind. FileNotFoundError: as :func:`open_layout`.
    """
    layout = LAYOUTS[name]
    _check(name, layout, split, factor)
    top = folder_at(root)
    parts = layout.parts(split, layout.factors[0] if factor is None else factor)
    if kinds is not None:
        known = dict.fromkeys(part.kind for part in parts)
        for kind in kinds:
            if kind not in known:
                raise ValueError(f"kinds of {name!r} must be among {', '.join(map(str, known))}, got {kind!r}")
        parts = [part for part in parts if part.kind in kinds]
    return _complete(name, [top / below.format(split=split) for below in layout.below], parts), parts


def _check(name: str, layout: Layout, split: str, factor: int | None) -> None:
    if split not in layout.splits:
        raise ValueError(f"split of {name!r} must be one of {', '.join(layout.splits)}, got {split!r}")
    if factor is not None and factor not in layout.factors:
        allowed = [str(one) for one in layout.factors if one is not None]
        raise ValueError(f"factor of {name!r} must be {' or '.join(['None', *allowed])}, got {factor}")


def _complete(name: str, bases: list[Path], parts: list[Part]) -> Path:
    """The one of ``bases`` that has most of the parts' folders, if it has all."""
    base = max(bases, key=lambda base: _present(base, parts))
    if _present(base, parts) < len(_folders(parts)):
        raise FileNotFoundError(_wrong_tree(name, base, parts))
    return base


def _open(base: Path, part: Part, partial: bool, flip: bool, rotate: bool) -> Dataset:
    if part.sigma is not None:
        return NoisyFolder(base / part.target, part.sigma, kind=part.kind, flip=flip, rotate=rotate)
    if part.input is None:
        return ImageFolder(base / part.target, kind=part.kind, flip=flip, rotate=rotate)
    input, target = base / part.input, base / part.target
    return PairedFolder(input, target, kind=part.kind, match=part.match, partial=partial, flip=flip, rotate=rotate)


def _folders(parts: list[Part]) -> dict[str, str]:
    """Folders that parts need, with a name of a file in each."""
    found: dict[str, str] = {}
    for part in parts:
        clean, degraded = part.shown[1], part.shown[0]
        if part.input == part.target:
            found[part.target] = f"{degraded} with {clean}"
        else:
            found[part.target] = f"clean: {clean}"
            if part.input is not None:
                found[part.input] = f"degraded: {degraded}"
    return found


def _present(base: Path, parts: list[Part]) -> int:
    return sum((base / folder).is_dir() for folder in _folders(parts))


def _wrong_tree(name: str, base: Path, parts: list[Part]) -> str:
    folders = _folders(parts)
    width = max(map(len, folders)) + 1
    lines = [
        f"  {folder + '/':{width}}  {shown}{'' if (base / folder).is_dir() else '   <- missing'}"
        for folder, shown in folders.items()
    ]
    shown = base if base.is_dir() else base.parent
    there = sorted(entry.name + "/" * entry.is_dir() for entry in shown.iterdir()) if shown.is_dir() else []
    more = f" and {len(there) - LISTED} more" if len(there) > LISTED else ""
    found = f"in {str(shown)!r} there is: {', '.join(there[:LISTED]) or 'nothing'}{more}"
    return "\n".join([f"{str(base)!r} is not laid out as {name!r}, which has", *lines, found])


def _paired_parts(root: Path) -> list[Part]:
    """``input`` and ``target`` of the root, or else of its folders."""

    def has_both(folder: Path) -> bool:
        return (folder / "input").is_dir() and (folder / "target").is_dir()

    kinds = [] if has_both(root) else sorted(folder.name for folder in root.iterdir() if has_both(folder))
    if kinds:
        return [Part(kind, f"{kind}/target", f"{kind}/input", "auto") for kind in kinds]
    return [Part(None, "target", "input", "auto")]


def _diffuir(split: str, factor: int | None) -> list[Part]:
    if split == "test":
        haze = ("0001_0.8_0.2.jpg", "0001.png")
        return [
            *(
                Part("rain", f"syn_rain/test/{name}/target", f"syn_rain/test/{name}/input", set=name)
                for name in ("Rain100H", "Rain100L", "Test100", "Test1200", "Test2800")
            ),
            Part("lowlight", "LOL/test/high", "LOL/test/low", set="LOL"),
            *(
                Part("snow", f"Snow100K/test/{name}/gt", f"Snow100K/test/{name}/synthetic", set=name)
                for name in ("Snow100K-S", "Snow100K-L")
            ),
            Part("haze", "RESIDE/SOTS/outdoor/gt", "RESIDE/SOTS/outdoor/hazy", "reside", haze, set="SOTS"),
            Part("blur", "Deblur/test/GoPro/target", "Deblur/test/GoPro/input", set="GoPro"),
        ]
    hazy = ("0001_0.8_0.04.jpg", "0001.jpg")
    return [
        Part("haze", "RESIDE/OTS_ALPHA/clear/clear_images", "RESIDE/OTS_ALPHA/haze/OTS", "reside", hazy),
        Part("lowlight", "LOL/train/high", "LOL/train/low"),
        Part("rain", "syn_rain/train/target", "syn_rain/train/input"),
        Part("snow", "Snow100K/train/gt", "Snow100K/train/synthetic"),
        Part("blur", "Deblur/train/target", "Deblur/train/input"),
    ]


def _airnet(split: str, factor: int | None) -> list[Part]:
    if split == "test":
        clean, hazy = ("", "3096.jpg"), ("0001_0.8_0.2.jpg", "0001.png")
        noise = [(f"noise{sigma}", sigma) for sigma in (15, 25, 50)]
        return [
            *(Part(kind, "denoise/bsd68", shown=clean, sigma=sigma, set="BSD68") for kind, sigma in noise),
            Part("rain", "derain/Rain100L/target", "derain/Rain100L/input", set="Rain100L"),
            Part("haze", "dehaze/target", "dehaze/input", "reside", hazy, set="SOTS"),
        ]
    return [
        *(Part(f"noise{sigma}", "Denoise", shown=("", "00001.bmp"), times=3, sigma=sigma) for sigma in (15, 25, 50)),
        Part("rain", "Derain/gt", "Derain/rainy", "rain100", ("rain-1.png", "norain-1.png"), times=120),
        Part("haze", "Dehaze/original", "Dehaze/synthetic", "reside", ("part1/0025_0.8_0.1.jpg", "0025.png")),
    ]


def _promptir(split: str, factor: int | None) -> list[Part]:
    if split == "test":
        name = "GOPR0384_11_00_000001.png"
        return [
            *_airnet(split, factor),
            Part("blur", "deblur/gopro/target", "deblur/gopro/input", shown=(name, name), set="GoPro"),
            Part("lowlight", "enhance/lol/target", "enhance/lol/input", set="LOL"),
        ]
    name = "GOPR0372_07_00_000047.png"
    return [
        *_airnet(split, factor),
        Part("blur", "Deblur/sharp", "Deblur/blur", shown=(name, name), times=5),
        Part("lowlight", "Enhance/gt", "Enhance/low", times=20),
    ]


def _cdd11(split: str, factor: int | None) -> list[Part]:
    shown = ("00001.png", "00001.png")
    return [Part(kind, "clear", kind.replace("lowlight", "low").replace("+", "_"), "same", shown) for kind in CDD11]


def _div2k(split: str, factor: int | None) -> list[Part]:
    name = "train" if split == "train" else "valid"
    number = "0001" if split == "train" else "0801"
    if factor is None:
        return [Part(None, f"DIV2K_{name}_HR", shown=("", f"{number}.png"))]
    shown = (f"{number}x{factor}.png", f"{number}.png")
    return [Part(f"x{factor}", f"DIV2K_{name}_HR", f"DIV2K_{name}_LR_bicubic/X{factor}", "scale", shown)]


def _realsr(split: str, factor: int | None) -> list[Part]:
    parts = []
    for camera in ("Canon", "Nikon"):
        folder = f"{camera}/{split.capitalize()}/{factor}"
        shown = (f"{camera}_001_LR{factor}.png", f"{camera}_001_HR.png")
        parts.append(Part(f"x{factor}", folder, folder, "realsr", shown))
    return parts


def _drealsr(split: str, factor: int | None) -> list[Part]:
    top = f"{split.capitalize()}_x{factor}/{split}"
    shown = ("DSC_1_x1.png", f"DSC_1_x{factor}.png")
    return [Part(f"x{factor}", f"{top}_HR", f"{top}_LR", "drealsr", shown)]


def _stablesr(split: str, factor: int | None) -> list[Part]:
    return [
        Part("realsr", "RealSRVal_crop128/test_HR", "RealSRVal_crop128/test_LR"),
        Part("drealsr", "DrealSRVal_crop128/test_HR", "DrealSRVal_crop128/test_LR"),
        Part("div2k", "DIV2K_V2_val/gt", "DIV2K_V2_val/lq"),
    ]


BOTH = ("train", "test")
AIRNET_BELOW = ("", "Train", "data/Train", "test", "data/test")
LAYOUTS = {
    "diffuir-5": Layout(_diffuir, BOTH, even=True),
    "airnet-3": Layout(_airnet, BOTH, below=AIRNET_BELOW),
    "promptir-5": Layout(_promptir, BOTH, below=AIRNET_BELOW),
    "cdd11": Layout(_cdd11, BOTH, below=("{split}", "CDD-11_{split}")),
    "div2k": Layout(_div2k, BOTH, (None, 2, 3, 4, 8), below=("", "DIV2K")),
    "realsr": Layout(_realsr, BOTH, (4, 2, 3), below=("", "RealSR(V3)", "RealSR (V3)", "RealSR")),
    "drealsr": Layout(_drealsr, BOTH, (4, 2, 3), below=("", "DRealSR")),
    "stablesr": Layout(_stablesr, ("test",), below=("", "StableSR_testsets")),
}
