"""Encoded parts of a clip in a folder: each appears whole, and an interrupted run goes on behind the last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bdg_fast.files import write_atomically

from .encoding import Coded


class Parts:
    """Parts of a run that ``key`` tells from all others."""

    def __init__(self, folder: Path, key: str) -> None:
        """Make the folder; parts of other runs are deleted."""
        self.folder, self.key = folder, key
        folder.mkdir(parents=True, exist_ok=True)
        self.found: list[Path] = []
        for number in count():
            path = self._path(number)
            if not path.exists() or not self._is_ours(path):
                break
            self.found.append(path)
        for path in self._all():
            if path not in self.found:
                path.unlink()

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"

    def _all(self) -> list[Path]:
        """Parts of any run, whole or not: nothing else in the folder is touched."""
        return [*self.folder.glob("[0-9]" * 6 + ".safetensors"), *self.folder.glob(".bdg-*.safetensors")]

    def _is_ours(self, path: Path) -> bool:
        try:
            with safe_open(path, "pt") as file:
                return (file.metadata() or {}).get("key") == self.key
        except (SafetensorError, OSError):
            return False

    def add(self, packets: list[Coded], state: dict[str, Tensor]) -> None:
        """Write the next: its packets, and what the following frames depend on."""
        tensors = {
            "data": torch.frombuffer(bytearray(b"".join(p.data for p in packets)), dtype=torch.uint8),
            "sizes": torch.tensor([len(p.data) for p in packets]),
            "pts": torch.tensor([p.pts for p in packets]),
            "durations": torch.tensor([p.duration for p in packets]),
            "keys": torch.tensor([p.key for p in packets]),
        } | {f"state.{name}": tensor.contiguous() for name, tensor in state.items()}
        path = self._path(len(self.found))
        write_atomically(path, lambda file: save_file(tensors, file, {"key": self.key}))
        self.found.append(path)

    @property
    def frames(self) -> int:
        """How many are encoded."""
        return len(self.times())

    def state(self) -> dict[str, Tensor]:
        """What the frames behind the last part depend on."""
        if not self.found:
            return {}
        with safe_open(self.found[-1], "pt") as file:
            names = filter(lambda name: name.startswith("state."), file.keys())
            return {name.removeprefix("state."): file.get_tensor(name) for name in names}

    def times(self) -> list[int]:
        """When each packet is shown, in the order they are decoded."""
        times: list[int] = []
        for path in self.found:
            with safe_open(path, "pt") as file:
                times += file.get_tensor("pts").tolist()
        return times

    def packets(self) -> Iterator[Coded]:
        """All packets in the order they are decoded; one part is in memory at a time."""
        for path in self.found:
            with safe_open(path, "pt") as file:
                sizes, pts, durations, keys = (
                    file.get_tensor(name).tolist() for name in ("sizes", "pts", "durations", "keys")
                )
                data = file.get_tensor("data").numpy().tobytes()
            begin = 0
            for size, shown, duration, key in zip(sizes, pts, durations, keys, strict=True):
                yield Coded(data[begin : begin + size], shown, duration, bool(key))
                begin += size

    def delete(self) -> None:
        """Delete the parts, and the folder if nothing else is in it."""
        for path in self._all():
            path.unlink()
        with suppress(OSError):
            self.folder.rmdir()
