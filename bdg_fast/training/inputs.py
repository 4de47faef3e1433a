"""What steps are trained on: batches of a source, degraded on the device, one ahead of the step that reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.degrade import sent
from ..data.loader import Batch
from .config import TrainConfig
from .config_stage import Stage
from .data import Pair, Source, clean_images, degraded_pair
from .latents import Latents
from .stages import DEGRADATION, step_seeds


class Given(NamedTuple):
    """What one evaluation of a stage's loss gets, on the device."""

    pair: Pair
    seeds: Tensor  # int64 [B]
    seen: list[Tensor]  # what fingerprints are read of, where that is not the degraded images
    numbers: list[int]  # of the images


class Inputs:
    """Batches of a stage as its steps read them.

    Degrading a batch is hundreds of small operations. Begun while a GPU computes the step before, they wait for nothing
    and nothing waits for them; begun in their own step, the GPU would wait for the host that launches them.

    Args:
        config: of the run.
        stage: that is trained.
        source: names what cannot be trained on.
        batches: of the source, from the first that is needed.
        latents: of a run in latents.
        device: of the network.
    """

    def __init__(
        self,
        config: TrainConfig,
        stage: Stage,
        source: Source,
        batches: Iterator[Batch],
        latents: Latents | None,
        device: torch.device,
    ) -> None:
        """Nothing is read yet."""
        self.config, self.stage, self.source, self.latents = config, stage, source, latents
        self.batches, self.device = batches, device
        self._begun: Given | Exception | None = None

    def begin(self, step: int) -> None:
        """Make what ``step`` reads first; an error is kept for that step, and costs the one before it nothing."""
        try:
            self._begun = self._made(step)
        except Exception as error:  # raised by `take`
            self._begun = error

    def take(self, step: int) -> Given:
        """The next part of what ``step`` reads."""
        begun, self._begun = self._begun, None
        if isinstance(begun, Exception):
            raise begun
        return self._made(step) if begun is None else begun

    def _made(self, step: int) -> Given:
        batch = next(self.batches)
        pair, seen = self._pair(batch, step), list[Tensor]()
        if self.latents is not None:
            pair, *seen = self.latents.encoded(pair, self.stage, batch, step)
        return Given(pair, sent(batch.seeds, self.device), seen, batch.numbers.tolist())

    def _pair(self, batch: Batch, step: int) -> Pair:
        """Images and classes; without degraded ones where the stage does not read them."""
        stage, device = self.stage, self.device
        if stage.coefficients == "generation":
            clean = clean_images(batch, device) * 2 - 1
            return Pair(clean, clean, sent(batch.kinds, device))
        if batch.degraded is not None and "classification" in stage.losses.weights and bool((batch.kinds < 0).any()):
            odd = self.source.name(int(batch.numbers[batch.kinds < 0][0]))
            raise ValueError(f"losses.classification must be 0: of {odd} nobody knows how it is degraded")
        seeds = step_seeds(batch.seeds, step, DEGRADATION)
        return degraded_pair(batch, seeds, device, self.config.data.degradations, stage.drawing)
