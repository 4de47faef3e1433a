"""Large pictures by rows: to the bit what the whole gives, and no picture in float32."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from bdg_fast import ResidualSampler, ResidualSchedule, Restorer, UNet, UNetConfig, bands
from bdg_fast.data.convert import as_picture
from bdg_fast.models import UNetOutput
from bdg_fast.tiles import TiledNetwork

TILE = 130


class Local:
    """A network that sees a pixel's surroundings and its tile's mean."""

    def __init__(self, heads):
        self.heads = heads

    def __call__(self, x_t, x_lq, time):
        blurred = torch.nn.functional.avg_pool2d(x_lq, 9, 1, 4, count_include_pad=False)
        residual, noise = 0.3 * blurred + 0.1 * x_t, x_t - blurred + x_t.mean((2, 3), keepdim=True)
        return UNetOutput(
            residual if self.heads != "noise" else None, noise if self.heads != "residual" else None, x_t[:0]
        )


class AtOnce(TiledNetwork):
    """Tiles blended in sums of the whole picture."""

    def __call__(self, x_t, x_lq, time):
        sums, weight = [torch.zeros_like(x_t), torch.zeros_like(x_t)], x_t.new_zeros(1, 1, *x_t.shape[2:])
        for top, bottom in self._spans(x_t.shape[2]):
            for left, right in self._spans(x_t.shape[3]):
                part = (..., slice(top, bottom), slice(left, right))
                found = self.network(x_t[part], x_lq[part], time)
                down, across = self._ramp(top, bottom, x_t.shape[2], x_t), self._ramp(left, right, x_t.shape[3], x_t)
                weight[part] += down[:, None] * across
                for total, prediction in zip(sums, (found.residual, found.noise), strict=True):
                    if prediction is not None:
                        total[part] += prediction * (down[:, None] * across)
        blended = [total / weight for total in sums]
        heads = self.network.heads
        return UNetOutput(
            blended[0] if heads != "noise" else None, blended[1] if heads != "residual" else None, x_t[:0]
        )


def restorer(heads="residual", sampler=None):
    unet = UNet(UNetConfig(width=8, multipliers=(1,)))
    torch.nn.init.normal_(unet.final.norm1.weight, mean=1)
    found = Restorer(unet, sampler, device="cpu", dtype="float32", backend="eager", tile=TILE, seed=5)
    found._network = Local(heads)
    return found


@pytest.mark.parametrize("heads", ["residual", "noise", "both"])
@pytest.mark.parametrize("size", [(133, 20), (20, 133), (401, 200)])
def test_rows_equal_the_whole(heads, size):
    sampler = ResidualSampler(schedule=ResidualSchedule.linear(), steps=3)
    ours = restorer(heads, sampler)
    pixels = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    x_lq = pixels * 2 - 1
    noise = torch.randn((1, 3, *size), generator=torch.Generator().manual_seed(5))
    start = sampler.start(x_lq, noise=noise)
    expected = (sampler(AtOnce(Local(heads), TILE), x_lq, x_start=start) + 1) * 0.5
    assert torch.equal(ours.restore(pixels), expected)
    whole = sampler(TiledNetwork(Local(heads), TILE), x_lq, x_start=start)
    assert torch.equal((whole + 1) * 0.5, expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 7), (65, 3), (64, 16), (130, 33), (200, 41)])
def test_noise_by_rows_is_that_of_the_whole(size, monkeypatch):
    expected = torch.randn((1, 3, *size), generator=torch.Generator().manual_seed(7))
    for block in (bands.BLOCK, 64):
        monkeypatch.setattr(bands, "BLOCK", block)
        assert torch.equal(torch.cat(list(bands.noise_rows(7, size)), 2), expected)


class Largest(TorchDispatchMode):
    """Notes the most numbers that any tensor of a floating type has."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                self.numbers = max(self.numbers, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_no_picture_is_held_in_float32(mode, monkeypatch):
    """What is held grows with a picture's width, not with its height."""
    monkeypatch.setattr(bands, "BLOCK", 1024)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (3000, 40, 4), dtype=np.uint8)).convert(mode)
    ours = restorer()
    expected = as_picture(image).back(ours.restore(as_picture(image).pixels))
    with Largest() as largest:
        restored = ours(image)
    assert np.array_equal(np.array(restored), np.array(expected)) and restored.mode == mode
    assert largest.numbers <= 3 * TILE * 40


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_large_tensors_come_back_in_the_order_of_memory_that_they_came_in(order):
    """Callers take views of them, and copying a large one would hold it twice."""
    large = torch.zeros(1, 3, 140, 9, dtype=torch.uint8).to(memory_format=order)
    assert restorer()(large).is_contiguous(memory_format=order)


def test_the_default_device_does_not_draw():
    expected = torch.cat(list(bands.noise_rows(7, (130, 33))), 2)
    with torch.device("meta"):
        found = torch.cat(list(bands.noise_rows(7, (130, 33))), 2)
    assert torch.equal(found, expected)
