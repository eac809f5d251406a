"""Long reductions in ONNX files, in stages where a runtime adds one number after another.

A sum of n float32 numbers, one after another, is off by about sqrt(n) / 2 ulp, and by n / 2 at worst. PyTorch adds in
blocks, whose sums it adds again, so that each number goes through few additions. So does a file here, with

    mean(x)    = mean_a(mean_b(x[.., a, b]))                  ReduceMean, ReduceSum, GlobalAveragePool, ReduceL2 ...
    norm(x)    = c / sqrt(mean(c^2) + eps),  c = x - mean(x)  InstanceNormalization, LayerNormalization
    cumsum(x)  = cumsum_b(x[.., a, b]) + what came before     CumSum

where the reduced axes are split into a blocks of b, and a again while it is long; zeros fill them up where the length
has no such factors. A target
says in `Target.coarse_from` from which length on its kernels need that, as measured by bench/experiments/rounding.py.
Only float32 values are split, and reductions over axes beside each other whose sizes are known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import onnx

BLOCK = 32
"""Numbers in a block, at most; the first blocks have twice as many, which makes rows long enough for vectors.

Of equal numbers every addition rounds the same way, and it is these few that add up.
"""

LANES = 8
"""Sums that run beside each other along the last axes, and do not elsewhere."""

WIDE = 1024
"""Numbers that are added at once where they are squares of what is centred, which equal numbers leave nothing of."""

MAPS = 1024
"""Numbers of a map, and channels, at most, where a norm of all maps is made of each map's."""

FEWEST = 8
"""Numbers in a block, at least; zeros fill up what has no such factors."""


