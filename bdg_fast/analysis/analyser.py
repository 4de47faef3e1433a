"""From a picture to its report."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bdg_fast.data.convert import as_picture
from bdg_fast.data.degrade import RANGES
from bdg_fast.evaluation.representations import Fingerprint
from bdg_fast.texture import PROPS, texture_features

from .network import FingerprintReader
from .report import KINDS, UNITS, UNKNOWN, Report

SHIPPED = Path(__file__).parents[1] / "models" / "analysis" / "analysis.safetensors"
"""The index and the classifier that come along."""
METADATA_KEY = "bdg_fast_analysis"
SMALLEST = 32
"""Sides of a picture, at least, in pixels."""
WINDOW, WHOLE = 256, 768 * 768
"""Pictures of up to `WHOLE` pixels are looked at as a whole; of larger ones windows of side `WINDOW`."""
ROWS = 3
"""Windows down and across a large square."""
FINGERPRINT = Fingerprint()
NETWORK = "network."
"""What the names of the network's tensors begin with."""


class Analyser:
    """Tells how pictures are degraded.

    Example:
        >>> analyser = Analyser.from_pretrained()  # doctest: +SKIP
        >>> print(analyser(Image.open("photo.jpg")).summary())  # doctest: +SKIP
    """

    def __init__(self, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
        """Take what :meth:`from_pretrained` has read.

        Args:
            tensors: ``mean [D]`` and ``axes [D, d]`` of the projection; ``index [n, d + 1]``: projected fingerprints,
                and how far each is from its projection; ``index_kinds [n]``, numbers of `KINDS`; ``distances
                [kinds, q]``: quantiles of the distance to entries of a kind that known pictures have; the network's, as
                ``network.<name>``.
            settings: ``kinds``, ``temperature`` of the logits, ``thresholds`` of the distance to entries of each kind.

        Raises:
            ValueError: something is missing or of another shape.
        """
        if tuple(settings.get("kinds", ())) != KINDS:
            raise ValueError(f"settings must have the kinds {', '.join(KINDS)}, got {settings.get('kinds')}")
        try:
            self.temperature = float(settings["temperature"])
            self.thresholds = dict(zip(KINDS, map(float, settings["thresholds"]), strict=True))
            self._mean, self._axes, self._index, self._distances = (
                tensors[name].float() for name in ("mean", "axes", "index", "distances")
            )
            self._index_kinds = tensors["index_kinds"].long()
        except KeyError as error:
            raise ValueError(f"tensors and settings must have {error.args[0]!r}, which is missing") from None
        shapes = [list(t.shape) for t in (self._mean, self._axes, self._index, self._index_kinds)]
        (wide, along), entries = self._axes.shape, len(self._index)
        if shapes != [[wide], [wide, along], [entries, along + 1], [entries]] or len(self._distances) != len(KINDS):
            raise ValueError(f"mean, axes, index and index_kinds must fit together, got {shapes}")
        self._network = FingerprintReader(len(KINDS))
        weights = {
            name.removeprefix(NETWORK): value.float() for name, value in tensors.items() if name.startswith(NETWORK)
        }
        try:
            self._network.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"tensors must have the network's weights: {error}") from None
        self._network.eval()

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str] | None = None) -> Analyser:
        """Load an index and its classifier.

        Args:
            path: a file that ``python -m benchmarks.build_index`` wrote; None: the one that comes along.

        Raises:
            FileNotFoundError: nothing is there. ValueError: another kind of file.
        """
        from safetensors import SafetensorError, safe_open

        file = SHIPPED if path is None else Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"path must name a file of an index and its classifier, got {file}")
        try:
            with safe_open(file, "pt") as opened:
                metadata = opened.metadata() or {}
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{file} must be a safetensors file: {error}") from None
        if METADATA_KEY not in metadata:
            raise ValueError(f"{file} must be an index of benchmarks.build_index: its metadata lack {METADATA_KEY!r}")
        return cls(tensors, json.loads(metadata[METADATA_KEY]))

    @torch.inference_mode()
    def __call__(self, image: Any) -> Report:
        """Report on one picture.

        Args:
            image: see :func:`bdg_fast.data.convert.as_picture`; of at least 32 x 32 pixels. It is looked at in 8 bits,
                without its alpha, one of more than 768 x 768 pixels at about nine windows of 256 x 256.

        Raises:
            TypeError, ValueError: no picture, several, or too small a one. ImageReadError: an unreadable file.
        """
        return self.report(*self.matrices(image))

    @torch.inference_mode()
    def report(self, gray: Tensor, residual: Tensor) -> Report:
        """Report on the picture of such :meth:`matrices`."""
        fingerprint = FINGERPRINT.join(gray[None], residual[None])
        logits, shares = self._network(fingerprint)
        probabilities = (logits[0].double() / self.temperature).softmax(0).tolist()
        candidates = tuple(sorted(zip(KINDS, probabilities, strict=True), key=lambda found: -found[1]))
        distance, near = (value.item() for value in self.nearest(fingerprint))
        threshold = self.thresholds[KINDS[int(near)]]
        kind, confidence = candidates[0]
        if distance > threshold:
            kind, confidence = UNKNOWN, float((self._distances[int(near)] < distance).double().mean())
        level = None
        if kind in UNITS:
            low, high = RANGES[kind]
            level = low + (high - low) * min(max(float(shares[0, KINDS.index(kind)]), 0.0), 1.0)
        values = [*texture_features(gray).tolist(), *texture_features(residual).tolist()]
        names = [*PROPS, *(f"residual_{name}" for name in PROPS)]
        return Report(
            kind,
            level,
            UNITS.get(kind, ""),
            confidence,
            candidates,
            distance,
            threshold,
            dict(zip(names, values, strict=True)),
        )

    def matrices(self, image: Any) -> tuple[Tensor, Tensor]:
        """Matrices ``[32, 32]`` of a picture's gray levels and of its residual: what a report rests on.

        Args:
            image: as for :meth:`__call__`, which tells the errors too.
        """
        return matrices_of(pixels_of(image))

    def nearest(self, fingerprints: Tensor) -> tuple[Tensor, Tensor]:
        """Distance of fingerprints ``[B, D]`` to the nearest entry of the index, and its kind's number, ``[B]``."""
        return nearest(self.coordinates(fingerprints), self._index, self._index_kinds)

    def coordinates(self, fingerprints: Tensor) -> Tensor:
        """``[B, d + 1]``: fingerprints ``[B, D]`` in the index's directions, as :func:`project` tells."""
        return project(fingerprints, self._mean, self._axes)


