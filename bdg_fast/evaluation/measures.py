"""Measures of restored images by name: PSNR and SSIM of our own, all others by pyiqa, which is imported for them."""

from __future__ import annotations

import contextlib
import io
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..metrics import luma, psnr, ssim

DEFAULT = ("psnr", "ssim")
FOLDERS = ("fid", "sfid", "fid_dinov2")
"""Compare whole folders of images."""
FLOOR = 1e-8
"""Of the mean square error, as pyiqa has it: equal images have 80 dB."""
SSIMS = ("pyiqa", "wang", "skimage")
COLORS = ("rgb", "y")
PATIENCE = 20.0
"""Seconds that a server of weights may be silent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How images are compared.

    Fields:
        color: of PSNR and SSIM: ``"rgb"``, or ``"y"`` of YCbCr as MATLAB has it. All others take RGB.
        crop: pixels cut off each side before anything but FID is measured.
        ssim: ``"pyiqa"``: Gaussian window, a negative product of contrast and structure counted as 0, Y rounded;
            ``"wang"``: the original (BasicSR, MATLAB); ``"skimage"``: scikit-image's default, a uniform window of 7.
    """

    color: str = "rgb"
    crop: int = 0
    ssim: str = "pyiqa"

    def __post_init__(self) -> None:
        """ValueError naming what is wrong."""
        if self.color not in COLORS:
            raise ValueError(f"color must be 'rgb' or 'y', got {self.color!r}")
        if self.crop < 0:
            raise ValueError(f"crop must be at least 0, got {self.crop}")
        if self.ssim not in SSIMS:
            raise ValueError(f"ssim must be one of {', '.join(SSIMS)}, got {self.ssim!r}")


@dataclass(frozen=True, slots=True)
class Measure:
    """One of them.

    Fields:
        name: ours in lower case, others as pyiqa has them.
        lower_better: whether less is better.
        compute: of restored and clean images, float32 ``[1, 3, H, W]`` in [0, 1]; None for folders.
        folders: of two folders of images; None for images.
    """

    name: str
    lower_better: bool
    compute: Callable[[Tensor, Tensor], float] | None
    folders: Callable[[Path, Path], float] | None = None


Create = Callable[..., Any]
"""As `pyiqa.create_metric`: of a name and ``device=``."""


def open_measures(
    names: Sequence[str] = DEFAULT,
    settings: Settings | None = None,
    *,
    device: str | torch.device = "cpu",
    create: Create | None = None,
) -> tuple[list[Measure], dict[str, str]]:
    """Measures that can be taken here, and of the others the reason why not.

    Args:
        names: ``"psnr"``, ``"ssim"`` (no package needed), or any of pyiqa's (`pyiqa.list_models`).
        settings: default: :class:`Settings`.
        device: of pyiqa's networks.
        create: what makes pyiqa's; default: `pyiqa.create_metric`.

    Raises:
        ValueError: no name, one twice, or one that neither we nor pyiqa have.
    """
    asked = list(names)
    if not asked or len({name.lower() for name in asked}) < len(asked):
        raise ValueError(f"metrics must be at least one name, none twice, got {list(names)}")
    chosen = settings or Settings()
    found: list[Measure] = []
    missing: dict[str, str] = {}
    for name in asked:
        if name.lower() in DEFAULT:
            name = name.lower()
            found.append(Measure(name, False, _within(chosen, _psnr if name == "psnr" else _ssim)))
            continue
        try:
            with _quiet():
                found.append(_of_pyiqa(name, chosen, torch.device(device), create))
        except UnknownMetricError:
            raise
        except Exception as error:  # networks, files and packages fail in any way
            missing[name] = _reason(error)
    return found, missing


class UnknownMetricError(ValueError):
    """A name that pyiqa does not have."""


def _of_pyiqa(name: str, settings: Settings, device: torch.device, create: Create | None) -> Measure:
    if create is None:
        try:
            import pyiqa
        except ImportError as error:
            raise ImportError(f"it needs pyiqa: pip install 'bdg-fast[evaluation]' ({error})") from error
        known = {each.lower(): each for each in pyiqa.list_models()}
        if name.lower() not in known:
            raise UnknownMetricError(f"metrics must be psnr, ssim or of pyiqa.list_models(), got {name!r}")
        name = known[name.lower()]
        create = pyiqa.create_metric
    metric = create(name, device=device)
    lower = bool(metric.lower_better)
    if name in FOLDERS:

        def folders(restored: Path, clean: Path) -> float:
            with _quiet():  # workers would each import torch for a few images
                return float(metric(str(restored), str(clean), num_workers=0, verbose=False))

        return Measure(name, lower, None, folders)

    def compute(restored: Tensor, clean: Tensor, _: Settings) -> float:
        given = (restored, clean) if metric.metric_mode == "FR" else (restored,)
        with torch.inference_mode():
            return float(metric(*given))

    return Measure(name, lower, _within(settings, compute))


def _within(
    settings: Settings, compute: Callable[[Tensor, Tensor, Settings], float]
) -> Callable[[Tensor, Tensor], float]:
    """``compute`` of what lies within the border."""

    def cut(restored: Tensor, clean: Tensor) -> float:
        if restored.shape != clean.shape:
            raise ValueError(f"restored is {_size(restored)} pixels, its clean image {_size(clean)}")
        crop, (height, width) = settings.crop, clean.shape[2:]
        if min(height, width) <= 2 * crop:
            raise ValueError(f"a crop of {crop} leaves nothing of {_size(clean)} pixels")
        inside = (..., slice(crop, height - crop), slice(crop, width - crop))
        return compute(restored[inside], clean[inside], settings)

    return cut


def _size(images: Tensor) -> str:
    return f"{images.shape[2]} x {images.shape[3]}"


def _psnr(restored: Tensor, clean: Tensor, settings: Settings) -> float:
    if settings.color == "y":
        restored, clean = luma(restored), luma(clean)
    return float(psnr(restored, clean, FLOOR))


def _ssim(restored: Tensor, clean: Tensor, settings: Settings) -> float:
    if settings.color == "y":
        restored, clean = luma(restored), luma(clean)
        if settings.ssim == "pyiqa":
            restored, clean = ((255 * each).round() / 255 for each in (restored, clean))
    window = "uniform" if settings.ssim == "skimage" else "gaussian"
    return float(ssim(restored, clean, window, clamp=settings.ssim == "pyiqa"))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress of downloads in our output, none of other packages' warnings, and an end to silent servers."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        socket.setdefaulttimeout(before)


def _reason(error: Exception) -> str:
    """Its kind and first line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
