"""Reductions of rows of equal numbers, as a blank picture has them, centred twice.

    norm(x) = norm(x - m)             m = mean(x); var and std likewise
    mean(x) = m + mean(x - m),  sum(x) = n m + sum(x - m)

PyTorch adds in blocks, which leaves next to nothing of a row of equal numbers. A runtime that adds one number after
another is 1e-5 of them off, and a norm divides that by sqrt(eps). What is left of x - m is as small as that error, and
so are all further ones beside it. To centre twice is a pass over the numbers that no other input wants, so the program
decides: a reduction is spelled so where it has a row of equal numbers on the example, on zeros or on one number
throughout.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.graph.edit import Emitter, arguments, aten, changed, fork, val
from edgesmith.exporters.graph.interpret import Values, evaluate, interpret
from edgesmith.kernels.op import find

FEWEST: Mapping[str, int] = {"onnx": 128, "coreai": 8, "tvm": 8}
"""Numbers from which a row counts, by target: as many as its runtime adds without more error than PyTorch."""

LONG = 1024
"""Numbers from which a sum counts that nothing is centred by: below, its error is its own last digits."""


def with_centred_rows(module: GraphModule, inputs: Sequence[Tensor], fewest: int | None) -> GraphModule:
    """Return a graph whose reductions of rows of equal numbers are centred twice; the same where there are none.

    Args:
        inputs: the example that says so, as do zeros and one number throughout.
        fewest: numbers from which a row counts, None for none.
    """
    if fewest is None:
        return module
    axes = {node: found for node in module.graph.nodes if (found := _axes(node))}
    sites = {node.name: of for node, of in axes.items() if _length(node, of) >= (fewest if _centres(node) else LONG)}
    met = _names_of_equal_rows(module, inputs, sites) if sites else set()
    if not met:
        return module
    module = fork(module)
    for node in list(module.graph.nodes):
        if node.name in met:
            _centre(module, node, sites[node.name])
    module.recompile()
    return module


_OF_LAST = frozenset({aten.layer_norm.default, aten.rms_norm.default})
_NORMS = frozenset({aten.group_norm.default, aten.instance_norm.default, *_OF_LAST})
_SPREADS = frozenset({aten.var.dim, aten.var.correction, aten.std.dim, aten.std.correction})
_SUMS = frozenset({aten.mean.dim, aten.sum.dim_IntList})
_LENGTH = aten.linalg_vector_norm.default
_WHOLE_SUMS = frozenset({aten.mean.default, aten.sum.default})
_WHOLE = frozenset({*_WHOLE_SUMS, aten.var.default, aten.std.default})


def _axes(node: Node) -> tuple[int, ...]:
    """Return the axes that a node reduces, of groups instead of channels where it is a group norm; none by default."""
    if node.op != "call_function":
        return ()
    if (op := find(node.target)) is not None:
        if op.normalised_axis is None or val(node.args[0]).dtype is not torch.float32:
            return ()
        return (op.normalised_axis % val(node.args[0]).dim(),)
    if node.target not in _NORMS | _SPREADS | _SUMS | _WHOLE | {_LENGTH}:
        return ()
    x = val(node.args[0])
    if x.dtype is not torch.float32 or x.dim() == 0 or arguments(node)[-1] in (torch.float16, torch.float64):
        return ()
    every = tuple(range(x.dim()))
    if node.target in _WHOLE:
        return every
    if node.target in _OF_LAST:
        return every[-len(arguments(node)[1]) :]
    if node.target is aten.instance_norm.default:
        return every[2:] if arguments(node)[5] else ()  # else it takes stored statistics
    if node.target in _NORMS:
        return every[1:]
    if node.target is _LENGTH and arguments(node)[1] != 2:
        return ()
    given = arguments(node)[2 if node.target is _LENGTH else 1]
    return every if not given else tuple(axis % x.dim() for axis in ([given] if isinstance(given, int) else given))


def _centres(node: Node) -> bool:
    """Return whether a reduction is of centred numbers, or a mean that its operand is centred by."""
    is_sum = node.target in _SUMS | _WHOLE_SUMS or node.target in _OF_SQUARES
    return not is_sum or any(user.target is aten.sub.Tensor and node.args[0] in user.args for user in node.users)


def _length(node: Node, axes: Sequence[int]) -> int:
    """Return how many numbers a row has; 0 where that is not known."""
    sizes = [val(node.args[0]).shape[axis] for axis in axes]
    if not all(isinstance(size, int) for size in sizes):
        return 0
    return prod(sizes) // (arguments(node)[1] if node.target is aten.group_norm.default else 1)


def _names_of_equal_rows(module: GraphModule, inputs: Sequence[Tensor], sites: Mapping[str, Sequence[int]]) -> set[str]:
    """Return the names of the reductions among some that have a row of equal numbers."""
    met: set[str] = set()

    def compute(node: Node, values: Values, call: int) -> Any:
        if node.name in sites and node.name not in met and _has_equal_row(node, values(node.args[0]), sites[node.name]):  # type: ignore[arg-type]  # a reduction's operand is a node
            met.add(node.name)
        return evaluate(node, values, call)

    with contextlib.suppress(RuntimeError, IndexError, ValueError):  # a program may refuse numbers that are all equal
        blank = [torch.zeros_like(x) for x in inputs], [_throughout(x) for x in inputs]
        for _ in interpret(module, [inputs, *blank], compute):
            pass
    return met


def _throughout(x: Tensor) -> Tensor:
    """Return one of a tensor's numbers throughout: of floats the mean magnitude, else the largest."""
    if x.is_floating_point() and x.numel():
        size = float(x[x.isfinite()].abs().mean()) if x.isfinite().any() else 1.0
        return torch.full_like(x, size or 1.0)
    return x.amax().expand_as(x).clone() if x.numel() and x.dtype is not torch.bool else torch.ones_like(x)


