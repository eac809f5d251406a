"""Operators that meet NaN or an infinity where a program runs on its example, spelled so that a target keeps them.

Runtimes lose NaN in maxima, orders and pools, and to keep it takes passes over the numbers that no model wants which
never meets one. So the example decides: an operator is spelled otherwise where one of its operands is not finite there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.graph.edit import fork
from edgesmith.exporters.graph.interpret import Values, evaluate, interpret

Forms = Mapping[torch._ops.OpOverload, Callable[..., Any]]


def with_kept_nan(module: GraphModule, inputs: Sequence[Tensor], forms: Forms) -> GraphModule:
    """Return a graph with other forms of operators whose operands are not finite; the same where there are none.

    Args:
        inputs: the example that says so.
        forms: functions by the operators that they stand for.
    """
    sites = {node for node in module.graph.nodes if node.target in forms and _reads_floats(node)}
    met = _that_meet(module, inputs, sites) if sites else set()
    if not met:
        return module
    module = fork(module)
    for node in module.graph.nodes:
        if node.name in met:
            node.target = forms[node.target]
    module.recompile()
    return module


def _reads_floats(node: Node) -> bool:
    return any(_is_float(source.meta.get("val")) for source in node.all_input_nodes)


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _that_meet(module: GraphModule, inputs: Sequence[Tensor], sites: set[Node]) -> set[str]:
    """Return the names of the operators among some that read what is not finite."""
    met = set()

    def compute(node: Node, values: Values, call: int) -> Any:
        if node in sites and any(_is_odd(values(source)) for source in node.all_input_nodes):
            met.add(node.name)
        return evaluate(node, values, call)

    for _ in interpret(module, [inputs], compute):
        pass
    return met


def _is_odd(value: Any) -> bool:
    return _is_float(value) and not bool(value.isfinite().all())
