"""Latents that a network restores in: the codec, how much images are enlarged before it, and colours after it."""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..files import write_atomically
from ..models.checkpoints import CheckpointError
from .codec import Codec
from .colour import COLOURS, corrected
from .vae import CONFIG_FILE, SUBFOLDER, WEIGHTS_FILE, digest, find_vae, load_vae

if TYPE_CHECKING:
    from ..sampler import ResidualSampler

LATENT_FILE = "latent.json"
"""Of a checkpoint, beside the network's files."""
LARGEST_SCALE = 16


@dataclass(frozen=True, kw_only=True)
class LatentSpace:
    """What stands between pixels and a network of latents.

    Attributes:
        codec: the VAE.
        scale: what images are enlarged by before they are encoded; restored ones are of the larger size.
        colour: of the restored image: ``"none"`` (as decoded), ``"adain"`` or ``"wavelet"`` (`bdg_fast.latent.colour`).
        name: of the VAE, a folder or a name on the hub, for checkpoints to refer to.
        folder: of the VAE's files.
        sha256: of its weights.
    """

    codec: Codec
    scale: int = 1
    colour: str = "none"
    name: str | None = None
    folder: Path | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        """Refuse bad settings, by name."""
        _check(self.scale, self.colour)

    @classmethod
    def of(cls, name: str | os.PathLike[str], *, scale: int = 1, colour: str = "none", **codec: Any) -> LatentSpace:
        """With the VAE at ``name`` (:func:`find_vae`); ``codec`` are options of `Codec`."""
        folder = find_vae(name)
        known = str(Path(name).resolve()) if Path(name).exists() else str(name)
        return cls(
            codec=Codec(load_vae(folder), **codec),
            scale=scale,
            colour=colour,
            name=known,
            folder=folder,
            sha256=digest(folder),
        )

    @classmethod
    def from_checkpoint(
        cls, folder: str | os.PathLike[str], vae: str | os.PathLike[str] | None = None, **codec: Any
    ) -> LatentSpace | None:
        """What a network's folder tells (:meth:`save`); None if it is a network of pixels.

        Args:
            folder: of the checkpoint.
            vae: where its VAE is, if it is no longer where it was; default: in ``folder`` itself, or where the folder
                says.
            codec: options of `Codec`.

        Raises:
            CheckpointError: a damaged file, or another VAE than the network was trained with.
            FileNotFoundError: the VAE is not there.
        """
        folder = Path(folder)
        path = folder / LATENT_FILE
        if not path.is_file():
            return None
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            name, sha256, scale, colour = (told[key] for key in ("vae", "sha256", "scale", "colour"))
            _check(scale, colour)
            if not isinstance(name, str):
                raise TypeError(f"vae must be a text, got {name!r}")
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} does not tell of latents: {error}") from None
        own = (folder / SUBFOLDER).is_dir()
        try:
            at = find_vae(vae if vae is not None else folder / SUBFOLDER if own else name)
        except FileNotFoundError as error:
            told = f"{path} asks for it; vae=FOLDER or bdg-fast restore --vae tells another place"
            raise FileNotFoundError(f"{error} ({told})") from None
        if (found := digest(at)) != sha256:
            told = f"the SHA-256 of its weights is {found[:12]}..., not {sha256[:12]}..."
            raise CheckpointError(f"{at} is another VAE than {folder} was trained with: {told}")
        return cls(codec=Codec(load_vae(at), **codec), scale=scale, colour=colour, name=name, folder=at, sha256=sha256)

    def save(self, folder: str | os.PathLike[str], copy: bool = False) -> None:
        """Write :data:`LATENT_FILE` beside a network's files.

        Args:
            folder: that exists.
            copy: the VAE's files too, below ``vae/``: the folder then needs nothing else, and is larger (335 MB for
                Stable Diffusion's). Another VAE there is replaced.

        Raises:
            ValueError: a space of a VAE that came from no file, or ``vae/`` is of another VAE and ``copy`` is false.
        """
        if self.folder is None or self.name is None or self.sha256 is None:
            raise ValueError("a space can be saved if its VAE came from a folder: make it by LatentSpace.of")
        folder = Path(folder)
        inside = folder / SUBFOLDER
        if not _holds(inside, self.folder, self.sha256):  # it does in every validation but the first
            if copy:
                _copy(self.folder, inside)
            elif inside.is_dir():
                raise ValueError(
                    f"{inside} holds another VAE than {self.name}, or none, and would be read: copy=True replaces it"
                )
        told = {"vae": self.name, "sha256": self.sha256, "scale": self.scale, "colour": self.colour}
        text = json.dumps(told, indent=1) + "\n"
        write_atomically(folder / LATENT_FILE, lambda file: file.write_text(text, encoding="utf-8"))

    def on(self, device: torch.device, dtype: torch.dtype) -> LatentSpace:
        """This space, its VAE moved."""
        self.codec.to(device, dtype)
        return self

    def check(self, channels: int) -> None:
        """Refuse a network of other latents, by name."""
        if channels != self.codec.channels:
            raise ValueError(f"network must have {self.codec.channels} channels, those of the VAE, got {channels}")

    def enlarged(self, images: Tensor) -> Tensor:
        """Floating ``[B, C, H, W]`` in [-1, 1] by :attr:`scale`, bicubic."""
        return images if self.scale == 1 else resized(images, [side * self.scale for side in images.shape[2:]])

    def restored(self, images: Tensor, tile: int, restore: Callable[[Tensor], Tensor]) -> Tensor:
        """Restored images in [-1, 1], ``[B, 3, H scale, W scale]``; they and enlarged ones are held in float32.

        Args:
            images: degraded, float ``[B, 3, H, W]`` in [-1, 1].
            tile: most pixels along a side that the VAE is given at once.
            restore: degraded latents to restored ones.
        """
        if not len(images):
            return images.new_zeros(0, 3, *(side * self.scale for side in images.shape[2:]))
        codec, x_lq = self.codec.within(tile), self.enlarged(images)
        return self.decoded(restore(codec.encode(x_lq)), x_lq, codec)

    def decoded(self, latents: Tensor, degraded: Tensor, codec: Codec | None = None) -> Tensor:
        """Restored images in [-1, 1], with the colours that are wanted.

        Args:
            latents: restored, ``[B, channels, h, w]``.
            degraded: what was encoded, float ``[B, 3, H, W]`` in [-1, 1].
            codec: default: :attr:`codec`.
        """
        height, width = degraded.shape[2:]
        found = (codec or self.codec).decode(latents, (height, width))
        return corrected(found, degraded, self.colour).clamp(-1, 1)


