"""What a stage trains: the network, what reads fingerprints, and the loss of one part of a step.

    generation    x_t = x_0 + B_t eps                        (5), of clean images: alpha = delta = 0
    bridging      x_t = x_0 + A_t x_res + B_t eps            (8) = (5) + lambda ((6) + (7)): delta = 0
    restoration   x_t = x_0 + A_t x_res + B_t eps - D_t x_lq (9) = |x_0_pred - x_0| + lambda (6), and (10)

In generation nothing is known of a degraded image: the network sees ``x_lq = 0``, so that ``x_res = -x_0``. Its time is
that of the whole schedule in every stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bdg_fast.kernels.forward_process import forward_process
from bdg_fast.kernels.pixelwise import derived_seeds, uniforms

from .. import losses
from ..backends import keep_compiled
from ..models import DegradationClassifier, Fingerprint, GLCMEncoder, Projection
from ..models.backbone import Backbone
from ..models.kinds import new_network, own_config
from ..sampler import ResidualSampler
from ..schedule import ResidualSchedule
from .config import TrainConfig
from .config_stage import COMPARED, Stage

TIMES, NOISE, DEGRADATION, POSTERIOR = 1, 2, 3, 4
"""What seeds are derived for from a sample's seed of a step."""
GRAPHS = 64
"""Of one piece of code that is compiled, at most."""


def step_seeds(seeds: Tensor, step: int, purpose: int) -> Tensor:
    """Seeds int64 ``[B]`` of one purpose in one step, from the samples' ``seeds [B]``."""
    return derived_seeds(derived_seeds(seeds, step), purpose)


def schedule_of(config: TrainConfig) -> ResidualSchedule:
    """That of the network's family, for all stages together."""
    return ResidualSampler.of(own_config(config.network)).schedule


class Parts(nn.Module):
    """The network and everything beside it that is trained, of weights that the run's seed tells.

    Attributes:
        unet: the network.
        encoder, of_matrix, of_features, classifier, temperature: what reads fingerprints; None if no stage uses them.
    """

    def __init__(self, config: TrainConfig, classes: int) -> None:
        """Random weights by ``config.seed``; the global generator stays as it was.

        Raises:
            ValueError: settings that the network cannot do, by name.
        """
        super().__init__()
        settings = config.encoder
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.unet: Backbone = new_network(config.network)
            for layer in self.unet.last_layers():  # begins at x_0 = x_lq, from where the way is short
                for parameter in layer.parameters():
                    nn.init.zeros_(parameter)
            self.encoder: GLCMEncoder | None = None
            if config.uses_encoder:
                told = self.unet.told_width  # a conditional network has an encoder of its own
                if not told:
                    self.encoder = GLCMEncoder(settings.levels, 1 + settings.residual, settings.width, settings.base)
                self.of_matrix = Projection(told or settings.width, settings.projection)
                self.of_features = Projection(self.unet.feature_channels, settings.projection)
                self.classifier = DegradationClassifier(told or settings.width, max(classes, 2))
                self.temperature = losses.Temperature(settings.temperature)
        self._check(config)

    def _check(self, config: TrainConfig) -> None:
        """Refuse what a network of somebody's own cannot do, by the setting that asks for it."""
        name = type(self.unet).__name__
        if config.compile and not self.unet.compiles:
            raise ValueError(f"compile must be false: {name} says that torch.compile cannot take it")
        for where, stage in config.active.items():
            if stage.reads_only and not any("encoder." in key for key in self.trained(stage)):
                told = f"{name} is told of degradations by no condition.encoder, which alone it would train"
                raise ValueError(f"stages.{where}.losses must not be classification alone: {told}")

    def forward(self, stage: StageModule, *inputs: Any) -> dict[str, Tensor]:
        """What ``stage`` computes of ``inputs``: within a call of this module FSDP has the weights gathered."""
        found: dict[str, Tensor] = stage(*inputs)
        return found

    def trained(self, stage: Stage) -> dict[str, nn.Parameter]:
        """Parameters that a stage's loss reaches, by name."""
        weights = stage.losses.weights
        used = ["unet.condition.encoder."] if stage.reads_only else ["unet."]
        if weights.keys() & COMPARED:
            used.append("encoder.")
        if weights.keys() & {"bridging", "negative"}:
            used.append("of_matrix.")
        if "bridging" in weights:
            used += ["of_features.", "temperature."]
        if "classification" in weights:
            used.append("classifier.")
        unused = ("unet.condition.",) if stage.coefficients == "generation" else ()  # where nothing is degraded
        return {
            name: p
            for name, p in self.named_parameters()
            if name.startswith(tuple(used)) and not name.startswith(unused)
        }


