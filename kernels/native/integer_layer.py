"""Convolutions and linear layers with 8-bit integers between floats (integer_layer.h has the maths)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgesmith.kernels.native.convolution import Convolution, geometry
from edgesmith.kernels.native.tiles import LEAST_TASKS, Tile, ceil_div, choose_tile, cut, panels
from edgesmith.kernels.native.toolchain import CpuTarget
from edgesmith.kernels.native.unit import Argument, Unit, make_symbol, render

if TYPE_CHECKING:
    import numpy as np

LEAST, MOST = -128, 127
"""The numbers that x is rounded to."""

LARGEST_WEIGHT = 127

HEADER_ROWS = 3
"""Rows of a panel before its weights: factors, biases, and where sums begin."""

MOST_TAPS = 2**31 // (2 * -LEAST * LARGEST_WEIGHT)
"""Inputs of one output, beyond which a sum might leave 32 bits."""


@dataclass(frozen=True)
class IntegerLayer:
    """y [B, OH, OW, N] of x [B, H, W, C], each a map of floats, or of numbers that are rounded already.

    Attributes:
        layer: what it computes, with one group of channels; a linear layer is one of a single row.
        reads: of x: `float32`, or `numbers`.
        writes: of y.
    """

    layer: Convolution
    reads: str = "float32"
    writes: str = "float32"

    def tile(self, target: CpuTarget) -> Tile:
        """The register tile, of pixels in one row of the output."""
        return choose_tile(target.instructions, self.layer.out[1], self.layer.outputs)

    def segments(self, per: int) -> tuple[int, int, int]:
        """Return how many runs of numbers an output is the product of, how long one is, and the words that it takes."""
        tall, wide = self.layer.kernel
        taps = wide if self.layer.dilation == 1 else 1
        return tall * wide // taps, taps * self.layer.inputs, ceil_div(taps * self.layer.inputs, per)


def suits(layer: Convolution) -> bool:
    """Return whether the kernel computes a layer."""
    return layer.groups == 1 and layer.taps <= MOST_TAPS


def reads_numbers(layer: Convolution, target: CpuTarget) -> bool:
    """Return whether a layer may be given numbers: its map needs no border, and words do not reach beyond a pixel."""
    is_linear = layer.kernel == (1, 1) and layer.stride == 1 and not any(layer.padding)
    return is_linear and layer.inputs % target.dot.per == 0


def dtype(kind: str, target: CpuTarget) -> str:
    """Return numpy's name of the type of a map, `float32` or `numbers`."""
    return target.dot.dtype if kind == "numbers" else kind


def emit(op: IntegerLayer, target: CpuTarget) -> Unit:
    """Return the kernel. Arguments: x [B, H, W, C], gate, residual, packed, y [B, OH, OW, N], scratch for float x."""
    instructions, tile, layer, dot = target.instructions, op.tile(target), op.layer, target.dot
    out_height, out_width = layer.out
    pixels, panel_count = layer.batch * out_height * out_width, len(panels(instructions, tile.vectors, layer.outputs))
    tiles = layer.batch * out_height * ceil_div(out_width, tile.pixels)
    input_bytes = layer.batch * layer.height * layer.width * layer.inputs * dot.bytes
    tasks = cut(tiles, panel_count, input_bytes, 4 * packed_size(op, target))
    constants = geometry(layer) | {
        "RIGHT": layer.padding[3],
        "BOTTOM": layer.padding[2],
        "P": tile.pixels,
        "V": tile.vectors,
        **tasks.constants,
        "LEAST_TASKS": LEAST_TASKS,
        "READS_NUMBERS": int(op.reads == "numbers"),
        "EXPECTED_OFFSET": dot.offset,
        "EXPECTED_PER": dot.per,
    }
    output = "float" if op.writes == "float32" else "es::Number"
    types = f"using Epilogue = {layer.epilogue.type};\nusing Output = {output};"
    symbol = _name(op)
    source = render("integer_layer", "IntegerLayer", symbol, instructions.lanes, constants, types)
    arguments = (
        Argument("input", "x", (layer.batch, layer.height, layer.width, layer.inputs), dtype(op.reads, target)),
        *layer.epilogue.arguments(pixels, layer.outputs),
        Argument("packed", "weights", (packed_size(op, target),)),
        Argument("output", "y", (layer.batch, out_height, out_width, layer.outputs), dtype(op.writes, target)),
    )
    return Unit(symbol, source, arguments, _scratch_bytes(op, target), 2 * pixels * layer.taps * layer.outputs)