def _has_equal_row(node: Node, x: Tensor, axes: Sequence[int]) -> bool:
    """Return whether a reduction has a row of equal numbers, other than 0, whose sum has no error."""
    if node.target is aten.group_norm.default:
        x, axes = x.reshape(x.shape[0], arguments(node)[1], -1), (2,)
    if not x.numel() or not x.isfinite().all():
        return False
    largest, least = x.amax(dim=list(axes)), x.amin(dim=list(axes))
    return bool(((largest == least) & (largest != 0)).any())


def _centre(module: GraphModule, node: Node, axes: Sequence[int]) -> None:
    """Let a reduction read its operand about the mean of each row."""
    emit = Emitter(module, node)
    if node.target in _OF_SQUARES:
        node.replace_all_uses_with(_OF_SQUARES[node.target](emit, node, axes))
        module.graph.erase_node(node)
        return
    centred, mean = _about_mean(emit, node.args[0], axes, groups=_groups(node))
    node.update_arg(0, centred)
    changed(node)
    if node.target in _SUMS | _WHOLE_SUMS:
        behind = Emitter(module, node.next)
        total = _added(behind, node, mean, axes)
        node.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)


def _groups(node: Node) -> int:
    """Return the groups of a group norm that are neither one nor every channel's own; 1 of all else."""
    return int(arguments(node)[1]) if node.target is aten.group_norm.default else 1


def _about_mean(emit: Emitter, x: Any, axes: Sequence[int], groups: int = 1) -> tuple[Node, Node]:
    """Return a value about the mean of each of its rows, and that mean, with axes of 1."""
    sizes = [int(size) for size in val(x).shape[1:]]
    rows = x
    if groups > 1:
        rows = emit(aten.reshape.default, x, [-1, groups, sizes[0] // groups, *sizes[1:]])
        axes = range(2, len(sizes) + 2)
    mean = emit(aten.mean.dim, rows, list(axes), True)
    centred = emit(aten.sub.Tensor, rows, mean)
    return (emit(aten.reshape.default, centred, [-1, *sizes]) if groups > 1 else centred), mean


def _added(emit: Emitter, reduced: Node, mean: Node, axes: Sequence[int]) -> Node:
    """Return a mean or a sum of what was centred with what it was centred by."""
    if val(reduced).dim() < val(mean).dim():
        mean = emit(aten.squeeze.dims, mean, list(axes))
    if reduced.target in (aten.sum.dim_IntList, aten.sum.default):
        mean = emit(aten.mul.Tensor, mean, float(_length(reduced, axes)))
    return emit(aten.add.Tensor, reduced, mean)


def _mean_of_squares(emit: Emitter, x: Any, axes: Sequence[int]) -> Node:
    """Return the mean of squares of each row, with axes of 1."""
    centred, mean = _about_mean(emit, emit(aten.mul.Tensor, x, x), axes)
    return emit(aten.add.Tensor, emit(aten.mean.dim, centred, list(axes), True), mean)


def _rms_norm(emit: Emitter, node: Node, axes: Sequence[int]) -> Node:
    x, _, weight, eps = arguments(node)
    eps = torch.finfo(val(x).dtype).eps if eps is None else eps
    mean = emit(aten.add.Tensor, _mean_of_squares(emit, x, axes), eps)
    normed = emit(aten.mul.Tensor, x, emit(aten.rsqrt.default, mean))
    return normed if weight is None else emit(aten.mul.Tensor, normed, weight)


def _vector_norm(emit: Emitter, node: Node, axes: Sequence[int]) -> Node:
    x, _, _, keeps, _ = arguments(node)
    total = emit(aten.mul.Tensor, _mean_of_squares(emit, x, axes), float(_length(node, axes)))
    root = emit(aten.sqrt.default, total)
    return root if keeps else emit(aten.squeeze.dims, root, list(axes))


_OF_SQUARES = {aten.rms_norm.default: _rms_norm, _LENGTH: _vector_norm}
"""How reductions of squares are spelled."""
