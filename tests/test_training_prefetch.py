"""Batches on their way to the device: the same ones in order; page-locked memory for CUDA alone."""

from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest
import torch

from bdg_fast.training import prefetch
from bdg_fast.training.prefetch import prefetched
from training_setup import pictures


class Recorded:
    """Stands for `Transfers`, whose copies need a GPU."""

    made: ClassVar[list] = []

    def __init__(self, device):
        self.device, self.copied, self.taken, self.open = device, [], [], True
        self.threads = ThreadPoolExecutor(1)
        self.made.append(self)

    def beside(self, function):
        return self.threads.submit(function).result

    def begin(self, tensor):
        self.copied.append(tensor)
        return lambda: (self.taken.append(tensor), tensor.clone())[1]

    def close(self):
        self.threads.shutdown()
        self.open = False


@pytest.fixture(autouse=True)
def transfers(monkeypatch):
    Recorded.made = []
    monkeypatch.setattr(prefetch, "Transfers", Recorded)
    return Recorded.made


def source():
    return pictures().batches(batch=3, crop=16, rank=0, world=1, start=0, seed=0)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_are_the_same_in_the_same_order(transfers, device):
    found = prefetched(source(), torch.device(device))
    for _, one, other in zip(range(5), found, source(), strict=False):
        for mine, theirs in zip(one, other, strict=True):
            assert mine is theirs is None or torch.equal(mine, theirs)
    found.close()
    assert [each.device.type for each in transfers] == (["cuda"] if device == "cuda" else [])  # nothing is pinned
    assert not any(each.open for each in transfers)


def test_the_next_batch_is_copied_while_one_is_used_and_degraded_images_too(transfers):
    given = (batch._replace(degraded=255 - batch.clean) for batch in source())
    found = prefetched(given, torch.device("cuda"))
    first = next(found)
    second = next(found)
    assert torch.equal(first.degraded, 255 - first.clean) and not torch.equal(first.clean, second.clean)
    (own,) = transfers
    assert len(own.taken) == 4  # what is ahead is not waited for
    found.close()
    assert len(own.copied) == 6 and len(own.taken) == 4


def test_errors_come_where_their_batch_would_and_the_source_is_closed():
    closed = []

    def broken():
        try:
            yield next(source())
            raise OSError("unreadable")
        finally:
            closed.append(True)

    for device in ("cpu", "cuda"):
        found = prefetched(broken(), torch.device(device))
        next(found)
        with pytest.raises(OSError, match="unreadable"):
            next(found)
    assert closed == [True, True]
    assert len(list(prefetched(iter([next(source())]), torch.device("cuda")))) == 1  # one that ends
    left = prefetched(broken(), torch.device("cuda"))
    next(left)
    left.close()  # what was read ahead is nobody's error
    assert len(closed) == 3
