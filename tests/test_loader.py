"""Order and batches: every image once an epoch, the same for any number of ranks and threads, resumable anywhere."""

import threading
from collections import Counter

import pytest
import torch

from bdg_fast.data.datasets import Sample, SampleError
from bdg_fast.data.loader import Batch, Skipped, TooManySkipped, batches
from bdg_fast.data.order import Order, mixed


class Numbers:
    """Images that are their number; some cannot be read."""

    paired = False
    kinds = ("own",)

    def __init__(self, count, bad=(), late=None):
        self.count, self.bad = count, set(bad)
        self.late, self.arrived = late, threading.Event()  # late: an image, and the one that it waits for
        self.reads = Counter()

    def __len__(self):
        return self.count

    def read(self, number, seed, crop):
        self.reads[number] += 1
        if self.late and number == self.late[1]:
            self.arrived.set()
        if self.late and number == self.late[0]:
            assert self.arrived.wait(timeout=20)
        if number in self.bad:
            raise SampleError(f"{number}.png", "broken")
        image = torch.full((3, crop, crop), number % 251, dtype=torch.uint8)
        return Sample(image, 255 - image if self.paired else None, 0, number, seed)


def take(steps, dataset, seed=0, **options):
    found = batches(dataset, Order(len(dataset), seed), **{"batch": 4, "crop": 2, "workers": 0} | options)
    result = [next(found) for _ in range(steps)]
    found.close()
    return result


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a.clean, b.clean) and torch.equal(a.seeds, b.seeds) and torch.equal(a.numbers, b.numbers)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 17, 100, 1000])
def test_every_image_once_an_epoch(count):
    order = Order(count, seed=7)
    epochs = [[order.number(epoch * count + i) for i in range(count)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    if count >= 16:
        assert epochs[0] != epochs[1] != epochs[2]
        assert epochs[0] != [Order(count, seed=8).number(i) for i in range(count)]
        fixed = sum(i == number for i, number in enumerate(epochs[0]))
        assert fixed <= 6  # one on average


@pytest.mark.parametrize("count", [4, 7, 30])
def test_every_place_gets_every_image_alike(count):
    """Chi-square of the images at the first and at a middle place, and of what follows an image."""
    order, epochs = Order(count, seed=3), 100 * count
    orders = [[order.number(epoch * count + i) for i in range(count)] for epoch in range(epochs // (count // 4))]
    for found in (
        Counter(numbers[0] for numbers in orders),
        Counter(numbers[count // 2] for numbers in orders),
        Counter((numbers[1] - numbers[0]) % count for numbers in orders),
    ):
        cells = count - (0 not in found)
        expected = len(orders) / cells
        square = sum((found[number] - expected) ** 2 / expected for number in found)
        assert len(found) == cells
        assert square < cells + 5 * (2 * cells) ** 0.5


def test_far_positions_cost_what_near_ones_do_and_seeds_differ():
    order = Order(10**9, seed=-5)
    assert 0 <= order.number(10**15 + 3) < 10**9
    assert order.number(10**15 + 3) == Order(10**9, seed=-5).number(10**15 + 3)
    seeds = [order.seed_of(position) for position in range(2000)]
    assert len(set(seeds)) == 2000
    assert all(-(2**63) <= seed < 2**63 for seed in seeds)
    assert any(seed < 0 for seed in seeds)
    assert not set(seeds) & {Order(10**9, seed=-4).seed_of(position) for position in range(2000)}


def test_reserves_are_different_images():
    order = Order(20, seed=1)
    for position in range(5):
        assert sorted(order.reserve(position, attempt) for attempt in range(20)) == list(range(20))


def test_hashes_stay_what_they_are():
    """A resumed run relies on it."""
    assert mixed(1, 2, 3) == 15020427595393229491
    assert [Order(10, 5).number(i) for i in range(10)] == [3, 7, 8, 9, 1, 0, 6, 5, 2, 4]


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_are_one_rank(world, workers):
    whole = take(6, Numbers(23), batch=2 * world)
    ranks = [take(6, Numbers(23), batch=2, rank=rank, world=world, workers=workers) for rank in range(world)]
    for step, batch in enumerate(whole):
        for rank in range(world):
            assert torch.equal(batch.numbers[rank::world], ranks[rank][step].numbers)
            assert torch.equal(batch.seeds[rank::world], ranks[rank][step].seeds)
    seeds = torch.cat([batch.seeds for batch in whole])
    assert seeds.tolist() == [Order(23, 0).seed_of(position) for position in range(len(seeds))]
    seen = torch.cat([batch.numbers for batch in whole])[:23]
    assert sorted(seen.tolist()) == list(range(23))


@pytest.mark.parametrize("bad", [(), (3, 11)])
def test_resumes_at_any_step(bad):
    whole = take(12, Numbers(17, bad), skipped=Skipped(1.0))
    for step in range(0, 12, 5):
        resumed = take(12 - step, Numbers(17, bad), start=step * 4, skipped=Skipped(1.0), workers=2)
        assert same(resumed, whole[step:])


def test_resumes_on_another_number_of_ranks():
    whole = torch.cat([batch.numbers for batch in take(6, Numbers(17), batch=12)])
    for world in (1, 2, 3):
        for rank in range(world):
            found = take(4, Numbers(17), batch=12 // world, rank=rank, world=world, start=24)
            assert torch.equal(torch.cat([batch.numbers for batch in found]), whole[24:][rank::world])


def test_threads_do_not_change_the_order():
    alone = take(30, Numbers(50))
    first, later = int(alone[0].numbers[0]), int(alone[2].numbers[0])
    assert same(take(30, Numbers(50, late=(first, later)), workers=2), alone)


def test_reads_a_bounded_number_ahead_and_ends_its_threads():
    dataset = Numbers(1000)
    before = threading.active_count()
    found = batches(dataset, Order(1000, 0), batch=4, crop=2, workers=2)
    assert threading.active_count() == before  # nothing happens before the first is asked for
    next(found)
    next(found)
    assert sum(dataset.reads.values()) <= 4 * (2 + 2)
    found.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_files_are_replaced_named_and_counted(workers):
    skipped = Skipped(share=0.2)
    found = take(10, Numbers(20, bad=(4, 9)), workers=workers, skipped=skipped)
    good = take(10, Numbers(20))
    for one, other in zip(found, good, strict=True):
        for number, wanted in zip(one.numbers.tolist(), other.numbers.tolist(), strict=True):
            assert number == wanted if wanted not in (4, 9) else number not in (4, 9)
        assert torch.equal(one.seeds, other.seeds)
    assert skipped.reasons == {"4.png": "broken", "9.png": "broken"}
    assert skipped.count >= 4  # two epochs


def test_counts_what_was_taken_not_what_was_read_ahead():
    counts = []
    for workers in (0, 3):
        skipped = Skipped(share=1.0)
        take(3, Numbers(12, bad=range(6)), workers=workers, skipped=skipped)
        counts.append((skipped.count, skipped.reasons))
    assert counts[0] == counts[1]


def test_too_many_unreadable_files_are_an_error():
    with pytest.raises(SampleError, match=r"^4\.png: broken$"):
        take(5, Numbers(20, bad=[4]))
    with pytest.raises(TooManySkipped, match=r"3 files of a data set of 20 cannot be read, .* share of 0\.1; the last"):
        take(5, Numbers(20, bad=[4, 5, 6]), skipped=Skipped())
    with pytest.raises(TooManySkipped, match=r"5 files in turn cannot be read; the last: \d\.png: broken"):
        take(1, Numbers(5, bad=range(5)), skipped=Skipped(share=1.0))
    take(5, Numbers(2, bad=[1]), skipped=Skipped())  # one file always may


def test_batches_have_the_promised_types():
    dataset = Numbers(9)
    batch = take(1, dataset, crop=5)[0]
    assert isinstance(batch, Batch)
    assert (batch.clean.dtype, batch.clean.shape, batch.degraded) == (torch.uint8, (4, 3, 5, 5), None)
    for field in (batch.kinds, batch.seeds, batch.numbers):
        assert (field.dtype, field.shape) == (torch.int64, (4,))
    dataset.paired = True
    batch = take(1, dataset)[0]
    assert torch.equal(batch.degraded, 255 - batch.clean)


def test_errors_name_the_argument():
    dataset, order = Numbers(5), Order(5, 0)
    for options, words in [
        ({"batch": 0}, r"batch must be at least 1, got 0"),
        ({"crop": 0}, r"crop must be at least 1, got 0"),
        ({"rank": 2, "world": 2}, r"rank must be in 0\.\.1, got 2"),
        ({"world": 0}, r"world must be at least 1"),
        ({"start": -1}, r"start must be at least 0"),
        ({"workers": -1}, r"workers must be at least 0"),
    ]:
        with pytest.raises(ValueError, match=words):
            batches(dataset, order, **{"batch": 1, "crop": 1} | options)
    with pytest.raises(TypeError, match=r"batch must be an integer, got 2\.0"):
        batches(dataset, order, batch=2.0, crop=1)
    with pytest.raises(ValueError, match=r"order must be of the data set's 5, got one of 6"):
        batches(dataset, Order(6, 0), batch=1, crop=1)
    with pytest.raises(ValueError, match=r"count must be at least 1, got 0"):
        Order(0, 0)
    with pytest.raises(TypeError, match=r"seed must be an integer, got 0\.5"):
        Order(1, 0.5)
    with pytest.raises(ValueError, match=r"seed must have at most 64 bits"):
        Order(1, 2**64)
    with pytest.raises(ValueError, match=r"share must be in 0\.\.1, got 2"):
        Skipped(2)
