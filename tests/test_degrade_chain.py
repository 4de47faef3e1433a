"""The two-order chain: samples by themselves, sizes of their own, kernels and choices as published."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bdg_fast.data.degrade import ORDERS, STATES, ChainOrder, degrade, two_order_chain
from bdg_fast.data.degrade.chain import mirrored
from bdg_fast.data.degrade.chain_kernels import RADIUS, chain_kernel, sinc_kernel
from bdg_fast.data.degrade.common import extended
from bdg_fast.data.degrade.resize import resampler

NOTHING = ChainOrder(
    blur=0, resize=(0.0, 0.0), size=(1.0, 1.0), noise=(0.0, 0.0), poisson=(0.0, 0.0), quality=(100.0, 100.0)
)
"""An order that leaves images as they are, but for JPEG of quality 100."""


@pytest.fixture(scope="module")
def images(photographs):
    """float32 `[6, 3, 45, 38]`."""
    parts = [photographs[:, :, y : y + 45, 60:98] for y in (40, 130)]
    return torch.cat(parts).float() / 255


SEEDS = torch.tensor([1, -2, 3, 2**61, 5, 6])


def error(one, other):
    return (one - other).square().mean((1, 2, 3))


def test_images_of_their_shape_in_whole_levels_and_their_states(images):
    before = images.clone()
    found, states = two_order_chain(images, SEEDS)
    assert (found.shape, found.dtype) == (images.shape, images.dtype)
    assert 0 <= found.min() <= found.max() <= 1
    torch.testing.assert_close(found * 255, (found * 255).round())
    assert (states.shape, states.dtype) == (SEEDS.shape, torch.int64)
    assert torch.equal(images, before)
    again, same = two_order_chain(images, SEEDS, states)
    assert torch.equal(states, same)
    assert torch.equal(again, found)


def test_half_of_the_last_state_are_files_as_written(photographs):
    """At their size again before JPEG: coding once more changes next to nothing. After it, the blocks are blurred."""
    images = photographs[:1, :, 40:104, 60:124].float().div(255).expand(24, 3, 64, 64)
    order = dataclasses.replace(NOTHING, resize=(0.0, 1.0), size=(0.5, 1.0), quality=(30.0, 30.0))
    found, _ = two_order_chain(images, torch.arange(24), torch.full((24,), 7), (NOTHING, order))
    as_written = error(degrade(found, "jpeg", 70, torch.arange(24)), found) < 1e-5
    assert 6 <= as_written.sum() <= 18


def test_a_sample_depends_on_its_own_seed_alone(images):
    together, states = two_order_chain(images, SEEDS)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    found, moved = two_order_chain(images[order], SEEDS[order])
    assert torch.equal(moved, states[order])
    torch.testing.assert_close(found, together[order], rtol=0, atol=1.5 / 255)
    for i in range(3):
        alone, _ = two_order_chain(images[i : i + 1], SEEDS[i : i + 1])
        assert (alone[0] - together[i]).abs().mean() < 0.1 / 255  # a rounding may tip a coefficient of JPEG
    other, _ = two_order_chain(images, SEEDS + 7, states)
    assert (error(other, together) > 1e-5).all()


def test_states_are_drawn_evenly():
    _, states = two_order_chain(torch.rand(4000, 3, 1, 1), torch.arange(4000))
    assert (states.bincount(minlength=STATES) / 4000 - 1 / STATES).abs().max() < 0.02


def test_later_states_are_further_from_the_picture(images):
    """Every state changes the one before; both orders' ends are further than their blurs, in the mean."""
    found = [two_order_chain(images, SEEDS, torch.full((6,), state))[0] for state in range(STATES)]
    assert all((one != other).any() for one, other in itertools.pairwise(found))
    errors = [error(one, images).mean() for one in found]
    assert errors[0] < errors[3] < errors[6]
    assert errors[0] < errors[7]


def test_an_order_of_nothing_leaves_images(images):
    rounded = (images * 255).round() / 255
    for state in (0, 1, 2, 4, 5, 6):
        found, _ = two_order_chain(images, SEEDS, torch.full((6,), state), (NOTHING, NOTHING))
        assert (found - rounded).abs().max() < (0.6 / 255 if state < 3 else 0.25)  # JPEG halves chroma


