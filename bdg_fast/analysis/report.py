"""What is told of a picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

KINDS = ("clean", "noise", "blur", "rain", "snow", "haze", "lowlight", "jpeg")
"""What is told apart, by the names of `bdg_fast.data.degrade`."""
UNKNOWN = "unknown"
UNITS = {
    "noise": "standard deviation in 1/255",
    "blur": "standard deviation in pixels",
    "rain": "% of pixels with a streak",
    "snow": "% of pixels with a flake",
    "haze": "optical depth",
    "lowlight": "gamma",
    "jpeg": "100 - quality",
}
"""Of levels; ``clean`` has none."""
LABELS = {"lowlight": "low light", "jpeg": "JPEG compression"}


@dataclass(frozen=True)
class Report:
    """How a picture is degraded."""

    kind: str
    """One of `KINDS`, or ``"unknown"``: farther from all that is known than the threshold."""
    level: float | None
    """In ``unit``, within the range of `bdg_fast.data.degrade`; None for ``clean`` and ``unknown``."""
    unit: str
    """Of the level; empty where there is none."""
    confidence: float
    """Probability of ``kind`` among the known ones; for ``unknown`` the share of known pictures that lie nearer."""
    candidates: tuple[tuple[str, float], ...]
    """All of `KINDS` with their probabilities, which sum to 1, most probable first; also of what is unknown."""
    distance: float
    """To the nearest fingerprint of the index."""
    threshold: float
    """Distance beyond which a picture is unknown; it depends on the kind of what is nearest."""
    features: dict[str, float]
    """`bdg_fast.texture_features` of the gray matrix by name, and as ``residual_<name>`` of the residual's."""

    def as_dict(self) -> dict[str, Any]:
        """Of plain values alone, as JSON has them."""
        plain = asdict(self)
        plain["candidates"] = [{"kind": kind, "probability": share} for kind, share in self.candidates]
        return plain

    def summary(self) -> str:
        """One or two sentences."""
        nearest, share = self.candidates[0]
        if self.kind == UNKNOWN:
            return (
                f"Unlike all known degradations (distance {self.distance:.3f}, known up to {self.threshold:.3f}). "
                f"The most similar kind is {_label(nearest)}."
            )
        what = _label(self.kind)
        found = what[0].upper() + what[1:]
        if self.level is not None:
            found += f" of about {self.level:.3g} ({self.unit})"
        found += f", with {share:.0%} confidence."
        other, rest = self.candidates[1]
        return found if rest < 0.1 else f"{found} It might also be {_label(other)} ({rest:.0%})."


def _label(kind: str) -> str:
    return LABELS.get(kind, kind)