def _check(scale: object, colour: object) -> None:
    if not isinstance(scale, int) or not 1 <= scale <= LARGEST_SCALE:
        raise ValueError(f"scale must be in 1..{LARGEST_SCALE}, got {scale!r}")
    if colour not in COLOURS:
        raise ValueError(f"colour must be one of {', '.join(map(repr, COLOURS))}, got {colour!r}")


def _holds(folder: Path, source: Path, sha256: str) -> bool:
    """Whether the VAE of ``source`` is read there: these weights, by the same configuration (it scales latents)."""
    try:
        same = folder.is_dir() and digest(find_vae(folder)) == sha256
        return same and (folder / CONFIG_FILE).read_bytes() == (source / CONFIG_FILE).read_bytes()
    except (OSError, CheckpointError):
        return False


def _copy(source: Path, folder: Path) -> None:
    """A VAE's files alone, as a whole in the place of whatever folder is there."""
    work = folder.with_name(f".bdg-{secrets.token_hex(6)}")
    work.mkdir()
    try:
        (work / "new").mkdir()
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            shutil.copyfile(source / name, work / "new" / name)
        if folder.is_dir():
            os.rename(folder, work / "old")
        os.rename(work / "new", folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def unbounded(sampler: ResidualSampler) -> ResidualSampler:
    """``sampler`` for latents, which have no range to be limited to."""
    return replace(sampler, bound=math.inf, clamp_residual=False)


def resized(images: Tensor, size: Sequence[int]) -> Tensor:
    """Floating ``[B, C, H, W]`` in [-1, 1], bicubic as Pillow does it (antialiased where it shrinks)."""
    return F.interpolate(images, list(size), mode="bicubic", antialias=True).clamp(-1, 1)
