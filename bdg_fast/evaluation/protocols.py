"""Protocols by name: test sets, and how their images are prepared and compared."""

from __future__ import annotations

from dataclasses import dataclass, field

from .cases import Preparation
from .measures import DEFAULT, Settings


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """One of them.

    Fields:
        layout: of `bdg_fast.data.layouts`, whose test split is evaluated.
        title: what it is.
        settings, preparation: how images are compared and prepared.
        metrics: those that are reported of it.
        factor: of enlargement.
        kinds: degradations that it has, of those of the layout; None: all.
        source: where the settings are from.
    """

    layout: str
    title: str
    settings: Settings
    source: str
    preparation: Preparation = field(default_factory=Preparation)
    metrics: tuple[str, ...] = DEFAULT
    factor: int | None = None
    kinds: tuple[str, ...] | None = None


PROMPTIR = "https://github.com/va1shn9v/PromptIR: test.py, utils/dataset_utils.py, utils/val_utils.py"
USUAL = "none: Y and a border of the factor are usual in super-resolution"
PROTOCOLS = {
    "diffuir-5": Protocol(
        layout="diffuir-5",
        title="DiffUIR's rain, low light, snow, haze and blur",
        settings=Settings(color="y", ssim="wang"),
        preparation=Preparation(equalize=("lowlight",), fit_target=("haze",)),
        source="https://github.com/iSEE-Laboratory/DiffUIR: src/model.py, data/universal_dataset.py, eval/SOTS.m",
    ),
    "airnet-3": Protocol(
        layout="airnet-3",
        title="AirNet's and PromptIR's noise, rain and haze",
        settings=Settings(ssim="skimage"),
        preparation=Preparation(multiple=16),
        source=PROMPTIR,
    ),
    "promptir-5": Protocol(
        layout="promptir-5",
        title="the same with one noise, blur and low light",
        settings=Settings(ssim="skimage"),
        preparation=Preparation(multiple=16),
        kinds=("haze", "rain", "noise25", "blur", "lowlight"),
        source="https://github.com/c-yn/AdaIR: test.py, INSTALL.md",
    ),
    "cdd11": Protocol(
        layout="cdd11",
        title="CDD-11's eleven compositions",
        settings=Settings(ssim="skimage"),
        source="https://github.com/gy65896/OneRestore: img_file/cal_psnr_ssim.py",
    ),
    "real-x4": Protocol(
        layout="stablesr",
        title="real-world super-resolution, StableSR's test sets",
        settings=Settings(color="y"),
        metrics=(*DEFAULT, "lpips", "dists", "fid", "niqe", "musiq", "clipiqa"),
        source="https://github.com/YukinoshitaLove/ScaleResfusion: README.md (StableSR's protocol)",
    ),
    "realsr-x4": Protocol(
        layout="realsr",
        title="RealSR's whole images",
        settings=Settings(color="y", crop=4),
        factor=4,
        source=USUAL,
    ),
    "drealsr-x4": Protocol(
        layout="drealsr",
        title="DRealSR's whole images",
        settings=Settings(color="y", crop=4),
        factor=4,
        source=USUAL,
    ),
}
