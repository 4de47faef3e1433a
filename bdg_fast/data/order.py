"""Which image comes when: functions of a run's seed and a position, so that any position is reached at once.

A *position* counts the samples of a run, over all ranks and epochs, from zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

WORD = (1 << 64) - 1
ROUNDS = 8
SEEDS, RESERVES = 1, 2
"""What a hash of the run's seed is for, apart from the epochs' permutations (which start at 3)."""


def mixed(*words: int) -> int:
    """A well mixed 64-bit number of integers (splitmix64's mixing over each); one to one in each, if others stay."""
    state = 0
    for word in words:
        state = ((state ^ (word & WORD)) + 0x9E3779B97F4A7C15) & WORD
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & WORD
        state ^= state >> 31
    return state


@dataclass(frozen=True)
class Order:
    """The order of ``count`` images in a run: a fresh permutation for each epoch.

    Nothing is stored and nothing depends on positions before, so a run resumes from a position alone and ranks agree
    without talking to each other. Plain integer arithmetic: the same with any release of anything.

    Args:
        count: number of images, at least 1.
        seed: of the run, any integer of 64 bits.

    Raises:
        TypeError, ValueError: they are not.
    """

    count: int
    seed: int

    def __post_init__(self) -> None:
        for name, value in (("count", self.count), ("seed", self.seed)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an integer, got {value!r}")
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")
        if not -(2**63) <= self.seed < 2**64:
            raise ValueError(f"seed must have at most 64 bits, got {self.seed}")

    def number(self, position: int) -> int:
        """The image at ``position >= 0``, in ``0 .. count - 1``; each comes once in every ``count`` positions."""
        epoch, index = divmod(position, self.count)
        return self._permuted(index, epoch + 3)

    def seed_of(self, position: int) -> int:
        """A seed for the sample at ``position``, as an int64; different at every position."""
        word = mixed(self.seed, SEEDS, position)
        return word - (1 << 64) if word >> 63 else word

    def reserve(self, position: int, attempt: int) -> int:
        """The image to take at ``position`` where others cannot be read; another one at each of ``count`` attempts."""
        first = mixed(self.seed, RESERVES, position)
        return self._permuted((first + attempt) % self.count, RESERVES)

    def _permuted(self, index: int, use: int) -> int:
        """A permutation of ``0 .. count - 1``.

        Index by index through a Feistel network over pairs of digits: each round adds to one digit a hash of the other,
        which can be undone, so the whole is one to one on ``side**2`` numbers; those beyond ``count`` go round again.
        """
        side = math.isqrt(self.count - 1) + 1
        while True:
            high, low = divmod(index, side)
            for step in range(0, ROUNDS, 2):
                high = (high + mixed(self.seed, use, step, low)) % side
                low = (low + mixed(self.seed, use, step + 1, high)) % side
            index = high * side + low
            if index < self.count:
                return index
