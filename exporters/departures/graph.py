"""A graph as detectors see it, whatever file it comes from.

A node has a kind in one spelling (`conv`, `matmul`, `reduce_mean`), data operands in one order, and settings under one
name each; KINDS lists them. Constants are values with numbers, decompressed weights are nodes (`lut_weights`). Loops
and branches are nodes, and what is inside them stands in the same list before them.

    conv conv_transpose (x, weight, bias)      strides pads dilations groups output_padding; pads: all begins, all ends
    matmul (x, y)                              transpose_x transpose_y
    linear (x, weight, bias)                   weight [out, in]
    max_pool avg_pool (x)                      kernel strides pads count_padding ceil
    reduce_mean reduce_sum reduce_max (x)      axes keep_dims
    log_sum_exp (x)  softmax cumsum argmax     axes, axis, reverse
    layer_norm (x, gamma, beta)                axes
    attention (query, key, value, mask)
    slice (x)                                  axes begin end
    pad (x)                                    pads mode
    quantize dequantize (x, scale, zero)       axis
    gather gather_nd (x, indices)              axis
    slice_update (x, update, begin)  update_state (state, value)  read_state (state)
    lut_weights (indices, table)  blockwise_weights (data, scale, offset)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edgesmith.errors import BadInput

VIEWS = frozenset({"reshape", "squeeze", "expand_dims", "flatten", "transpose", "identity", "cast"})
"""Kinds that keep every number."""

ELEMENTWISE = frozenset({"add", "sub", "mul", "div", "min", "max", "pow"})
"""Kinds of two operands, which broadcast."""

Shape = tuple[int | None, ...]

_RUN = frozenset(
    {"malformed", "loop", "scan", "if", "read_state", "update_state", "multinomial", "bernoulli", "dropout"}
)
"""Kinds whose results only a run decides, whatever their operands: bodies read what is no operand of theirs."""

_OPERANDS = {
    **dict.fromkeys(("add", "sub", "mul", "div", "pow"), (2, 2)),
    **dict.fromkeys(("matmul", "linear", "conv", "conv_transpose", "gather", "gather_nd", "update_state"), (2, 99)),
    **dict.fromkeys(("lut_weights", "blockwise_weights", "affine_weights", "quantize", "dequantize"), (2, 99)),
    "slice_update": (2, 99),
    **dict.fromkeys(("loop", "if", "read_state", "concat", "stack", "min", "max", "mean", "or"), (0, 10**6)),
}
"""How many operands a kind has, at least and at most; of others one at least."""


@dataclass(frozen=True)
class Value:
    """A tensor of the graph.

    Attributes:
        dtype: fp16, fp32, int8, uint8, int32, bool ...
        shape: None for sizes that a run decides; None itself where even the rank is unknown.
        numbers: reads a constant's; None for what is computed.
    """

    name: str
    dtype: str
    shape: Shape | None
    numbers: Callable[[], np.ndarray] | None = None

    @property
    def rank(self) -> int | None:
        """The number of axes, where it is known."""
        return None if self.shape is None else len(self.shape)


@dataclass(frozen=True, eq=False)
class Node:
    """An operator.

    Attributes:
        kind: in the spelling of this module; an unknown operator's own name, in lower case.
        name: its own.
        inputs: names of data operands in order, "" for one that is absent.
        settings: what is no tensor.
        spelled: the file's own name for the operator.
        module: of the model, where the file says from which it comes.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    spelled: str = ""
    module: str | None = None

    @property
    def output(self) -> str:
        """The first output."""
        return self.outputs[0]

    def ints(self, name: str) -> list[int]:
        """Return a setting of whole numbers; none where it is absent. Raises BadInput for what has others."""
        found = self.settings.get(name)
        if found is None:
            return []
        return whole_numbers(found, f"{name} of {self.name} ({self.spelled or self.kind})")


