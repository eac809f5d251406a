"""Counts of what every operator of a file computes and moves: a roofline is made of them.

`read_work` reads an ONNX file or a Core ML package, whoever wrote it, without running it or a converter:

    kind        operators                                             multiply-accumulates
    conv        convolutions with a kernel, one group                 outputs x C_in/groups x kernel
    pointwise   convolutions of one position, one group               the same
    depthwise   as many groups as channels                            the same
    grouped     other groups; transposed convolutions                 the same; inputs x C_out/groups x kernel
    linear      matmuls with weights                                  outputs x K
    matmul      matmuls of two activations, attention                 outputs x K, attention both of its matmuls
    softmax     softmax, log softmax
    norm        layer, instance, group, batch and l2 norms
    pool        windows: mean and maximum
    reduce      over axes: sums, means, maxima
    unary       a function of each number; casts
    binary      of two or three numbers
    move        transposes, joins, cuts, gathers, padding, resizing
    view        the same numbers in another shape

A *fused* operator is elementwise, over what one operator before it makes for it alone: compilers compute it while the
number is at hand. In the account it writes nothing then, and reads only its other operands. The pair x * f(x) counts as
one such operator. Bytes are counted in the types that the file declares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgesmith.bench.estimation.nodes import Node, Value
from edgesmith.errors import BadInput, Unsupported

ONNX, PACKAGE = ".onnx", ".mlpackage"
COUNTED = (ONNX, PACKAGE)
"""Suffixes of the files whose operators can be counted."""

KINDS = (
    "conv",
    "pointwise",
    "depthwise",
    "grouped",
    "linear",
    "matmul",
    "softmax",
    "norm",
    "pool",
    "reduce",
    "unary",
    "binary",
    "move",
    "view",
)


@dataclass(frozen=True)
class Work:
    """One operator.

    Attributes:
        name, type: the file's own.
        module: of the model, "" for the model itself; None where the file does not say.
        kind: one of KINDS.
        fused: see above.
        macs: multiply-accumulates; 0 of kinds that have none.
        weight_bytes: constants that it reads.
        read_bytes, written_bytes: activations.
    """

    name: str
    type: str
    module: str | None
    kind: str
    fused: bool
    macs: int
    weight_bytes: int
    read_bytes: int
    written_bytes: int


def read_work(file: Path) -> list[Work]:
    """Return the work of the operators of an ONNX file or a Core ML package, in order.

    Raises:
        BadInput: another kind of file, or one that cannot be read.
        Unsupported: sizes that only a run decides, loops and branches, or an operator that is not in the tables.
    """
    if file.suffix == ONNX:
        from edgesmith.bench.estimation import onnx_nodes as reader
    elif file.suffix == PACKAGE:
        from edgesmith.bench.estimation import mil_nodes as reader  # type: ignore[no-redef]  # the same functions
    else:
        raise BadInput(f"operators are counted in .onnx files and .mlpackage folders, got {file.name}")
    return _account(reader.read_nodes(file), reader.OPERATORS, file)


def _account(nodes: Sequence[Node], kinds: Mapping[str, str], file: Path) -> list[Work]:
    """The work of each operator; those that are fused read and write less."""
    found = [_work(node, kinds, file) for node in nodes]
    flow = _Flow(nodes, found)
    for i, node in enumerate(nodes):
        joined = flow.find_joined(i)
        if joined is not None:
            found[i] = replace(found[i], fused=True, read_bytes=flow.count_read(node, i, joined), written_bytes=0)
    return found


class _Flow:
    """Who makes and who reads each value, by the operators' indices."""

    def __init__(self, nodes: Sequence[Node], works: Sequence[Work]) -> None:
        self._nodes, self._kinds = nodes, [work.kind for work in works]
        self._makers = {value.name: i for i, node in enumerate(nodes) for value in node.outputs}
        self._readers: dict[str, list[int]] = {}
        for i, node in enumerate(nodes):
            for name in dict.fromkeys(value.name for value in node.operands):
                self._readers.setdefault(name, []).append(i)

    def find_joined(self, i: int) -> Value | None:
        """Return the operand that is made for an elementwise operator alone, by one that it can be fused to."""
        node = self._nodes[i]
        if self._kinds[i] not in ("unary", "binary"):
            return None
        for value in node.operands:
            maker = self._makers.get(value.name)
            if maker is None or self._kinds[maker] not in _HEADS or value.size != node.outputs[0].size:
                continue
            readers = self._readers[value.name]
            if len(readers) == 1 or self._is_gated(readers):
                return value
        return None

    def count_read(self, node: Node, i: int, joined: Value) -> int:
        """Return the bytes that a fused operator still reads: other operands, without the other half of x * f(x)."""
        others = [value for value in node.operands if value.name != joined.name]
        partners = [reader for reader in self._readers[joined.name] if reader != i]
        read = sum(value.bytes for value in others if not value.constant)
        made = sum(value.bytes for value in node.operands if self._makers.get(value.name) in partners)
        return max(read - made, 0)

    def _is_gated(self, readers: Sequence[int]) -> bool:
        """Return whether a value's readers are the two of x * f(x)."""
        if len(readers) != 2:
            return False
        first, last = readers
        made = {value.name for value in self._nodes[first].outputs}
        is_read = any(value.name in made for value in self._nodes[last].operands)
        return self._kinds[first] == "unary" and self._kinds[last] == "binary" and is_read