def nearest(points: Tensor, index: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
    """Distance from each of ``points [B, d]`` to the nearest of ``index [n, d]``, and what ``kinds [n]`` has there."""
    distance, entry = torch.cdist(points, index).min(1)
    return distance, kinds[entry]


def project(fingerprints: Tensor, mean: Tensor, axes: Tensor) -> Tensor:
    """``[B, d + 1]``: coordinates along ``axes [D, d]``, and the length of what they leave.

    Distances between such points are at most those between the fingerprints.
    """
    centred = fingerprints - mean
    along = centred @ axes
    rest = (centred.square().sum(1) - along.square().sum(1)).clamp_min(0).sqrt()
    return torch.cat((along, rest[:, None]), 1)


def pixels_of(image: Any) -> Tensor:
    """uint8 ``[3, H, W]`` of whatever shows one picture; errors as :meth:`Analyser.__call__` tells."""
    pixels = as_picture(image).pixels
    if len(pixels) != 1:
        raise ValueError(f"image must be one picture, got a batch of {len(pixels)}")
    if min(pixels.shape[2:]) < SMALLEST:
        height, width = pixels.shape[2:]
        raise ValueError(f"image must have at least {SMALLEST} x {SMALLEST} pixels, got {width} x {height}")
    one = pixels[0].cpu()
    # digits below 8 bits give some degradations away, and files have none
    return one if one.dtype == torch.uint8 else one.mul(255).round().to(torch.uint8)


@torch.inference_mode()
def matrices_of(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices ``[32, 32]`` of gray levels and residual of a picture uint8 ``[3, H, W]``: means over its windows."""
    gray, residual = FINGERPRINT.matrices(windows_of(pixels))
    assert gray is not None and residual is not None
    return gray.mean(0), residual.mean(0)


def windows_of(pixels: Tensor) -> Tensor:
    """``[3, H, W]`` as ``[1, 3, H, W]``, or of a large picture windows that spread over it evenly, ``[n, 3, h, w]``."""
    height, width = pixels.shape[1:]
    if height * width <= WHOLE:
        return pixels[None]
    counts = [
        max(1, min(side // WINDOW, round(ROWS * (side / other) ** 0.5)))
        for side, other in ((height, width), (width, height))
    ]
    tops, lefts = (_starts(side, count) for side, count in zip((height, width), counts, strict=True))
    return torch.stack([pixels[:, top : top + WINDOW, left : left + WINDOW] for top in tops for left in lefts])


def _starts(side: int, count: int) -> list[int]:
    """Where ``count`` windows begin along a side: in the middles of as many equal parts of it."""
    return [round((at + 0.5) * side / count - WINDOW / 2) if side > WINDOW else 0 for at in range(count)]
