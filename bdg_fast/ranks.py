"""The processes of one command: `torchrun`'s, or this one alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(days=30)
"""For the slowest process of a job: shares take as long as they take. One that dies is noticed by its connection."""
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Ranks:
    """Which process this is.

    Attributes:
        rank, world: its number, and how many there are.
        device: that it computes on.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        """Whether this one writes files and tells."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """Mean over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(values)
            values /= self.world
        return values

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def collected(self, value: Any) -> list[Any]:
        """What every rank has, in their order."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        """For all others."""
        self.collected(None)


@contextlib.contextmanager
def ranks(device: str, timeout: timedelta | None = None) -> Iterator[Ranks]:
    """Join the other processes, if `torchrun` started this one, and leave them at the end.

    A process group that is there already is used, and stays. After an error it stays too: the process should end.

    Args:
        device: ``"cpu"``, ``"cuda"`` (of several processes on one machine that `torchrun` started each takes its own,
            else it is the current one), ``"cuda:1"``.
        timeout: of a process that waits for others; None: as `torch.distributed` has it.

    Raises:
        ValueError: one GPU is named for several processes of a machine.
    """
    own = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    chosen = torch.device(device)
    if chosen.type == "cuda":
        chosen = _gpu(chosen.index)
        torch.cuda.set_device(chosen)
    if own:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=timeout)
    if dist.is_available() and dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size(), chosen)
    else:
        yield Ranks(0, 1, chosen)
    # not after an error: NCCL would wait here for the others, which wait for this one, and nobody would hear of it
    if own:
        dist.destroy_process_group()


def _gpu(index: int | None) -> torch.device:
    """The one that is named, or this process's own."""
    own = _own_index()
    if own is None:
        return torch.device("cuda", torch.cuda.current_device() if index is None else index)
    if index not in (None, own) and os.environ.get("LOCAL_WORLD_SIZE") != "1":
        raise ValueError(f"device must be 'cuda', of which this process takes 'cuda:{own}', got 'cuda:{index}'")
    return torch.device("cuda", own if index is None else index)


def _own_index() -> int | None:
    """Of the GPU that this process takes, where `torchrun` started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "LOCAL_RANK" not in os.environ:
        return None
    return int(os.environ["LOCAL_RANK"]) % max(torch.cuda.device_count(), 1)


def shares() -> contextlib.AbstractContextManager[Ranks]:
    """:func:`ranks` of a job, whose parts are done by one process each and which may take days."""
    return ranks("cpu", PATIENCE)


def own_device(device: str) -> str:
    """The device of this process: its own GPU, where `torchrun` started several and GPUs are meant."""
    chosen = device in ("auto", "cuda") and torch.cuda.is_available()
    if not chosen or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    return f"cuda:{_own_index() or 0}"