def test_each_part_does_what_its_settings_say(images):
    gray = torch.full((6, 3, 60, 60), 0.4)

    def taken(state, **changes):
        order = dataclasses.replace(NOTHING, **changes)
        return two_order_chain(gray, SEEDS, torch.full((6,), state), (order, NOTHING))[0] - 0.4

    assert taken(2).abs().max() < 0.6 / 255
    noise = taken(2, noise=(20.0, 20.0), poisson=(1.0, 1.0), gray=0.0)
    expected = torch.tensor([20 / 255, math.sqrt(0.4 / 256)])
    assert ((noise.std((1, 2, 3))[:, None] / expected - 1).abs().min(1).values < 0.03).all()
    assert (noise[:, 0] - noise[:, 1]).std() > 0.02
    alike = taken(2, noise=(20.0, 20.0), poisson=(1.0, 1.0), gray=1.0)
    torch.testing.assert_close(alike[:, :1].expand_as(alike), alike, rtol=0, atol=0.51 / 255)
    small, _ = two_order_chain(
        images, SEEDS, torch.ones(6).long(), (dataclasses.replace(NOTHING, resize=(0.0, 1.0), size=(0.2, 1.0)), NOTHING)
    )
    large, _ = two_order_chain(
        images, SEEDS, torch.ones(6).long(), (dataclasses.replace(NOTHING, resize=(1.0, 0.0), size=(1.0, 1.5)), NOTHING)
    )
    assert error(small, images).mean() > 4 * error(large, images).mean()


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (16, 17)], ids=str)
def test_images_of_any_size(images, size):
    found, _ = two_order_chain(images[:, :, : size[0], : size[1]], SEEDS, torch.arange(2, 8))
    assert found.shape == (6, 3, *size)
    assert found.isfinite().all()


def test_flat_images_stay_flat_without_noise():
    flat = torch.full((6, 3, 30, 40), 102 / 255)
    quiet = tuple(dataclasses.replace(order, noise=(0.0, 0.0), poisson=(0.0, 0.0)) for order in ORDERS)
    for state in range(STATES):
        found, _ = two_order_chain(flat, SEEDS, torch.full((6,), state), quiet)
        torch.testing.assert_close(found, flat, rtol=0, atol=6 / 255)


def test_extending_replicates_each_samples_own_edges():
    canvas = torch.rand(2, 3, 7, 9, generator=torch.Generator().manual_seed(0))
    found = extended(canvas, torch.tensor([4.0, 7.0]), torch.tensor([9.0, 1.0]))
    for i, (height, width) in enumerate([(4, 9), (7, 1)]):
        part = canvas[i : i + 1, :, :height, :width]
        expected = F.pad(part, [0, 9 - width, 0, 7 - height], mode="replicate")
        assert torch.equal(found[i], expected[0])


@pytest.mark.parametrize("size", [(4, 9), (7, 2), (3, 3), (1, 6)], ids=str)
def test_blurs_mirror_each_samples_own_edges(size):
    height, width = size
    canvas = torch.rand(1, 3, 7, 9, generator=torch.Generator().manual_seed(0))
    found = mirrored(canvas, torch.tensor([float(height)]), torch.tensor([float(width)]), RADIUS)
    margins = [(0, 0), (0, 0), (RADIUS, RADIUS + 7 - height), (RADIUS, RADIUS + 9 - width)]
    expected = np.pad(canvas[:, :, :height, :width].numpy(), margins, mode="reflect")
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize(("before", "after"), [(40, 20), (40, 17), (13, 40), (12, 12), (30, 7)])
@pytest.mark.parametrize("method", ["bilinear", "bicubic", "area"])
def test_resizing_within_the_chain_is_that_of_pytorch(method, before, after):
    signal = torch.rand(1, 1, before, generator=torch.Generator().manual_seed(0))
    found = (
        resampler(torch.tensor([float(before)]), torch.tensor([float(after)]), before, after, method)[0] @ signal[0, 0]
    )
    if method == "area":  # PyTorch's rounds to whole pixels: compare with the integral of the steps
        steps = torch.cat((torch.zeros(1), signal[0, 0].cumsum(0))).numpy()
        places = np.linspace(0, before, after + 1)
        expected = torch.from_numpy(np.diff(np.interp(places, np.arange(before + 1), steps)) * after / before).float()
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
        return
    square = signal[:, :, None].expand(1, 1, before, before)
    expected = F.interpolate(square, size=(before, after), mode=method, align_corners=False)[0, 0, 0]
    edge = 0 if method == "bilinear" else max(2, math.ceil(2 * after / before))  # ours forgets what lies beyond
    inner = slice(edge, after - edge)
    torch.testing.assert_close(found[inner], expected[inner], rtol=0, atol=2e-5)


def numbers(**given):
    """Twelve numbers for `chain_kernel`, by what they are for."""
    names = ("kind", "shape", "size", "first", "second", "turn", "half", "power", "cut", "whether", "a", "b")
    return tuple(torch.full((1, 1, 1), float(given.get(name, 0.999))) for name in names)


