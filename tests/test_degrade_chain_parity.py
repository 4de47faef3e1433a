"""The batched two-order chain is the published one, step by step: held to a plain loop over single samples."""

import dataclasses
import math

import numpy as np
import pytest
import torch

pytest.importorskip("scipy")

import reference_chain
from bdg_fast.data.degrade import ORDERS, two_order_chain
from bdg_fast.data.degrade.chain_kernels import RADIUS, chain_kernel, sinc_kernel
from bdg_fast.data.degrade.resize import resampler
from bdg_fast.kernels.pixelwise import derived_seeds, uniforms
from reference_chain import FAMILIES, METHODS, PUBLISHED

SEEDS = [0, 2, 3, 5, 7, 8, 10, 11, 18, 20, 49, 158, 181, 183, 264, 403, 455, 500, 698, 842, 1101, 1225, 1456, 1459]
"""Which between them take every way that the chain has."""
WAYS = [("keep", method) for method in METHODS] + [(way, method) for way in ("up", "down") for method in METHODS]
NOISES = [(f"{kind}, {colour}",) for kind in ("Gaussian", "Poisson") for colour in ("gray", "colour")]
LAST = [
    (word, method, when)
    for word in ("final sinc", "no final filter")
    for method in METHODS
    for when in ("before JPEG", "after JPEG")
]


@pytest.fixture(scope="module")
def runs(photographs):
    """Images by seed, and `chain`'s states and words of each."""
    found = {}
    for number, seed in enumerate(SEEDS):
        height, width = ((13, 11), (18, 14), (13, 30), (27, 21))[number % 4]
        image = photographs[number % 3, :, 40 : 40 + height, 60 : 60 + width].float() / 255
        image = (1.8 * (image - image.mean()) + 0.5).clamp(0, 1)  # much of it black or white, which blurs overshoot
        found[seed] = (image, *reference_chain.chain(image.double().numpy(), seed))
    return found


@pytest.fixture(scope="module")
def strays(runs):
    """By state: the seeds of which a value is further than one of 255, or more than 6 % of them are that far.

    One of 255 is what the rounding of float32 tips at the end, or before JPEG.
    """
    states = torch.arange(8)
    found = [[] for _ in states]
    for seed, (image, expected, _) in runs.items():
        taken, _ = two_order_chain(image.expand(8, -1, -1, -1), torch.full((8,), seed), states)
        for state in range(8):
            plain = reference_chain.as_taken(expected[state], *image.shape[1:])
            error = 255 * np.abs(taken[state].double().numpy() - plain)
            if error.max() > 1.01 or (error > 0.5).mean() > 0.06:
                found[state].append(seed)
    return found


@pytest.mark.parametrize("state", range(8))
def test_every_state_is_that_of_a_plain_loop(strays, state):
    """In one sample, a rounding before JPEG may have tipped one of its coefficients."""
    assert len(strays[state]) <= (state >= 3), strays[state]


def test_the_samples_take_every_way_there_is(runs):
    seen = [{told[step] for _, _, told in runs.values()} for step in range(8)]
    kernels = [(family,) for family in (*FAMILIES, "sinc")]
    assert seen[0] >= set(kernels) and seen[4] >= {*kernels, ("no blur",)}
    assert all(seen[step] >= set(WAYS) for step in (1, 5))
    assert all(seen[step] >= set(NOISES) for step in (2, 6))
    assert seen[7] >= set(LAST)


def test_ranges_and_probabilities_are_the_published_ones():
    for order, published in zip(ORDERS, PUBLISHED, strict=True):
        assert dataclasses.asdict(order) == {**published, "resize": published["resize"][:2]}


def test_states_that_are_not_given_are_drawn_from_the_seeds(runs):
    seeds = torch.tensor(SEEDS)
    _, states = two_order_chain(torch.rand(len(SEEDS), 3, 2, 2), seeds)
    first = uniforms(derived_seeds(seeds, 8), 1, reference_chain.NUMBERS)[:, 0, 0]
    assert states.tolist() == [math.floor(8 * number) for number in first.tolist()]


def on_one_size(kernel):
    """Within `[21, 21]`, and 0 around."""
    return np.pad(kernel, RADIUS - kernel.shape[0] // 2)


def drawn(count, **given):
    """`[count, 12]`, spread evenly over [0, 1): multiples of the roots of primes."""
    numbers = (np.arange(1, count + 1)[:, None] * np.sqrt([2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37])) % 1
    names = ("kind", "shape", "size", "first", "second", "turn", "half", "power", "cut", "whether")
    for name, value in given.items():
        numbers[:, names.index(name)] = value
    return numbers.astype(np.float32)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize(
    "numbers",
    [
        drawn(60),
        drawn(16, kind=np.linspace(0.055, 0.13, 16)),  # around the share of sinc filters
        drawn(100, kind=0.5, shape=np.linspace(0.005, 0.995, 100)),  # of every family
        drawn(16, kind=0.01, size=np.arange(16) / 16 + 1 / 32),  # sinc filters of every size
        drawn(30, whether=np.linspace(0.7, 0.99, 30)),
    ],
    ids=["any", "sinc or not", "families", "sinc", "none"],
)
def test_kernels_are_the_published_ones(order, numbers):
    settings = PUBLISHED[order]
    draw = tuple(torch.from_numpy(numbers).view(-1, 12, 1, 1).unbind(1))
    found = chain_kernel(draw, settings["blur"], settings["sinc"], settings["sigma"])
    for one, row in zip(found, numbers.astype(float), strict=True):
        kernel, word = reference_chain.blur_kernel(row, settings)
        np.testing.assert_allclose(one.numpy(), on_one_size(kernel), atol=1e-5, err_msg=word)


def test_the_final_filter_is_the_published_one():
    """Cut-offs from pi/3 whatever the size, where blurs of 13 pixels and more begin at pi/5."""
    numbers = drawn(40)
    size, cut, whether = torch.from_numpy(numbers[:, 1:4]).view(-1, 3, 1, 1).unbind(1)
    found = sinc_kernel(size, cut, whether < 0.8)
    for one, row in zip(found, numbers.astype(float), strict=True):
        kernel, _ = reference_chain.final_kernel(row, PUBLISHED[1])
        np.testing.assert_allclose(one.numpy(), on_one_size(kernel), atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("before", "after"), [(13, 13), (13, 8), (30, 7), (20, 3), (11, 16), (7, 10), (5, 1), (1, 4)])
def test_resizing_is_what_its_docstring_says(before, after, method):
    sizes = torch.tensor([[before], [after]], dtype=torch.float32)
    found = resampler(sizes[0], sizes[1], before + 2, after + 3, method)[0]
    assert not found[after:].any() and not found[:, before:].any()
    expected = reference_chain.axis(before, after, method)
    np.testing.assert_allclose(found[:after, :before].numpy(), expected, atol=3e-6)
