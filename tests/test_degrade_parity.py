"""The batched degradations compute what their docstrings say: they are held to plain references, a sample at a time."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("scipy")

import reference_degrade
from bdg_fast.data.degrade import RANGES, degrade
from bdg_fast.data.degrade.jpeg import CHROMA, LUMA, jpeg
from bdg_fast.data.degrade.noise import poisson
from reference_degrade import KINDS

SEEDS = torch.tensor([175, -3, 2**62 + 1])
"""The first has one of the longest streaks."""
ROUNDING = 3e-6
"""Of float32, in images of 0..1; the most seen is 1.1e-6, of sums over 25 x 25 pixels."""


def parts(photographs, height, width):
    """float32 `[3, 3, height, width]`, with black and white in each."""
    images = photographs[:, :, 40 : 40 + height, 30 : 30 + width].float() / 255
    images[:, :, 0, 0], images[:, :, -1, -1] = 0, 1
    return images


@pytest.mark.parametrize("size", [(37, 29), (16, 40), (1, 7)], ids=str)
@pytest.mark.parametrize("share", [0, 0.5, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_what_its_docstring_says(photographs, kind, share, size):
    low, high = RANGES[kind]
    level = float(np.float32(low + share * (high - low)))
    images = parts(photographs, *size)
    found = degrade(images, kind, level, SEEDS).double().numpy()
    pairs = zip(images.double().numpy(), SEEDS.tolist(), strict=True)
    expected = np.stack([np.clip(KINDS[kind](image, level, seed), 0, 1) for image, seed in pairs])
    error = np.abs(found - expected)
    assert (error > ROUNDING).mean() <= (1e-3 if kind == "poisson" else 0)  # a rounding may tip a photon


def test_flakes_of_both_sizes_are_as_many_as_documented(photographs):
    """On pictures large enough that 1 % fewer would show."""
    images = photographs[:, :, :220, :180].float() / 255
    found = degrade(images, "snow", 1.5, SEEDS).double().numpy()
    for one, image, seed in zip(found, images.double().numpy(), SEEDS.tolist(), strict=True):
        np.testing.assert_allclose(one, reference_degrade.snow(image, 1.5, seed), atol=ROUNDING)


def test_ranges_are_the_documented_ones():
    assert RANGES["poisson"] == (0.5, 10) and RANGES["anisotropic_blur"] == (1, 4)
    assert RANGES["motion_blur"] == (3, 25) and RANGES["rain"] == (0.5, 2) and RANGES["snow"] == (0.3, 1.5)
    assert RANGES["haze"] == (0.7, 2) and RANGES["lowlight"] == (1.5, 3.5) and RANGES["noise"] == (5, 50)


@pytest.mark.parametrize("mean", [0.003, 0.4, 2.0, 4.4, 5.0, 5.01, 5.6, 7.3, 30.0, 256.0])
def test_poisson_numbers_are_the_quantiles_of_their_normals(mean):
    """Up to three in 3,000 that float32 rounds to the other side; ranks end at 1 - 1e-6."""
    normal = np.append(np.linspace(-3.9, 3.9, 3001), (-6.8, -5.5, 5.5, 6.8)).astype(np.float32)
    found = poisson(torch.full((len(normal),), mean), torch.from_numpy(normal)).numpy()
    expected = reference_degrade.poisson_numbers(np.float64(np.float32(mean)), normal.astype(float))
    assert (found != expected).sum() <= 3


@pytest.mark.parametrize("size", [(37, 29), (16, 40), (1, 7)], ids=str)
def test_jpeg_is_its_definition(photographs, size):
    """A rounding may tip a coefficient here and there."""
    images = parts(photographs, *size)
    for level in (10, 25.4, 42, 50, 58, 70, 95):
        found = degrade(images, "jpeg", level, SEEDS).double().numpy()
        expected = np.stack([reference_degrade.jpeg(image, 100 - level) for image in images.double().numpy()])
        assert (np.abs(found - expected) > ROUNDING).mean() < 5e-3, level


def as_file(pixels, quality):
    """What Pillow makes of pixels uint8 `[H, W, 3]`, and its tables."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    opened = Image.open(file)
    return np.array(opened), opened.quantization


@pytest.mark.parametrize(("quality", "blocks"), [(5, 8), (10, 8), (30, 8), (50, 8), (75, 8), (90, 8), (100, 40)])
def test_jpeg_of_flat_blocks_is_pillows_to_the_bit(quality, blocks):
    """All roundings but those within the cosine transforms are libjpeg's; at 100 that of every colour shows."""
    colours = np.random.default_rng(0).integers(0, 256, (blocks, blocks, 3), dtype=np.uint8)
    pixels = colours.repeat(16, 0).repeat(16, 1)
    expected, _ = as_file(pixels, quality)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    found = jpeg(images, torch.tensor([100.0 - quality]), SEEDS[:1])[0].permute(1, 2, 0)
    assert torch.equal((found * 255).round().byte(), torch.from_numpy(expected))


def test_tables_of_jpeg_are_those_of_a_file():
    _, tables = as_file(np.zeros((16, 16, 3), dtype=np.uint8), 50)  # neither scaled up nor down
    assert (tables[0], tables[1]) == (list(LUMA), list(CHROMA))
