"""Constants that a type of 16 bits cannot hold, such as the -1e9 or `finfo.min` of an attention mask.

    softmax(q k^T + (1 - keep) c)        0 c = 0, and 0 times what half precision makes of c, infinity, is NaN

Where such a constant may go is read off the program, not off data: an example without padding shows no mask. From the
operator that reads the constant on, what its value runs through stays fp32, up to and with the operators whose results
are bounded again. Where the value may leave otherwise, as through a matmul, only that operator stays: what becomes of
the rest is for `islands` to measure.

A constant counts from `SHARE` of the range on, as scores are still added to a mask of finfo(float16).min; that alone
keeps nothing where the value is not bounded again. An infinite constant is as infinite in 16 bits, so it keeps nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from edgesmith.exporters.graph.capture import Program
from edgesmith.exporters.graph.edit import constant, operator_name, site

SHARE = 0.5
"""Of a type's range, what a constant may have that others are added to."""

One = TypeVar("One")

_SEEDS = frozenset(
    {
        *("add", "sub", "rsub", "mul", "div", "masked_fill", "where", "scalar_tensor", "full", "full_like", "new_full"),
        *("nan_to_num", "constant_pad_nd", "pad", "index_fill", "scatter", "fill"),
    }
)
"""ATen operators whose results are as large as a constant that they read. Bounds of a clamp are none."""

_VIEWS = frozenset(
    {
        *("view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze", "expand", "repeat"),
        *("permute", "transpose", "slice", "select", "cat", "stack", "clone", "alias", "contiguous", "to", "_to_copy"),
    }
)
_CARRYING = _SEEDS | _VIEWS | {"clamp", "clamp_min", "clamp_max", "maximum", "minimum", "amax", "amin", "neg", "abs"}
_BOUNDING = frozenset(
    {
        *("softmax", "_softmax", "_safe_softmax", "scaled_dot_product_attention", "sigmoid", "tanh"),
        *("eq", "ne", "lt", "le", "gt", "ge", "isfinite", "isinf", "isnan", "argmax", "argmin"),
    }
)


def find_reach(
    one: One, readers: Callable[[One], Sequence[One] | None], is_bounded: Callable[[One], bool]
) -> list[One] | None:
    """Return an operator and all that its value runs through until it is in range again; None where it may not be.

    Args:
        one: makes the value.
        readers: of an operator's value; None where there is one that neither carries nor bounds it.
        is_bounded: whether an operator's result is in range whatever it reads.
    """
    found, waiting = [one], [one]
    while waiting:
        maker = waiting.pop()
        if is_bounded(maker):
            continue
        following = readers(maker)
        if following is None:
            return None
        new = [reader for reader in following if reader not in found]
        found += new
        waiting += new
    return found


def find_large_constants(program: Program, dtype: torch.dtype) -> dict[str, str]:
    """Return the names of nodes that stay fp32 for a constant beyond `dtype`'s range, each with the reason in words."""
    largest = torch.finfo(dtype).max
    kept: dict[str, str] = {}
    for node in program.module.graph.nodes:
        if aten_name(node) not in _SEEDS or not is_float(node):
            continue
        peak = _largest_constant(program, node)
        if peak <= largest * SHARE:
            continue
        position = f"{operator_name(node).removeprefix('aten.')} at {site(node)}"
        reason = f"{position} reads the constant {peak:.3g}, and half precision ends at {largest:.6g}"
        for one in Reach(_CARRYING, _BOUNDING).of(node) or ([node] if peak > largest else []):
            kept.setdefault(one.name, reason)
    return kept


def _largest_constant(program: Program, node: Node) -> float:
    """Return the largest finite magnitude of a node's constants, numbers or tensors; 0 where there are none."""
    numbers = [abs(float(x)) for x in tree_leaves((node.args, node.kwargs)) if isinstance(x, int | float)]
    found = [x for x in numbers if math.isfinite(x)]
    for source in node.all_input_nodes:
        value = constant(program.module, source)
        if value is not None and value.is_floating_point() and value.numel():
            magnitude = value.double().abs()
            found.append(float(magnitude.where(magnitude.isfinite(), 0.0).max()))
    return max(found, default=0.0)


@dataclass(frozen=True)
class Reach:
    """The operators that a kind of numbers runs through in a program.

    Attributes:
        carrying: names of ATen operators whose results are such numbers again.
        bounding: of those whose results are in range whatever they read.
    """

    carrying: frozenset[str]
    bounding: frozenset[str]

    def of(self, node: Node) -> list[Node] | None:
        """Return a node and all that its value runs through, see `find_reach`."""
        return find_reach(node, self._readers, self._is_bounded)

    def _readers(self, node: Node) -> list[Node] | None:
        following = [user for user in node.users if user.op != "output"]  # outputs are float32
        known = all(aten_name(user) in self.carrying or self._is_bounded(user) for user in following)
        return following if known else None

    def _is_bounded(self, node: Node) -> bool:
        return aten_name(node) in self.bounding or not is_float(node)


def is_float(node: Node) -> bool:
    """Return whether a node makes a tensor of floats."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def aten_name(node: Node) -> str:
    """Return a node's ATen operator without its overload; empty where it has none."""
    target = node.target
    return target._schema.name.removeprefix("aten::").rstrip("_") if isinstance(target, torch._ops.OpOverload) else ""
