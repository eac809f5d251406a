"""Whole numbers as floats beyond what a type of 16 bits has all of: 2048 in fp16, 256 in bf16.

What runs from a cast of integers on, from a count of more truth values than that, or from a constant row such as
`arange(5000.)`, stays fp32 up to and with what makes an integer, a truth value or a bounded number of it, or an output.
Where it may go elsewhere, as into a layer, nothing stays. It is read off the program, as large_constants.py does;
mil/whole_numbers.py is the same for programs that coremltools types.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.fx import Node

from edgesmith.exporters.graph.capture import Program
from edgesmith.exporters.graph.edit import constant, operator_name, operators, site
from edgesmith.exporters.precision.large_constants import Reach, aten_name, is_float

_VIEWS = frozenset(
    {
        *("view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze", "expand", "repeat"),
        *("permute", "transpose", "slice", "select", "cat", "stack", "clone", "alias", "contiguous", "to", "_to_copy"),
        *("gather", "index_select", "index", "flip", "constant_pad_nd"),
    }
)
_CHOOSING = frozenset(
    {
        *("maximum", "minimum", "clamp", "clamp_min", "clamp_max", "abs", "amax", "amin", "where", "masked_fill"),
        *("relu", "neg"),
    }
)
_COMPUTING = frozenset(
    {
        *("add", "sub", "rsub", "mul", "div", "floor_divide", "remainder", "fmod", "square", "floor", "ceil", "round"),
        *("trunc", "sum", "mean", "cumsum"),
    }
)
_CASTS = frozenset({"to", "_to_copy", "type_as"})
_CARRYING = _VIEWS | _CHOOSING | _COMPUTING
_BOUNDING = frozenset(
    {
        *("softmax", "_softmax", "sigmoid", "tanh", "sign", "sgn", "sin", "cos", "atan", "erf", "log", "log2", "log10"),
        *("log1p", "sqrt", "rsqrt", "reciprocal"),
    }
)
_COMPARING = frozenset({"eq", "ne", "lt", "le", "gt", "ge"})
_PLACES = frozenset({"argmax", "argmin"})


def find_whole_numbers(program: Program, dtype: torch.dtype) -> dict[str, str]:
    """Return the names of nodes that stay fp32 for whole numbers beyond `dtype`, each with the reason in words."""
    largest = 2 / torch.finfo(dtype).eps
    bounds: dict[Node, float] = {}
    kept: dict[str, str] = {}
    for node in operators(program.module):
        bounds[node] = _bound(program, node, bounds)
        reason = (
            f"{operator_name(node).removeprefix('aten.')} at {site(node)} makes or reads whole numbers that 16 bits"
        )
        if _is_compared_with_a_constant(program, node, dtype):
            kept.setdefault(node.name, f"{reason} round")
        elif _makes_large(program, node, bounds, largest, dtype):
            path = Reach(_CARRYING, _BOUNDING).of(node) or []
            kept |= {one.name: f"{reason} round" for one in path if path[1:] and one.name not in kept}
    return kept


def _makes_large(program: Program, node: Node, bounds: dict[Node, float], largest: float, dtype: torch.dtype) -> bool:
    """Return whether a node makes floats of integers, or adds up truth values, beyond the largest number."""
    name = aten_name(node)
    if not is_float(node):
        return False
    if name in ("sum", "cumsum") and bounds[node] < math.inf:
        return bounds[node] > largest
    if name not in _CASTS | _CHOOSING | _COMPUTING:
        return False
    of_integers = any(bounds.get(one, math.inf) > largest for one in node.all_input_nodes if _is_integer(one))
    return of_integers or any(_is_row_of_places(program, one, largest, dtype) for one in node.all_input_nodes)


def _is_compared_with_a_constant(program: Program, node: Node, dtype: torch.dtype) -> bool:
    if aten_name(node) not in _COMPARING or not any(is_float(one) for one in node.all_input_nodes):
        return False
    numbers = [float(x) for x in node.args if isinstance(x, int | float)]
    if any(x.is_integer() and float(torch.tensor(x).to(dtype)) != x for x in numbers if math.isfinite(x)):
        return True
    return any(_is_coarse(program, one, dtype, whole=not _is_row(one)) for one in node.all_input_nodes)


def _bound(program: Program, node: Node, bounds: dict[Node, float]) -> float:
    """Return the largest magnitude of what counts, places or tells something; infinite where that is not known."""
    name, value = aten_name(node), node.meta.get("val")
    if not isinstance(value, Tensor):
        return math.inf
    if value.dtype == torch.bool:
        return 1.0
    given = [_known(program, one, bounds) for one in node.all_input_nodes]
    if not given or name in _PLACES:
        return float(node.all_input_nodes[0].meta["val"].numel()) if name in _PLACES else math.inf
    numbers = [abs(float(x)) for x in node.args if isinstance(x, int | float) and not isinstance(x, bool)]
    if name in _CASTS | _VIEWS | {"abs", "amax", "amin", "relu", "neg"}:
        return given[0] if name != "cat" else max(given)
    if name in ("maximum", "minimum", "where"):
        return max(given + numbers)
    if name in ("add", "sub"):
        return sum(given + numbers)
    if name == "mul":
        return math.prod(given + numbers) if math.inf not in given else math.inf
    if name in ("sum", "cumsum"):
        source = node.all_input_nodes[0].meta["val"]
        terms = source.numel() / max(value.numel(), 1) if name == "sum" else max(source.shape, default=1)
        return given[0] * terms
    return math.inf


def _known(program: Program, node: Node, bounds: dict[Node, float]) -> float:
    made = node.meta.get("val")
    if isinstance(made, Tensor) and made.dtype == torch.bool:
        return 1.0
    value = constant(program.module, node)
    if value is not None and value.numel() and not value.is_complex():
        return float(value.abs().max())
    return bounds.get(node, math.inf)


def _is_coarse(program: Program, node: Node, dtype: torch.dtype, whole: bool = True) -> bool:
    """Return whether a constant has finite numbers that a type rounds; `whole`: and has whole ones only."""
    value = constant(program.module, node)
    if value is None or value.dtype != torch.float32 or not bool(value.isfinite().all()):
        return False
    return not (whole and bool((value != value.round()).any())) and bool((value.to(dtype).float() != value).any())


def _is_row_of_places(program: Program, node: Node, largest: float, dtype: torch.dtype) -> bool:
    """Return whether a constant has several whole numbers that a type rounds; a mask has one, its fill."""
    value = constant(program.module, node)
    if value is None or not _is_coarse(program, node, dtype):
        return False
    large = value.abs()[value.abs() > largest]
    return large.numel() > 0 and bool(large.min() < large.max())


def _is_row(node: Node) -> bool:
    return bool(node.meta["val"].numel() > 1)


def _is_integer(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and not value.is_floating_point() and value.dtype != torch.bool
