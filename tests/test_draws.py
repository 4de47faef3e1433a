"""Random numbers by a kernel are those of the reference: seeds and uniform numbers to the bit."""

import pytest
import torch

pytest.importorskip("triton")

from bdg_fast.kernels.pixelwise import derived_seeds, image_normals, ops, reference, uniforms
from bdg_fast.kernels.pixelwise import triton_draws as draws
from bdg_fast.kernels.pixelwise.reference import normals
from bdg_fast.kernels.pixelwise.spec import DRAW_STREAM

pytestmark = [pytest.mark.gpu] if torch.cuda.is_available() else []
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SEEDS = torch.tensor([0, 1, -1, 2**32, -(2**63), 2**63 - 1, 123456789012345678])


@pytest.mark.parametrize("purpose", [0, 1, 16, 2**31, 2**32 - 1])
def test_seeds_and_uniform_numbers_are_the_same_bits(purpose):
    seeds = SEEDS.to(DEVICE)
    assert torch.equal(draws.derived_seeds(seeds, purpose).cpu(), derived_seeds(SEEDS, purpose))
    for count in (1, 3, 64, 1000):
        found, expected = draws.uniforms(seeds, count, purpose), uniforms(SEEDS, count, purpose)
        assert found.dtype == torch.float32 and torch.equal(found.cpu(), expected)


@pytest.mark.parametrize(("channels", "height", "width"), [(3, 1, 1), (3, 17, 5), (1, 8, 8), (4, 9, 70), (9, 6, 7)])
def test_normals_are_the_same_to_a_rounding(channels, height, width):
    for purpose in (0, 7, 2**32 - 1):
        found = draws.image_normals(SEEDS.to(DEVICE), height, width, purpose, channels)
        expected = normals(SEEDS, height, width, purpose, DRAW_STREAM, channels)
        assert found.shape == (len(SEEDS), channels, height, width)
        torch.testing.assert_close(found.cpu(), expected, rtol=2e-7, atol=1e-6)


def test_strides_and_empty_ones():
    every = torch.stack((SEEDS, SEEDS + 1), 1)[:, 0].to(DEVICE)
    assert torch.equal(draws.derived_seeds(every, 3).cpu(), derived_seeds(SEEDS, 3))
    assert torch.equal(draws.uniforms(every, 2, 3).cpu(), uniforms(SEEDS, 2, 3))
    none = SEEDS[:0].to(DEVICE)
    assert draws.derived_seeds(none, 1).shape == (0,) and draws.uniforms(none, 5, 1).shape == (0, 4, 5)
    assert draws.uniforms(SEEDS.to(DEVICE), 0, 1).shape == (7, 4, 0)
    assert draws.image_normals(none, 3, 4, 1, 3).shape == (0, 3, 3, 4)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_a_gpu_draws_in_one_launch(monkeypatch):
    seeds = SEEDS.to(DEVICE)
    monkeypatch.setattr(ops, "philox", None)  # which would be hundreds
    monkeypatch.setattr(ops, "normals", None)
    assert torch.equal(uniforms(seeds, 5, 1), draws.uniforms(seeds, 5, 1))
    assert torch.equal(derived_seeds(seeds, 1), draws.derived_seeds(seeds, 1))
    assert torch.equal(image_normals(seeds, 4, 5, 1), draws.image_normals(seeds, 4, 5, 1, 3))


def test_poisson_numbers_are_the_same_but_for_roundings():
    generator = torch.Generator().manual_seed(0)
    mean = torch.cat((torch.rand(40_000, generator=generator) * 12, torch.rand(20_000, generator=generator) * 600))
    mean[:5] = torch.tensor([0.0, 5.0, 1e-6, 4.999999, 5.000001])
    normal = torch.randn(60_000, generator=generator)
    normal[-4:] = torch.tensor([-9.0, 9.0, 0.0, -0.0])
    expected, found = reference.poisson(mean, normal), draws.poisson(mean.to(DEVICE), normal.to(DEVICE)).cpu()
    assert torch.equal(found, found.round()) and found.min() >= 0 and found[0] == 0
    assert (found - expected).abs().max() <= 1 and (found != expected).sum() <= 5
    odd = draws.poisson(mean.view(300, 200).to(DEVICE).T, normal[:300].to(DEVICE).expand(200, 300)).cpu()
    same = reference.poisson(mean.view(300, 200).T, normal[:300].expand(200, 300))
    assert odd.shape == (200, 300) and (odd != same).sum() <= 5
    assert draws.poisson(mean[:0].to(DEVICE), normal[:0].to(DEVICE)).shape == (0,)
