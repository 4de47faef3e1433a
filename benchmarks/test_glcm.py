"""``pytest benchmarks/ --benchmark-only``: co-occurrence on the CPU against its peers, checked equal first."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from bdg_fast import glcm, mas_glcm

from . import peers
from .conftest import photographs

UPDATES = len(set(peers.OFFSETS))  # a pixel


def tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images)[:, None]


def run(benchmark, function, images, levels=32, rounds=None):  # type: ignore[no-untyped-def]
    """Time ``function``; tell updates a second (distinct offsets) and milliseconds an image."""
    function()
    if rounds:
        benchmark.pedantic(function, rounds=rounds, iterations=1, warmup_rounds=1)
    else:
        benchmark(function)
    if benchmark.stats is not None:
        seconds = benchmark.stats.stats.median
        benchmark.extra_info.update(
            levels=levels,
            images=len(images),
            ms_per_image=1e3 * seconds / len(images),
            updates_per_second=images.size * UPDATES / seconds,
        )


IMPLS = {
    "bdg_fast cpu": lambda images, levels: mas_glcm(tensor(images), levels=levels, impl="cpu"),
    "bdg_fast reference": lambda images, levels: mas_glcm(tensor(images), levels=levels, impl="reference"),
    "scikit-image": peers.scikit_image_mean,
    "torch bincount": lambda images, levels: peers.torch_counts(peers.torch_bincount, torch.from_numpy(images), levels),
    "numba loop": peers.numba_loop,
}


@pytest.fixture(scope="session", autouse=True)
def peers_agree(one: np.ndarray) -> None:
    """No time is worth anything on results that differ."""
    for levels in (8, 32, 256):
        counts = glcm(tensor(one), peers.OFFSETS, levels=levels, normalize=False)
        assert torch.equal(peers.torch_counts(peers.torch_bincount, torch.from_numpy(one), levels), counts)
        assert torch.equal(peers.torch_counts(peers.torch_scatter, torch.from_numpy(one), levels), counts)
        assert np.array_equal(peers.numba_loop(one, levels), counts.numpy())
        theirs = peers.scikit_image(one, levels, normed=False)[0].transpose(2, 3, 0, 1).reshape(counts.shape[1:])
        assert np.array_equal(theirs, counts[0].numpy())
        ours = mas_glcm(tensor(one), levels=levels).numpy()
        np.testing.assert_allclose(ours, peers.scikit_image_mean(one, levels), rtol=1e-6)
        if importlib.util.find_spec("mahotas") is not None:
            fours = glcm(tensor(one), peers.MAHOTAS_OFFSETS, levels=levels, normalize=False)
            assert np.array_equal(peers.mahotas_cooccurrence(one, levels), fours.numpy())


@pytest.mark.parametrize("name", IMPLS)
@pytest.mark.benchmark(group="one image 256 x 256, 54 pairs, 32 levels")
def test_one_image(benchmark, one, name):  # type: ignore[no-untyped-def]
    run(benchmark, lambda: IMPLS[name](one, 32), one)


@pytest.mark.parametrize("name", IMPLS)
@pytest.mark.benchmark(group="64 images 256 x 256, 54 pairs, 32 levels")
def test_batch(benchmark, batch, name):  # type: ignore[no-untyped-def]
    run(benchmark, lambda: IMPLS[name](batch, 32), batch, rounds=15)


@pytest.mark.parametrize("levels", [8, 16, 64, 128, 256])
@pytest.mark.parametrize("name", ["bdg_fast cpu", "scikit-image", "numba loop"])
def test_levels(benchmark, one, name, levels):  # type: ignore[no-untyped-def]
    benchmark.group = f"one image 256 x 256, 54 pairs, {levels} levels"
    run(benchmark, lambda: IMPLS[name](one, levels), one, levels, rounds=9)


@pytest.mark.parametrize(("side", "levels"), [(1, 8), (1, 32), (16, 8), (16, 32), (64, 8), (64, 32), (2048, 32)])
@pytest.mark.parametrize("name", ["bdg_fast cpu", "scikit-image"])
def test_sizes(benchmark, name, side, levels):  # type: ignore[no-untyped-def]
    images = photographs(1, side)
    np.testing.assert_allclose(mas_glcm(tensor(images), levels=levels), peers.scikit_image_mean(images, levels), 1e-6)
    benchmark.group = f"one image {side} x {side}, 54 pairs, {levels} levels"
    run(benchmark, lambda: IMPLS[name](images, levels), images, levels, rounds=5 if side > 1000 else 100)


@pytest.mark.parametrize("kind", ["photograph", "noise", "flat"])
@pytest.mark.benchmark(group="content: one image 256 x 256, 54 pairs, 32 levels")
def test_content(benchmark, one, kind):  # type: ignore[no-untyped-def]
    noise = np.random.default_rng(0).integers(0, 256, one.shape, np.uint8)
    images = {"photograph": one, "noise": noise, "flat": np.full_like(one, 77)}[kind]
    run(benchmark, lambda: IMPLS["bdg_fast cpu"](images, 32), images)


@pytest.mark.parametrize("side", [16, 64, 256])
@pytest.mark.parametrize("levels", [8, 32, 256])
@pytest.mark.parametrize("pairs", [1, 4])
@pytest.mark.parametrize("name", ["bdg_fast cpu", "scikit-image", "mahotas"])
@pytest.mark.benchmark(max_time=0.3)
def test_few_pairs(benchmark, name, pairs, levels, side):  # type: ignore[no-untyped-def]
    """Where the fixed cost of a call shows."""
    from skimage.feature import graycomatrix

    images, offsets = photographs(1, side), peers.MAHOTAS_OFFSETS[:pairs]
    pixels = tensor(images)
    angles = [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4][:pairs]
    benchmark.group = f"one image {side} x {side}, {pairs} of the pairs at distance 1, {levels} levels"

    def ours() -> torch.Tensor:
        return glcm(pixels, offsets, levels=levels, impl="cpu")

    def theirs() -> np.ndarray:  # quantization is part of the work, for both
        return graycomatrix(peers.quantized(images, levels)[0], [1], angles, levels=levels, normed=True)

    np.testing.assert_allclose(ours()[0].numpy(), theirs()[:, :, 0].transpose(2, 0, 1), rtol=1e-6)
    if name == "bdg_fast cpu":
        benchmark(ours)
    elif name == "scikit-image":
        benchmark(theirs)
    else:
        pytest.importorskip("mahotas")
        if (pairs, levels, side) != (4, 32, 256):
            pytest.skip("computes all four directions")
        benchmark(lambda: peers.mahotas_cooccurrence(images, levels))


@pytest.mark.parametrize("source", ["gray", "laplacian"])
@pytest.mark.benchmark(group="64 RGB float32 images 256 x 256, 54 pairs, 32 levels, cpu")
def test_rgb(benchmark, batch, source):  # type: ignore[no-untyped-def]
    images = torch.from_numpy(batch)[:, None].expand(-1, 3, -1, -1).float().div(255).contiguous()
    quantizer = "companded" if source == "laplacian" else "uniform"
    run(benchmark, lambda: mas_glcm(images, source=source, quantizer=quantizer, impl="cpu"), batch, rounds=5)
