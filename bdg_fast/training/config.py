"""Settings of a training run, checked when they are made, before anything is built.

Every error begins with the name of what is wrong; `bdg_fast.training.settings` puts the place in a file before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

import torch

from ..data.degrade import NAMES, STATES
from ..data.layouts import LAYOUTS
from ..models import UNetConfig
from ..sampler import ResidualSampler
from ..schedule import STAGES, STEPS

TERMS = ("generation", "reconstruction", "bridging", "classification", "negative")
"""Of a stage's loss: (5), the first of (9), (6), (7) and (10)."""
PUBLISHED = {
    "generation": (1.0, 0.0, 0.0, 0.0, 0.0),
    "bridging": (1.0, 0.0, 0.1, 0.1, 0.0),
    "restoration": (0.0, 1.0, 0.1, 0.0, 1.0),
}
"""Weights of :data:`TERMS` in (5), (8) and (9) with (10), by a stage's coefficients."""
CHAIN = "chain"
"""The degradation that is Real-ESRGAN's two-order chain, whose states are the classes."""
SOURCES = ("photographs", "folder", "paired", *LAYOUTS, "shards")
CLASSES_OF_CHAIN = tuple(f"state {state}" for state in range(STATES))


def _check(good: bool, message: str) -> None:
    if not good:
        raise ValueError(message)


