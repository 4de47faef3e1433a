"""Triton backend: which way to count, and in what grid. Plain Python: held to bounds without a GPU."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

WAYS = ("shared", "packed", "counts", "product")
CLASSES = (8, 16, 32, 64, 105, 128, 256)
"""Numbers of levels that share a choice: up to 8, ... A matrix of 105 is the last to fit `BINS` words whole."""
BINS, PART_BINS = 22 * 512, 23 * 512
"""Words of shared memory of a program, for whole matrices and for parts: five and four programs fit a processor with
228 KiB, and static memory ends at 48."""
SMALL_BINS = 34 * 128
"""For small images, whose programs are many and of few threads."""
GFX9_BINS = (8 * 1024, 16 * 1024)
"""As many as hold a matrix. A power of two, for what sets them aside (`triton_bins.py`); there are 64 KiB."""
SMALL = 128 * 128
"""Elements of a level image below which programs are of one warp."""
MOST_GROUPS = 32
"""Most groups of a program."""
MOST_PACKED = 7
"""Most offsets of a group for 16-bit bins: of more, they would be emptied too often."""

SPARSE = 4
"""Cells for each pixel of an image above which bins do not pay: its pairs are added to the counts themselves."""


class Choice(NamedTuple):
    """A way to count, and why."""

    way: str
    instructions: dict[str, float]  # of each way, per update; the worst of the family's targets and of Triton 3.6, 3.9
    known: str  # "predicted" from the instructions, or "measured"


CHOICE = {
    ("nvidia", 8): Choice("shared", {"shared": 4.6, "packed": 4.6, "counts": 6.7, "product": 213.8}, "predicted"),
    ("nvidia", 16): Choice("shared", {"shared": 4.6, "packed": 4.6, "counts": 6.7, "product": 213.8}, "predicted"),
    ("nvidia", 32): Choice("shared", {"shared": 4.6, "packed": 4.6, "counts": 6.7, "product": 261.8}, "predicted"),
    ("nvidia", 64): Choice("shared", {"shared": 4.6, "packed": 4.6, "counts": 6.7}, "predicted"),
    ("nvidia", 105): Choice("shared", {"shared": 4.6, "packed": 4.6, "counts": 6.7}, "predicted"),
    ("nvidia", 128): Choice("shared", {"shared": 7.3, "packed": 4.6, "counts": 6.7}, "predicted"),
    ("nvidia", 256): Choice("shared", {"shared": 8.4, "packed": 9.0, "counts": 7.3}, "predicted"),
    ("gfx9", 8): Choice("shared", {"shared": 7.8, "packed": 7.8, "counts": 132.6, "product": 153.5}, "predicted"),
    ("gfx9", 16): Choice("shared", {"shared": 7.8, "packed": 7.8, "counts": 132.6, "product": 153.5}, "predicted"),
    ("gfx9", 32): Choice("shared", {"shared": 7.8, "packed": 7.8, "counts": 132.6, "product": 249.5}, "predicted"),
    ("gfx9", 64): Choice("shared", {"shared": 7.8, "packed": 7.8, "counts": 132.6}, "predicted"),
    ("gfx9", 105): Choice("shared", {"shared": 7.8, "packed": 7.8, "counts": 132.6}, "predicted"),
    ("gfx9", 128): Choice("shared", {"shared": 8.0, "packed": 7.8, "counts": 132.6}, "predicted"),
    ("gfx9", 256): Choice("shared", {"shared": 8.2, "packed": 8.2, "counts": 133.8}, "predicted"),
}
"""By kind of GPU and class of levels; tests hold the numbers to `benchmarks/codegen_budgets.json`.