def _scratch_bytes(op: IntegerLayer, target: CpuTarget) -> int:
    """Return the bytes of the map of numbers with its border, and of a word behind it."""
    if op.reads == "numbers":
        return 0
    top, left, bottom, right = op.layer.padding
    numbers = op.layer.batch * (op.layer.height + top + bottom) * (op.layer.width + left + right) * op.layer.inputs
    return numbers * target.dot.bytes + 4


def _name(op: IntegerLayer) -> str:
    layer = op.layer
    return make_symbol(
        "integer_layer",
        f"{layer.batch}x{layer.height}x{layer.width}x{layer.inputs}",
        f"n{layer.outputs}",
        f"k{layer.kernel[0]}x{layer.kernel[1]}",
        f"s{layer.stride}",
        f"p{'x'.join(map(str, layer.padding))}",
        f"d{layer.dilation}",
        layer.epilogue.words,
        "of_numbers" if op.reads == "numbers" else "",
        "to_numbers" if op.writes == "numbers" else "",
    )


def packed_size(op: IntegerLayer, target: CpuTarget) -> int:
    """Return the words of the packed parameters."""
    lanes, (segments, _, words) = target.instructions.lanes, op.segments(target.dot.per)
    return lanes + ceil_div(op.layer.outputs, lanes) * lanes * (HEADER_ROWS + segments * words)


@dataclass(frozen=True)
class Rounded:
    """A layer's parameters as integers.

    Attributes:
        weight: int8 [N, C, KH, KW]; a linear layer's too.
        factors: float32 [N]: of the products, the scale of x times that of the weight.
        bias: float32 [N], or none.
        scale: of x.
        next_scale: of y where it goes as numbers.
    """

    weight: np.ndarray
    factors: np.ndarray
    bias: np.ndarray | None
    scale: float
    next_scale: float = 1.0


def pack(op: IntegerLayer, target: CpuTarget, given: Rounded) -> np.ndarray:
    """Return the packed parameters: words of 32 bits, in an array that says float32 of all of them."""
    import numpy as np

    instructions, dot, layer = target.instructions, target.dot, op.layer
    segments, length, words = op.segments(dot.per)
    columns = ceil_div(layer.outputs, instructions.lanes) * instructions.lanes
    numbers = given.weight.transpose(2, 3, 1, 0).reshape(segments, length, layer.outputs)
    filled = np.zeros((segments, words * dot.per, columns), np.dtype(f"int{8 * dot.bytes}"))
    filled[:, :length, : layer.outputs] = numbers
    rows = filled.reshape(segments * words, dot.per, columns).transpose(0, 2, 1)
    packed = np.zeros((HEADER_ROWS + segments * words, columns), np.float32)
    packed[0, : layer.outputs] = given.factors
    packed[1, : layer.outputs] = 0 if given.bias is None else given.bias
    begins = -dot.offset * filled.sum((0, 1), dtype=np.int64)
    packed[2] = begins.astype(np.int32).view(np.float32)
    packed[3:] = np.ascontiguousarray(rows).view(np.float32).reshape(segments * words, columns)
    header = np.zeros(instructions.lanes, np.float32)
    header[:2] = 1.0 / given.scale, 1.0 / given.next_scale  # rounded once, as PyTorch's quantiser has it
    cut = panels(instructions, op.tile(target).vectors, layer.outputs)
    return np.concatenate([header, *(packed[:, first : first + width].ravel() for first, width in cut)])
