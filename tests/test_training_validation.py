"""Validation: PSNR and SSIM against scikit-image, held-out images, the best network, pictures and TensorBoard."""

import types

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from bdg_fast import ResidualSampler, UNet
from bdg_fast.metrics import psnr, ssim
from bdg_fast.ranks import Ranks
from bdg_fast.training import Trainer, checkpoint
from bdg_fast.training.validate import HeldOut
from training_setup import config, losses, pictures, trainer

CPU = Ranks(0, 1, torch.device("cpu"))
VALIDATION = {"every": 3, "crop": 16, "steps": 1, "pictures": 1}


def pairs(photographs):
    clean = photographs[:, :, 40:103, 10:95].float() / 255
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    return (clean + 0.1 * noise).clamp(0, 1), clean


def test_psnr_and_ssim_are_scikit_image_s(photographs):
    images, clean = pairs(photographs)
    for x, y, decibel, alike in zip(images, clean, psnr(images, clean), ssim(images, clean), strict=True):
        a, b = x.double().permute(1, 2, 0).numpy(), y.double().permute(1, 2, 0).numpy()
        assert decibel.item() == pytest.approx(peak_signal_noise_ratio(b, a, data_range=1), abs=1e-9)
        expected = structural_similarity(
            b, a, data_range=1, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert alike.item() == pytest.approx(expected, abs=1e-9)
    assert psnr(clean, clean).isinf().all() and torch.allclose(ssim(clean, clean), torch.ones(3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"images must have at least 11 x 11 pixels, got \[10, 85\]"):
        ssim(images[:, :, :10], clean[:, :, :10])


class Perfect:
    """A network that knows the clean images."""

    def __init__(self, clean):
        self.clean = clean

    def __call__(self, x_t, x_lq, time):
        return types.SimpleNamespace(residual=x_lq - self.clean, noise=None)

    def told(self, x_lq):
        """It is no conditional network."""


def test_a_perfect_network_scores_as_one():
    batch = pictures().held_out(16)
    assert batch is not None
    held = HeldOut(batch, ["noise", "haze"], CPU, 2)
    sampler = ResidualSampler.of(UNet().config, 3)
    scores = held.score(Perfect(batch.clean.float() / 127.5 - 1), sampler)
    assert scores.psnr > 60 > scores.psnr_degraded and scores.ssim > 0.9999
    assert scores.picture is not None and scores.picture.shape == (3, 32, 48)
    assert torch.equal(scores.picture[:, :16, 32:], batch.clean[0])
    again = HeldOut(batch, ["noise", "haze"], CPU, 0).score(Perfect(-torch.ones(3, 16, 16)), sampler)
    assert again.psnr < 30 and again.picture is None and again.psnr_degraded == scores.psnr_degraded


def test_each_image_is_scored_the_same_whatever_the_others():
    batch = pictures().held_out(16)
    assert batch is not None
    whole = HeldOut(batch, ["noise"], CPU, 0)
    alone = HeldOut(type(batch)(*(None if each is None else each[1:] for each in batch)), ["noise"], CPU, 0)
    assert torch.equal(alone.degraded, whole.degraded[1:])


class Idle(Perfect):
    """A network that does nothing."""

    def __init__(self):
        super().__init__(None)

    def __call__(self, x_t, x_lq, time):
        return types.SimpleNamespace(residual=torch.zeros_like(x_lq), noise=None)


def test_clean_images_make_a_network_that_does_nothing_no_better():
    batch = pictures().held_out(16)
    sampler = ResidualSampler.of(UNet().config, 3)
    scores = HeldOut(batch, ["clean", "haze"], CPU, 0).score(Idle(), sampler)
    hazy = HeldOut(type(batch)(*(None if each is None else each[1:] for each in batch)), ["haze"], CPU, 0)
    alone = hazy.score(Idle(), sampler)
    assert scores.numbers == {**alone.numbers, "psnr_clean": 100.0}
    assert scores.psnr == scores.psnr_degraded < 40
    assert HeldOut(batch, ["clean"], CPU, 0).score(Idle(), sampler).psnr == 100


def test_each_degradation_is_validated_however_few_images_are_held_out():
    batch = pictures().held_out(16)
    kinds = ["noise", "haze", "clean", "blur", "rain"]
    held = HeldOut(batch, kinds, CPU, 9)
    assert len(batch.clean) == 2 and len(held.clean) == len(held.seeds) == 5
    assert torch.equal(held.clean[2], held.clean[0]) and torch.equal(held.degraded[2], held.clean[2])
    assert held.score(Idle(), ResidualSampler.of(UNet().config, 1)).picture.shape == (3, 5 * 16, 48)


def test_a_run_validates_keeps_the_best_and_writes_pictures(tmp_path):
    output = tmp_path / "run"
    result = trainer(output, validation=VALIDATION, checkpoint={"every": 1, "keep": 1}).run()
    measured = [line for line in losses(output) if "psnr" in line]
    assert [(line["step"], line["stage"]) for line in measured] == [(6, "bridging"), (9, "restoration")]
    assert result.best == measured[-1]["psnr"]  # an earlier stage's network samples by other coefficients
    assert sorted(path.name for path in (output / "samples").iterdir()) == ["step-00000006.png", "step-00000009.png"]
    assert np.array(Image.open(output / "samples/step-00000009.png")).shape == (16, 48, 3)
    assert UNet.from_pretrained(output / "best").config == config(output).network


def test_networks_are_validated_by_the_sampler_that_restores_with_them(monkeypatch, tmp_path):
    used = []
    score = HeldOut.score
    monkeypatch.setattr(
        HeldOut, "score", lambda self, unet, sampler: (used.append(sampler), score(self, unet, sampler))[1]
    )
    network = {"width": 16, "multipliers": [1], "family": "diffuir"}
    trainer(tmp_path / "run", network=network, validation=VALIDATION, checkpoint={"every": 9}).run()
    bridging, restoration = used
    own = ResidualSampler.official()
    for sampler in used:
        assert (sampler.method, sampler.start_noise, sampler.clamp_residual) == (own.method, 0.1, True)
    assert torch.equal(restoration.schedule.delta, own.schedule.delta) and bridging.schedule.delta.max() == 0


def test_the_best_checkpoint_is_kept(monkeypatch, tmp_path):
    output, values = tmp_path / "run", iter([20.0, 30.0, 25.0, 26.0, 27.0, 28.0])
    score = HeldOut.score
    monkeypatch.setattr(HeldOut, "score", lambda *a: score(*a)._replace(psnr=next(values)))
    changes = {"validation": {**VALIDATION, "every": 1}, "checkpoint": {"every": 1, "keep": 1}}
    run = config(output, stages={"steps": 4}, **changes)
    run.stages.pop("bridging")
    result = Trainer(run, source=pictures(), quiet=True).run(until=7)
    assert result.best == 30 and checkpoint.steps(output / "checkpoints") == [6, 7]
    kept = checkpoint.read(output / "checkpoints/step-00000006")
    best = UNet.from_pretrained(output / "best").state_dict()
    assert all(torch.equal(best[name], tensor) for name, tensor in kept.network.items())


def test_without_held_out_images_nothing_is_validated(tmp_path):
    run = config(tmp_path, validation=VALIDATION)
    assert Trainer(run, source=pictures(held_out=0), quiet=True).run(until=6).best is None
