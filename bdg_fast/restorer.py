"""Restoration of pictures of any kind and size with a trained network."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .backends import Network, Told, default_device, dtype_of, network_of
from .bands import Keep, gathered, noise_rows, restored_rows, scaled
from .graphs import CudaCapture, LoopGraphs
from .latent import CODEC_TILE, LatentSpace, unbounded
from .memory import free_memory, out_of_memory
from .models import Backbone, UNet, checkpoint_at
from .models.checkpoints import load_backbone
from .models.kinds import find_backbone
from .models.native import NativeUNet
from .noises import Noises
from .room import LARGEST_TILE, SMALLEST_TILE, Room, bytes_per_pixel
from .sampler import OFFICIAL, ResidualSampler
from .streams import Restored, Stream, kind_of
from .tiles import OVERLAP, STRIP, Counted, Progress, TiledNetwork
from .transfers import Transfers

if TYPE_CHECKING:
    from .data.convert import Picture

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NOISE_BYTES = {"cpu": 1 << 26, "cuda": 1 << 28}
"""That noise of sizes seen before may take, by device; on a GPU drawing it takes longer than restoring."""
KEPT_BYTES = 1 << 30
"""That the CPU engine may keep from one call to the next."""


class Restorer:
    """A network, its sampler, and everything between them and a picture.

    Example:
        >>> restorer = Restorer.from_pretrained()  # or a path: "model-300.pt"
        >>> restorer(Image.open("rainy.jpg")).save("clear.jpg")  # doctest: +SKIP
    """

    def __init__(
        self,
        unet: Backbone,
        sampler: ResidualSampler | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: str = "auto",
        backend: str = "auto",
        tile: int | None = None,
        seed: int = 0,
        latent: LatentSpace | None = None,
    ) -> None:
        """Prepare a network for inference: folded, in evaluation mode, on ``device``. ``unet`` itself is changed.

        Args:
            unet: trained weights; a `UNet`, or any other `Backbone`, of three channels or of those of ``latent``.
            sampler: default: that of the family the weights belong to (:meth:`ResidualSampler.of`).
            device: ``"auto"`` takes a GPU if there is one.
            dtype: of the network's convolutions and products: ``"float32"``, ``"bfloat16"``, ``"float16"``, or
                ``"auto"``: bfloat16 where the device computes it natively and the CPU engine, which takes float32, does
                not evaluate; else float32. Norms, softmax and the sampler stay float32.
            backend: how the network is evaluated: ``"eager"``; ``"compiled"``: by `torch.compile`, and on a GPU with
                CUDA graphs of sizes that repeat; ``"native"``: by compiled loops on the CPU, in float32
                (`bdg_fast.models.native`); or ``"auto"``: the fastest that can run here.
            tile: largest side of what is evaluated at once, in pixels; default: as free memory allows, 1024 at most
                (of latents 512).
            seed: of the noise. It is drawn for each picture alone, so results do not depend on others.
            latent: what stands between pixels and a network of latents (`bdg_fast.latent`), in place: the VAE is
                moved to ``device`` and ``dtype``. Pictures come back ``latent.scale`` times as large.

        Raises:
            ValueError: a bad argument, by name. TypeError: ``unet`` is no `Backbone`.

        Warns:
            UserWarning: ``unet`` has the weights of a fresh network: what it makes of pictures is no restoration.
        """
        if not isinstance(unet, Backbone):
            raise TypeError(f"unet must be a bdg_fast.Backbone, as UNet is, got {type(unet).__name__}")
        if latent is not None:
            latent.check(unet.config.channels)
        elif unet.config.channels != 3:
            told = f"unet must be a network of 3 channels, of pixels, got {unet.config.channels}"
            raise ValueError(f"{told}: one of latents needs latent")
        if dtype != "auto" and dtype not in DTYPES:
            raise ValueError(f"dtype must be one of 'auto', {', '.join(map(repr, DTYPES))}, got {dtype!r}")
        if tile is not None and tile <= 2 * OVERLAP:
            raise ValueError(f"tile must be more than twice the overlap of {OVERLAP} pixels, got {tile}")
        if not -(2**63) <= seed < 2**64:
            raise ValueError(f"seed must be an integer of 64 bits, got {seed}")
        self.device = torch.device(default_device() if device == "auto" else device)
        if not unet.trained:
            warnings.warn("unet is not trained: its weights are those of a fresh network", stacklevel=2)
        self.unet = unet.eval().fold().to(self.device)
        self.sampler = sampler or ResidualSampler.of(unet.config)
        if latent is not None:
            self.sampler = unbounded(self.sampler)
        self.dtype = dtype_of(backend, self.unet, self.device) if dtype == "auto" else DTYPES[dtype]
        self.tile = tile
        self.latent = None if latent is None else latent.on(self.device, self.dtype)
        self._pixels = 1 if latent is None else latent.codec.factor  # along one of what the network sees
        self.backend, self._network = network_of(backend, self.unet, self.device, self.dtype)
        self._native = self._network if isinstance(self._network, NativeUNet) else None
        on_gpu = self.device.type == "cuda"
        self._graphs: LoopGraphs | None = None
        self._readings: LoopGraphs | None = None  # of what a conditional network is told
        if on_gpu and self.backend == "compiled":
            self._graphs = LoopGraphs(partial(self._loop, None), CudaCapture(self.device))
            if isinstance(self.unet, UNet) and self.unet.told_width:  # nobody knows what others read
                self._readings = LoopGraphs(self._read, CudaCapture(self.device))
        self._transfers = Transfers(self.device) if on_gpu else None
        self._noises = Noises(
            self.sampler,
            self.unet.config.channels,
            seed,
            self.device,
            NOISE_BYTES.get(self.device.type, NOISE_BYTES["cpu"]),
            None if self._transfers is None else self._transfers.begin,
        )

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        steps: int | None = None,
        backbone: type[Backbone] | str | None = None,
        vae: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> Restorer:
        """Load a checkpoint (:func:`bdg_fast.models.checkpoints.load_backbone`) with the sampler it was made for.

        Args:
            path: default: the small network that comes along (its card: `bdg_fast/models/small`), ``"small"`` by name.
            steps: network evaluations a picture; default: what the network was trained for, 3 for official ones.
            backbone: the class of a network that is not ours, or ``"package.module:Class"``, which is imported; code
                that a checkpoint names is not.
            vae: of a network of latents, where it is not where the checkpoint says: its folder.
            options: of the class.

        Raises:
            FileNotFoundError: there is nothing at ``path``. CheckpointError: it is no checkpoint, or one of a network
                whose class must be given.
        """
        known = find_backbone(backbone) if isinstance(backbone, str) else backbone
        path = checkpoint_at(path)
        unet = load_backbone(path, known)
        if (latent := LatentSpace.from_checkpoint(path, vae)) is not None:
            options["latent"] = latent
        elif vae is not None:
            raise ValueError(f"vae must be given for networks of latents alone, and {str(path)!r} tells of none")
        return cls(unet, ResidualSampler.of(unet.config, steps), **options)

    @property
    def scale(self) -> int:
        """What pictures come back enlarged by."""
        return 1 if self.latent is None else self.latent.scale

    def __call__(self, image: Any, *, progress: Progress | None = None) -> Any:
        """Restore one picture; returns what came, restored: see :func:`bdg_fast.data.convert.as_picture`.

        ``progress(done, total)`` is called at the start (again where memory ran out) and after each evaluation of the
        network, a tile of a step; what it raises ends the work. It goes without CUDA graphs.
        """
        from .data.convert import as_picture  # Pillow is loaded when there is a picture

        picture, restorer = as_picture(image), self if progress is None else copy.copy(self)
        if progress is not None:
            restorer._network = Counted(self._network, progress)
            restorer._graphs = restorer._readings = None
        return picture.whole(restorer.restore(picture.pixels, picture.kept))

    def stream(self, images: Iterable[Any], *, batch: int = 1) -> Iterator[Restored]:
        """Restore many, reading ahead in threads while the network works; memory does not grow with their number.

        Pictures of one size are restored together, ``batch`` at a time; they wait for company no longer than for
        ``8 batch`` others or 512 MB, so results may come in another order than their sources. What cannot be read or
        restored comes with its error. ``2 batch`` and one for each thread that reads, at most, are read ahead; an error
        of ``images`` itself is raised when what it gave before is restored.

        Args:
            images: whatever :meth:`__call__` takes, paths for example.
            batch: most pictures evaluated together.

        Raises:
            ValueError: ``batch`` is below 1.
        """
        from .data.convert import as_picture  # Pillow is loaded when there is a picture

        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        on_gpu = self._transfers is not None
        return Stream(self._begin, as_picture, batch, on_gpu=on_gpu, leave=self._release).restored(enumerate(images))

    @property
    def seed(self) -> int:
        """Of all noise; another one takes another restorer."""
        return self._noises.seed

    def batch(self, pictures: Sequence[Picture]) -> list[Any]:
        """Restore several pictures; those of one size together."""
        return self._begin(pictures)()

    def _begin(self, pictures: Sequence[Picture]) -> Callable[[], list[Any]]:
        """Begin :meth:`batch`; what is returned waits for its results."""
        kinds: dict[object, list[int]] = {}
        for index, picture in enumerate(pictures):
            kinds.setdefault(kind_of(picture), []).append(index)
        parts = []
        for indices in kinds.values():
            first = pictures[indices[0]]
            if len(indices) == 1:
                parts.append((indices, self._begin_restore(first.pixels, first.kept)))
            else:  # each keeps something else
                parts.append((indices, self._begin_restore(torch.cat([pictures[i].pixels for i in indices]))))

        def finish() -> list[Any]:
            results: list[Any] = [None] * len(pictures)
            for indices, wait in parts:
                if len(indices) == 1:
                    results[indices[0]] = pictures[indices[0]].whole(wait())
                    continue
                ends = list(accumulate(len(pictures[i].pixels) for i in indices))[:-1]
                for i, pixels in zip(indices, wait().tensor_split(ends), strict=True):
                    results[i] = pictures[i].back(pixels)
            return results

        return finish if self._transfers is None else self._transfers.beside(finish)

    def _begin_restore(self, pixels: Tensor, keep: Keep | None = None) -> Callable[[], Tensor]:
        """Begin :meth:`restore`; on a GPU what is returned waits for its results, and copies go on beside the work."""
        if self._transfers is None:
            restored = self.restore(pixels) if keep is None else self.restore(pixels, keep)
            return lambda: restored
        with torch.inference_mode():
            wait = self._transfers.to_host(self._restore(self._transfers.to_device(pixels)))
        return wait if keep is None else lambda: keep(wait())

    @torch.inference_mode()
    def restore(self, pixels: Tensor, keep: Keep | None = None, told: Tensor | None = None) -> Tensor:
        """Restore pixels ``[B, 3, H, W]``, float in [0, 1] or uint8, to float32 in [0, 1] on the CPU.

        Results are :attr:`scale` times as large. Where memory runs out, fewer images are evaluated together, then
        smaller tiles, and the work begins anew.

        Args:
            pixels: of any device.
            keep: of any rows of results ``[B, 3, h, W]`` makes what is returned of them, ``[B, C, h, W]``.
            told: ``[B, told_width]``, what a conditional network is told; default: :meth:`told`.

        Raises:
            ValueError, TypeError: pixels of another shape or type. Their values are not looked at (``__call__`` does).
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"pixels must have shape [B, 3, H, W], got {list(pixels.shape)}")
        if pixels.dtype != torch.uint8 and not pixels.is_floating_point():
            raise TypeError(f"pixels must be uint8 or floating, got {str(pixels.dtype).removeprefix('torch.')}")
        told = None if told is None else told.to(self.device)
        if self.device.type == "cpu":
            return self._restore(pixels.cpu(), keep, told)
        restored = self._restore(pixels.to(self.device), told=told).cpu()
        return restored if keep is None else keep(restored)

    @torch.inference_mode()
    def told(self, pixels: Tensor) -> Tensor | None:
        """What a conditional network is told of pixels, as :meth:`restore` takes them; None if it is none."""
        if not self.unet.told_width:
            return None
        pixels = pixels.to(self.device)
        as_came = isinstance(self.unet, UNet) and pixels.dtype == torch.uint8  # others know [-1, 1] alone
        pixels = pixels if as_came else scaled(pixels)
        if self._readings is None or pixels.numel() == 0 or pixels.shape[2:].numel() > LARGEST_TILE**2:
            return self._read(pixels)
        return self._readings(pixels)

    def _read(self, pixels: Tensor) -> Tensor:
        told = self.unet.told(pixels)
        assert told is not None
        return told

    def _restore(self, pixels: Tensor, keep: Keep | None = None, told: Tensor | None = None) -> Tensor:
        """As :meth:`restore`, on the device."""
        height, width = (side * self.scale for side in pixels.shape[2:])
        room = self._room()
        tile = self.tile or room.tile
        together = room.together(len(pixels), height, width, tile)
        again = self._graphs is not None  # what they give back may be what is missing
        while True:
            try:
                # with what each is told, if that is given
                both = (torch.split(of_all, together) for of_all in (pixels, told) if of_all is not None)
                split = zip(*both, strict=True)
                parts = [self._sample(part, tile, keep, *known) for part, *known in split]
                self._release(KEPT_BYTES)
                return torch.cat(parts) if len(parts) > 1 else parts[0]
            except (RuntimeError, MemoryError) as error:
                smaller = min(tile, max(height, width)) // 2
                if not out_of_memory(error) or (together == 1 and smaller < SMALLEST_TILE and not again):
                    raise
            if together > 1:
                together = (together + 1) // 2
            elif again:
                again = False
            else:
                tile = smaller
            self._release()
            self._noises.clear()
            for graphs in (self._graphs, self._readings):
                if graphs is not None:
                    graphs.clear()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _release(self, most: int = 0) -> None:
        """Free what the CPU engine keeps for the next image, if that is more than ``most`` bytes."""
        if self._native is not None and self._native.held > most:
            self._native.release()

    def _sample(self, pixels: Tensor, tile: int, keep: Keep | None = None, told: Tensor | None = None) -> Tensor:
        """Restored pixels in [0, 1], or what is kept of them, both on the device."""
        tile = max(tile, 2 * OVERLAP + 1)
        if isinstance(self._network, Counted):
            size = [-(-side * self.scale // self._pixels) for side in pixels.shape[2:]]
            self._network.begin(self.sampler.steps * self._tiled(self._network, tile).evaluations(*size))
        told = self.told(pixels) if told is None else told
        if self.latent is None and max(pixels.shape[2:]) > tile and not self.sampler.draws:
            return self._by_rows(pixels, tile, keep, told)
        run = partial(self._at_once, tile=tile, told=told)
        restored = run(scaled(pixels)) if self.latent is None else self.latent.restored(scaled(pixels), tile, run)
        restored = (restored + 1) * 0.5
        return restored if keep is None else keep(restored)

    def _tiled(self, network: Network, tile: int) -> TiledNetwork:
        """A network evaluated in tiles of so many pixels of the picture."""
        overlap = OVERLAP // self._pixels
        return TiledNetwork(network, max(tile // self._pixels, 2 * overlap + 1), overlap)

    def _by_rows(self, pixels: Tensor, tile: int, keep: Keep | None, told: Tensor | None) -> Tensor:
        """As :meth:`_sample`; only a band of the picture is held in float32, and what is returned."""
        height, width = pixels.shape[2:]
        if self.device.type == "cpu":
            noise = noise_rows(self.seed, (height, width))
        else:  # what memory there is goes to tiles, and one copy is faster than many
            noise = iter(torch.split(self._noises(pixels.shape[2:])[0], STRIP, 2))
        network, scale = self._tiled(self._telling(told), tile), lambda a, b, c, d: scaled(pixels[:, :, a:b, c:d])
        rows = restored_rows(self.sampler, network, scale, noise, (height, width))
        # what is kept of an array or a file lies in memory as that does: it becomes one without a copy
        as_came = keep is not None and pixels.is_contiguous(memory_format=torch.channels_last)
        order = torch.channels_last if as_came else torch.contiguous_format
        return gathered(((x + 1) * 0.5 for x in rows), height, keep, order)

    def _at_once(self, x_lq: Tensor, tile: int, told: Tensor | None) -> Tensor:
        """Restored ``x_lq``: latents, or pixels in [-1, 1]; of a large picture where its steps draw noise."""
        if self.sampler.draws and self.sampler.method in OFFICIAL:  # images drawn step by step: each alone
            results = []
            for i, image in enumerate(x_lq):
                network = self._tiled(self._telling(None if told is None else told[i : i + 1]), tile)
                results.append(self.sampler(network, image[None], generator=self._noises.generator(self.device)))
            return torch.cat(results) if results else x_lq
        noise, seed = self._noises(x_lq.shape[2:])
        seeds = () if seed is None else (seed.expand(len(x_lq)),)
        inputs = (x_lq, noise, *seeds, *(() if told is None else (told,)))
        if self._graphs is None or len(x_lq) == 0 or max(x_lq.shape[2:]) * self._pixels > tile:
            return self._loop(tile, *inputs)
        return self._graphs(*inputs)

    def _loop(self, tile: int | None, x_lq: Tensor, noise: Tensor, *more: Tensor) -> Tensor:
        """All steps from the start, of images without (``tile=None``) or with tiles.

        ``more``: seeds of the steps' noise where they draw, what a conditional network is told.
        """
        seed, told = more[0] if self.sampler.draws else None, more[-1] if self.unet.told_width else None
        network = self._telling(told)
        network = network if tile is None else self._tiled(network, tile)
        start = self.sampler.start(x_lq, noise=noise)
        return self.sampler(network, x_lq, x_start=start, seed=seed)

    def _telling(self, told: Tensor | None) -> Network:
        return self._network if told is None else Told(self._network, told)

    def _room(self) -> Room:
        """What a restoration may take now."""
        each = bytes_per_pixel(self.unet, self.backend)
        # what the engine keeps for the next call is free too: else tiles would depend on what came before
        free = free_memory(self.device) + (self._native.held if self._native is not None else 0)
        if self.latent is None:
            return Room(free, each)
        return Room(free, each / self._pixels**2, self.latent.codec.bytes_per_pixel, CODEC_TILE)
