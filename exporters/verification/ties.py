"""Inputs on which PyTorch's own result is one of several, because it picks among equal numbers in no stated order.

`topk`, `kthvalue` and `median` say nothing of the order of equal numbers, nor do `sort` and `argsort` unless they are
asked for a stable one: PyTorch sorts 17 numbers or more by vectors. Every runtime has an order of its own. Where the
outputs are others once the first of equal numbers is picked, and once the last, an input shows nothing of a file.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from edgesmith.errors import BadInput
from edgesmith.exporters.graph.capture import Program, run_eager
from edgesmith.exporters.graph.watching import Watching

aten = torch.ops.aten

_SORTING = (aten.sort.default, aten.sort.stable)
_PICKING = (aten.topk.default, aten.kthvalue.default, aten.median.dim, *_SORTING)
_CAPTURED = (*_PICKING, aten.argsort.default, aten.argsort.stable)
"""Those of a captured program, which has operators that PyTorch itself runs as others."""


def picks(program: Program) -> bool:
    """Return whether a program has an operator that picks among equal numbers."""
    return any(node.target in _CAPTURED and not node.kwargs.get("stable") for node in program.module.graph.nodes)


def depends_on_ties(model: nn.Module, inputs: Sequence[Tensor]) -> bool:
    """Return whether a model's outputs depend on which of several equal numbers is picked."""
    return any(outputs_of_ties(model, inputs))


def outputs_of_ties(model: nn.Module, inputs: Sequence[Tensor]) -> list[bool]:
    """Return for each output whether it depends on which of equal numbers is picked; nothing where none runs."""
    try:
        with _Picking(first=True):
            some = run_eager(model, inputs)
        with _Picking(first=False):
            others = run_eager(model, inputs)
    except (BadInput, RuntimeError):
        return []
    return [not torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(some, others, strict=True)]


_CHOOSING = (
    *(aten.argmax.default, aten.argmin.default, aten.max.dim, aten.min.dim),
    *(aten.topk.default, aten.sort.default, aten.sort.stable, aten.argsort.default),
)
_HANDING_ON = (aten._to_copy.default, aten.to.dtype, aten.reshape.default, aten.view.default, aten.unsqueeze.default)


def returns_choices(program: Program) -> bool:
    """Return whether an output says which of several numbers was chosen, such as the class of each pixel."""
    return any(map(_is_choice, program.module.graph.output_node().all_input_nodes))


def _is_choice(node: Node) -> bool:
    while node.target in _HANDING_ON:
        node = node.all_input_nodes[0]
    if node.target is operator.getitem and node.args[1] == 1:
        node = node.all_input_nodes[0]
    return node.target in _CHOOSING


class _Picking(Watching):
    """Picks the first, or the last, of equal numbers."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self._first = first

    def watch(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        given = _named(func, args, kwargs) if func in _PICKING else {}
        x = given.get("self")
        if x is None or not x.dim() or not x.numel() or given.get("stable"):
            return func(*args, **kwargs)
        axis = given["dim"]
        if func in _SORTING:
            return self._sorted(x, axis, given["descending"])
        if func is aten.topk.default:
            values, places = self._sorted(x, axis, given["largest"])
            return values.narrow(axis, 0, given["k"]), places.narrow(axis, 0, given["k"])
        values, places = self._sorted(x, axis, False)
        rank = given["k"] - 1 if func is aten.kthvalue.default else (x.shape[axis] - 1) // 2
        picked = values.narrow(axis, rank, 1), places.narrow(axis, rank, 1)
        return picked if given["keepdim"] else tuple(one.squeeze(axis) for one in picked)

    def _sorted(self, x: Tensor, axis: int, descending: bool) -> tuple[Tensor, Tensor]:
        if self._first:
            return torch.sort(x, stable=True, dim=axis, descending=descending)
        values, places = torch.sort(x.flip([axis]), stable=True, dim=axis, descending=descending)
        return values, x.shape[axis] - 1 - places


def _named(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return an operator's arguments by name, with its defaults."""
    known = {one.name: one.default_value for one in func._schema.arguments if one.has_default_value()}
    return {**known, **dict(zip((one.name for one in func._schema.arguments), args, strict=False)), **kwargs}
