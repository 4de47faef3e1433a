"""Noise that restorations begin with: drawn for a size, and kept for the next picture of it."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .sampler import ResidualSampler

LARGEST = 1 << 20
"""Numbers a channel of noise that is kept: beyond, restoring takes much longer than drawing."""
LEAST_BYTES = 1 << 12
"""That each noise counts for."""


class Kept(NamedTuple):
    """Noise of a size."""

    take: Callable[[], Tensor]  # [1, C, H, W], for the device's current stream
    seed: Tensor | None  # [1]
    bytes: int


class Noises:
    """Noise by size: the same for every picture, as it is drawn with one seed.

    That of the last sizes is kept: drawing it can take longer than restoring.
    """

    def __init__(
        self,
        sampler: ResidualSampler,
        channels: int,
        seed: int,
        device: torch.device,
        most: int,
        send: Callable[[Tensor], Callable[[], Tensor]] | None = None,
    ) -> None:
        """Nothing is drawn.

        Args:
            sampler: whose noise; where its steps draw, theirs has a seed too.
            channels: of the images.
            seed: of everything.
            device: where it is needed.
            most: bytes that are kept.
            send: begins to copy to the device (`Transfers.begin`), so that nobody waits for what is queued there;
                default: copies.
        """
        self.sampler, self.channels, self.seed, self.device, self.most = sampler, channels, seed, device, most
        self._send = send
        self._kept: OrderedDict[torch.Size, Kept] = OrderedDict()

    def __call__(self, size: torch.Size) -> tuple[Tensor, Tensor | None]:
        """Noise at the start of a picture ``[1, C, H, W]`` and seed of its steps' ``[1]``, where they draw.

        Not for a capture to call, which cannot wait for a copy.
        """
        found = self._kept.pop(size, None)  # other threads may take and keep others meanwhile
        new = found is None
        if found is None:
            found = self._drawn(size)
        if size.numel() <= LARGEST:
            self._kept[size] = found
            while new and sum(each.bytes for each in list(self._kept.values())) > self.most:
                with contextlib.suppress(KeyError):
                    self._kept.popitem(last=False)
        return found.take(), found.seed

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._kept)

    def clear(self) -> None:
        """Keep none of those so far."""
        self._kept.clear()

    def generator(self, device: str | torch.device) -> torch.Generator:
        """One that begins with the seed."""
        return torch.Generator(device).manual_seed(self.seed)

    def _drawn(self, size: torch.Size) -> Kept:
        generator = self.generator(self.device if self.sampler.draws else "cpu")
        noise = torch.randn((1, self.channels, *size), generator=generator, device=generator.device)
        seed = self.sampler.seeds(1, self.device, generator) if self.sampler.draws else None
        if self._send is not None and noise.device.type == "cpu":
            take = self._send(noise)
        else:
            take = partial(_itself, noise.to(self.device))
        return Kept(take, seed, max(noise.nbytes, LEAST_BYTES))


def _itself(noise: Tensor) -> Tensor:
    return noise
