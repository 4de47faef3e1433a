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
from ..models.kinds import NetworkConfig, own_config
from ..sampler import ResidualSampler
from .config_latent import Latent
from .config_stage import COMPARED, Stage, at_least, check, choice

CHAIN = "chain"
"""The degradation that is Real-ESRGAN's two-order chain, whose states are the classes."""
COLLECTIONS = {name: layout for name, layout in LAYOUTS.items() if "train" in layout.splits}
SOURCES = ("photographs", "folder", "paired", *COLLECTIONS, "shards")
CLASSES_OF_CHAIN = tuple(f"state {state}" for state in range(STATES))


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoder:
    """What reads fingerprints (`bdg_fast.models.Fingerprint`, `GLCMEncoder`, `Projection`, `losses.Temperature`).

    A conditional network has a fingerprint and an encoder of its own (`network.condition`): of these settings only
    ``projection`` and ``temperature`` are for it.

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
            at_least(name, getattr(self, name), 1)
        check(len(self.scales) > 0 and min(self.scales) > 0, f"scales must be distances above 0, got {self.scales}")
        check(2 <= self.levels <= 256, f"levels must be in 2..256, got {self.levels}")
        check(self.base > 0 and self.base % 8 == 0, f"base must be a positive multiple of 8, got {self.base}")
        check(0.01 < self.temperature < math.inf, f"temperature must be above 0.01, got {self.temperature}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """Training images.

    Attributes:
        source: ``"photographs"`` (the eleven that come along), ``"folder"`` (clean images at any depth), ``"paired"``
            (``input`` and ``target``), a collection's name (:func:`bdg_fast.data.layouts.open_layout`), or
            ``"shards"``.
        root: their folder.
        factor: of enlargement, of collections that have several; by default the first of
            :func:`~bdg_fast.data.layouts.open_layout`'s (of ``div2k``: clean images alone).
        degradations: names of `bdg_fast.data.degrade`, one drawn for each image, at a random level; they are the
            classes of (7). Or ``("chain",)``: Real-ESRGAN's, with its eight states as classes.
        held_out: images that are not trained on, but restored to measure progress.
        exclude: patterns of file names in ``source="folder"`` (``"holiday-*"``) that are never read: what to test with.
        workers: threads that read images ahead; the photographs that come along are read when asked.
    """

    source: str = "photographs"
    root: str | None = None
    factor: int | None = None
    degradations: tuple[str, ...] = ("noise", "blur", "jpeg", "rain", "haze", "lowlight")
    held_out: int = 2
    exclude: tuple[str, ...] = ()
    workers: int = 4

    def __post_init__(self) -> None:
        """Refuse bad settings, by name."""
        names = self.degradations
        check(len(names) > 0 and len(set(names)) == len(names), f"degradations must be names, each once, got {names}")
        check(
            CHAIN not in names or len(names) == 1, f"degradations must be {CHAIN!r} alone, or without it, got {names}"
        )
        for name in names:
            known = name in NAMES or name == CHAIN
            check(known, f"degradations must be of {', '.join(NAMES)}, or {CHAIN!r} alone, got {name!r}")
        at_least("held_out", self.held_out, 0)
        at_least("workers", self.workers, 0)
        choice("source", self.source, SOURCES)
        check(
            not self.exclude or self.source == "folder",
            f"exclude must be empty for source={self.source!r}, got {self.exclude}",
        )
        if self.source == "photographs":
            check(not self.root, f"root must not be given for source='photographs', which come along: {self.root!r}")
        else:
            check(bool(self.root), f"root must name the folder of source={self.source!r}")
        if self.factor is not None:
            allowed = [each for each in getattr(COLLECTIONS.get(self.source), "factors", ()) if each]
            told = f"one of {', '.join(map(str, allowed))}" if allowed else "not given"
            check(self.factor in allowed, f"factor must be {told} for source={self.source!r}, got {self.factor}")
        if self.source == "shards":
            check(not self.held_out, f"held_out must be 0 for shards, which cannot hold any out, got {self.held_out}")

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
        check(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            f"betas must be two numbers in [0, 1), got {self.betas}",
        )
        check(0 < self.eps < math.inf, f"eps must be above 0, got {self.eps}")
        at_least("weight_decay", self.weight_decay, 0)
        at_least("clip", self.clip, 0)


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
        at_least("every", self.every, 1)
        at_least("keep", self.keep, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """Restoration of the held-out images by the averaged network, in stages that have degraded images.

    Attributes:
        every: steps from one to the next, beside the end of each stage; 0: none.
        steps: of the sampler; by default those that ``network.sampler_steps`` says.
        crop: side of what is restored of each image, from its middle.
        pictures: of them are shown, degraded, restored and clean.
        root: folder of other images to restore, in place of `Data.held_out`, which is 0 then: clean ones, or, if the
            images to train on come in pairs, ``input`` and ``target``. Shards have no other way.
        images: of ``root``, evenly over it, at most.
    """

    every: int = 5000
    steps: int | None = None
    crop: int = 256
    pictures: int = 4
    root: str | None = None
    images: int = 16

    def __post_init__(self) -> None:
        """Refuse bad settings, by name."""
        for name, least in (("every", 0), ("crop", 16), ("pictures", 0), ("images", 1)):
            at_least(name, getattr(self, name), least)
        if self.steps is not None:
            at_least("steps", self.steps, 1)
        check(self.root != "", "root must name a folder of images, got ''")


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
        at_least("every", self.every, 1)
        check(self.wandb != "", "wandb must name a project, got ''")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Everything that a run depends on.

    Attributes:
        stages: in their order, by name.
        output: folder of the run.
        init: what the network's weights are at the start: a folder, file or hub name for
            :func:`bdg_fast.models.checkpoints.load_backbone`, of a network like ``network``; random ones if not given.
        seed: of all that is random.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``; with several GPUs each process takes its own.
        dtype: of convolutions and products: ``"float32"``, or ``"bfloat16"``, with float32 weights and statistics.
        parallel: how several processes share the weights: ``"ddp"``, a copy each, or ``"fsdp"``, a shard each.
        compile: the network by `torch.compile`.
        ema: largest decay of the averaged weights, which are what is restored with.
        non_finite: what a loss or gradient that is not finite does: ``"stop"``, or ``"skip"`` the step.
        most_skipped: steps in a row that may be skipped before that stops too.
        network: shape and heads: of a `UNet`, or in settings another ``kind``: ``diffusers`` (`DiffusersConfig`), or
            ``package.module:Class`` with its ``options`` (`ModuleConfig`).
        latent: what a network of latents is trained in; None: pixels.
        encoder, data, optimizer, checkpoint, validation, log: see there.
    """

    stages: dict[str, Stage]
    output: str = "runs/train"
    init: str | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"
    parallel: str = "ddp"
    compile: bool = False
    ema: float = 0.999
    non_finite: str = "stop"
    most_skipped: int = 10
    network: NetworkConfig = field(default_factory=UNetConfig)
    latent: Latent | None = None
    encoder: Encoder = field(default_factory=Encoder)
    data: Data = field(default_factory=Data)
    optimizer: Optimizer = field(default_factory=Optimizer)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    validation: Validation = field(default_factory=Validation)
    log: Log = field(default_factory=Log)

    def __post_init__(self) -> None:
        """Refuse bad settings and what does not go together, by name."""
        check(any(stage.steps for stage in self.stages.values()), "stages must have one of more than 0 steps")
        check(0 <= self.seed < 2**63, f"seed must be in 0..2^63 - 1, got {self.seed}")
        try:
            torch.device("cpu" if self.device == "auto" else self.device)
        except RuntimeError:
            raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:1', got {self.device!r}") from None
        check(self.init != "", "init must name a trained network, got ''")
        choice("dtype", self.dtype, ("float32", "bfloat16"))
        choice("parallel", self.parallel, ("ddp", "fsdp"))
        choice("non_finite", self.non_finite, ("stop", "skip"))
        check(0 <= self.ema < 1, f"ema must be in [0, 1), got {self.ema}")
        at_least("most_skipped", self.most_skipped, 0)
        network = own_config(self.network)
        heads = network.heads
        check(
            heads != "noise", "network.heads must be 'residual' or 'both': noise alone does not tell the restored image"
        )
        latent = self.latent is not None
        check(latent or network.channels == 3, f"network.channels must be 3 without latent, got {network.channels}")
        most = len(ResidualSampler.of(network).schedule)
        steps = self.validation.steps
        check(steps is None or steps <= most, f"validation.steps must be at most {most}, got {steps}")
        for name, stage in self.active.items():
            self._check_stage(f"stages.{name}", stage)
        if self.latent is not None and self.validation.every:
            scale, crop = self.latent.scale, self.validation.crop
            check(crop % scale == 0, f"validation.crop must be a multiple of latent.scale={scale}, got {crop}")

    def _check_stage(self, where: str, stage: Stage) -> None:
        weights = stage.losses.weights
        check(
            own_config(self.network).heads == "residual" or "generation" in weights or stage.reads_only,
            f"{where}.losses.generation must be above 0 for network.heads='both', whose noise nothing else trains",
        )
        check(
            "classification" not in weights or len(self.data.classes) > 1,
            f"{where}.losses.classification must be 0 for the one degradation of data.degradations",
        )
        reduced = 1 if self.latent is None else self.latent.scale  # fingerprints are of small images
        check(stage.crop % reduced == 0, f"{where}.crop must be a multiple of latent.scale={reduced}, got {stage.crop}")
        far, compared = max(self.encoder.scales) * reduced, weights.keys() & COMPARED
        check(stage.crop > far or not compared, f"{where}.crop must be above {far}, the largest of encoder.scales")
        unknown = set(stage.degradations or ()) - set(self.data.degradations)
        check(not unknown, f"{where}.degradations must be of data.degradations, got {', '.join(sorted(unknown))}")
        check(stage.degradations != (), f"{where}.degradations must not be empty")
        seen = set(stage.degradations or self.data.degradations)
        for name, given in (("draws", stage.draws), ("mild", stage.mild), ("tone", stage.tone)):
            unknown = set(given if isinstance(given, dict) else ()) - (seen - {CHAIN})
            odd = ", ".join(sorted(unknown))
            check(not unknown, f"{where}.{name} must be of the degradations drawn from, got {odd}")
            drawn = name not in stage.drawing.given or CHAIN not in seen
            check(drawn, f"{where}.{name} must not be given for {CHAIN!r}, which draws for itself")

    @property
    def active(self) -> dict[str, Stage]:
        """Stages that have steps."""
        return {name: stage for name, stage in self.stages.items() if stage.steps}

    @property
    def uses_encoder(self) -> bool:
        """Whether any stage compares or classifies fingerprints."""
        return any(stage.losses.weights.keys() & COMPARED for stage in self.active.values())


FREE = ("output", "device", "parallel", "checkpoint", "validation.every", "validation.pictures", "log", "non_finite",
        "most_skipped", "data.workers", "latent.vae", "latent.colour", "latent.copy")  # fmt: skip
"""Settings that may change when a run goes on: its steps do not depend on them (a VAE is known by its weights)."""
assert {name.partition(".")[0] for name in FREE} <= {each.name for each in fields(TrainConfig)}
