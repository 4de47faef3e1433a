"""Many pictures: sizes that come in turn fill their batches, and memory is bounded by bytes."""

from collections import Counter

import pytest
import torch

from bdg_fast import streams
from bdg_fast.data.convert import Picture


def shapes(kinds, count, batch, size=lambda kind: (8, 8 + kind)):
    """Of the batches that a stream makes of pictures whose sizes come in turn."""
    made = []

    def begin(pictures):
        made.append((pictures[0].pixels.shape[2:], len(pictures)))
        return lambda: [picture.pixels for picture in pictures]

    def read(kind):
        return Picture(torch.zeros(1, 3, *size(kind), dtype=torch.uint8), lambda pixels: pixels)

    stream = streams.Stream(begin, read, batch, on_gpu=False, leave=lambda: None)
    found = list(stream.restored(iter((number, number % kinds) for number in range(count))))
    assert sorted(one.number for one in found) == list(range(count))
    return made


@pytest.mark.parametrize("kinds", [1, 5, 8])
def test_sizes_that_come_in_turn_fill_their_batches(kinds):
    batch, whole = 4, 6
    made = shapes(kinds, kinds * batch * whole, batch)
    assert {size for _, size in made} == {batch}
    assert set(Counter(shape for shape, _ in made).values()) == {whole}


def test_sizes_that_never_come_again_do_not_pile_up(monkeypatch):
    made = shapes(100, 100, 4)
    assert len(made) == 100
    reads, begun = [], []
    held = []

    def read(kind):
        reads.append(kind)
        return Picture(torch.zeros(1, 3, 8, 8 + kind, dtype=torch.uint8), lambda pixels: pixels)

    def begin(pictures):
        begun.extend(pictures)
        held.append(len(reads) - len(begun))
        return lambda: list(pictures)

    list(streams.Stream(begin, read, 4, on_gpu=False, leave=lambda: None).restored(iter(enumerate(range(100)))))
    assert max(held) <= streams.KINDS * 4 + (streams.READERS + 2 * 4)  # waiting, and being read


@pytest.mark.parametrize("side", [lambda kind: 100 - kind % 7, lambda kind: 100 if kind % 20 else 2], ids=["", "small"])
def test_large_pictures_wait_and_are_read_ahead_by_bytes(monkeypatch, side):
    monkeypatch.setattr(streams, "MOST_BYTES", 4 * 3 * 100 * 100)
    reads, begun, held = [], [], []

    def read(kind):
        reads.append(kind)
        return Picture(torch.zeros(1, 3, 100, side(kind), dtype=torch.uint8), lambda pixels: pixels)

    def begin(pictures):
        begun.extend(pictures)
        held.append(len(reads) - len(begun))
        return lambda: list(pictures)

    found = list(streams.Stream(begin, read, 8, on_gpu=False, leave=lambda: None).restored(iter(enumerate(range(60)))))
    assert len(found) == 60
    assert max(held[len(held) // 2 :]) <= 5 + 5  # waiting, and being read, once sizes are known