def moments(kernel):
    at = torch.arange(-RADIUS, RADIUS + 1.0)
    return (kernel * at[:, None] ** 2).sum(), (kernel * at[None, :] ** 2).sum()


def test_kernels_have_sum_one_and_their_size():
    for radius in range(3, 11):
        for kind, shape in ((0.0, 0.0), *((0.9, share) for share in (0.1, 0.5, 0.75, 0.83, 0.9, 0.98))):
            drawn = numbers(kind=kind, shape=shape, size=(radius - 2.5) / 8, cut=0.3, half=0.2, power=0.1)
            kernel = chain_kernel(drawn, 1.0, 0.1, (0.2, 3.0))[0]
            assert kernel.sum().item() == pytest.approx(1, abs=1e-5)
            rows = kernel.abs().sum(1).nonzero().flatten() - RADIUS
            assert (rows.min(), rows.max()) == (-radius, radius)
    identity = chain_kernel(numbers(), 0.0, 0.1, (0.2, 3.0))[0]
    assert identity[RADIUS, RADIUS] == identity.sum() == 1


def test_kernels_are_as_wide_and_oblong_as_drawn():
    width = (0.2, 2.2)
    tall, wide = moments(chain_kernel(numbers(shape=0.1, first=0.9), 1.0, 0.1, width)[0])
    assert (tall.sqrt().item(), wide.sqrt().item()) == pytest.approx((2.0, 2.0), rel=0.01)
    drawn = numbers(shape=0.6, first=0.9, second=0.4, turn=0.5)
    tall, wide = moments(chain_kernel(drawn, 1.0, 0.1, width)[0])
    assert (tall.sqrt().item(), wide.sqrt().item()) == pytest.approx((1.0, 2.0), rel=0.02)
    drawn = numbers(shape=0.75, first=0.9, half=0.4, power=1.0)  # generalized of exponent 1
    torch.testing.assert_close(
        chain_kernel(drawn, 1, 0.1, width), chain_kernel(numbers(shape=0.1, first=0.9), 1, 0.1, width)
    )
    plateau = chain_kernel(numbers(shape=0.9, first=0.9, half=0.4), 1.0, 0.1, width)[0]
    assert plateau[RADIUS, RADIUS] / plateau[RADIUS, RADIUS + 2] == pytest.approx(1 + (2 / 2.0) ** 2, rel=1e-3)


@pytest.mark.parametrize("last", [False, True], ids=["a blur", "the last filter"])
def test_sinc_passes_low_frequencies_and_stops_high_ones(last):
    one, least = torch.ones(1, 1, 1), math.pi / 3 if last else math.pi / 5
    kernel = sinc_kernel(one * 0.99, one * 0.3, one > 0)[0]
    if not last:
        kernel = chain_kernel(numbers(kind=0.0, size=0.99, cut=0.3), 1.0, 0.1, (0.2, 3.0))[0]
    cut = least + 0.3 * (math.pi - least)
    response = torch.fft.fft2(F.pad(kernel, [0, 235, 0, 235])).abs()[0, :128]
    frequency = torch.arange(128) * (2 * math.pi / 256)
    assert (response[frequency < 0.7 * cut] - 1).abs().max() < 0.15
    assert response[frequency > 1.3 * cut].max() < 0.15
    assert frequency[response < 0.5][0] == pytest.approx(cut, rel=0.05)
    assert (kernel < 0).any()  # it rings


def test_empty_batch():
    found, states = two_order_chain(torch.zeros(0, 3, 8, 8), torch.zeros(0).long())
    assert (found.shape, states.shape) == ((0, 3, 8, 8), (0,))


def test_bad_arguments_are_named(images):
    for match, call in {
        r"images must be \[B, 3, H, W\]": lambda: two_order_chain(images[0], SEEDS),
        r"seeds must be \[6\]": lambda: two_order_chain(images, SEEDS[:2]),
        r"states must be int64 \[6\], got torch.float32": lambda: two_order_chain(images, SEEDS, torch.zeros(6)),
        r"states must be in 0\.\.7": lambda: two_order_chain(images, SEEDS, torch.full((6,), 8)),
        r"sinc must be a probability, got 1.5": lambda: ChainOrder(sinc=1.5),
        r"resize must be probabilities of sum at most 1": lambda: ChainOrder(resize=(0.7, 0.7)),
        r"size must be a range around 1": lambda: ChainOrder(size=(1.1, 1.5)),
        r"sigma must be a range from at least 0.05": lambda: ChainOrder(sigma=(0.0, 1.0)),
        r"noise must be a range": lambda: ChainOrder(noise=(30.0, 1.0)),
        r"quality must be at most 100": lambda: ChainOrder(quality=(30.0, 101.0)),
    }.items():
        with pytest.raises(ValueError, match=match):
            call()
