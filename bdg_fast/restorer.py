"""Restoration of pictures of any kind and size with a trained network."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .memory import free_memory
from .models import UNet, UNetOutput
from .sampler import ResidualSampler

if TYPE_CHECKING:
    from .data.convert import Picture

OVERLAP = 64
"""Pixels that neighbouring tiles share."""
SMALLEST_TILE = 128
LARGEST_TILE = 1024
"""Of what is chosen by memory: the attention between all pixels costs more than it is worth beyond."""
BYTES_PER_PIXEL = {32: 2_300, 64: 5_000}
"""Peak memory of a forward in float32 by network width, measured (benchmarks/notes.md)."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
READERS = 2
"""Threads that read and decode pictures while the network works."""


class Restored(NamedTuple):
    """What :meth:`Restorer.stream` makes of one source."""

    number: int  # of the source, in the order they came
    source: Any
    image: Any  # restored, of the type of the source; None if it failed
    error: Exception | None


class TiledNetwork:
    """A network evaluated tile by tile, its predictions blended where tiles overlap.

    Blending in every step, rather than of finished tiles, leaves no seam: all tiles continue from the same image.
    """

    def __init__(self, network: UNet, tile: int, overlap: int = OVERLAP) -> None:
        """Tiles of ``tile x tile`` pixels, more than twice ``overlap``."""
        if tile <= 2 * overlap:
            raise ValueError(f"tile must be more than twice the overlap of {overlap} pixels, got {tile}")
        self.network, self.tile, self.overlap = network, tile, overlap

    def __call__(self, x_t: Tensor, x_lq: Tensor, time: Tensor) -> UNetOutput:
        """As the network; without features."""
        height, width = x_t.shape[2:]
        if height <= self.tile and width <= self.tile:
            whole: UNetOutput = self.network(x_t, x_lq, time)
            return whole
        sums: dict[str, Tensor] = {}
        weight = x_t.new_zeros(1, 1, height, width)
        features = x_t.new_zeros(0)
        for top, bottom in self._spans(height):
            for left, right in self._spans(width):
                part = (..., slice(top, bottom), slice(left, right))
                found = self.network(x_t[part], x_lq[part], time)
                ramp = self._ramp(top, bottom, height, x_t)[:, None] * self._ramp(left, right, width, x_t)
                weight[part] += ramp
                for name in ("residual", "noise"):
                    prediction = getattr(found, name)
                    if prediction is not None:
                        sums.setdefault(name, torch.zeros_like(x_t))[part] += prediction * ramp
        blended = {name: total / weight for name, total in sums.items()}
        return UNetOutput(blended.get("residual"), blended.get("noise"), features)

    def _spans(self, size: int) -> list[tuple[int, int]]:
        """Begin and end of the tiles along one side: as few as cover it, spread evenly."""
        if size <= self.tile:
            return [(0, size)]
        count = -(-(size - self.overlap) // (self.tile - self.overlap))
        starts = [(size - self.tile) * i // (count - 1) for i in range(count)]
        return [(start, start + self.tile) for start in starts]

    def _ramp(self, begin: int, end: int, size: int, like: Tensor) -> Tensor:
        """Weights along a tile: rising over the overlap from each side that is not the image's own."""
        ramp = like.new_ones(end - begin)
        rise = (torch.arange(self.overlap, device=like.device, dtype=like.dtype) + 1) / (self.overlap + 1)
        if begin > 0:
            ramp[: self.overlap] = rise
        if end < size:
            ramp[-self.overlap :] = torch.minimum(ramp[-self.overlap :], rise.flip(0))
        return ramp


class Restorer:
    """A network, its sampler, and everything between them and a picture.

    Example:
        >>> restorer = Restorer.from_pretrained("model-300.pt")  # doctest: +SKIP
        >>> restorer(Image.open("rainy.jpg")).save("clear.jpg")  # doctest: +SKIP
    """

    def __init__(
        self,
        unet: UNet,
        sampler: ResidualSampler | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: str = "auto",
        tile: int | None = None,
        seed: int = 0,
    ) -> None:
        """Prepare a network for inference: folded, in evaluation mode, on ``device``. ``unet`` itself is changed.

        Args:
            unet: trained weights.
            sampler: default: that of the family the weights belong to, 3 steps.
            device: ``"auto"`` takes a GPU if there is one.
            dtype: of the network's convolutions and products: ``"float32"``, ``"bfloat16"``, ``"float16"``, or
                ``"auto"``: bfloat16 where the device computes it natively, else float32. Norms, softmax and the
                sampler stay float32.
            tile: largest side of what is evaluated at once, in pixels; default: as free memory allows, 1024 at most.
            seed: of the noise. It is drawn for each picture alone, so results do not depend on others.

        Raises:
            ValueError: a bad argument, by name.

        Warns:
            UserWarning: ``unet`` has the weights of a fresh network: what it makes of pictures is no restoration.
        """
        if dtype != "auto" and dtype not in DTYPES:
            raise ValueError(f"dtype must be one of 'auto', {', '.join(map(repr, DTYPES))}, got {dtype!r}")
        if tile is not None and tile <= 2 * OVERLAP:
            raise ValueError(f"tile must be more than twice the overlap of {OVERLAP} pixels, got {tile}")
        if not -(2**63) <= seed < 2**64:
            raise ValueError(f"seed must be an integer of 64 bits, got {seed}")
        self.device = torch.device(_default_device() if device == "auto" else device)
        if not unet.trained:
            warnings.warn("unet is not trained: its weights are those of a fresh network", stacklevel=2)
        self.unet = unet.eval().fold().to(self.device)
        self.sampler = sampler or ResidualSampler.of(unet.config)
        self.dtype = _native_dtype(self.device) if dtype == "auto" else DTYPES[dtype]
        self.tile, self.seed = tile, seed

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str] | None = None, *, steps: int = 3, **options: Any) -> Restorer:
        """Load a checkpoint (:meth:`UNet.from_pretrained`), ours or an official one, with the sampler it was made for.

        Raises:
            FileNotFoundError: no ``path``, or nothing there: no checkpoint comes with the package yet.
        """
        if path is None:
            raise FileNotFoundError("no checkpoint comes with this version: give the path of one")
        unet = UNet.from_pretrained(Path(path))
        return cls(unet, ResidualSampler.of(unet.config, steps), **options)

    def __call__(self, image: Any) -> Any:
        """Restore one picture; returns what came, restored: see :func:`bdg_fast.data.convert.as_picture`."""
        from .data.convert import as_picture  # Pillow is loaded when there is a picture

        picture = as_picture(image)
        return picture.back(self.restore(picture.pixels))

    def stream(self, images: Iterable[Any], *, batch: int = 1) -> Iterator[Restored]:
        """Restore many, reading ahead in threads while the network works; memory does not grow with their number.

        Pictures of one size are restored together, ``batch`` at a time; they wait for company no longer than for
        ``2 batch`` others, so results may come in another order than their sources. What cannot be read or restored
        comes with its error. As many again are read ahead; an error of ``images`` itself is raised when what it gave
        before is restored.

        Args:
            images: whatever :meth:`__call__` takes, paths for example.
            batch: most pictures evaluated together.

        Raises:
            ValueError: ``batch`` is below 1.
        """
        from .data.convert import as_picture  # Pillow is loaded when there is a picture

        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        return self._stream(enumerate(images), batch, as_picture)

    def _stream(self, sources: Iterator[tuple[int, Any]], batch: int, read: Any) -> Iterator[Restored]:
        waiting: dict[torch.Size, list[tuple[int, Any, Picture]]] = {}  # by size; the first has waited longest
        reading: deque[tuple[int, Any, Future[Picture]]] = deque()
        broken: Exception | None = None
        with ThreadPoolExecutor(READERS) as readers, contextlib.ExitStack() as leaving:
            leaving.callback(readers.shutdown, wait=False, cancel_futures=True)  # whoever stops early waits for no more
            while True:
                try:  # a whole batch is read while one is restored
                    while broken is None and len(reading) < READERS + 2 * batch:
                        index, source = next(sources)
                        reading.append((index, source, readers.submit(read, source)))
                except StopIteration:
                    pass
                except Exception as error:  # of the caller's iterable; what it gave before comes first
                    broken = error
                if not reading:
                    break
                index, source, future = reading.popleft()
                try:
                    picture = future.result()
                except Exception as error:  # decoders raise many types; one file must not end the run
                    yield Restored(index, source, None, error)
                    continue
                together = waiting.setdefault(picture.pixels.shape[1:], [])
                together.append((index, source, picture))
                if len(together) == batch:
                    del waiting[picture.pixels.shape[1:]]
                    yield from self._together(together)
                elif sum(map(len, waiting.values())) > 2 * batch:
                    yield from self._together(waiting.pop(next(iter(waiting))))
        for together in waiting.values():
            yield from self._together(together)
        if broken is not None:
            raise broken

    def _together(self, items: Sequence[tuple[int, Any, Picture]]) -> Iterator[Restored]:
        """Pictures of one size; where they fail, each alone, so that none fails for another."""
        try:
            images = self.batch([picture for _, _, picture in items])
        except Exception as error:  # as above
            if len(items) == 1:
                index, source, _ = items[0]
                yield Restored(index, source, None, error)
                return
            for item in items:
                yield from self._together([item])
            return
        for (index, source, _), image in zip(items, images, strict=True):
            yield Restored(index, source, image, None)

    def batch(self, pictures: Sequence[Picture]) -> list[Any]:
        """Restore several pictures; those of one size together."""
        results: list[Any] = [None] * len(pictures)
        sizes: dict[torch.Size, list[int]] = {}
        for index, picture in enumerate(pictures):
            sizes.setdefault(picture.pixels.shape[1:], []).append(index)
        for indices in sizes.values():
            ends = list(accumulate(len(pictures[i].pixels) for i in indices))[:-1]
            restored = self.restore(torch.cat([pictures[i].pixels for i in indices])).tensor_split(ends)
            for i, pixels in zip(indices, restored, strict=True):
                results[i] = pictures[i].back(pixels)
        return results

    @torch.inference_mode()
    def restore(self, pixels: Tensor) -> Tensor:
        """Restore pixels, float ``[B, 3, H, W]`` in [0, 1], to the same on the CPU.

        Where memory runs out, fewer images are evaluated together, then smaller tiles, and the work begins anew.
        """
        x_lq = (pixels.to(torch.float32) * 2 - 1).to(self.device)
        together, side = max(len(x_lq), 1), max(x_lq.shape[2:])
        tile = self.tile or self._tile_for(together)
        while True:
            try:
                return torch.cat([self._sample(part, tile) for part in torch.split(x_lq, together)])
            except RuntimeError as error:
                smaller = min(tile, side) // 2
                if not _out_of_memory(error) or (together == 1 and smaller < SMALLEST_TILE):
                    raise
            if together > 1:
                together = (together + 1) // 2
            else:
                tile = smaller
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _sample(self, x_lq: Tensor, tile: int) -> Tensor:
        network = TiledNetwork(self.unet, max(tile, 2 * OVERLAP + 1))
        low = self.dtype != torch.float32

        def predict(x_t: Tensor, x_lq: Tensor, time: Tensor) -> UNetOutput:
            with torch.autocast(self.device.type, self.dtype) if low else contextlib.nullcontext():
                found = network(x_t, x_lq, time)
            residual, noise = (None if part is None else part.float() for part in (found.residual, found.noise))
            return UNetOutput(residual, noise, found.features)

        # images one by one, so that each has its own noise whatever stands beside it
        if self.sampler.draws:
            results = [self.sampler(predict, image[None], generator=self._generator(self.device)) for image in x_lq]
            restored = torch.cat(results) if results else x_lq
        else:
            noise = torch.randn(x_lq.shape[1:], generator=self._generator("cpu")).to(self.device)
            restored = self.sampler(predict, x_lq, x_start=self.sampler.start(x_lq, noise=noise))
        return ((restored + 1) * 0.5).cpu()

    def _generator(self, device: str | torch.device) -> torch.Generator:
        return torch.Generator(device).manual_seed(self.seed)

    def _tile_for(self, batch: int) -> int:
        """Side of the largest square that half of the free memory holds, within limits."""
        each = BYTES_PER_PIXEL.get(self.unet.config.width, 80 * self.unet.config.width) * batch
        side = int((free_memory(self.device) / 2 / each) ** 0.5)
        return min(max(side // 16 * 16, 2 * OVERLAP + 16), LARGEST_TILE)


def _default_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _native_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where it is computed natively, which is faster there; float32 elsewhere."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        found: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not there in older releases
        native = any(bool(found.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    else:
        native = False
    return torch.bfloat16 if native else torch.float32


def _out_of_memory(error: RuntimeError) -> bool:
    # PyTorch's CPU and MPS allocators raise no type of their own
    known = ("can't allocate memory", "out of memory")
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in known)
