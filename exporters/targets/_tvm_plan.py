"""A model as calls one after the other, with a position for every value, known ahead.

    values    inputs, parameters, and what calls write; a reshaped value is another name for the same bytes
    calls     in order; each reads values and writes values
    memory    one block: values whose lifetimes do not meet share bytes; nothing is allocated in a call

Positions are found as in "Efficient Memory Management for Deep Neural Net Inference" (Pisarchyk and Lee, 2020, greedy
by size): the largest value first, each as low as the values allow that are placed already and live at the same time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

ALIGNMENT = 64
"""Bytes; of a cache line, and of the widest vectors. TVM's code and the kernels rely on it."""

BYTES = {
    **{f"{kind}{bits}": bits // 8 for kind in ("int", "uint", "float") for bits in (8, 16, 32, 64) if bits > 8},
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
"""Bytes of a number, by numpy's names of types."""


@dataclass(frozen=True)
class Value:
    """A tensor: its name within the program, its shape, and numpy's name of its type."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * BYTES[self.dtype]


@dataclass(frozen=True)
class Call:
    """A call of compiled code.

    Attributes:
        symbol: of the function.
        reads, writes: names of values.
        is_kernel: whether it is a kernel, which takes one array of pointers, or TVM's code, which takes each pointer.
        operators: what it computes, in the graph's words, in order.
        macs: multiply-accumulates.
        scratch: bytes that it needs while it runs, one number for each block.
        tasks: that threads share; where there is more than one, TVM's code takes the number of one.
    """

    symbol: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    is_kernel: bool = False
    operators: tuple[str, ...] = ()
    macs: int = 0
    scratch: tuple[int, ...] = ()
    tasks: int = 1


@dataclass(frozen=True)
class Listing:
    """A whole model: values, calls in order, and which names stand for the same bytes.

    Attributes:
        inputs: in the order of the model's.
        outputs: names, in the order of the model's; an input, a parameter, or one name twice is allowed.
        parameters: bytes of constants by name.
        values: every value by name.
        aliases: a name, and the name whose bytes it is.
    """

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    calls: tuple[Call, ...]
    values: Mapping[str, Value]
    parameters: Mapping[str, bytes] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)

    def root(self, name: str) -> str:
        """Return the value whose bytes a name stands for."""
        while name in self.aliases:
            name = self.aliases[name]
        return name


@dataclass(frozen=True)
class Plan:
    """The position of everything.

    Attributes:
        positions: bytes from the start of the working memory, of inputs and computed values, by root name.
        scratch: the same for each call's own blocks, by the call's number.
        weights: bytes from the start of the parameters, by root name.
        memory: bytes of working memory.
        content: the parameters, one after the other, equal ones once.
    """

    positions: Mapping[str, int]
    scratch: Mapping[int, tuple[int, ...]]
    weights: Mapping[str, int]
    memory: int
    content: bytes


def plan(sequence: Listing) -> Plan:
    """Return a position for every value of a sequence of calls."""
    weights, content = _pack(sequence.parameters)
    spans = _lifetimes(sequence)
    blocks = [Block(name, sequence.values[name].bytes, *span) for name, span in spans.items()]
    for number, call in enumerate(sequence.calls):
        blocks += [Block(f"{number}/{i}", size, number, number) for i, size in enumerate(call.scratch)]
    positions, memory = place(blocks)
    scratch = {
        number: tuple(positions.pop(f"{number}/{i}") for i in range(len(call.scratch)))
        for number, call in enumerate(sequence.calls)
        if call.scratch
    }
    return Plan(positions, scratch, weights, memory, content)


def _pack(parameters: Mapping[str, bytes]) -> tuple[dict[str, int], bytes]:
    """Return where each parameter lies in the content of all, and that content."""
    found: dict[bytes, int] = {}
    weights: dict[str, int] = {}
    content = bytearray()
    for name, value in parameters.items():
        if value not in found:
            content.extend(b"\0" * (-len(content) % ALIGNMENT))
            found[value] = len(content)
            content.extend(value)
        weights[name] = found[value]
    return weights, bytes(content)


def _lifetimes(sequence: Listing) -> dict[str, tuple[int, int]]:
    """Return the first and last call during which each value's bytes are needed, by root name, parameters left out.

    Inputs are there from the first call on, and outputs until the last one has returned.
    """
    spans: dict[str, tuple[int, int]] = {}

    def need(name: str, when: int) -> None:
        root = sequence.root(name)
        if root not in sequence.parameters:
            first, last = spans.get(root, (when, when))
            spans[root] = min(first, when), max(last, when)

    for value in sequence.inputs:
        need(value.name, 0)
    for number, call in enumerate(sequence.calls):
        for name in (*call.reads, *call.writes):
            need(name, number)
    for value in sequence.outputs:
        need(value.name, len(sequence.calls))
    return spans


@dataclass(frozen=True)
class Block:
    """Bytes that are needed from the first to the last of some calls, both included."""

    name: str
    size: int
    first: int
    last: int


def place(blocks: Iterable[Block]) -> tuple[dict[str, int], int]:
    """Return positions at which blocks that are needed at the same time do not meet, and the bytes of all."""
    placed: list[tuple[int, Block]] = []
    positions: dict[str, int] = {}
    for block in sorted(blocks, key=lambda one: (-one.size, one.first, one.name)):
        position = _lowest(block, placed)
        placed.append((position, block))
        positions[block.name] = position
    return positions, max((position + _padded(block.size) for position, block in placed), default=0)


def _lowest(block: Block, placed: Sequence[tuple[int, Block]]) -> int:
    """Return the lowest position with room for a block between those that live while it does."""
    position = 0
    for start, other in sorted(placed, key=lambda one: one[0]):
        if other.first > block.last or other.last < block.first:
            continue
        if start - position >= _padded(block.size):
            break
        position = max(position, start + _padded(other.size))
    return position


def _padded(size: int) -> int:
    """Return a size in whole cache lines; nothing takes one too, so that every position is a value's own."""
    return max(ALIGNMENT, size + -size % ALIGNMENT)
