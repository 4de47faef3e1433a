"""The CPU engine within a restorer: memory that it keeps, streams, and what is done where it cannot run."""

import sys
import warnings

import numpy as np
import pytest
import torch

from bdg_fast import Restorer, UNet, UNetConfig


def engine_restorer(multipliers=(1, 1)):
    """By the CPU engine, which takes widths that 16 divides."""
    torch.manual_seed(0)
    unet = UNet(UNetConfig(width=16, multipliers=multipliers))
    torch.nn.init.normal_(unet.final.norm1.weight, 1, 0.2)
    return Restorer(unet, device="cpu")


def images(batch, height, width):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_tiles_do_not_depend_on_what_came_before(monkeypatch):
    restorer = engine_restorer((1, 1, 1, 1))  # so that the attention between all pixels is of few
    assert restorer.backend == "native"
    limit = 150 << 20
    monkeypatch.setattr("bdg_fast.restorer.free_memory", lambda device: limit - restorer._network.held)
    pixels = images(1, 300, 300)
    tile, first = restorer._room().tile, restorer.restore(pixels)
    assert 192 < tile < 300 and restorer._network.held > limit / 8
    assert restorer._room().tile == tile
    assert torch.equal(restorer.restore(pixels), first)


def test_memory_of_the_engine_is_freed_after_pictures_that_waited_for_company():
    restorer = engine_restorer()
    assert len(list(restorer.stream([torch.zeros(3, 32, 32)], batch=2))) == 1
    assert restorer._network.held == 0


def test_memory_of_the_engine_is_freed_after_a_stream_and_above_a_limit(monkeypatch):
    restorer = engine_restorer()
    picture = np.zeros((48, 64, 3), np.uint8)
    assert [found.error for found in restorer.stream([picture] * 3)] == [None] * 3
    assert restorer._network.held == 0
    restorer(picture)
    assert restorer._network.held > 0
    monkeypatch.setattr("bdg_fast.restorer.KEPT_BYTES", 1000)
    restorer(picture)
    assert restorer._network.held == 0


def test_streams_and_batches_of_the_engine():
    restorer = engine_restorer()
    pictures = [np.random.default_rng(n).integers(0, 256, (24 + 8 * (n % 2), 40, 3), np.uint8) for n in range(6)]
    expected = [restorer(picture) for picture in pictures]
    for batch in (1, 4):
        found = sorted(restorer.stream(pictures, batch=batch))
        assert all(np.array_equal(one.image, alone) for one, alone in zip(found, expected, strict=True))


def test_memory_that_runs_out_in_the_engine_halves_the_batch(monkeypatch):
    restorer = engine_restorer()
    pixels = images(4, 32, 32)
    expected = restorer.restore(pixels)
    real, seen, images_of_16_channels = np.empty, [], 32 * 32 * 16

    def scarce(shape, dtype=float):
        if shape in (3 * images_of_16_channels, 4 * images_of_16_channels):
            seen.append(shape)
            raise MemoryError("as NumPy raises it")
        return real(shape, dtype)

    restorer._network.release()
    monkeypatch.setattr("bdg_fast.kernels.unet.cpu_memory.np.empty", scarce)
    assert torch.equal(restorer.restore(pixels), expected) and seen


def test_auto_is_eager_where_the_engine_cannot_run(monkeypatch):
    unet = UNet(UNetConfig(width=16, multipliers=(1, 1)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not trained
        assert Restorer(unet.bfloat16(), device="cpu").backend == "eager"
        monkeypatch.setitem(sys.modules, "bdg_fast.kernels.unet.cpu", None)  # as where numba does not fit NumPy
        unet = UNet(UNetConfig(width=16, multipliers=(1, 1)))
        assert Restorer(unet, device="cpu").backend == "eager"
        with pytest.raises(ValueError, match="got 'native': its loops cannot be loaded"):
            Restorer(unet, device="cpu", backend="native")


def test_loops_run_where_code_cannot_be_kept(monkeypatch):
    from numba.core import caching

    from bdg_fast.kernels.mas_glcm.cpu_jit import can_cache, jit

    for kind in (caching.CodeLibraryCacheImpl, caching.CompileResultCacheImpl):
        monkeypatch.setattr(kind, "_locator_classes", [])
    can_cache.cache_clear()
    try:
        assert not can_cache() and jit(lambda x: x + 1)(1) == 2
    finally:
        can_cache.cache_clear()
