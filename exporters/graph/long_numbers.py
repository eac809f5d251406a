"""Whole numbers beyond 32 bits, for targets that have none: looked for by running a program on its example."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.errors import Unsupported
from edgesmith.exporters.graph.edit import operator_name, operators, site
from edgesmith.exporters.graph.interpret import Values, evaluate, interpret
from edgesmith.exporters.graph.subgraphs import line

_COMPUTING = frozenset(
    f"aten.{name}"
    for name in (
        *("add", "sub", "rsub", "mul", "pow", "square", "sum", "cumsum", "prod", "cumprod", "matmul", "mm", "bmm"),
        *("addcmul", "dot", "bitwise_left_shift", "__lshift__", "scatter_add", "index_add", "to", "_to_copy"),
        *("div", "floor_divide", "linalg_vecdot", "diff", "abs", "neg"),
    )
)
"""Operators whose results are further from zero than what they read; a bound such as 2^63 - 1 is none."""


def refuse_long_numbers(module: GraphModule, inputs: Sequence[Tensor], target: str) -> None:
    """Refuse what makes whole numbers beyond 32 bits of a program's example, or reads them.

    Args:
        target: what users call it.

    Raises:
        Unsupported: with the operator, its line, and the number.
    """
    for given in inputs:
        if (found := _longest(given)) is not None:
            raise Unsupported(
                f"{target} has whole numbers of 32 bits, and the example has {found}; hand in smaller ones"
            )
    sites = {node for node in operators(module) if operator_name(node) in _COMPUTING and _is_long(node)}
    if not sites:
        return
    beyond: list[tuple[Node, int]] = []

    def compute(node: Node, values: Values, call: int) -> Any:
        made = evaluate(node, values, call)
        if node in sites and (found := _longest(made)) is not None:
            beyond.append((node, found))
        return made

    with contextlib.suppress(RuntimeError, IndexError, ValueError):
        for _ in interpret(module, [inputs], compute):
            pass
    if beyond:
        node, found = beyond[0]
        raise Unsupported(
            f"{target} has whole numbers of 32 bits, and {operator_name(node)} at {site(node)}{line(node)} makes"
            f" {found} of the example; compute in float32 where its 24 bits do, or keep numbers and sums below 2^31"
        )


def _is_long(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.int64


def _longest(value: object) -> int | None:
    """Return a number of a tensor that 32 bits do not have; None where there is none."""
    if not isinstance(value, Tensor) or value.dtype != torch.int64 or not value.numel():
        return None
    least, most = int(value.min()), int(value.max())
    if most >= 2**31:
        return most
    return least if least < -(2**31) else None
