"""Tables and pictures of fingerprints. matplotlib is imported when a picture is drawn."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bdg_fast.data.degradations import KINDS, LEVELS, degrade
from bdg_fast.kernels.mas_glcm import mas_glcm
from bdg_fast.texture import texture_features

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .probe import Score

LABELS = {"lowlight": "low light", "jpeg": "JPEG"}
GRAY_FEATURES = ("contrast", "entropy", "mean", "std")
RESIDUAL_FEATURES = ("contrast", "energy", "correlation", "entropy")
MAX_SIDE = 512


def require_matplotlib() -> None:
    """ImportError that tells what to install, if matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("pictures need matplotlib: pip install matplotlib")


def degraded_versions(image: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """``image`` float32 ``[3, H, W]`` in [0, 1] clean and at the middle level of each degradation."""
    height, width = image.shape[1:]
    top, left = max(height - MAX_SIDE, 0) // 2, max(width - MAX_SIDE, 0) // 2
    clean = image[:, top : top + MAX_SIDE, left : left + MAX_SIDE].contiguous()
    versions = {"clean": clean}
    for kind in KINDS:
        versions[LABELS.get(kind, kind)] = degrade(clean[None], kind, LEVELS[kind][1], seed)[0]
    return versions


def fingerprints(versions: dict[str, Tensor], levels: int = 32) -> tuple[Tensor, Tensor]:
    """Gray and residual MAS-GLCM of each version, ``[n, levels, levels]`` each."""
    batch = torch.stack(list(versions.values()))
    return mas_glcm(batch, levels=levels), mas_glcm(batch, levels=levels, source="laplacian", quantizer="companded")


def fingerprint_table(versions: dict[str, Tensor]) -> str:
    """Texture features of both fingerprints of each version, as text."""
    gray, residual = fingerprints(versions)
    features = torch.cat([texture_features(gray, GRAY_FEATURES), texture_features(residual, RESIDUAL_FEATURES)], 1)
    width = 13
    head = f"{'':10}" + f"{'gray':^{width * len(GRAY_FEATURES)}}" + f"{'residual':^{width * len(RESIDUAL_FEATURES)}}"
    names = f"{'':10}" + "".join(f"{name:>{width}}" for name in (*GRAY_FEATURES, *RESIDUAL_FEATURES))
    rows = [
        f"{name:10}" + "".join(f"{value:{width}.3f}" for value in row)
        for name, row in zip(versions, features.tolist(), strict=True)
    ]
    return "\n".join([head, names, *rows])


def plot_fingerprints(image: Tensor, path: str | Path, levels: int = 32) -> None:
    """Write a picture of the clean and degraded versions of ``image`` and their fingerprints."""
    require_matplotlib()
    from matplotlib.figure import Figure

    versions = degraded_versions(image)
    gray, residual = fingerprints(versions, levels)
    figure = Figure(figsize=(2.05 * len(versions) + 0.7, 7.6), dpi=110, facecolor="white", layout="constrained")
    _draw(figure, versions, gray, residual)
    figure.savefig(path)


def _draw(figure: Figure, versions: dict[str, Tensor], gray: Tensor, residual: Tensor) -> None:
    grid = figure.subplots(4, len(versions), gridspec_kw={"height_ratios": [1, 1, 1, 0.5]})
    rows = ("photograph", "gray levels\n(frequency$^{1/4}$)", "residual\n(frequency$^{1/4}$)")
    for column, (name, version) in enumerate(versions.items()):
        grid[0, column].set_title(name, fontsize=12)
        grid[0, column].imshow(version.permute(1, 2, 0).numpy())
        for row, matrices in ((1, gray), (2, residual)):
            # frequencies span orders of magnitude: the fourth root shows the rare pairs too
            grid[row, column].imshow(matrices[column].numpy() ** 0.25, cmap="magma", origin="lower")
        for row in range(3):
            grid[row, column].set_xticks([])
            grid[row, column].set_yticks([])
            if column == 0:
                grid[row, column].set_ylabel(rows[row], fontsize=11)
    _draw_features(list(grid[3]), residual)


def _draw_features(axes: list, residual: Tensor) -> None:  # type: ignore[type-arg]
    """Bars of the residual's features, each relative to its largest value among the versions."""
    values = texture_features(residual, RESIDUAL_FEATURES)
    scaled = (values / values.abs().amax(0).clamp(min=1e-12)).tolist()
    for column, axis in enumerate(axes):
        axis.barh(range(len(RESIDUAL_FEATURES)), scaled[column], color="#7a3b8f", height=0.7)
        axis.set_xlim(min(0.0, min(map(min, scaled))) * 1.05, 1.5)
        axis.set_yticks(range(len(RESIDUAL_FEATURES)), RESIDUAL_FEATURES if column == 0 else [""] * 4, fontsize=9)
        axis.invert_yaxis()
        axis.set_xticks([])
        axis.axvline(0, color="black", linewidth=0.6)
        for number, value in enumerate(values[column].tolist()):
            axis.text(1.48, number, f"{value:.2f}".replace("-0.00", "0.00"), va="center", ha="right", fontsize=8)
        for side in ("top", "right", "bottom", "left"):
            axis.spines[side].set_visible(False)


def plot_scores(scores: Sequence[Score], path: str | Path) -> None:
    """Write a bar chart of the probe's accuracies with their confidence intervals."""
    require_matplotlib()
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(score.representation for score in scores))
    tasks = list(dict.fromkeys(score.task for score in scores))
    figure = Figure(
        figsize=(3.1 * len(tasks) + 1.6, 0.42 * len(names) + 1.2), dpi=110, facecolor="white", layout="constrained"
    )
    for axis, task in zip(figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0], tasks, strict=True):
        rows = [score for score in scores if score.task == task]
        values = [100 * score.accuracy for score in rows]
        errors = [[100 * (s.accuracy - s.low) for s in rows], [100 * (s.high - s.accuracy) for s in rows]]
        colors = [
            "#7a3b8f" if "GLCM" in s.representation or "residual" in s.representation else "#9aa5b1" for s in rows
        ]
        axis.barh(
            range(len(rows)),
            values,
            xerr=errors,
            color=colors,
            height=0.72,
            error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#333333"},
        )
        for number, value in enumerate(values):
            axis.text(2, number, f"{value:.1f}", va="center", fontsize=9, color="white")
        axis.set_yticks(range(len(rows)), names)
        axis.set_xlim(0, 102)
        axis.set_title(f"{task} (accuracy, %)", fontsize=11)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        axis.invert_yaxis()
    figure.axes[0].set_ylim(len(names) - 0.5, -0.5)
    figure.savefig(path)
