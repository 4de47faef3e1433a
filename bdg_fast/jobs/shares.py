"""The processes of `torchrun` that share a job."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

PATIENCE = timedelta(days=30)
"""For the slowest process: shares take as long as they take. One that dies is noticed by its connection."""


@dataclass(frozen=True)
class Shares:
    """Which of the processes this is.

    Attributes:
        rank, world: its number, and how many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this one joins what all have done, and tells."""
        return self.rank == 0

    def wait(self) -> None:
        """For all others."""
        if self.world > 1:
            dist.barrier()

    def worst(self, code: int) -> int:
        """The largest exit code, in every process, once all have come to theirs."""
        found = torch.tensor(code)
        if self.world > 1:
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def told(self, code: int) -> int:
        """The first one's exit code, in every process: `torchrun` ends all when one fails."""
        found = torch.tensor(code)
        if self.world > 1:
            dist.broadcast(found, 0)
        return int(found)


@contextlib.contextmanager
def shares() -> Iterator[Shares]:
    """Join the other processes, if `torchrun` started this one, and leave them at the end."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Shares()
        return
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Shares(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def own_device(device: str) -> str:
    """The device of this process: its own GPU, where `torchrun` started several and GPUs are meant."""
    chosen = device in ("auto", "cuda") and torch.cuda.is_available()
    if not chosen or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