@dataclass
class _Writer:
    """New nodes in place of one, with the values that they make.

    Attributes:
        shapes: sizes by value name, None for a free one.
        readers: nodes that read a value, by name.
        makers: nodes that make a value, by name.
    """

    graph: onnx.GraphProto
    shapes: Mapping[str, list[int | None]]
    readers: Mapping[str, list[onnx.NodeProto]]
    makers: Mapping[str, onnx.NodeProto]
    prefix: str = ""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    count: int = 0

    def __call__(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """Append a node; returns the name of its output."""
        from onnx import helper

        self.count += 1
        made = out or f"{self.prefix}_stage_{self.count}"
        self.nodes.append(
            helper.make_node(kind, list(inputs), [made], name=f"{self.prefix}_{self.count}", **attributes)
        )
        return made

    def constant(self, *values: float, is_float: bool = False, is_scalar: bool = False) -> str:
        """Add an initializer of numbers, shared by all that need the same."""
        import numpy as np

        array = np.asarray(values[0] if is_scalar else values, np.float32 if is_float else np.int64)
        name = f"{'f' if is_float else 'i'}_{'_'.join(map(str, values))}{'_s' if is_scalar else ''}_of_stages"
        return self._initializer(name, array)

    def filled(self, value: float, *sizes: int) -> str:
        """Add an initializer of some sizes that has one number throughout."""
        import numpy as np

        name = f"f_{value}_{'x'.join(map(str, sizes))}_of_stages"
        return self._initializer(name, np.full(sizes, value, np.float32))

    def _initializer(self, name: str, array: np.ndarray) -> str:
        from onnx import numpy_helper

        if not any(one.name == name for one in self.graph.initializer):
            self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def reshape(self, x: str, *sizes: int, out: str = "") -> str:
        return self("Reshape", x, self.constant(*sizes), out=out)


def refine(model: onnx.ModelProto, coarse_from: Mapping[str, int]) -> onnx.ModelProto:
    """Return the model with its long reductions in stages.

    Args:
        coarse_from: lengths by ONNX operator, see `Target.coarse_from`.
    """
    import onnx

    if not any(node.op_type in coarse_from for node in model.graph.node):
        return model
    known = onnx.shape_inference.infer_shapes(model).graph
    values = [*known.input, *known.value_info, *known.output]
    floats = {v.name for v in values if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    shapes = {v.name: _sizes(v) for v in values if v.type.tensor_type.HasField("shape")}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    returned = {value.name for value in model.graph.output}
    makers = {name: node for node in model.graph.node for name in node.output}
    write = _Writer(model.graph, shapes, {k: v for k, v in readers.items() if k not in returned}, makers)
    replaced: list[onnx.NodeProto] = []
    for node in model.graph.node:
        at = len(write.nodes)
        write.prefix, write.count = node.name or node.output[0], 0
        limit = coarse_from.get(node.op_type)
        if any(node is one for one in replaced):
            continue
        if limit is None or node.input[0] not in floats or node.input[0] not in shapes:
            write.nodes.append(node)
            continue
        done = _RULES[node.op_type](node, write, limit)
        if done is None:
            del write.nodes[at:]
            write.nodes.append(node)
        else:
            replaced += done
    nodes = _without_unread(write.nodes, returned)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _without_unread(nodes: Sequence[onnx.NodeProto], returned: set[str]) -> list[onnx.NodeProto]:
    """Return nodes without the reshapes that nothing reads any more."""
    read = returned | set(_read_by(nodes))
    return [node for node in nodes if node.op_type != "Reshape" or node.output[0] in read]


def _read_by(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """Yield the names of what nodes read, and the bodies of loops and branches in them."""
    for node in nodes:
        yield from node.input
        for one in node.attribute:
            for body in (one.g, *one.graphs):
                yield from _read_by(body.node)
                yield from (value.name for value in body.output)


def _sizes(value: onnx.ValueInfoProto) -> list[int | None]:
    return [d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    from onnx import helper

    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def _numbers(write: _Writer, name: str) -> Any:
    """Return a constant's array, or None where a value is computed."""
    from onnx import numpy_helper

    found = next((one for one in write.graph.initializer if one.name == name), None)
    return None if found is None else numpy_helper.to_array(found)


@dataclass(frozen=True)
class _Reduced:
    """Axes of a value that are reduced: [first, last] of its sizes, beside each other and known from `first` on."""

    sizes: Sequence[int | None]
    first: int
    last: int

    @property
    def length(self) -> int:
        """Numbers in one sum."""
        return math.prod(size or 0 for size in self.sizes[self.first : self.last + 1])

    @property
    def behind(self) -> list[int]:
        """Sizes of the axes that follow."""
        return [size or 0 for size in self.sizes[self.last + 1 :]]

    def split(self) -> list[int]:
        """Return sizes of stages, the outermost first, whose product is the length or, of awkward ones, a bit more."""
        n = self.length
        for unit in (1, BLOCK, BLOCK**2, BLOCK**3):  # what fills up is less than a per cent of what needs it
            if found := _factors(-(-n // unit) * unit):
                return found
        return [-(-n // BLOCK), BLOCK]


def _factors(n: int, most: int = 2 * BLOCK) -> list[int]:
    """Return factors of n: the last is 2 BLOCK at most, those before it BLOCK, the first 4 BLOCK; none without such."""
    if n <= 4 * BLOCK:
        return [n]
    inner = next((b for b in range(most, FEWEST - 1, -1) if n % b == 0), 0)
    outer = _factors(n // inner, BLOCK) if inner else []
    return [*outer, inner] if outer else []


def _reduced(write: _Writer, name: str, axes: Sequence[int], limit: int, lanes: int = LANES) -> _Reduced | None:
    """Return the axes of a long reduction; None where it is short, or not over neighbours of known sizes.

    Args:
        limit: the length from which a reduction over the last axes is long.
        lanes: how much less it is over others.
    """
    sizes = write.shapes[name]
    found = sorted(axis % len(sizes) for axis in axes)
    if not found or found != list(range(found[0], found[-1] + 1)) or None in sizes[found[0] :]:
        return None
    reduced = _Reduced(sizes, found[0], found[-1])
    return reduced if reduced.length >= (limit // lanes if reduced.behind else limit) else None


def _mean(
    write: _Writer,
    x: str,
    reduced: _Reduced,
    *,
    is_sum: bool = False,
    keeps: bool = False,
    is_one: bool = False,
    is_wide: bool = False,
) -> str:
    """Write the mean, or the sum, over some axes of x in stages. Returns [.., 1, *behind].

    Args:
        keeps: return a 1 for each axis that was reduced.
        is_one: return a single number, of no axes: x has sizes of 1 but for those reduced.
        is_wide: add WIDE numbers at once.
    """
    first, n, stages = reduced.first, reduced.length, reduced.split()
    keep, whole = [0] * first, math.prod(stages)
    if whole > n:
        flat = write.reshape(x, *keep, n, *reduced.behind)
        pads = [0] * (first + 1 + len(reduced.behind)) * 2
        pads[len(pads) // 2 + first] = whole - n
        x = write("Pad", flat, write.constant(*pads), write.constant(0.0, is_float=True, is_scalar=True))
    if whole > n or [*reduced.sizes[first : reduced.last + 1]] != stages:
        x = write.reshape(x, *keep, *stages, *reduced.behind)
    kind = "ReduceSum" if is_sum or whole > n else "ReduceMean"
    is_laid = keeps and reduced.last - first + 1 == len(stages)  # what comes out has the axes that it needs
    for start, end in _passes(stages, WIDE if is_wide else 1):
        x = write(kind, x, write.constant(*range(first + start, first + end)), keepdims=int(is_laid))
    axes = range(first + 1) if is_one and not is_laid else [first]
    x = write(kind, x, write.constant(*axes), keepdims=int(not is_one))
    if whole > n and not is_sum:
        x = write("Mul", x, write.constant(1 / n, is_float=True, is_scalar=True))
    if keeps and not is_laid and reduced.last > first:
        x = write.reshape(x, *keep, *[1] * (reduced.last - first + 1), *reduced.behind)
    return x


def _passes(stages: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Yield the stages that are reduced together, [start, end[, from the innermost on; the outermost is left over."""
    end = len(stages)
    while end > 1:
        start = end - 1
        while start > 1 and math.prod(stages[start - 1 : end]) <= most:
            start -= 1
        yield start, end
        end = start


def _finish(write: _Writer, node: onnx.NodeProto, value: str, reduced: _Reduced, keeps: bool) -> list[onnx.NodeProto]:
    """Give a reduced value [.., 1, *behind] the shape and the name of a node's output."""
    ones = [1] * (reduced.last - reduced.first + 1) if keeps else []
    write.reshape(value, *[0] * reduced.first, *ones, *reduced.behind, out=node.output[0])
    return [node]


def _axes(node: onnx.NodeProto, write: _Writer) -> list[int]:
    """Return the axes of a Reduce operator, all of them by default; none where they are computed."""
    if len(node.input) < 2 or not node.input[1]:
        return list(range(len(write.shapes[node.input[0]])))
    found = _numbers(write, node.input[1])
    return [] if found is None else [int(axis) for axis in found]


def _reduce(node: onnx.NodeProto, write: _Writer, limit: int) -> list[onnx.NodeProto] | None:
    x, given = node.input[0], _attributes(node)
    reduced = _reduced(write, x, _axes(node, write), limit)
    if reduced is None:
        return None
    kind = node.op_type
    if kind in ("ReduceL2", "ReduceSumSquare"):
        x = write("Mul", x, x)
    value = _mean(write, x, reduced, is_sum=kind != "ReduceMean")
    if kind == "ReduceL2":
        value = write("Sqrt", value)
    return _finish(write, node, value, reduced, bool(given.get("keepdims", 1)))


def _pool(node: onnx.NodeProto, write: _Writer, limit: int) -> list[onnx.NodeProto] | None:
    x = node.input[0]
    reduced = _reduced(write, x, range(2, len(write.shapes[x])), limit)
    return None if reduced is None else _finish(write, node, _mean(write, x, reduced), reduced, True)


def _instance_norm(node: onnx.NodeProto, write: _Writer, limit: int) -> list[onnx.NodeProto] | None:
    """The norm of [B, G, *], and with it the affine of each channel that a group norm has behind it."""
    x, eps = node.input[0], _attributes(node).get("epsilon", 1e-5)
    sizes = write.shapes[x]
    reduced = _reduced(write, x, range(2, len(sizes)), limit)
    if reduced is None:
        return None
    if (done := _norm_of_maps(node, write, eps)) is not None:
        return done
    stages = reduced.split()
    rows = stages if math.prod(stages) == reduced.length else [reduced.length]
    x = write.reshape(x, 0, 0, *rows)
    laid = _Reduced([*sizes[:2], *rows], 2, 1 + len(rows))
    centred = write("Sub", x, _mean(write, x, laid, keeps=True))
    squares = write("Mul", centred, centred)
    if (behind := _affine(node, write)) is not None:
        reshape, norm = behind
        channels = write.shapes[norm.input[0]][1]
        assert channels is not None
        variance = write("Expand", _mean(write, squares, laid, is_one=True, is_wide=True), write.constant(channels))
        back = write("Reshape", centred, reshape.input[1])
        write("BatchNormalization", back, *norm.input[1:4], variance, out=norm.output[0], epsilon=eps)
        return [node, reshape, norm]
    variance = _mean(write, squares, laid, keeps=True, is_wide=True)
    deviation = write("Sqrt", write("Add", variance, write.constant(eps, is_float=True, is_scalar=True)))
    normed = write.reshape(
        write("Mul", centred, write("Reciprocal", deviation)), 0, 0, *[size or 0 for size in sizes[2:]]
    )
    if not _is_plain(node, write):
        behind_channels = [1] * (len(sizes) - 2)
        scaled = write("Mul", normed, write.reshape(node.input[1], 1, -1, *behind_channels))
        normed = write("Add", scaled, write.reshape(node.input[2], 1, -1, *behind_channels))
    write.nodes[-1].output[0] = node.output[0]
    return [node]


def _norm_of_maps(node: onnx.NodeProto, write: _Writer, eps: float) -> list[onnx.NodeProto] | None:
    """Write the norm of one instance [1, 1, C H W] as that of [1, C, H, W], as its maps lie: two stages, no reshape.

    The variance of each channel is a product with a matrix of 1 / C, since the batch norm wants it C times.
    """
    made, back = write.makers.get(node.input[0]), _reshape_behind(node, write)
    if made is None or made.op_type != "Reshape" or back is None:
        return None
    x, behind = made.input[0], _affine(node, write)
    sizes = write.shapes.get(x) or []
    if len(sizes) != 4 or sizes != write.shapes.get(back.output[0]):
        return None
    channels, *of_map = (size or 0 for size in sizes[1:])
    if not FEWEST <= channels <= MAPS or not FEWEST <= math.prod(of_map) <= MAPS:
        return None
    means = write("ReduceMean", x, write.constant(2, 3), keepdims=1)
    centred = write("Sub", x, write("ReduceMean", means, write.constant(1), keepdims=1))
    squares = write("Mul", centred, centred)
    variances = write("ReduceMean", squares, write.constant(0, 2, 3), keepdims=0)
    variance = write("MatMul", variances, write.filled(1 / channels, channels, channels))
    zeros = write.filled(0.0, channels)
    affine = behind[1].input[1:4] if behind else (write.filled(1.0, channels), zeros, zeros)
    last = behind[1] if behind else back
    write("BatchNormalization", centred, *affine, variance, out=last.output[0], epsilon=eps)
    return [node, *(behind or [back])]


def _is_plain(node: onnx.NodeProto, write: _Writer) -> bool:
    """Return whether an instance norm scales by 1 and shifts by 0."""
    scale, shift = (_numbers(write, name) for name in node.input[1:3])
    return scale is not None and shift is not None and bool((scale == 1).all()) and not shift.any()


def _affine(node: onnx.NodeProto, write: _Writer) -> tuple[onnx.NodeProto, onnx.NodeProto] | None:
    """Return the Reshape and the batch norm of constants behind a norm of one instance, whose variance it can take."""
    behind = _reshape_behind(node, write)
    norms = [] if behind is None else write.readers.get(behind.output[0], [])
    if behind is None or [norm.op_type for norm in norms] != ["BatchNormalization"]:
        return None
    if norms[0].input[0] != behind.output[0]:
        return None
    mean, variance = (_numbers(write, name) for name in norms[0].input[3:5])
    epsilon = _attributes(norms[0]).get("epsilon", 1e-5)
    is_affine = mean is not None and variance is not None and not mean.any() and (variance == 1).all() and epsilon == 0
    return (behind, norms[0]) if is_affine and behind.output[0] in write.shapes else None


def _reshape_behind(node: onnx.NodeProto, write: _Writer) -> onnx.NodeProto | None:
    """Return the Reshape that is all that reads a norm of one instance without an affine."""
    if not _is_plain(node, write) or write.shapes[node.input[0]][:2] != [1, 1]:
        return None
    behind = write.readers.get(node.output[0], [])
    return behind[0] if len(behind) == 1 and behind[0].op_type == "Reshape" else None


def _layer_norm(node: onnx.NodeProto, write: _Writer, limit: int) -> list[onnx.NodeProto] | None:
    x, given = node.input[0], _attributes(node)
    rank = len(write.shapes[x])
    reduced = _reduced(write, x, range(given.get("axis", -1) % rank, rank), limit)
    if reduced is None or any(write.readers.get(name) for name in node.output[1:]):
        return None
    centred = write("Sub", x, _mean(write, x, reduced, keeps=True))
    variance = _mean(write, write("Mul", centred, centred), reduced, keeps=True)
    eps = write.constant(given.get("epsilon", 1e-5), is_float=True, is_scalar=True)
    last = write("Mul", centred, write("Reciprocal", write("Sqrt", write("Add", variance, eps))))
    for kind, name in zip(("Mul", "Add"), [name for name in node.input[1:] if name], strict=False):
        last = write(kind, last, name)
    write("Identity", last, out=node.output[0])
    return [node]


def _cumsum(node: onnx.NodeProto, write: _Writer, limit: int) -> list[onnx.NodeProto] | None:
    x, given, axis = node.input[0], _attributes(node), _numbers(write, node.input[1])
    if axis is None or given.get("exclusive") or given.get("reverse"):
        return None
    reduced = _reduced(write, x, [int(axis)], limit, lanes=1)
    if reduced is None:
        return None
    first, n, behind = reduced.first, reduced.length, reduced.behind
    b = math.isqrt(n)
    a = -(-n // b)
    if a * b > n:
        pads = [0] * (first + 1 + len(behind)) * 2
        pads[len(pads) // 2 + first] = a * b - n
        x = write("Pad", x, write.constant(*pads), write.constant(0.0, is_float=True, is_scalar=True))
    blocks = write.reshape(x, *[0] * first, a, b, *behind)
    inside = write("CumSum", blocks, write.constant(first + 1, is_scalar=True))
    ends = write("Slice", inside, write.constant(b - 1), write.constant(b), write.constant(first + 1))
    before = write("CumSum", ends, write.constant(first, is_scalar=True), exclusive=1)
    whole = write.reshape(write("Add", inside, before), *[0] * first, a * b, *behind)
    write("Slice", whole, write.constant(0), write.constant(n), write.constant(first), out=node.output[0])
    return [node]


Rule = Callable[["onnx.NodeProto", _Writer, int], "list[onnx.NodeProto] | None"]

_RULES: Mapping[str, Rule] = {
    "ReduceMean": _reduce,
    "ReduceSum": _reduce,
    "ReduceSumSquare": _reduce,
    "ReduceL2": _reduce,
    "GlobalAveragePool": _pool,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "CumSum": _cumsum,
}
"""The rule of each operator: writes what replaces a node, and returns the nodes that it replaces; None to leave it."""