def whole_numbers(found: Any, what: str) -> list[int]:
    """Return the whole numbers that a setting is, one or several.

    Args:
        what: the setting, in the error.

    Raises:
        BadInput: it is something else, as in a damaged file.
    """
    several = found if isinstance(found, list | tuple) else [found]
    if not all(isinstance(one, int | float) and one == one // 1 for one in several):  # neither infinite nor NaN
        raise BadInput(f"{what} must be whole numbers, got {found!r:.80}; the file is damaged")
    return [int(one) for one in several]


class Graph:
    """A function of a file.

    A node that reads what is made later, or that lacks an operand, is none that a valid file has: its kind becomes
    `malformed`, and it reads nothing. Of two nodes that make one value the first counts. So there is no circle.

    Args:
        nodes: in order of evaluation.
        values: every tensor by name.
        inputs, outputs, states: names.
        settings: `opset` of an ONNX file, `name` of a function.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        values: Mapping[str, Value],
        inputs: Sequence[str],
        outputs: Sequence[str],
        states: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.nodes = tuple(_well_formed(nodes))
        self.values = dict(values)
        self.inputs, self.outputs, self.states = tuple(inputs), tuple(outputs), tuple(states)
        self.settings = dict(settings or {})
        self._makers: dict[str, Node] = {}
        for node in self.nodes:
            for name in node.outputs:
                self._makers.setdefault(name, node)
        self._readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                self._readers.setdefault(name, []).append(node)
        self._folded: set[str] = set()
        for node in self.nodes:
            if self._folds(node):
                self._folded.update(node.outputs)
        made = [self.dtype(name) for node in self.nodes for name in node.outputs[:1]]
        self.half = made.count("fp16") > made.count("fp32")

    def _folds(self, node: Node) -> bool:
        """Return whether a node's results are known before a run, where those before it are known."""
        if node.kind in ("shape", "size"):
            return self.rank(node.inputs[0]) is not None and None not in self.shape(node.inputs[0])
        if node.kind in _RUN or node.kind.startswith("random") or not node.inputs:
            return False
        return all(map(self.is_stored, node.inputs))

    def of(self, *kinds: str) -> Iterator[Node]:
        """Yield the nodes of some kinds, in order."""
        return (node for node in self.nodes if node.kind in kinds)

    def maker(self, name: str) -> Node | None:
        """Return the node that computes a value; None for inputs and constants."""
        return self._makers.get(name)

    def source(self, name: str, through: Collection[str] = VIEWS) -> Node | None:
        """Return the node that computes a value, seen through nodes of one operand such as views."""
        node = self._makers.get(name)
        while node is not None and node.kind in through and node.inputs:
            node = self._makers.get(node.inputs[0])
        return node

    def operand(self, node: Node, index: int, *kinds: str, through: Collection[str] = ()) -> Node | None:
        """Return the maker of an operand, where it is of one of these kinds."""
        found = self.source(node.inputs[index], through) if index < len(node.inputs) else None
        return found if found is not None and found.kind in kinds else None

    def operands(self, node: Node, *kinds: str) -> list[Node]:
        """Return the makers of a node's operands that are of some kinds."""
        found = (self.maker(name) for name in node.inputs)
        return [one for one in found if one is not None and one.kind in kinds]

    def readers(self, name: str) -> list[Node]:
        """Return the nodes that read a value, each once."""
        return self._readers.get(name, [])

    def after(self, name: str, through: Collection[str] = VIEWS) -> list[Node]:
        """Return the nodes that read a value, directly or behind views."""
        found: list[Node] = []
        names = [name]
        while names:
            for node in self.readers(names.pop()):
                if node.kind in through:
                    names += node.outputs
                else:
                    found.append(node)
        return found

    def value(self, name: str) -> Value | None:
        """Return a tensor by its name."""
        return self.values.get(name)

    def dtype(self, name: str) -> str:
        """Return a value's type; "" where it is not known."""
        found = self.values.get(name)
        return "" if found is None else found.dtype

    def shape(self, name: str) -> Shape:
        """Return a value's shape; () where it is not known."""
        found = self.values.get(name)
        return () if found is None or found.shape is None else found.shape

    def rank(self, name: str) -> int | None:
        """Return a value's number of axes, where it is known."""
        found = self.values.get(name)
        return None if found is None else found.rank

    def is_constant(self, name: str) -> bool:
        """Return whether a value is stored in the file."""
        found = self.values.get(name)
        return found is not None and found.numbers is not None

    def is_stored(self, name: str) -> bool:
        """Return whether a value is a constant, or follows from constants and known sizes, so that it is folded."""
        return not name or self.is_constant(name) or name in self._folded

    def numbers(self, name: str) -> np.ndarray | None:
        """Return a constant's numbers, seen through views and casts of it; None for what is computed."""
        while True:
            found = self.values.get(name)
            if found is not None and found.numbers is not None:
                return found.numbers()
            node = self._makers.get(name)
            if node is None or node.kind not in VIEWS:
                return None
            name = node.inputs[0]

    def scalar(self, name: str) -> float | None:
        """Return a constant of one number; None for everything else."""
        found = self.values.get(name)
        size = 1
        for one in (found.shape or ()) if found is not None else ():
            size *= one or 0
        numbers = self.numbers(name) if size == 1 else None
        return float(numbers.reshape(-1)[0]) if numbers is not None and numbers.size == 1 else None

    def axis(self, node: Node, default: int = -1) -> int:
        """Return a node's axis, counted from the front where the rank is known."""
        (axis,) = node.ints("axis")[:1] or [default]
        rank = self.rank(node.inputs[0])
        return axis % rank if rank else axis

    def ancestors(self, name: str, limit: int = 2000) -> Iterator[Node]:
        """Yield the nodes that a value is computed from, nearest first."""
        seen: set[int] = set()
        level = [name]
        while level and len(seen) < limit:
            following: list[str] = []
            for one in level:
                node = self._makers.get(one)
                if node is not None and id(node) not in seen:
                    seen.add(id(node))
                    yield node
                    following += node.inputs
            level = following


def same_pads(
    sizes: Sequence[int | None] | None,
    kernel: Sequence[int | None],
    strides: Sequence[int],
    dilations: Sequence[int],
    lower: bool,
) -> list[int]:
    """Return the borders, all begins and then all ends, that keep a map's size but for the stride.

    Args:
        sizes: of the map; None for a transposed convolution, whose borders do not depend on them.
        lower: whether an odd one is at the beginning.
    """
    begins, ends = [], []
    for index, (size, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=False)):
        of = sizes[index] if sizes is not None and index < len(sizes) else None
        reach = ((size or 1) - 1) * dilation + 1
        if sizes is not None and of is None and stride > 1:
            return []  # a run decides
        moved = stride if sizes is None or of is None else of - (-(-of // stride) - 1) * stride
        border = max(reach - moved, 0)
        begins.append(border - border // 2 if lower else border // 2)
        ends.append(border - begins[-1])
    return begins + ends


def _well_formed(nodes: Sequence[Node]) -> Iterator[Node]:
    """Yield nodes, those that no valid file has as malformed ones."""
    later = {name for node in nodes for name in node.outputs}
    for node in nodes:
        least, most = _OPERANDS.get(node.kind, (1, 10**6))
        first = list(node.inputs[: max(least, 1)]) if least else []
        reads_later = any(name in later for name in node.inputs)
        if reads_later or not least <= len(node.inputs) <= most or "" in first:
            yield replace(node, kind="malformed", inputs=())
        else:
            yield node
        later.difference_update(node.outputs)
