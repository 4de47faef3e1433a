"""Philox to the bit of its published vectors, and noise that is normal and independent."""

import importlib.util

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bdg_fast.kernels.pixelwise.reference import box_muller, normals, philox
from devices import NoFloat64

HAS_TRITON = importlib.util.find_spec("triton") is not None
pytestmark = [pytest.mark.gpu] if torch.cuda.is_available() else []
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ONES = 0xFFFFFFFF
VECTORS = [  # of Random123: counter, key, block
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "block"), VECTORS)
def test_philox_equals_the_published_vectors(counter, key, block):
    found = philox(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert tuple(map(int, found)) == block


def test_devices_without_float64_are_spared_it(monkeypatch):
    monkeypatch.setattr("bdg_fast.kernels.pixelwise.reference.WITHOUT_FLOAT64", ("cuda",))
    with FakeTensorMode():
        seed = torch.zeros(2, dtype=torch.int64, device="cuda")
        with NoFloat64():
            found = normals(seed, 4, 5, torch.zeros(1, dtype=torch.int64, device="cuda"), 0)
    assert (found.device.type, found.dtype, found.shape) == ("cuda", torch.float32, (2, 3, 4, 5))


@pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
def test_the_kernel_draws_the_same_bits_and_numbers():
    from noise_kernels import drawn, pairs, words

    for counter, (low, high), block in VECTORS:
        key = torch.tensor([(high << 32 | low) - (2**64 if high >> 31 else 0)], device=DEVICE)
        out = torch.full((4,), -1, device=DEVICE)
        words[(1,)](torch.tensor(counter, device=DEVICE), key, out)
        assert tuple(out.tolist()) == block

    edges = torch.tensor([0, 1, 2**29 - 1, 2**29, 2**30, 2**31 - 1, 2**31, 3 * 2**30, 2**32 - 2, 2**32 - 1])
    some = torch.randint(0, 2**32, (64 - len(edges),), generator=torch.Generator().manual_seed(0))
    numbers = torch.cat((edges, some))
    for shift in range(0, 64, 7):
        first, second = numbers, numbers.roll(shift)
        out = torch.full((2, 64), torch.nan, device=DEVICE)
        pairs[(1,)](first.to(DEVICE), second.to(DEVICE), out, P=64, enable_fp_fusion=False)
        torch.testing.assert_close(out.cpu(), torch.stack(box_muller(first, second)), rtol=2e-7, atol=1e-6)

    far = 2**32 - 16  # pixels on both sides of where the second word of the counter begins to count
    seed = torch.tensor([-3], device=DEVICE)
    out = torch.full((3, 32), torch.nan, device=DEVICE)
    drawn[(1,)](seed, out, 5, far, P=32, enable_fp_fusion=False)
    pixel = far + torch.arange(32)
    counter = (pixel & ONES, pixel >> 32, torch.full_like(pixel, 5), torch.ones_like(pixel))
    a, b, c, d = philox(counter, (torch.tensor(2**32 - 3), torch.tensor(ONES)))
    expected = torch.stack((*box_muller(a, b), box_muller(c, d)[0]))
    torch.testing.assert_close(out.cpu(), expected, rtol=2e-7, atol=1e-6)


def test_noise_is_standard_normal():
    z = normals(torch.tensor([1, 2]), 256, 256, 3, 0).double()
    count = z.numel()
    assert z.mean().abs() < 4 / count**0.5
    assert (z.var() - 1).abs() < 4 * (2 / count) ** 0.5
    assert (z**3).mean().abs() < 4 * (15 / count) ** 0.5
    assert ((z**4).mean() - 3).abs() < 4 * (96 / count) ** 0.5
    for threshold in (0.5, 1.0, 2.0, 3.0):
        share = torch.special.erfc(torch.tensor(threshold / 2**0.5, dtype=torch.float64))
        assert ((z.abs() > threshold).double().mean() - share).abs() < 4 * (share / count) ** 0.5
    assert z.abs().max() < 6.8


def test_noise_is_independent():
    """Over channels, neighbours, images, steps, streams, and seeds that differ in a single bit."""
    size = 128
    base = normals(torch.tensor([5]), size, size, 0, 0)[0]
    others = {
        "step": normals(torch.tensor([5]), size, size, 1, 0)[0],
        "stream": normals(torch.tensor([5]), size, size, 0, 1)[0],
        "next seed": normals(torch.tensor([4]), size, size, 0, 0)[0],
        "high bit of the seed": normals(torch.tensor([5 - 2**63]), size, size, 0, 0)[0],
        "channel": base.roll(1, 0),
        "row": base.roll(1, 1),
        "column": base.roll(1, 2),
    }
    for name, other in others.items():
        for a, b in ((base, other), (base**2 - 1, other**2 - 1)):
            correlation = (a * b).double().mean() / (a.double().std() * b.double().std())
            assert correlation.abs() < 4 / base.numel() ** 0.5, name


def test_noise_repeats_and_is_of_each_image():
    seeds = torch.tensor([7, -7, 7])
    z = normals(seeds, 9, 11, 2, 0)
    assert z.dtype == torch.float32 and z.shape == (3, 3, 9, 11)
    assert torch.equal(z[0], z[2]) and not torch.equal(z[0], z[1])
    assert torch.equal(z[1:2], normals(seeds[1:2], 9, 11, torch.tensor([2]), 0))


def test_latents_have_as_many_channels_as_they_need():
    z = normals(torch.tensor([1]), 128, 128, 0, 0, 16)
    assert torch.equal(z[:, :3], normals(torch.tensor([1]), 128, 128, 0, 0))
    alike = torch.corrcoef(z[0].flatten(1)).fill_diagonal_(0)
    assert alike.abs().max() < 0.04 and abs(z.mean()) < 0.01 and abs(z.std() - 1) < 0.01