def _choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    _check(value in choices, f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _least(name: str, value: float, least: float) -> None:
    _check(least <= value < math.inf, f"{name} must be at least {least}, got {value}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Losses:
    """Weights of a stage's terms; 0 leaves a term out. What is None takes the published weight of the stage.

    Attributes:
        generation: (5), by the stage's ``variant``.
        reconstruction: ``mean |x_0_pred - x_0|`` of (9).
        bridging: (6), lambda in (8) and (9).
        classification: (7), lambda in (8).
        negative: (10).
    """

    generation: float | None = None
    reconstruction: float | None = None
    bridging: float | None = None
    classification: float | None = None
    negative: float | None = None

    def __post_init__(self) -> None:
        """Refuse negative weights, by name."""
        for name, weight in self.weights.items():
            _least(name, weight, 0)

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One stage of training.

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
    sampler_steps: int = 0

    def __post_init__(self) -> None:
        """Refuse bad settings, by name; complete the weights."""
        _choice("coefficients", self.coefficients, STAGES)
        _choice("schedule", self.schedule, ("cosine", "constant"))
        _choice("variant", self.variant, ("plain", "published"))
        for name, least in (
            ("steps", 0),
            ("batch", 1),
            ("accumulate", 1),
            ("crop", 8),
            ("warmup", 0),
            ("lr_end", 0),
            ("sampler_steps", 0),
        ):
            _least(name, getattr(self, name), least)
        _check(0 < self.lr < math.inf, f"lr must be above 0, got {self.lr}")
        _check(self.sampler_steps <= STEPS, f"sampler_steps must be at most {STEPS}, got {self.sampler_steps}")
        _check(self.lr_end <= self.lr, f"lr_end must be at most lr = {self.lr}, got {self.lr_end}")
        _check(
            self.batch % self.accumulate == 0,
            f"batch must be a multiple of accumulate = {self.accumulate}, got {self.batch}",
        )
        falls = self.schedule == "cosine"
        _check(falls or not self.lr_end, f"lr_end must be 0 for schedule={self.schedule!r}, got {self.lr_end}")
        object.__setattr__(self, "losses", self.losses.completed(self.coefficients))
        weights = self.losses.weights
        plain = self.variant == "plain"
        _check(plain or "generation" in weights, "variant must be 'plain' where losses.generation is 0")
        contrast = weights.keys() & {"bridging", "negative"}
        _check(
            not contrast or self.batch // self.accumulate > 1,
            f"batch must be at least 2 in each accumulated part, where {' and '.join(sorted(contrast))} compare images",
        )
        learned = weights.keys() & {"generation", "reconstruction"}
        _check(bool(learned), "losses must train the network's output: generation or reconstruction must be above 0")
        if self.coefficients == "generation":
            odd = weights.keys() - {"generation", "reconstruction"}
            _check(not odd, f"losses.{', '.join(sorted(odd))} must be 0 in generation, which has no degraded images")
            _check(
                self.degradations is None, "degradations must not be given in generation, which has no degraded images"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoder:
    """What reads fingerprints (`bdg_fast.models.Fingerprint`, `GLCMEncoder`, `Projection`, `losses.Temperature`).

    Attributes:
        angles, scales, levels: of the matrices.
        residual: join the matrix of the high-pass residual.
        width: of the encoder's features.
        base: channels of its first convolution.
        projection: dimensions in which both sides are compared.
        temperature: of similarities, at the start.
    """

    angles: int = 9
    scales: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    levels: int = 32
    residual: bool = False
    width: int = 256
    base: int = 16
    projection: int = 128
    temperature: float = 0.07

    def __post_init__(self) -> None:
        """Refuse bad settings, by name."""
        for name in ("angles", "width", "projection"):
            _least(name, getattr(self, name), 1)
        _check(len(self.scales) > 0 and min(self.scales) > 0, f"scales must be distances above 0, got {self.scales}")
        _check(2 <= self.levels <= 256, f"levels must be in 2..256, got {self.levels}")
        _check(self.base > 0 and self.base % 8 == 0, f"base must be a positive multiple of 8, got {self.base}")
        _check(0.01 < self.temperature < math.inf, f"temperature must be above 0.01, got {self.temperature}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """Training images.

    Attributes:
        source: ``"photographs"`` (the eleven that come along), ``"folder"`` (clean images at any depth), ``"paired"``
            (``input`` and ``target``), a collection's name (:func:`bdg_fast.data.layouts.open_layout`), or
            ``"shards"``.
        root: their folder.
        degradations: names of `bdg_fast.data.degrade`, one drawn for each image, at a random level; they are the
            classes of (7). Or ``("chain",)``: Real-ESRGAN's, with its eight states as classes.
        held_out: images that are not trained on, but restored to measure progress.
        exclude: patterns of file names in ``source="folder"`` (``"holiday-*"``) that are never read: what to test with.
        workers: threads that read images ahead; the photographs that come along are read when asked.
    """

    source: str = "photographs"
    root: str | None = None
    degradations: tuple[str, ...] = ("noise", "blur", "jpeg", "rain", "haze", "lowlight")
    held_out: int = 2
    exclude: tuple[str, ...] = ()
    workers: int = 4

    def __post_init__(self) -> None:
        """Refuse bad settings, by name."""
        names = self.degradations
        _check(len(names) > 0 and len(set(names)) == len(names), f"degradations must be names, each once, got {names}")
        _check(
            CHAIN not in names or len(names) == 1, f"degradations must be {CHAIN!r} alone, or without it, got {names}"
        )
        for name in names:
            known = name in NAMES or name == CHAIN
            _check(known, f"degradations must be of {', '.join(NAMES)}, or {CHAIN!r} alone, got {name!r}")
        _least("held_out", self.held_out, 0)
        _least("workers", self.workers, 0)
        _choice("source", self.source, SOURCES)
        _check(
            not self.exclude or self.source == "folder",
            f"exclude must be empty for source={self.source!r}, got {self.exclude}",
        )
        if self.source == "photographs":
            _check(not self.root, f"root must not be given for source='photographs', which come along: {self.root!r}")
        else:
            _check(bool(self.root), f"root must name the folder of source={self.source!r}")
        if self.source == "shards":
            _check(not self.held_out, f"held_out must be 0 for shards, which cannot hold any out, got {self.held_out}")

    @property
    def classes(self) -> tuple[str, ...]:
        """Of (7), in the order of their numbers."""
        return CLASSES_OF_CHAIN if self.degradations == (CHAIN,) else self.degradations


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimizer:
    """AdamW, anew in each stage.

    Attributes:
        betas, eps: of AdamW.
        weight_decay: of weights of convolutions and linear layers alone, not of gains, biases and the temperature.
        clip: largest norm of all gradients together; 0 does not limit it.
        fused: one launch for all parameters; by default on GPUs.
    """

    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip: float = 1.0
    fused: bool | None = None

    def __post_init__(self) -> None:
        """Refuse bad settings, by name."""
        _check(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            f"betas must be two numbers in [0, 1), got {self.betas}",
        )
        _check(0 < self.eps < math.inf, f"eps must be above 0, got {self.eps}")
        _least("weight_decay", self.weight_decay, 0)
        _least("clip", self.clip, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """When checkpoints are written, beside the end of each stage, and how many stay.

    Attributes:
        every: steps from one to the next.
        keep: how many stay, beside the best one.
    """

    every: int = 5000
    keep: int = 2

    def __post_init__(self) -> None:
        """Refuse bad settings, by name."""
        _least("every", self.every, 1)
        _least("keep", self.keep, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """Restoration of the held-out images by the averaged network, in stages that have degraded images.

    Attributes:
        every: steps from one to the next, beside the end of each stage; 0: none.
        steps: of the sampler.
        crop: side of what is restored of each image, from its middle.
        pictures: of them are shown, degraded, restored and clean.
    """

    every: int = 5000
    steps: int = 3
    crop: int = 256
    pictures: int = 4

    def __post_init__(self) -> None:
        """Refuse bad settings, by name."""
        for name, least in (("every", 0), ("steps", 1), ("crop", 16), ("pictures", 0)):
            _least(name, getattr(self, name), least)


@dataclass(frozen=True, kw_only=True, slots=True)
class Log:
    """What is told while training.

    Attributes:
        every: steps from one line to the next.
        tensorboard: also write for TensorBoard; by default if it is installed.
        wandb: project of Weights & Biases that gets the same; none if not given.
    """

    every: int = 100
    tensorboard: bool | None = None
    wandb: str | None = None

    def __post_init__(self) -> None:
        """Refuse bad settings, by name."""
        _least("every", self.every, 1)
        _check(self.wandb != "", "wandb must name a project, got ''")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Everything that a run depends on.

    Attributes:
        stages: in their order, by name.
        output: folder of the run.
        seed: of all that is random.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``; with several GPUs each process takes its own.
        dtype: of convolutions and products: ``"float32"``, or ``"bfloat16"``, with float32 weights and statistics.
        parallel: how several processes share the weights: ``"ddp"``, a copy each, or ``"fsdp"``, a shard each.
        compile: the network by `torch.compile`.
        ema: largest decay of the averaged weights, which are what is restored with.
        non_finite: what a loss or gradient that is not finite does: ``"stop"``, or ``"skip"`` the step.
        most_skipped: steps in a row that may be skipped before that stops too.
        network: shape and heads.
        encoder, data, optimizer, checkpoint, validation, log: see there.
    """

    stages: dict[str, Stage]
    output: str = "runs/train"
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"
    parallel: str = "ddp"
    compile: bool = False
    ema: float = 0.999
    non_finite: str = "stop"
    most_skipped: int = 10
    network: UNetConfig = field(default_factory=UNetConfig)
    encoder: Encoder = field(default_factory=Encoder)
    data: Data = field(default_factory=Data)
    optimizer: Optimizer = field(default_factory=Optimizer)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    validation: Validation = field(default_factory=Validation)
    log: Log = field(default_factory=Log)

    def __post_init__(self) -> None:
        """Refuse bad settings and what does not go together, by name."""
        _check(any(stage.steps for stage in self.stages.values()), "stages must have one of more than 0 steps")
        _check(0 <= self.seed < 2**63, f"seed must be in 0..2^63 - 1, got {self.seed}")
        try:
            torch.device("cpu" if self.device == "auto" else self.device)
        except RuntimeError:
            raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:1', got {self.device!r}") from None
        _choice("dtype", self.dtype, ("float32", "bfloat16"))
        _choice("parallel", self.parallel, ("ddp", "fsdp"))
        _choice("non_finite", self.non_finite, ("stop", "skip"))
        _check(0 <= self.ema < 1, f"ema must be in [0, 1), got {self.ema}")
        _least("most_skipped", self.most_skipped, 0)
        heads = self.network.heads
        _check(
            heads != "noise", "network.heads must be 'residual' or 'both': noise alone does not tell the restored image"
        )
        most = len(ResidualSampler.of(self.network).schedule)
        _check(self.validation.steps <= most, f"validation.steps must be at most {most}, got {self.validation.steps}")
        for name, stage in self.active.items():
            self._check_stage(f"stages.{name}", stage)

    def _check_stage(self, where: str, stage: Stage) -> None:
        weights = stage.losses.weights
        _check(
            self.network.heads == "residual" or "generation" in weights,
            f"{where}.losses.generation must be above 0 for network.heads='both', whose noise nothing else trains",
        )
        _check(
            "classification" not in weights or len(self.data.classes) > 1,
            f"{where}.losses.classification must be 0 for the one degradation of data.degradations",
        )
        far, compared = max(self.encoder.scales), weights.keys() - {"generation", "reconstruction"}
        _check(stage.crop > far or not compared, f"{where}.crop must be above {far}, the largest of encoder.scales")
        unknown = set(stage.degradations or ()) - set(self.data.degradations)
        _check(not unknown, f"{where}.degradations must be of data.degradations, got {', '.join(sorted(unknown))}")
        _check(stage.degradations != (), f"{where}.degradations must not be empty")

    @property
    def active(self) -> dict[str, Stage]:
        """Stages that have steps."""
        return {name: stage for name, stage in self.stages.items() if stage.steps}

    @property
    def uses_encoder(self) -> bool:
        """Whether any stage compares or classifies fingerprints."""
        return any(stage.losses.weights.keys() - {"generation", "reconstruction"} for stage in self.active.values())


FREE = ("output", "device", "parallel", "checkpoint", "validation", "log", "non_finite", "most_skipped", "data.workers")
"""Settings that may change when a run goes on: results of its steps do not depend on them."""
assert {name.partition(".")[0] for name in FREE} <= {each.name for each in fields(TrainConfig)}
