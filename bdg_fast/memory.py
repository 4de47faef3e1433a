"""How much memory is free, also where a container or a service has less than the machine, and when it ran out."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path

import torch

GUESS = 4 << 30
"""Bytes, where the system does not tell."""
GROUPS = (
    ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Of Linux's control groups, second and first version: folder, limit, usage, and cached files, which give way."""

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Of ``mallopt``, from malloc.h."""


def free_memory(device: torch.device, root: Path = Path("/")) -> int:
    """Bytes that may be taken on a device; ``root`` is where the system's own files are looked for."""
    if device.type == "cuda":
        # what PyTorch keeps for the next call is free too: else a picture's tiles would depend on what came before it
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    found = _numbers(root / "proc/meminfo").get("MemAvailable:")
    return max(min([GUESS if found is None else found * 1024, *_left_by_groups(root)]), 0)


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error is that memory ran out, or came of it."""
    # PyTorch's CPU and MPS allocators raise no type of their own; a capture reports its own end first
    known = ("can't allocate memory", "out of memory")
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in known):
            return True
        error = error.__cause__ or error.__context__
    return False


def keep_freed_memory() -> None:
    """Have glibc keep large blocks for the next layer instead of returning each to the system.

    Fresh pages cost a CPU restoration a fifth of its time (benchmarks/notes.md). For a command's own process only;
    nothing happens where the C library is another.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((M_MMAP_THRESHOLD, 2**31 - 1), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26)):
            mallopt(parameter, value)


def _left_by_groups(root: Path) -> Iterator[int]:
    """What the limit of each control group leaves that this process is in."""
    paths = {"."}
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            own = Path(line.split(":", 2)[2].lstrip("/"))
            paths |= {str(part) for part in (own, *own.parents)}
    for folder, limit, usage, cached in GROUPS:
        for path in paths:
            group = root / folder / path
            with contextlib.suppress(OSError, ValueError):  # not there, or without a limit: "max"
                left = int((group / limit).read_text()) - int((group / usage).read_text())
                yield left + _numbers(group / "memory.stat").get(cached, 0)


def _numbers(file: Path) -> dict[str, int]:
    """Lines of a name and a number; none where there is no such file."""
    with contextlib.suppress(OSError, ValueError):
        lines = (line.split() for line in file.read_text().splitlines())
        return {words[0]: int(words[1]) for words in lines if len(words) > 1}
    return {}
