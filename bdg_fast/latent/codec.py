"""Images to latents and back, by a frozen VAE: any size, in blended tiles where images are large."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bdg_fast.kernels.pixelwise import image_normals

from ..models.backbone import padded
from ..tiles import ramp, spans
from .vae import find_vae, load_vae

TILE, OVERLAP = 512, 64
"""Pixels of an image that the VAE sees at once, and that neighbours share; latents of each are a few times fewer."""
BYTES_PER_CHANNEL = 40
"""Peak memory of decoding a pixel in float32, for each channel of the VAE's first level: 5,000 bytes for the 128 of
Stable Diffusion's, measured on a CPU."""
POSTERIOR = 0
"""Purpose of the noise that a latent is drawn from its posterior by."""


class Codec:
    """A VAE as two functions: :meth:`encode` and :meth:`decode`. Nothing of it is trained.

    Attributes:
        channels: of latents.
        factor: pixels of an image along one of a latent.
        bytes_per_pixel: of an image: what decoding takes at most, of what is evaluated at once.
    """

    def __init__(
        self,
        vae: Any,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        tile: int = TILE,
        overlap: int = OVERLAP,
    ) -> None:
        """Freeze and move a VAE, in place.

        Args:
            vae: `diffusers.AutoencoderKL`, of RGB images.
            device: where it computes.
            dtype: of its weights and computation. A VAE that overflows in float16 (``force_upcast``) takes float32
                instead; latents and images are float32 whatever it is.
            tile: largest side that is evaluated at once, in pixels; memory grows with its square, beyond image and
                result themselves.
            overlap: pixels that neighbouring tiles share; less than half of ``tile``.

        Raises:
            ValueError: a VAE that is not of RGB, bad sizes, by name.
        """
        config = vae.config
        for name in ("in_channels", "out_channels"):
            if config[name] != 3:
                raise ValueError(f"vae must be of RGB images, {name}=3, got {config[name]}")
        self.channels, self.factor = int(config["latent_channels"]), 2 ** (len(config["block_out_channels"]) - 1)
        self.bytes_per_pixel = BYTES_PER_CHANNEL * int(config["block_out_channels"][0])
        if overlap < self.factor or tile <= 2 * overlap or tile % self.factor or overlap % self.factor:
            raise ValueError(
                f"tile and overlap must be multiples of {self.factor}, tile more than twice overlap, "
                f"got {tile} and {overlap}"
            )
        self.tile, self.overlap = tile // self.factor, overlap // self.factor  # of latents
        self.vae = vae.requires_grad_(False).eval()
        # z = (latent - shift) scale, of unit variance
        scale, shift = (torch.full((1, self.channels, 1, 1), float(config.get(f"{name}_factor") or default))
                        for name, default in (("scaling", 1.0), ("shift", 0.0)))  # fmt: skip
        if config.get("latents_mean") and config.get("latents_std"):
            mean, std = (torch.tensor(config[name]).view(1, -1, 1, 1) for name in ("latents_mean", "latents_std"))
            scale, shift = scale / std, shift + mean
        self.scale, self.shift = scale, shift
        self.to(torch.device(device), dtype)

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move it, in place."""
        self.device = device
        self.dtype = torch.float32 if dtype == torch.float16 and self.vae.config.get("force_upcast") else dtype
        # not diffusers' own method, which warns of models that have parts for float32
        nn.Module.to(self.vae, device, self.dtype)
        self.scale, self.shift = self.scale.to(device), self.shift.to(device)

    def within(self, tile: int) -> Codec:
        """The same with tiles of at most so many pixels, or as many as the overlap needs."""
        smaller = copy.copy(self)
        smaller.tile = min(self.tile, max(tile // self.factor, 2 * self.overlap + 1))
        return smaller

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **options: Any) -> Codec:
        """Load a VAE: see :func:`find_vae`; ``options`` are of the class."""
        return cls(load_vae(find_vae(name)), **options)

    @torch.no_grad()
    def encode(self, images: Tensor, seed: Tensor | None = None) -> Tensor:
        """Latents of images.

        Args:
            images: floating ``[B, 3, H, W]`` in [-1, 1], of any height and width.
            seed: int64 ``[B]``: draw each latent from its posterior by the image's seed; default: the mode of it.

        Returns:
            float32 ``[B, channels, ceil(H / factor), ceil(W / factor)]``, of unit variance as the VAE's configuration
            has it. What is missing to whole latents is continued by reflection.

        Raises:
            ValueError: images of another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
            raise ValueError(f"images must have shape [B, 3, H, W], got {list(images.shape)}")
        x = padded(images.to(self.device, torch.float32), self.factor)
        height, width = (size // self.factor for size in x.shape[2:])

        def moments(part: Tensor) -> Tensor:
            found = self.vae.encode(part.to(self.dtype)).latent_dist
            parts = (found.mean,) if seed is None else (found.mean, found.std)
            return torch.cat(parts, 1).float()

        channels = self.channels * (1 if seed is None else 2)
        z = self._evaluated(moments, x, (channels, height, width), self.factor, 1)
        if seed is not None:
            z, std = z.chunk(2, 1)
            seeds = seed.to(self.device)
            z = z + std * image_normals(seeds, height, width, POSTERIOR, self.channels)
        return (z - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Images of latents.

        Args:
            latents: floating ``[B, channels, h, w]``, as :meth:`encode` gives them.
            size: height and width to crop to; default: all, ``h factor`` and ``w factor``.

        Returns:
            float32 ``[B, 3, H, W]``, in [-1, 1] or a bit beyond.

        Raises:
            ValueError: latents of another shape.
        """
        if latents.ndim != 4 or latents.shape[1] != self.channels or 0 in latents.shape[2:]:
            raise ValueError(f"latents must have shape [B, {self.channels}, h, w], got {list(latents.shape)}")
        z = latents.to(self.device, torch.float32) / self.scale + self.shift
        height, width = (self.factor * side for side in z.shape[2:])

        def decoded(part: Tensor) -> Tensor:
            found: Tensor = self.vae.decode(part.to(self.dtype)).sample
            return found.float()

        images = self._evaluated(decoded, z, (3, height, width), 1, self.factor)
        return images if size is None else images[:, :, : size[0], : size[1]]

    def _evaluated(
        self, call: Callable[[Tensor], Tensor], x: Tensor, shape: tuple[int, int, int], read: int, write: int
    ) -> Tensor:
        """``call`` of ``x [B, C, H, W]``, a tile of ``read`` and ``write`` pixels a latent at a time, or a few images.

        ``shape``: ``[C, H, W]`` of the result.
        """
        batch, height, width = len(x), x.shape[2] // read, x.shape[3] // read
        if batch == 0:
            return x.new_zeros(0, *shape)
        together = max(self.tile**2 // (height * width), 1)
        if height <= self.tile and width <= self.tile:
            parts = [call(part) for part in torch.split(x, together)]
            return torch.cat(parts) if len(parts) > 1 else parts[0]
        result = x.new_zeros(batch, *shape)
        rows, columns = (_weights(side, self.tile, self.overlap, write, result) for side in (height, width))
        for image, found in zip(torch.split(x, 1), torch.split(result, 1), strict=True):
            for (top, bottom), down in rows:
                for (left, right), across in columns:
                    part = call(image[:, :, top * read : bottom * read, left * read : right * read])
                    place = found[:, :, top * write : bottom * write, left * write : right * write]
                    place += part * down[:, None] * across
        return result


def _weights(size: int, tile: int, overlap: int, write: int, like: Tensor) -> list[tuple[tuple[int, int], Tensor]]:
    """Tiles along a side of ``size`` latents, with weights of their ``write`` pixels a latent, which add up to 1."""
    found = spans(size, tile, overlap)
    ramps = [ramp(begin * write, end * write, size * write, overlap * write, like) for begin, end in found]
    total = like.new_zeros(size * write)
    for (begin, end), weights in zip(found, ramps, strict=True):
        total[begin * write : end * write] += weights
    return [((a, b), weights / total[a * write : b * write]) for (a, b), weights in zip(found, ramps, strict=True)]