_HEADS = frozenset(KINDS) - {"move", "view", "softmax"}
"""Kinds behind which an elementwise operator costs no trip to memory."""


def _work(node: Node, kinds: Mapping[str, str], file: Path) -> Work:
    kind = kinds.get(node.type)
    if kind is None:
        raise Unsupported(
            f"{file.name}: {node.name} is a {node.type}, whose work is not counted: it depends on the run,"
            " or estimation/work.py has no rule for it"
        )
    macs = 0
    if kind == "conv":
        kind, macs = _convolution(node)
    elif kind == "transposed":
        kind, macs = "grouped", _transposed(node)
    elif kind == "matmul":
        kind, macs = _product(node)
    return Work(
        node.name,
        node.type,
        node.module,
        kind,
        False,
        macs,
        sum(value.bytes for value in node.operands if value.constant),
        0 if kind == "view" else sum(value.bytes for value in node.operands if not value.constant),
        0 if kind == "view" else sum(value.bytes for value in node.outputs),
    )


def _convolution(node: Node) -> tuple[str, int]:
    image, weight = node.inputs[0], node.inputs[1]
    assert image is not None
    assert weight is not None
    groups = int(node.attributes.get("groups", 1))
    kernel = weight.shape[2:]
    if groups == 1:
        kind = "pointwise" if math.prod(kernel) == 1 else "conv"
    else:
        kind = "depthwise" if weight.shape[1] == 1 else "grouped"
    return kind, node.outputs[0].size * math.prod(weight.shape[1:])


def _transposed(node: Node) -> int:
    image, weight = node.inputs[0], node.inputs[1]
    assert image is not None
    assert weight is not None
    return image.size * math.prod(weight.shape[1:])


def _product(node: Node) -> tuple[str, int]:
    a, b = node.inputs[0], node.inputs[1]
    assert a is not None
    if node.type in ("scaled_dot_product_attention", "Attention"):
        assert b is not None
        return "matmul", a.size * b.shape[-2] * 2  # queries with keys, and the weights with values
    if node.type in ("einsum", "Einsum"):
        letters: dict[str, int] = {}
        terms = str(node.attributes["equation"]).replace(" ", "").split("->")[0].split(",")
        for term, value in zip(terms, node.operands, strict=True):
            letters.update(zip(term, value.shape, strict=True))
        return "matmul", math.prod(letters.values())
    assert b is not None
    transposed = bool(node.attributes.get("transpose_a"))
    inner = a.shape[-2 if transposed and len(a.shape) > 1 else -1]
    return "linear" if a.constant or b.constant else "matmul", node.outputs[0].size * inner
