"""Noise that restorations begin with: drawn once for a size, kept within bytes, sent to a device beside its work."""

import pytest
import torch

from bdg_fast import ResidualSampler, ResidualSchedule
from bdg_fast.noises import Noises

CPU = torch.device("cpu")


class Sending:
    """Stands in for a GPU's transfers; each noise may be taken from several streams."""

    def __init__(self):
        self.begun, self.taken = [], 0

    def begin(self, noise):
        self.begun.append(tuple(noise.shape[2:]))

        def take():
            self.taken += 1
            return noise

        return take


def noises(method="ddim", most=1 << 20, send=None):
    sampler = ResidualSampler(schedule=ResidualSchedule.linear(), method=method)
    return Noises(sampler, 3, 5, CPU, most, send)


@pytest.mark.parametrize("method", ["ddim", "ddpm"])
def test_noise_of_a_size_is_drawn_once_and_is_what_it_was(method):
    of, again = noises(method), noises(method, most=0)
    for turn in range(2):
        for size in (torch.Size((8, 8 + i)) for i in range(20)):
            (noise, seed), (expected, other) = of(size), again(size)
            assert torch.equal(noise, expected) and (seed is other if method == "ddim" else torch.equal(seed, other))
            assert turn == 0 or noise is of(size)[0]
    assert len(of) == 20 and len(again) == 0
    expected = torch.randn(1, 3, 8, 9, generator=torch.Generator().manual_seed(5))
    assert torch.equal(of(torch.Size((8, 9)))[0], expected)


def test_kept_noise_is_bounded_by_its_bytes_and_the_last_sizes_stay():
    of = noises(most=4 * 3 * 64 * 64 * 5)
    sizes = [torch.Size((64, 64 - i)) for i in range(9)]
    for size in sizes:
        of(size)
    kept = {size: of(size)[0] for size in sizes[-5:]}
    assert len(of) == 5
    of(torch.Size((1 << 11, 1 << 10)))  # larger than what is kept at all: nothing makes room for it
    assert all(of(size)[0] is noise for size, noise in kept.items())
    for i in range(100):  # tiny ones count, too
        of(torch.Size((1, 1 + i)))
    assert len(of) < 70
    of.clear()
    assert len(of) == 0 and torch.equal(of(sizes[0])[0], noises()(sizes[0])[0])


def test_every_size_is_sent_beside_the_work_and_once():
    sending = Sending()
    of = noises(send=sending.begin)
    sizes = [(8, 8 + i) for i in range(10)]
    for _ in range(3):
        for size in sizes:
            of(torch.Size(size))
    assert sending.begun == sizes and sending.taken == 30  # every use waits for its copy
    large = (1 << 10, (1 << 10) + 1)
    for _ in range(2):
        assert torch.equal(of(torch.Size(large))[0], noises()(torch.Size(large))[0])
    assert sending.begun[10:] == [large] * 2
