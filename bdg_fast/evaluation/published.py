"""What peers published, by protocol; every number was read in the source that stands beside it.

Nothing of diffuir-5 and nothing of BDG itself is here: their tables are pictures or papers that were not at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Published(NamedTuple):
    """What was published of a method under a protocol."""

    method: str
    source: str  # address, and which table
    scores: Mapping[str, Mapping[str, float]]  # by metric, by degradation; "mean" over them


EVOIR = "https://github.com/leonmakise/EvoIR, README.md, 3-Tasks"
INSTRUCTIR = "https://arxiv.org/abs/2401.16468, Table 2"
R2R = (
    "https://github.com/zhaoyang97/Paper-Notes-en, docs/CVPR2026/image_restoration/"
    "retrieve-to-restore_efficient_all-in-one_image_restoration_with_a_retrieval-base.md, Main Results: "
    "as a note on a later paper has it"
)
ONERESTORE = "https://github.com/gy65896/OneRestore, README.md, CDD-11"
SCALERESFUSION = "https://github.com/YukinoshitaLove/ScaleResfusion, README.md, Results (CLIPIQA tuned)"

THREE = ("noise15", "noise25", "noise50", "haze", "rain", "mean")
FIVE = ("rain", "haze", "noise25", "blur", "lowlight", "mean")
REAL = ("psnr", "ssim", "lpips", "dists", "fid", "niqe", "musiq", "clipiqa")


def _pairs(source: str, kinds: tuple[str, ...], rows: Mapping[str, str]) -> list[Published]:
    """Of PSNR/SSIM in the order of ``kinds``."""
    found = []
    for method, text in rows.items():
        both = [[float(part) for part in pair.split("/")] for pair in text.split()]
        psnr, ssim = (dict(zip(kinds, column, strict=True)) for column in zip(*both, strict=True))
        found.append(Published(method, source, {"psnr": psnr, "ssim": ssim}))
    return found


def _real(rows: Mapping[str, Mapping[str, str]]) -> list[Published]:
    """Of all of REAL's metrics, by test set."""
    found = []
    for method, sets in rows.items():
        values = {name: dict(zip(REAL, map(float, text.split()), strict=True)) for name, text in sets.items()}
        scores = {metric: {name: values[name][metric] for name in values} for metric in REAL}
        found.append(Published(method, SCALERESFUSION, scores))
    return found


PUBLISHED: Mapping[str, list[Published]] = {
    "airnet-3": _pairs(
        EVOIR,
        THREE,
        {
            "AirNet": "33.92/0.932 31.26/0.888 28.00/0.797 27.94/0.962 34.90/0.967 31.20/0.910",
            "IDR": "33.89/0.931 31.32/0.884 28.04/0.798 29.87/0.970 36.03/0.971 31.83/0.911",
            "PromptIR": "33.98/0.933 31.31/0.888 28.06/0.799 30.58/0.974 36.37/0.972 32.06/0.913",
            "InstructIR": "34.15/0.933 31.52/0.890 28.30/0.804 30.22/0.959 37.98/0.978 32.43/0.913",
            "AdaIR": "34.12/0.935 31.45/0.892 28.19/0.802 31.06/0.980 38.64/0.983 32.69/0.918",
            "MoCE-IR": "34.11/0.932 31.45/0.888 28.18/0.800 31.34/0.979 38.57/0.984 32.73/0.917",
            "DFPIR": "34.14/0.935 31.47/0.893 28.25/0.806 31.87/0.980 38.65/0.982 32.88/0.919",
        },
    ),
    "promptir-5": [
        *_pairs(
            INSTRUCTIR,
            FIVE,
            {
                "AirNet": "32.98/0.951 21.04/0.884 30.91/0.882 24.35/0.781 18.18/0.735 25.49/0.846",
                "IDR": "35.63/0.965 25.24/0.943 31.60/0.887 27.87/0.846 21.34/0.826 28.34/0.893",
                "InstructIR": "36.84/0.973 27.10/0.956 31.40/0.887 29.40/0.886 23.00/0.836 29.55/0.907",
            },
        ),
        *_pairs(R2R, ("mean",), {"PromptIR": "29.15/0.904"}),
    ],
    "cdd11": _pairs(
        ONERESTORE,
        ("mean",),
        {
            "degraded input": "16.00/0.6008",
            "AirNet": "23.75/0.8140",
            "TransWeather": "23.13/0.7810",
            "WeatherDiff": "22.49/0.7985",
            "PromptIR": "25.90/0.8499",
            "WGWSNet": "26.96/0.8626",
            "OneRestore": "28.47/0.8784",
        },
    ),
    "real-x4": _real(
        {
            "Real-ESRGAN": {
                "realsr": "26.65 0.76 0.27 0.21 136.29 5.85 60.45 0.45",
                "drealsr": "28.61 0.81 0.28 0.21 147.66 6.70 54.27 0.45",
                "div2k": "24.02 0.64 0.32 0.21 38.87 4.83 60.38 0.53",
            },
            "StableSR": {
                "realsr": "24.62 0.70 0.31 0.22 128.54 5.78 65.48 0.62",
                "drealsr": "28.04 0.75 0.33 0.23 144.15 6.60 58.53 0.63",
                "div2k": "23.27 0.57 0.31 0.20 24.95 4.77 65.78 0.68",
            },
            "DiffBIR": {
                "realsr": "24.83 0.65 0.36 0.24 130.75 5.84 69.28 0.71",
                "drealsr": "25.90 0.62 0.47 0.29 180.33 6.33 66.13 0.71",
                "div2k": "23.14 0.54 0.37 0.22 32.71 4.99 69.87 0.73",
            },
            "SeeSR": {
                "realsr": "25.15 0.72 0.30 0.22 125.30 5.40 69.81 0.67",
                "drealsr": "28.07 0.77 0.32 0.23 147.37 6.41 65.09 0.69",
                "div2k": "23.68 0.60 0.32 0.20 25.89 4.81 68.66 0.69",
            },
            "OSEDiff": {
                "realsr": "25.15 0.73 0.29 0.21 123.53 5.65 69.08 0.67",
                "drealsr": "27.92 0.78 0.30 0.22 135.41 6.46 64.69 0.70",
                "div2k": "23.72 0.61 0.29 0.20 26.34 4.71 67.96 0.67",
            },
        }
    ),
}
