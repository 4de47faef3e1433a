"""Copies to a GPU, without one: what is staged for them is whole, whatever the strides of what came."""

import contextlib
import types

import numpy as np
import pytest
import torch

from bdg_fast import transfers
from bdg_fast.data.convert import as_picture


@pytest.fixture
def copies(monkeypatch):
    """Transfers to the CPU; memory is pinned as PyTorch does it, but for the pinning."""
    event = types.SimpleNamespace()
    stream = types.SimpleNamespace(record_event=lambda: event, wait_event=lambda _: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda tensor, pin_memory=False: like(tensor))

    def pinned(tensor):
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).copy_(tensor)

    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    made = transfers.Transfers(torch.device("cpu"))
    yield made
    made.close()


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_pictures_of_any_kind_are_copied(copies, shape, dtype):
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    pixels = as_picture(array).pixels
    found = copies.to_device(pixels)
    assert torch.equal(found, pixels) and found.shape == (1, 3, 5, 7)


def test_large_tensors_take_no_page_locked_memory_and_each_call_waits_for_the_copy(copies, monkeypatch):
    staged, waited, like = [], [], torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda tensor, pin_memory=False: staged.append(tensor) or like(tensor))
    monkeypatch.setattr(torch.cuda.current_stream(None), "wait_event", waited.append)
    monkeypatch.setattr(transfers, "STAGED", 400)
    small, large = torch.arange(100.0), torch.arange(101.0)
    for tensor in (small, large):
        take = copies.begin(tensor)
        assert torch.equal(take(), tensor) and take() is take()
    assert len(staged) == 1 and staged[0] is small and len(waited) == 6
