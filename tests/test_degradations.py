"""Degradations: seeded per sample, within range, stronger with the level."""

import pytest
import torch

from bdg_fast.data.degradations import KINDS, LEVELS, degrade


@pytest.fixture(scope="module")
def images(photographs):
    return photographs[:, :, :96, :80].float() / 255


@pytest.mark.parametrize("kind", KINDS)
def test_keeps_shape_and_range_and_the_input(images, kind):
    before = images.clone()
    degraded = degrade(images, kind, LEVELS[kind][2], seed=1)
    assert degraded.shape == images.shape
    assert degraded.dtype == torch.float32
    assert float(degraded.min()) >= 0
    assert float(degraded.max()) <= 1
    assert torch.equal(images, before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_depends_on_its_own_seed_alone(images, kind):
    together = degrade(images, kind, LEVELS[kind][1], seed=[3, 4, 5])
    alone = degrade(images[1:2], kind, LEVELS[kind][1], seed=4)
    assert torch.equal(together[1], alone[0])
    other = degrade(images[1:2], kind, LEVELS[kind][1], seed=6)
    assert torch.equal(other, alone) == (kind in ("blur", "jpeg"))  # these two are not random


@pytest.mark.parametrize("kind", KINDS)
def test_stronger_levels_change_more(images, kind):
    errors = [(degrade(images, kind, level, seed=0) - images).square().mean().item() for level in LEVELS[kind]]
    assert 0 < errors[0] < errors[1] < errors[2]


def test_noise_has_the_stated_standard_deviation():
    gray = torch.full((1, 3, 200, 200), 0.5)
    assert (degrade(gray, "noise", 25, seed=0) - gray).std().item() == pytest.approx(25 / 255, rel=0.01)


def test_blur_keeps_flat_images(images):
    flat = torch.full((1, 3, 40, 50), 0.3)
    torch.testing.assert_close(degrade(flat, "blur", 3, seed=0), flat)


def test_empty_batch():
    assert degrade(torch.zeros(0, 3, 8, 8), "rain", 1, seed=[]).shape == (0, 3, 8, 8)


def test_bad_input_is_named(images):
    with pytest.raises(ValueError, match=r"kind must be one of noise, .*got 'fog'"):
        degrade(images, "fog", 1, seed=0)
    with pytest.raises(ValueError, match=r"level of 'blur' must be in 1\.\.3, got 9"):
        degrade(images, "blur", 9, seed=0)
    with pytest.raises(ValueError, match="seed must be one integer or 3 of them, got 2"):
        degrade(images, "blur", 2, seed=[1, 2])
    with pytest.raises(ValueError, match="images must be float32"):
        degrade(images[0], "blur", 2, seed=0)