class StageModule(nn.Module):
    """The loss of one part of a step, for `parallel.Parallel` to call.

    Args:
        parts: what is trained; shared by the stages.
        config: of the run.
        stage: this one.
        device: of ``parts``.
    """

    def __init__(self, parts: Parts, config: TrainConfig, stage: Stage, device: torch.device) -> None:
        """Make the stage's tables."""
        super().__init__()
        self.parts, self.stage = parts, stage
        whole = schedule_of(config)
        own = whole.stage(stage.coefficients)
        self.forward_table, self.increments = own.forward_table(device), own.increment_table(device)
        self.times = whole.network_time(torch.arange(len(whole)), parts.unet.config.time).to(device)
        steps = stage.sampler_steps
        self.trained = torch.tensor(whole.times(steps)[:-1] if steps else range(len(whole)), device=device)
        settings = config.encoder
        self.fingerprint = Fingerprint(settings.angles, settings.scales, settings.levels, residual=settings.residual)
        self.evaluate = parts.unet.evaluate
        if config.compile:
            keep_compiled()
            self.evaluate = _many_graphs(torch.compile(self.evaluate, dynamic=False))

    @property
    def names(self) -> tuple[str, ...]:
        """Of what :meth:`forward` returns, in its order."""
        terms = tuple(self.stage.losses.weights)
        return ("loss", *terms, "accuracy") if "classification" in terms else ("loss", *terms)

    def forward(
        self, clean: Tensor, degraded: Tensor, classes: Tensor, seeds: Tensor, step: int, seen: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Loss and terms.

        Args:
            clean, degraded: float32 ``[B, 3, H, W]`` in [-1, 1], or latents ``[B, C, h, w]``; ``degraded`` is not read
                in generation.
            classes: int64 ``[B]``, of degradation.
            seeds: int64 ``[B]``, of the samples.
            step: number of the step, of which everything random depends besides.
            seen: what fingerprints are read of, float32 ``[B, 3, H, W]`` in [-1, 1]; default: ``degraded``.

        Returns:
            Scalars by :attr:`names`: ``loss`` has the gradient; terms are without their weights; ``accuracy`` is the
            share of classes that are told right.
        """
        weights, parts = self.stage.losses.weights, self.parts
        seen = degraded if seen is None else seen
        if self.stage.reads_only:
            loss, accuracy = self._classified(self._read(seen), classes)
            return {"loss": weights["classification"] * loss, "classification": loss.detach(), "accuracy": accuracy}
        x_lq = torch.zeros_like(clean) if self.stage.coefficients == "generation" else degraded
        draw = uniforms(step_seeds(seeds, step, TIMES), 1, 0)[:, 0, 0]
        t = self.trained[(draw * len(self.trained)).long().clamp_max(len(self.trained) - 1)]
        x_t, eps = forward_process(clean, x_lq, t, self.forward_table, seed=step_seeds(seeds, step, NOISE))
        height, width = clean.shape[2:]
        known = None if self.stage.coefficients == "generation" else parts.unet.told(seen)
        found = self.evaluate(parts.unet.joined(x_t, x_lq), self.times[t], known)
        residual, noise = (
            None if part is None else part[:, :, :height, :width] for part in (found.residual, found.noise)
        )
        assert residual is not None  # settings refuse networks without it
        restored = x_lq - residual
        terms: dict[str, Tensor] = {}
        if "generation" in weights:
            if self.stage.variant == "plain":
                terms["generation"] = losses.plain_generation_loss(residual, noise, clean, x_lq, eps)
            else:
                noise = self._completed(x_t, x_lq, residual, t) if noise is None else noise
                terms["generation"] = losses.generation_loss(residual, noise, clean, x_lq, eps, t, self.increments)
        if "reconstruction" in weights:
            terms["reconstruction"] = losses.reconstruction_loss(restored, clean)
        if "frequency" in weights:
            terms["frequency"] = losses.frequency_loss(restored, clean)
        result: dict[str, Tensor] = {}
        if weights.keys() & COMPARED:
            features = self._read(seen) if known is None else known
            if weights.keys() & {"bridging", "negative"}:
                f_mas = parts.of_matrix(features)
                if "bridging" in weights:
                    f_diff = parts.of_features(found.features)
                    terms["bridging"] = losses.bridging_loss(f_mas, f_diff, parts.temperature())
                if "negative" in weights:
                    terms["negative"] = losses.negative_loss(f_mas)
            if "classification" in weights:
                terms["classification"], result["accuracy"] = self._classified(features, classes)
        total = _sum(weights[name] * terms[name] for name in weights)
        return {"loss": total, **{name: term.detach() for name, term in terms.items()}, **result}

    def _read(self, degraded: Tensor) -> Tensor:
        """Features of fingerprints, by the encoder that there is: the network's own where it is conditional."""
        encoder = self.parts.encoder
        found = self.parts.unet.told(degraded) if encoder is None else encoder(self.fingerprint(degraded))
        assert found is not None
        return found

    def _classified(self, features: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """(7), and the share of degradations that are told right."""
        logits = self.parts.classifier(features)
        right = (logits.detach().argmax(1) == classes).float().mean()
        return losses.classification_loss(logits, classes), right

    def _completed(self, x_t: Tensor, x_lq: Tensor, residual: Tensor, t: Tensor) -> Tensor:
        """The noise that ``x_t`` holds if the residual is right, as the sampler has it."""
        a, b, d = (column.view(-1, 1, 1, 1) for column in self.forward_table[t].unbind(1))
        return (x_t - (1 - d) * x_lq - (a - 1) * residual) / b


def _many_graphs(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Sharded weights end graphs at every block, whose code has one graph for each of its shapes then."""

    def evaluate(*inputs: Any) -> Any:
        with torch._dynamo.config.patch(recompile_limit=GRAPHS):
            return compiled(*inputs)

    return evaluate


def _sum(terms: Iterable[Tensor]) -> Tensor:
    first, *others = terms
    for term in others:
        first = first + term
    return first
