"""The picture of a report. matplotlib is imported when it is drawn."""

from __future__ import annotations

from os import PathLike
from typing import Any

from torch import Tensor

from bdg_fast.evaluation.figures import require_matplotlib

from .analyser import matrices_of, pixels_of
from .report import LABELS, UNKNOWN, Report

MAX_SIDE = 768
"""Of the picture as it is shown, in pixels."""
SHOWN_FEATURES = (
    "mean", "std", "contrast", "entropy",
    "residual_std", "residual_contrast", "residual_correlation", "residual_entropy",
)  # fmt: skip
PURPLE, GRAY = "#7a3b8f", "#9aa5b1"


def plot_report(
    image: Any, report: Report, file: str | PathLike[str] | Any, *, matrices: tuple[Tensor, Tensor] | None = None
) -> None:
    """Write a picture of a report: the photograph, its two matrices, candidates and features.

    Args:
        image: what the report is about, as :class:`Analyser` takes it.
        report: of it.
        file: a name that ends in .png, .pdf or .svg, or an open binary file, which gets PNG.
        matrices: of :meth:`Analyser.matrices`; computed unless given.

    Raises:
        ImportError: matplotlib is missing. TypeError, ValueError: no such image.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    pixels = pixels_of(image)
    gray, residual = matrices if matrices is not None else matrices_of(pixels)
    figure = Figure(figsize=(13, 3.9), dpi=110, facecolor="white", layout="constrained")
    figure.suptitle(report.summary(), fontsize=11)
    axes = figure.subplots(1, 5, gridspec_kw={"width_ratios": [1.25, 1, 1, 1, 1]})
    step = -(-max(pixels.shape[1:]) // MAX_SIDE)
    axes[0].imshow(pixels[:, ::step, ::step].permute(1, 2, 0).numpy())
    axes[0].set_title("picture", fontsize=10)
    for axis, name, matrix in ((axes[1], "gray levels", gray), (axes[2], "residual", residual)):
        # frequencies span orders of magnitude: the fourth root shows the rare pairs too
        axis.imshow(matrix.cpu().numpy() ** 0.25, cmap="magma", origin="lower")
        axis.set_title(f"{name} (frequency$^{{1/4}}$)", fontsize=10)
    for axis in axes[:3]:
        axis.set_xticks([])
        axis.set_yticks([])
    _draw_candidates(axes[3], report)
    _write_features(axes[4], report)
    if isinstance(file, (str, PathLike)):
        figure.savefig(file)
    else:
        figure.savefig(file, format="png")


def _draw_candidates(axis: Any, report: Report) -> None:
    """Bars of all kinds; gray if none of them is meant."""
    names = [LABELS.get(kind, kind) for kind, _ in report.candidates]
    shares = [share for _, share in report.candidates]
    colors = [PURPLE if kind == report.kind else GRAY for kind, _ in report.candidates]
    axis.barh(range(len(names)), shares, color=colors, height=0.7)
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.set_xlim(0, 1)
    axis.invert_yaxis()
    title = "probability, were it known" if report.kind == UNKNOWN else "probability"
    axis.set_title(title, fontsize=10)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _write_features(axis: Any, report: Report) -> None:
    axis.set_axis_off()
    axis.set_title("features", fontsize=10)
    rows = [(name.replace("_", " "), f"{report.features[name]:.3f}") for name in SHOWN_FEATURES]
    rows.append(("distance", f"{report.distance:.3f}"))
    rows.append(("known up to", f"{report.threshold:.3f}"))
    for number, (name, value) in enumerate(rows):
        axis.text(0, 0.95 - 0.095 * number, name, fontsize=9, transform=axis.transAxes, va="top")
        axis.text(1, 0.95 - 0.095 * number, value, fontsize=9, transform=axis.transAxes, va="top", ha="right")
