"""Settings of a stage: its losses and how long it is trained. Their checks are those of all settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ..schedule import STAGES, STEPS

TERMS = ("generation", "reconstruction", "bridging", "classification", "negative", "frequency")
"""Of a stage's loss: (5), the first of (9), (6), (7), (10), and ours."""
COMPARED = {"bridging", "classification", "negative"}
"""Those that read fingerprints."""
READ = {"classification"}
"""The one that needs nothing but fingerprints."""
MOST_TONE = 2.0
"""Of `Stage.tone`: more leaves nothing but black and white."""
PUBLISHED = {
    "generation": (1.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    "bridging": (1.0, 0.0, 0.1, 0.1, 0.0, 0.0),
    "restoration": (0.0, 1.0, 0.1, 0.0, 1.0, 0.0),
}
"""Weights of :data:`TERMS` in (5), (8) and (9) with (10), by a stage's coefficients."""


def check(good: bool, message: str) -> None:
    """ValueError with a message that names the setting, unless it is good."""
    if not good:
        raise ValueError(message)


def choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse what is none of some names."""
    check(value in choices, f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def at_least(name: str, value: float, least: float) -> None:
    """Refuse what is less, or not finite."""
    check(least <= value < math.inf, f"{name} must be at least {least}, got {value}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Losses:
    """Weights of a stage's terms; 0 leaves a term out. What is None takes the published weight of the stage.

    Attributes:
        generation: (5), by the stage's ``variant``.
        reconstruction: ``mean |x_0_pred - x_0|`` of (9).
        bridging: (6), lambda in (8) and (9).
        classification: (7), lambda in (8).
        negative: (10).
        frequency: `losses.frequency_loss` of the restored image; not of the paper.
    """

    generation: float | None = None
    reconstruction: float | None = None
    bridging: float | None = None
    classification: float | None = None
    negative: float | None = None
    frequency: float | None = None

    def __post_init__(self) -> None:
        """Refuse negative weights, by name."""
        for name, weight in self.weights.items():
            at_least(name, weight, 0)

    @property
    def weights(self) -> dict[str, float]:
        """Those that are given and not 0, by term."""
        return {term: weight for term in TERMS if (weight := getattr(self, term)) is not None and weight != 0}

    def completed(self, coefficients: str) -> Losses:
        """With the published weights where none are given."""
        published = zip(TERMS, PUBLISHED[coefficients], strict=True)
        return Losses(
            **{name: weight if getattr(self, name) is None else getattr(self, name) for name, weight in published}
        )


class Drawing(NamedTuple):
    """How degraded images are drawn of clean ones: see the settings of :class:`Stage` that go by these names."""

    degradations: tuple[str, ...] | None = None
    draws: Mapping[str, float] = {}
    mild: float | Mapping[str, float] = 1.0
    tone: float | Mapping[str, float] = 0.0

    @property
    def given(self) -> list[str]:
        """Names of the settings that differ from the defaults."""
        return [name for name, value in self._asdict().items() if value and value != self._field_defaults[name]]


def of_name(setting: float | Mapping[str, float], name: str, otherwise: float) -> float:
    """What a setting for all, or by name, is for one name."""
    return setting.get(name, otherwise) if isinstance(setting, Mapping) else setting


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One stage of training.

    A stage of (7) alone trains the encoder of fingerprints, in a conditional network the network's own, at some fifty
    times the images a second: what tells degradations apart need not be found out in the course of restoring.

    Attributes:
        coefficients: of the diffusion (`ResidualSchedule.stage`): ``"generation"``, ``"bridging"``, ``"restoration"``.
        steps: optimizer steps; 0 leaves the stage out.
        batch: images of one step, of all ranks and accumulated parts together.
        accumulate: parts that a rank computes one after another and adds up. Contrastive losses compare the images of
            one part, of all ranks.
        crop: side of the square training images, in pixels.
        lr: largest learning rate.
        schedule: ``"cosine"`` falls to ``lr_end``, ``"constant"`` stays.
        lr_end: what ``"cosine"`` falls to, just after the last step, so that every step learns.
        warmup: steps in which the learning rate rises from nearly 0.
        losses: weights of the terms, by default those of the coefficients.
        variant: of (5): ``"plain"`` weighs all times alike; ``"published"`` is the equation, some 1e-5 of it, beside
            which lambda times (6) and (7) would be nearly all of (8).
        degradations: of `Data.degradations`, those that this stage sees; all if not given.
        draws: how often degradations are drawn, relative to the others: 1 where not given (``{noise: 3}``).
        mild: levels of degradations are uniform for 1; above, low ones are more frequent (power of a uniform one). For
            all, or by name (``{noise: 2}``): 1 where not given.
        tone: clean images are brightened or darkened before they are degraded: ``x^g``, with the logarithm of g uniform
            between -tone and tone. For all, or by name (``{noise: 0.4}``): 0, as they are, where not given. So that
            dark photographs with mild noise are not only those few of the collection.
        sampler_steps: train only the times at which a sampler of so many steps evaluates the network; 0 trains all.
    """

    coefficients: str
    steps: int
    batch: int = 16
    accumulate: int = 1
    crop: int = 128
    lr: float = 2e-4
    schedule: str = "cosine"
    lr_end: float = 0.0
    warmup: int = 0
    losses: Losses = field(default_factory=Losses)
    variant: str = "plain"
    degradations: tuple[str, ...] | None = None
    draws: dict[str, float] = field(default_factory=dict)
    mild: float | dict[str, float] = 1.0
    tone: float | dict[str, float] = 0.0
    sampler_steps: int = 0

    def __post_init__(self) -> None:
        """Refuse bad settings, by name; complete the weights."""
        choice("coefficients", self.coefficients, STAGES)
        choice("schedule", self.schedule, ("cosine", "constant"))
        choice("variant", self.variant, ("plain", "published"))
        for name, least in (
            ("steps", 0),
            ("batch", 1),
            ("accumulate", 1),
            ("crop", 8),
            ("warmup", 0),
            ("lr_end", 0),
            ("sampler_steps", 0),
        ):
            at_least(name, getattr(self, name), least)
        never = {name: often for name, often in self.draws.items() if not 0 < often < math.inf}
        check(not never, f"draws must be above 0, got {never}")
        powers = self.mild.values() if isinstance(self.mild, dict) else [self.mild]
        check(all(0 < power < math.inf for power in powers), f"mild must be above 0, got {self.mild}")
        tones = self.tone.values() if isinstance(self.tone, dict) else [self.tone]
        check(all(0 <= tone <= MOST_TONE for tone in tones), f"tone must be 0 to {MOST_TONE}, got {self.tone}")
        check(0 < self.lr < math.inf, f"lr must be above 0, got {self.lr}")
        check(self.sampler_steps <= STEPS, f"sampler_steps must be at most {STEPS}, got {self.sampler_steps}")
        check(self.lr_end <= self.lr, f"lr_end must be at most lr = {self.lr}, got {self.lr_end}")
        check(
            self.batch % self.accumulate == 0,
            f"batch must be a multiple of accumulate = {self.accumulate}, got {self.batch}",
        )
        falls = self.schedule == "cosine"
        check(falls or not self.lr_end, f"lr_end must be 0 for schedule={self.schedule!r}, got {self.lr_end}")
        object.__setattr__(self, "losses", self.losses.completed(self.coefficients))
        weights = self.losses.weights
        plain = self.variant == "plain"
        check(plain or "generation" in weights, "variant must be 'plain' where losses.generation is 0")
        contrast = weights.keys() & {"bridging", "negative"}
        check(
            not contrast or self.batch // self.accumulate > 1,
            f"batch must be at least 2 in each accumulated part, where {' and '.join(sorted(contrast))} compare images",
        )
        learned = weights.keys() & {"generation", "reconstruction"} or self.reads_only
        check(
            bool(learned),
            "losses must train the network's output (generation or reconstruction above 0), "
            "or classification alone, the encoder of fingerprints",
        )
        if self.coefficients == "generation":
            odd = weights.keys() - {"generation", "reconstruction"}
            check(not odd, f"losses.{', '.join(sorted(odd))} must be 0 in generation, which has no degraded images")
            given = ", ".join(self.drawing.given)
            check(not given, f"{given} must not be given in generation, which has no degraded images")

    @property
    def drawing(self) -> Drawing:
        """How its degraded images are drawn."""
        return Drawing(self.degradations, self.draws, self.mild, self.tone)

    @property
    def reads_only(self) -> bool:
        """Whether it trains what reads fingerprints alone, so that the network need not be evaluated."""
        return self.losses.weights.keys() == READ
