"""Runs the PTX of a kernel on the CPU, and checks what a GPU would leave unsaid.

A register is a vector with an element for each thread of the blocks that run side by side. Where threads diverge,
those at the lowest instruction go first. `PtxError` names the instruction and thread of

- an access outside the arrays passed to the kernel or the shared memory it sets aside, or a misaligned one;
- a read of shared memory that nobody wrote;
- a race: between two barriers, a plain write to shared memory that another warp reads, writes or adds to, and a read
  of what another warp adds to;
- a barrier that some threads of a block do not reach, and an exchange within a warp that lacks some of its lanes;
- any instruction not known here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from ptx_isa import TYPES, WARP, Address, Array, Fault, Kind, Mask, Operand, PtxError, Run, decode

Order: TypeAlias = Literal["together", "forward", "backward", "shuffled"]

SIDE_BY_SIDE = 8192
"""Threads of the blocks that run together: larger vectors cost less per thread."""
GAP = 4096
"""Bytes out of bounds on either side of an array."""
GARBAGE = 0xA5A5A5A5A5A5A5A5
"""In registers that nobody wrote; in shared memory it is random."""
PRED, U32, U64 = TYPES["pred"], TYPES["u32"], TYPES["u64"]


class Instruction(NamedTuple):
    """One line: ``@guard opcode operands``."""

    text: str
    guard: str
    negated: bool
    opcode: str
    operands: tuple[Any, ...]
    run: Run | None  # None: steers, see `Machine._advance`


class Program(NamedTuple):
    """A kernel, parsed."""

    parameters: dict[str, Kind]
    threads: int
    registers: dict[str, Kind]  # by prefix: %r, or by name
    shared: dict[str, int]  # bytes of each array that the kernel sets aside
    dynamic: list[str]  # names of the array whose size the launch tells
    instructions: list[Instruction]
    labels: dict[str, int]


# --- parsing


@cache
def parse(text: str) -> Program:
    """The only kernel of ``text``."""
    text = re.sub(r"//.*|/\*.*?\*/|^\s*\.(loc|pragma|file)\b.*", "", text, flags=re.M)
    entry = re.search(r"\.entry\s+\w+\s*\(([^)]*)\)([^{]*)\{", text)
    if entry is None:
        raise PtxError("no kernel")
    parameters = {name: TYPES[kind] for kind, name in re.findall(r"\.param\s+\.(\w+)[^,]*?(\w+)\s*(?:,|$)", entry[1])}
    threads = int(re.search(r"\.(?:req|max)ntid\s+(\d+)", entry[2])[1])  # type: ignore[index]
    arrays = re.findall(r"\.shared\s+\.align\s+\d+\s+\.b8\s+(\w+)\[(\d*)\]", text)
    shared = {name: int(size) for name, size in arrays if size}
    registers: dict[str, Kind] = {}
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for statement in _statements(text[entry.end() :]):
        if statement.endswith(":"):
            labels[statement[:-1]] = len(instructions)
        elif found := re.fullmatch(r"\.reg\s+\.(\w+)\s+(%?\w+?)(?:<\d+>)?", statement):
            registers[found[2]] = TYPES[found[1]]
        elif not statement.startswith(".shared"):
            instructions.append(_instruction(statement))
    return Program(parameters, threads, registers, shared, [n for n, size in arrays if not size], instructions, labels)


def _statements(body: str) -> Iterator[str]:
    """Labels with their colon, and what ends in a semicolon; scopes are taken as one, their names differ or agree."""
    position, depth = 0, 1
    while True:
        found = re.compile(r"\s*(?:([{}])|([$\w]+:)|([^;{}][^;]*);)").match(body, position)
        if found is None:
            raise PtxError(f"cannot parse {body[position : position + 80]!r}")
        position = found.end()
        depth += {"{": 1, "}": -1}.get(found[1], 0)
        if depth == 0:
            return
        if not found[1]:
            yield found[2] or " ".join(found[3].split())


def _instruction(text: str) -> Instruction:
    found = re.fullmatch(r"(?:@(!?)([%\w]+)\s+)?([\w.:]+)\s*(.*)", text)
    if found is None:
        raise PtxError(f"cannot parse {text!r}")
    operands = tuple(_operand(part) for part in re.findall(r"\{[^}]*\}|\[[^]]*\]|[^\s,]+", found[4]))
    return Instruction(text, found[2] or "", found[1] == "!", found[3], operands, decode(found[3]))


def _operand(text: str) -> Operand:
    if text[0] == "{":
        parts = tuple(_scalar(part.strip()) for part in text[1:-1].split(","))
        return parts if len(parts) > 1 else parts[0]
    if text[0] == "[":
        base, _, offset = text[1:-1].replace(" ", "").partition("+")
        return Address(_scalar(base), int(offset or 0))
    return _scalar(text)


def _scalar(text: str) -> int | str:
    """An immediate as an integer (floats by their bits), or a name."""
    if re.fullmatch(r"0[fFdD][0-9a-fA-F]+", text):
        return int(text[2:], 16)
    return int(text.rstrip("U"), 0) if re.fullmatch(r"-?\d\w*", text) else text


# --- memory


class Memory:
    """Arrays of ``sizes`` bytes at the ``offsets`` from ``base``, in as many copies as there are blocks."""

    def __init__(self, base: int, offsets: Sequence[int], sizes: Sequence[int], copies: int = 1):
        self.base = base
        self.stride = max((o + s for o, s in zip(offsets, sizes, strict=True)), default=0) // 256 * 256 + 256 + GAP
        self.content = np.random.default_rng(0).integers(0, 256, copies * self.stride, np.uint8)
        self.inside = np.zeros(self.stride, bool)
        for offset, size in zip(offsets, sizes, strict=True):
            self.inside[offset : offset + size] = True

    def locate(self, address: Array, width: int, copy: Array | int, threads: Array) -> Array:
        """Position in `content` of ``width`` bytes at each ``address``."""
        offset = address.astype(np.int64) - self.base
        bad = (offset < 0) | (offset > self.stride - width)
        safe = np.where(bad, 0, offset)
        # arrays lie further apart than an access is wide, so its ends tell
        bad |= ~(self.inside[safe] & self.inside[safe + width - 1])
        for wrong, what in ((bad, "out of bounds"), (address % width != 0, "misaligned")):
            if wrong.any():
                at = int(wrong.argmax())
                raise Fault(f"{width} bytes at {int(address[at]):#x} are {what}", int(threads[at]))
        return np.asarray(offset + copy * self.stride)


class Shared(Memory):
    """The shared memory of blocks: who did what since the last barrier, and what was ever written."""

    MANY = 255
    CONFLICTS: dict[str, str] = {"read": "write add", "write": "read write add", "add": "read write"}  # noqa: RUF012

    def __init__(self, base: int, offsets: Sequence[int], sizes: Sequence[int], copies: int):
        super().__init__(base, offsets, sizes, copies)
        self.written = np.zeros(len(self.content), bool)
        self.warps = {way: np.zeros(len(self.content), np.uint8) for way in self.CONFLICTS}  # 0: none

    def touch(self, way: str, at: Array, width: int, threads: Array, warps: Array) -> None:
        """Note that ``threads`` ``way`` (read, write, add) ``width`` bytes at the positions ``at``."""
        at = (at[:, None] + np.arange(width)).ravel()
        me = np.repeat((warps + 1).astype(np.uint8), width)
        if way != "write" and not (fine := self.written[at]).all():
            raise Fault(f"{way} of shared memory that was never written", int(threads[fine.argmin() // width]))
        self.written[at] = True
        for other in self.CONFLICTS[way].split():
            whose = self.warps[other][at]
            self._refuse((whose != 0) & (whose != me), f"race: {way} after {other} by another warp", width, threads)
        mine = self.warps[way]
        whose = mine[at]
        mine[at] = np.where((whose == 0) | (whose == me), me, self.MANY)
        several = (mine[at] != me) & (mine[at] != self.MANY)  # in this very instruction
        if way == "write":
            self._refuse(several, "race: written by several warps", width, threads)
        mine[at[several]] = self.MANY

    @staticmethod
    def _refuse(wrong: Array, what: str, width: int, threads: Array) -> None:
        if wrong.any():
            raise Fault(what, int(threads[wrong.argmax() // width]))

    def barrier(self, copies: Array) -> None:
        for whose in self.warps.values():
            whose.reshape(-1, self.stride)[copies] = 0


# --- running


class Machine:
    """Blocks side by side, from start to end."""

    def __init__(
        self,
        program: Program,
        grid: tuple[int, int, int],
        blocks: Array,  # numbers of the blocks, x fastest
        parameters: Sequence[Array],
        memory: Memory,
        dynamic: int,
    ):
        self.program, self.memory = program, memory
        self.parameters = dict(zip(program.parameters, parameters, strict=True))
        size = program.threads
        self.count = len(blocks) * size
        self.copy = np.repeat(np.arange(len(blocks)), size)
        self.thread = np.tile(np.arange(size), len(blocks))
        self.block = np.repeat(blocks, size)
        self.grid = grid
        places = np.unravel_index(self.block, grid, "F")
        self.registers: dict[str, Array] = {
            "%tid.x": self.thread, "%laneid": self.thread % WARP, "%ntid.x": np.full(self.count, size),
            **{f"%ctaid.{axis}": place for axis, place in zip("xyz", places, strict=True)},
            **{f"%nctaid.{axis}": np.full(self.count, n) for axis, n in zip("xyz", grid, strict=True)},
        }  # fmt: skip
        sizes = [*program.shared.values(), dynamic]
        offsets = [sum(-(-s // 1024) * 1024 + GAP for s in sizes[:i]) for i in range(len(sizes))]
        self.shared = Shared(1024, offsets, sizes, len(blocks))
        for name, offset in zip([*program.shared, *program.dynamic], offsets, strict=False):
            self.registers[name] = np.full(self.count, self.shared.base + offset)
        self.registers = {name: value.astype(U32) for name, value in self.registers.items()}
        self.at = np.zeros(self.count, np.int64)  # the next instruction of each thread
        self.waiting = np.zeros(self.count, bool)
        self.done = np.zeros(self.count, bool)
        targets = [i.operands[0] for i in program.instructions if i.opcode.startswith("bra")]
        self.leaders = {program.labels[target] for target in targets}

    def run(self, order: Order) -> None:
        """Warps in ``order`` from one barrier to the next."""
        random, warps = np.random.default_rng(0), self.thread // WARP
        while not self.done.all():
            numbers = np.arange(self.program.threads // WARP)
            if order == "together":
                turns = [np.ones(self.count, bool)]
            else:
                if order != "forward":
                    numbers = numbers[::-1] if order == "backward" else random.permutation(numbers)
                turns = [warps == number for number in numbers]
            for turn in turns:
                while (able := turn & ~self.waiting & ~self.done).any():
                    at = int(self.at[able].min())
                    self._advance(at, able & (self.at == at))
            self._release()

    def _advance(self, at: int, active: Array) -> None:
        """Run ``active`` threads from instruction ``at`` to the next that steers or may join others."""
        mask = None if active.all() else active
        while True:
            instruction = self.program.instructions[at]
            try:
                taken: Mask = mask
                if instruction.guard:
                    holds = self.read(instruction.guard, PRED) ^ instruction.negated
                    taken = holds if mask is None else holds & mask
                    taken = mask if taken[active].all() else taken
                if instruction.run is None:
                    return self._steer(instruction, at, active, active if taken is mask else taken)
                if taken is None or taken.any():
                    instruction.run(self, instruction.operands, taken)
            except Fault as fault:
                block = np.unravel_index(self.block[fault.thread], self.grid, "F")
                where = f"thread {self.thread[fault.thread]} of block {tuple(map(int, block))}"
                raise PtxError(f"{instruction.text}: {fault} ({where})") from None
            at += 1
            if at in self.leaders:
                self.at[active] = at
                return None

    def _steer(self, instruction: Instruction, at: int, active: Array, taken: Any) -> None:
        self.at[active] = at + 1
        if instruction.opcode.startswith("bra"):
            self.at[taken] = self.program.labels[instruction.operands[0]]
        elif instruction.opcode == "ret":
            self.done |= taken
        else:  # a barrier: released where it stands
            self.waiting |= taken

    def _release(self) -> None:
        """Let the blocks go on whose threads all wait at one barrier."""
        threads = self.program.threads
        waiting, at = self.waiting.reshape(-1, threads), self.at.reshape(-1, threads)
        stopped = np.asarray(waiting.any(1))
        for copy in np.flatnonzero(stopped):
            if not waiting[copy].all() or (at[copy] != at[copy, 0]).any():
                instruction = self.program.instructions[at[copy][waiting[copy]][0] - 1]
                raise PtxError(f"{instruction.text}: not reached by all threads of a block")
        self.waiting[:] = False
        self.shared.barrier(stopped)

    def read(self, operand: int | str, kind: Kind) -> Array:
        if isinstance(operand, int):
            return _constant(operand, kind)
        value = self.registers.get(operand)
        if value is None:  # compilers do read what nobody wrote, where it does not matter
            value = np.full(self.count, _constant(GARBAGE, self._kind(operand)))
        if value.dtype.itemsize > kind.itemsize:
            value = value.astype(f"u{kind.itemsize}")
        return value if value.dtype == kind else value.view(kind)

    def write(self, name: str, value: Array, mask: Mask) -> None:
        if name == "_":  # a part that nobody reads
            return
        kind = self._kind(name)
        if value.dtype != kind:  # loads of narrow integers extend them
            value = value.view(kind) if value.dtype.itemsize == kind.itemsize else value.astype(kind)
        if mask is not None:
            # never in place: registers share vectors after a move
            value = np.where(mask, value, self.registers.get(name, _constant(GARBAGE, kind)))
        elif value.ndim == 0:
            value = np.full(self.count, value)
        self.registers[name] = value

    def _kind(self, name: str) -> Kind:
        kinds = self.program.registers
        declared = name if name in kinds else name.rstrip("0123456789")
        if declared not in kinds:
            raise PtxError(f"unknown name {name}")
        return kinds[declared]

    def locate(self, space: str, address: Address, width: int, mask: Mask) -> tuple[Array, Array]:
        """Threads that take part, and where each accesses memory."""
        threads = np.arange(self.count) if mask is None else np.flatnonzero(mask)
        kind = U64 if space == "global" else U32
        value = self.read(address.base, kind) + _constant(address.offset, kind)
        value = np.broadcast_to(value, self.count)[threads]
        if space == "global":
            return threads, self.memory.locate(value, width, 0, threads)
        return threads, self.shared.locate(value, width, self.copy[threads], threads)

    def content(self, space: str) -> Array:
        return (self.memory if space == "global" else self.shared).content

    def touch(self, way: str, at: Array, width: int, threads: Array) -> None:
        self.shared.touch(way, at, width, threads, self.thread[threads] // WARP)

    def whole_warps(self, mask: Mask) -> None:
        if mask is not None and (torn := mask.reshape(-1, WARP).any(1) != mask.reshape(-1, WARP).all(1)).any():
            raise Fault("lanes of the warp are missing", int(torn.argmax()) * WARP)


@cache
def _constant(value: int, kind: Kind) -> Array:
    if kind == PRED:
        return np.array(bool(value))
    return np.array(value % (1 << 8 * kind.itemsize), f"u{kind.itemsize}").view(kind)


def launch(
    ptx: str, grid: tuple[int, int, int], arguments: Sequence[Array | int | float], dynamic: int = 0,
    order: Order = "together",
) -> None:  # fmt: skip
    """Run a kernel over ``grid``. Arrays are passed by their address, and written where the kernel writes."""
    program = parse(ptx)
    arrays = sorted((a for a in arguments if isinstance(a, np.ndarray)), key=lambda array: array.ctypes.data)
    offsets, end = [GAP + array.ctypes.data % 256 for array in arrays[:1]], 0
    for before, array in pairwise(arrays):
        end = max(end, before.ctypes.data + before.nbytes)
        step = array.ctypes.data - before.ctypes.data
        if array.ctypes.data >= end:  # apart, unless they overlap
            step = -(-(end - before.ctypes.data + GAP) // 256) * 256 + step % 256
        offsets.append(offsets[-1] + step)
    memory = Memory(0x7A0000000000, offsets, [array.nbytes for array in arrays])
    for array, offset in zip(arrays, offsets, strict=True):
        memory.content[offset : offset + array.nbytes] = array.view(np.uint8).ravel()
    places = {id(array): memory.base + offset for array, offset in zip(arrays, offsets, strict=True)}
    values = [places[id(a)] if isinstance(a, np.ndarray) else a for a in arguments]
    parameters = [
        np.array(value, np.float32).view(kind) if isinstance(value, float) else _constant(int(value), kind)
        for value, kind in zip(values, program.parameters.values(), strict=True)
    ]
    blocks = np.arange(grid[0] * grid[1] * grid[2])
    blocks = blocks[::-1] if order == "backward" else blocks
    each = max(1, SIDE_BY_SIDE // program.threads)
    with np.errstate(all="ignore"):
        for first in range(0, len(blocks), each):
            Machine(program, grid, blocks[first : first + each], parameters, memory, dynamic).run(order)
    for array, offset in zip(arrays, offsets, strict=True):
        array.view(np.uint8).ravel()[:] = memory.content[offset : offset + array.nbytes]
