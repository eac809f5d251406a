"""The numbers that steer kernels: one table a kind of registers, and what follows from a layer's shape.

    set       lanes  registers  P x V        why
    avx512    16     32         8 x 3        24 sums + 3 weights + 1 input = 28 registers
    avx2       8     16         6 x 2        12 sums + 2 weights + 1 input = 15 registers
    neon       4     32         7 x 3        21 sums + 3 weights + 1 input = 25 registers

A multiply-add takes four cycles and one or two may start in each, so a tile has eight sums or more where it can. Layers
with few output channels have fewer vectors and take more pixels; layers of few pixels take more vectors.
Letters: M pixels, K inputs, N outputs, P pixels and V vectors of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass

GROUP_BYTES = 384 * 1024
"""Inputs of a group of pixels that one panel after the other is multiplied by: with a panel, they stay in the second
cache, of which there is 1 MiB and more on desktops and servers and 512 KiB on small boards."""

LEAST_TASKS = 8
"""Tasks that a layer is cut into where it has the pixels or channels: two for each of four threads."""

MANY_WEIGHTS = 32
"""Times as many bytes of weights as of inputs, from which it takes several threads longer to read all weights each than
to read inputs that other cores have made."""

STRIP_START = 2
"""Outputs that take as long as it takes to begin a strip: its weights, and inputs that two strips share."""

SMALL_KERNEL = 3
"""Widths of depthwise kernels that are bound by their loads."""

STAGE = 64
"""Inputs that layers of few pixels sum apart. Their time is that of reading weights, so that it costs nothing there."""


@dataclass(frozen=True)
class InstructionSet:
    """The registers of a kind of processors, as far as kernels depend on them.

    Attributes:
        name: a word.
        lanes: floats in a vector.
        tiles: from vectors of a tile to its pixels; the last entry is the widest panel.
        short: from pixels to vectors, for layers that have no more pixels than that.
        row: vectors of one pixel, for layers that share nothing between pixels.
        strip: neighbouring outputs of a depthwise convolution.
        strip_lanes: floats in a vector of one with a small kernel.
    """

    name: str
    lanes: int
    tiles: dict[int, int]
    short: dict[int, int]
    row: int
    strip: int
    strip_lanes: int


# From vectors to pixels, and from few pixels to vectors: P V sums, V weights and an input fit into the registers.
FEW_PIXELS = {1: 8, 2: 6, 3: 5, 4: 5}

AVX512 = InstructionSet("avx512", 16, {1: 12, 2: 10, 3: 8}, FEW_PIXELS, row=16, strip=7, strip_lanes=8)
AVX2 = InstructionSet("avx2", 8, {1: 10, 2: 6}, {1: 8, 2: 4, 3: 3}, row=8, strip=7, strip_lanes=8)
NEON = InstructionSet("neon", 4, {1: 12, 2: 10, 3: 7}, FEW_PIXELS, row=16, strip=7, strip_lanes=4)


@dataclass(frozen=True)
class Dot:
    """A product of narrow numbers, summed in 32 bits; dot.h says which instruction it is.

    Attributes:
        name: a word.
        dtype: numpy's name of the type that holds eight bits of x.
        bytes: of that type, and of the one that holds a weight.
        offset: that x has more than its value.
    """

    name: str
    dtype: str
    bytes: int
    offset: int

    @property
    def per(self) -> int:
        """Numbers in a word of 32 bits, which one instruction multiplies."""
        return 4 // self.bytes


VNNI = Dot("vnni", "uint8", 1, 128)
SDOT = Dot("sdot", "int8", 1, 0)
PAIRS = Dot("pairs", "int16", 2, 0)


@dataclass(frozen=True)
class Tile:
    """P pixels times V vectors of output channels."""

    pixels: int
    vectors: int


def ceil_div(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)


def choose_tile(instructions: InstructionSet, pixels: int, outputs: int) -> Tile:
    """Return the tile of a product with M pixels and N outputs. Its pixels are a limit: tiles are made nearly equal."""
    vectors = ceil_div(outputs, instructions.lanes)
    if pixels in instructions.short:
        return Tile(pixels, min(vectors, instructions.short[pixels]))
    width = min(vectors, max(instructions.tiles))
    return Tile(min(pixels, instructions.tiles[width]), width)


def panels(instructions: InstructionSet, vectors: int, outputs: int) -> list[tuple[int, int]]:
    """Return the first channel and the channels, padding included, of every panel of N outputs.

    Panels are nearly equal, the wider ones first, as `Panels` of gemm.h has them.
    """
    total = ceil_div(outputs, instructions.lanes)
    count = ceil_div(total, vectors)
    narrow, wide = divmod(total, count)
    widths = [narrow + 1] * wide + [narrow] * (count - wide)
    starts = [sum(widths[:i]) for i in range(count)]
    return [
        (start * instructions.lanes, width * instructions.lanes) for start, width in zip(starts, widths, strict=True)
    ]


def row_vectors(instructions: InstructionSet, outputs: int) -> int:
    """Return V of a panel that one pixel alone is computed with: half of the registers, as many loads wait at once."""
    return min(ceil_div(outputs, instructions.lanes), instructions.row)


def stage(instructions: InstructionSet, pixels: int, inputs: int) -> int:
    """Return how many of K inputs are summed at a time."""
    return min(STAGE, inputs) if pixels in instructions.short else inputs


@dataclass(frozen=True)
class Cut:
    """A product in tasks (`Grid` of gemm.h): tiles, or rows, of pixels in groups, times groups of panels.

    Attributes:
        alone: groups of pixels of one thread.
        shared: and of several.
        panel_groups: of either.
    """

    alone: int
    shared: int
    panel_groups: int

    @property
    def constants(self) -> dict[str, int]:
        """Their names and values in a kernel."""
        return {"ALONE": self.alone, "SHARED": self.shared, "PANEL_GROUPS": self.panel_groups}


def tasks_of(count: int) -> int:
    """Return the tasks that `count` rows or pixels without weights are cut into."""
    return min(count, LEAST_TASKS)


def cut(units: int, panel_count: int, input_bytes: int, weight_bytes: int, least: int = LEAST_TASKS) -> Cut:
    """Return the tasks of a product, `least` of them or more where it has as many tiles of pixels and panels.

    A group of pixels reads all weights, and a group of panels all inputs. So pixels are cut where there are many of
    them, and panels where there are many weights, which come from further away: least is moved, of what lets the inputs
    of a task stay in the second cache. Several threads cut pixels in two at least, but where weights are very many.

    Args:
        units: tiles, or rows, that the pixels can be cut between.
        panel_count: panels of the weights.
        input_bytes: all inputs.
        weight_bytes: all weights.
        least: tasks that are wanted.
    """
    fewest = ceil_div(units, max(1, GROUP_BYTES * units // max(1, input_bytes)))
    powers = [1 << power for power in range(least.bit_length()) if fewest <= 1 << power <= least]

    def with_panels(groups: int) -> Cut:
        panel_groups = min(panel_count, ceil_div(least, groups))
        shared = groups if weight_bytes > MANY_WEIGHTS * input_bytes else max(2, groups)
        return Cut(min(units, groups), min(units, shared), panel_groups)

    def cost(found: Cut) -> tuple[int, int]:
        missing = max(0, least - found.alone * found.panel_groups)
        return missing, found.alone * weight_bytes + found.panel_groups * input_bytes

    return min(map(with_panels, powers or [ceil_div(fewest, least) * least]), key=cost)


def strip_length(instructions: InstructionSet, width: int, kernel_width: int = SMALL_KERNEL) -> int:
    """Return the outputs of a strip: as few strips of a row of `width` as there can be, and as little overlap of two.

    A small kernel has few weights, and leaves registers for one output more.
    """
    longest = instructions.strip + (kernel_width <= SMALL_KERNEL)
    return min(range(min(width, longest), 0, -1), key=lambda length: ceil_div(width, length) * (length + STRIP_START))


def strip_lanes(instructions: InstructionSet, kernel_width: int) -> int:
    """Return the widest vector of a strip.

    A 3 x 3 kernel has few multiply-adds for each number loaded, and loads of 64 bytes at any address are slow: vectors
    of half the width are 1.1 to 1.3 times as fast there, and 0.9 times with 7 x 7.
    """
    return instructions.strip_lanes if kernel_width <= SMALL_KERNEL else instructions.lanes