Without a measurement no other is taken for its instructions alone. ``counts`` sends each increment to the
second-level cache, which takes far fewer a clock. ``packed`` is emptied more often, and adds what the compiler does not
know to be 1: lanes that meet at an address wait for each other. It alone holds whole matrices of 106 to 148 levels.
"""


class ProductConfig(NamedTuple):
    """How `product_kernel` is specialized for a number of levels."""

    block: int  # pixels of a step
    columns: int  # columns of a program
    side: int  # rows and columns of a tile: levels rounded up to a power of two
    warps: int


class BinsConfig(NamedTuple):
    """How `bins_kernel` is specialized for a number of levels and a class of image sizes."""

    groups: int  # most groups of a program
    half: int  # rows of words of a part, or of the whole matrix
    parts: int  # of a matrix too large for a program; 0: whole
    room: int  # words set aside
    block: int  # pixels of a step
    warps: int
    tile: int  # words cleared and emptied at a time


class Launch(NamedTuple):
    """The grid of `bins_kernel`: (images * splits, blocks, parts)."""

    splits: int  # programs that share an image's pixels
    blocks: int  # programs that share its groups
    pixels: int  # of a program


def class_of(levels: int) -> int:
    """The class of a number of levels."""
    return next(most for most in CLASSES if levels <= most)


def cells_for(levels: int) -> int:
    """Cells of a program of `combine_kernel`: few where matrices are small, so that one image has several programs."""
    return 256 if levels <= 64 else 1024


def product_config(levels: int) -> ProductConfig:
    """Chosen by instructions per update without spills.

    ``block * columns`` must not fall below the number of threads, or the compiler repeats the quantization
    in several of them.
    """
    return ProductConfig(block=64, columns=4, side=max(16, 1 << (levels - 1).bit_length()), warps=4)


def words_for(groups: int, half: int, side: int, parts: int, tile: int) -> int:
    """Words that a program of ``groups`` clears: whole tiles, with what it reads beyond its last matrix and, if there
    are ``parts``, a row for what does not count."""
    used = (groups - 1) * half * side + -(-half * side // tile) * tile
    if parts:
        used = max(used, half * side + side)
    return -(-used // tile) * tile


@lru_cache(maxsize=256)
def bins_config(levels: int, way: str, small: bool, gfx9: bool = False) -> BinsConfig:
    """As many whole matrices as fit the bins of a program, or as many rows of one.

    32 pixels a thread share the work for an offset; 16 where images are small, so that fewer lanes are idle, and where
    pixels are listed, which takes more registers. Programs are of one warp only where many of them fit a processor; on
    gfx9 such would set nothing aside.
    """
    side = levels + 1
    large, medium, little = (4096, 4, 512), (2048, 4, 512), (512, 1, 128)  # block, warps, tile
    if way == "counts":
        return BinsConfig(MOST_GROUPS, side, 0, 0, *(little if small else large))
    pack = 2 if way == "packed" else 1
    half = -(-side // pack)
    shapes = [(BINS, *(medium if small else large))]
    if gfx9:
        shapes = [(room, *(medium if small else large)) for room in GFX9_BINS]
    elif small:
        shapes.insert(0, (SMALL_BINS, *little))
    for room, block, warps, tile in shapes:
        fitting = [n for n in range(1, MOST_GROUPS + 1) if words_for(n, half, side, 0, tile) <= room]
        if fitting:
            return BinsConfig(fitting[-1], half, 0, room, block, warps, tile)
    room = GFX9_BINS[-1] if gfx9 else PART_BINS
    parts = -(-levels // ((room // side - 1) * pack))
    return BinsConfig(1, -(-levels // (parts * pack)), parts, room, *medium)


START, CLEAR, WRITE, ADD = 1500, 1.25, 5, 10
"""Instructions of a thread's own, and a word cleared, a cell emptied by writing or by adding."""
PIXEL, UPDATE = 2, 4
"""Instructions of a pixel beyond its updates, and of an update."""
BUSY = 16
"""Warps that keep a processor busy."""


@lru_cache(maxsize=1024)
def launch_for(
    config: BinsConfig, side: int, batch: int, size: int, groups: int, offsets: int, limit: int, processors: int
) -> Launch:
    """The cheapest grid for ``batch`` planes of ``size`` elements, by instructions and by how they fill the machine.

    ``groups`` have ``offsets`` offsets altogether, and a program may take up to ``limit`` pixels. More splits mean more
    programs, but also more bins to clear and to empty, by adding; more blocks mean more programs, each of which reads
    the pixels.
    """
    threads, parts = 32 * config.warps, max(config.parts, 1)
    words = config.half * side
    cells = side * side / parts
    resident = max(min(5 * BINS // max(config.room, 1), 32), 1)
    fewest = -(-groups // config.groups)
    steps = -(-size // config.block)
    least = -(-steps // max(limit // config.block, 1))
    best, found = float("inf"), Launch(1, 1, size)
    for blocks in sorted({min(fewest << i, groups) for i in range(groups.bit_length() + 1)}):
        each = -(-groups // blocks)
        asked = least
        while asked <= steps:
            pixels = -(-steps // asked) * config.block
            splits = -(-size // pixels)
            bins = 0.0
            if config.room:
                bins = each * (CLEAR * words + (WRITE if splits == 1 else ADD) * cells)
            work = START * threads + pixels * (PIXEL + UPDATE * offsets / blocks) / parts + bins
            rounds = -(-batch * splits * blocks * parts // processors)
            time = rounds * work * max(1.0, BUSY / (min(rounds, resident) * config.warps))
            if time < best:
                best, found = time, Launch(splits, blocks, pixels)
            asked = max(asked + 1, asked * 5 // 4)
    return found
