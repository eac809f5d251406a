"""Operators that meet NaN or an infinity where a program runs on its example, spelled so that a target keeps them.

Runtimes lose NaN in maxima, orders and pools, and to keep it takes passes over the numbers that no model wants which
never meets one. So the example decides: an operator is spelled otherwise where one of its operands is not finite there.
A program that asks for what is missing, by `isnan` or `nan_to_num`, is run on its example with some of it missing, too.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.graph.edit import fork, operator_name
from edgesmith.exporters.graph.interpret import Values, evaluate, interpret

Forms = Mapping[torch._ops.OpOverload, Callable[..., Any]]


def with_kept_nan(module: GraphModule, inputs: Sequence[Tensor], forms: Forms) -> GraphModule:
    """Return a graph with other forms of operators whose operands are not finite; the same where there are none.

    Args:
        inputs: the example that says so.
        forms: functions by the operators that they stand for.
    """
    met = names_that_meet(module, inputs, {node for node in module.graph.nodes if node.target in forms})
    if not met:
        return module
    module = fork(module)
    for node in module.graph.nodes:
        if node.name in met:
            node.target = forms[node.target]
    module.recompile()
    return module


def names_that_meet(
    module: GraphModule, inputs: Sequence[Tensor], sites: set[Node], *, constants: bool = True
) -> set[str]:
    """Return the names of the nodes among some that read what is not finite, where a program runs on its example.

    One that asks for what is missing runs on its example with NaN and infinity as well.

    Args:
        constants: whether what follows from no input counts.
    """
    reads = {node: [one for one in node.all_input_nodes if constants or _varies(one)] for node in sites}
    reads = {node: found for node, found in reads.items() if any(_is_float(one.meta.get("val")) for one in found)}
    if not reads:
        return set()
    examples = [inputs, *(_some_replaced(inputs, value) for value in (math.nan, math.inf) if _asks(module))]
    return set[str]().union(*(_that_meet(module, one, reads) for one in examples))


def _varies(node: Node) -> bool:
    return node.op == "placeholder" or bool(node.all_input_nodes)


_CHOOSING = frozenset(
    f"aten.{name}"
    for name in (
        *("where", "masked_fill", "masked_fill_", "scatter_reduce", "index_reduce", "cummax", "cummin"),
        *("logcumsumexp", "masked_scatter"),
    )
)
"""Operators that some spelling puts infinities into, in the place of what is not chosen."""


def chooses_from_not_finite(module: GraphModule, inputs: Sequence[Tensor]) -> bool:
    """Return whether what an operator chooses from is not finite on the example, other than the program's constants."""
    sites = {node for node in module.graph.nodes if node.op == "call_function" and operator_name(node) in _CHOOSING}
    return bool(names_that_meet(module, inputs, sites, constants=False))


_ASKING = frozenset(
    f"aten.{name}"
    for name in (
        *("isnan", "isfinite", "isinf", "isposinf", "isneginf", "nan_to_num"),
        *("nanmean", "nansum", "nanmedian", "nanquantile"),
    )
)
_COMPARING = frozenset(["aten.eq", "aten.ne"])


def _asks(module: GraphModule) -> bool:
    """Return whether a program has an operator that asks for what is missing, or compares a value with itself."""
    named = [(operator_name(node), node.args) for node in module.graph.nodes if node.op == "call_function"]
    return any(name in _ASKING or (name in _COMPARING and len(args) > 1 and args[0] is args[1]) for name, args in named)


def _some_replaced(inputs: Sequence[Tensor], value: float) -> list[Tensor]:
    """Return inputs in which every third float is another one."""
    made = []
    for x in inputs:
        x = x.clone()
        if x.is_floating_point():
            x.view(-1)[::3] = value
        made.append(x)
    return made


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _that_meet(module: GraphModule, inputs: Sequence[Tensor], reads: Mapping[Node, Sequence[Node]]) -> set[str]:
    """Return the names of the operators among some that read what is not finite, of what they read."""
    met = set()

    def compute(node: Node, values: Values, call: int) -> Any:
        if any(_is_odd(values(source)) for source in reads.get(node, ())):
            met.add(node.name)
        return evaluate(node, values, call)

    with contextlib.suppress(RuntimeError, IndexError, ValueError):  # a program may run on no NaN: `histc` does not
        for _ in interpret(module, [inputs], compute):
            pass
    return met


def _is_odd(value: Any) -> bool:
    return _is_float(value) and not bool(value.isfinite().all())
