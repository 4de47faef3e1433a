"""Networks that are told how an image is degraded, by features of its fingerprint."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bdg_fast import Restorer, UNet, UNetConfig
from bdg_fast.losses import frequency_loss
from bdg_fast.models.native import NativeUNet

CONFIG = UNetConfig(width=16, multipliers=(1, 2), condition=8)


@pytest.fixture
def unet():
    """Of weights that have moved, and that heed what they are told."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet(CONFIG)
        with torch.no_grad():
            for name, parameter in unet.named_parameters():
                if name.endswith(("norm1.weight", "norm2.weight", ".gain")):
                    parameter.mul_(1.1)
            unet.condition.embed.weight.mul_(5)
    return unet


def pictures(batch, height=40, width=56, seed=0):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_what_a_network_is_told_is_read_off_the_degraded_image_and_changes_what_it_does(unet):
    x_lq, other = pictures(2) * 2 - 1, pictures(2, seed=1) * 0.2
    x_t, time = torch.randn(2, 3, 40, 56), torch.tensor([900.0, 30.0])
    found = unet(x_t, x_lq, time).residual
    assert torch.equal(found, unet(x_t, x_lq, time, unet.told(x_lq)).residual)
    assert not torch.allclose(found, unet(x_t, x_lq, time, unet.told(other)).residual, atol=1e-3)
    assert UNet(UNetConfig(width=16, multipliers=(1, 2))).told(x_lq) is None


def test_its_encoder_learns_from_the_restoration(unet):
    x_lq = pictures(2) * 2 - 1
    unet(x_lq, x_lq, torch.tensor([999.0])).residual.square().mean().backward()
    gradients = {name: p.grad for name, p in unet.condition.named_parameters()}
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients.values())


def test_eight_bits_tell_the_same_as_floats(unet):
    eight = (pictures(1) * 255).round().to(torch.uint8)
    torch.testing.assert_close(unet.told(eight), unet.told(eight / 127.5 - 1), rtol=1e-4, atol=1e-4)


def test_what_is_read_are_windows_of_the_size_of_training(unet):
    large = pictures(1, 128, 150) * 2 - 1
    found = unet.told(large)
    windows = [large[..., y : y + 64, x : x + 64] for y in (0, 64) for x in (0, 43, 86)]
    expected = torch.stack([unet.told(window) for window in windows]).mean(0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert unet.told(pictures(2, 1, 70) * 2 - 1).shape == (2, 8)


def test_windows_are_read_together_whatever_the_size(unet, monkeypatch):
    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            names.append(function.__name__)
            return function(*arguments, **(options or {}))

    found = []
    for height, width in ((64, 64), (130, 200), (384, 512)):
        names = []
        with Names():
            unet.told(pictures(2, height, width) * 2 - 1)
        found.append(sum(not name.startswith(("alias", "slice", "view")) for name in names))
    assert found[0] == found[1] == found[2] < 60
    many = pictures(3, 130, 200) * 2 - 1
    whole = unet.told(many)
    for together in (1, 7, 12):
        monkeypatch.setattr("bdg_fast.models.condition.TOGETHER", together)
        torch.testing.assert_close(unet.told(many), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_compiled_loops_heed_it(unet, impl):
    x_lq, x_t = pictures(2) * 2 - 1, torch.randn(2, 3, 40, 56)
    told = unet.told(torch.cat((x_lq[:1], x_lq[1:] * 0.1)))
    native = NativeUNet(unet, impl)
    for condition in (None, told):
        expected = unet(x_t, x_lq, torch.tensor([900.0]).expand(2), condition).residual
        found = native(x_t, x_lq, torch.tensor([900.0]).expand(2), condition).residual
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("backend", ["eager", "native"])
def test_a_picture_comes_back_alike_whatever_it_is_restored_with(unet, backend):
    both = torch.cat((pictures(1), pictures(1, seed=1) * 0.1))
    restorer = Restorer(unet, device="cpu", backend=backend, dtype="float32")
    together = restorer.restore(both)
    alone = torch.cat([restorer.restore(one[None]) for one in both])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_progress_changes_nothing(unet):
    restorer, seen = Restorer(unet, device="cpu", backend="eager", dtype="float32"), []
    picture = pictures(1)[0]
    assert torch.equal(restorer(picture, progress=lambda *now: seen.append(now)), restorer(picture))
    assert seen == [(done, restorer.sampler.steps) for done in range(restorer.sampler.steps + 1)]


@pytest.mark.parametrize("method", ["ddim", "ddpm"])
def test_tiles_are_told_of_the_whole_picture(unet, method):
    from dataclasses import replace

    from bdg_fast import ResidualSampler

    sampler = ResidualSampler.of(CONFIG, 2)
    restorer = Restorer(unet, replace(sampler, method=method), device="cpu", backend="eager", tile=144, dtype="float32")
    heard, network = [], restorer._network

    def listening(x_t, x_lq, time, condition=None):
        heard.append(condition)
        return network(x_t, x_lq, time, condition)

    restorer._network = listening
    eight = (pictures(1, 150, 200) * 255).round().to(torch.uint8)
    restorer.restore(eight)
    assert len(heard) > 4 and all(torch.equal(each, unet.told(eight)) for each in heard)


def test_it_is_saved_with_the_network(unet, tmp_path):
    unet.save_pretrained(tmp_path)
    loaded, x_lq = UNet.from_pretrained(tmp_path), pictures(1) * 2 - 1
    assert loaded.config == CONFIG
    torch.testing.assert_close(loaded.told(x_lq), unet.told(x_lq), rtol=0, atol=1e-6)


def test_a_negative_width_is_refused():
    with pytest.raises(ValueError, match="condition must not be negative, got -1"):
        UNetConfig(condition=-1)


def test_the_frequency_loss_counts_where_errors_lie_not_how_long_they_last():
    clean = pictures(2).double()
    assert frequency_loss(clean, clean) == 0
    bright = frequency_loss(clean + 0.1, clean)
    noise = 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert frequency_loss(clean + noise, clean) > 10 * bright > 0  # though both are as large in L2
    torch.testing.assert_close(frequency_loss(clean + 2 * noise, clean), 2 * frequency_loss(clean + noise, clean))
    with pytest.raises(ValueError, match="x_0"):
        frequency_loss(clean, clean[:1])
