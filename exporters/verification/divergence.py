"""The first position where two programs diverge, found by the names of their values."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor
from torch.fx import GraphModule

from edgesmith.exporters.graph.capture import Program
from edgesmith.exporters.graph.edit import equals, module_path, operator_name
from edgesmith.exporters.graph.interpret import interpret


def position_found(locate: Callable[[], str | None]) -> str | None:
    """Return what a search for a position finds; None where the search itself fails.

    A verdict stands without a position. A search runs more than the verdict needed, such as a file with further
    outputs, and what fails there must not take the verdict's place.
    """
    try:
        return locate()
    except Exception:  # whatever a runtime raises for a file that was changed for the search
        return None


def values(module: GraphModule, inputs: Sequence[Tensor]) -> dict[str, np.ndarray]:
    """Return every tensor that a graph computes, by node name, in order."""
    return {
        node.name: value.float().numpy()
        for node, (value,) in interpret(module, [[x.clone() for x in inputs]])
        if node.op == "call_function" and isinstance(value, Tensor)
    }


def first_divergence(
    reference: Program, other: dict[str, np.ndarray], names: dict[str, str], inputs: Sequence[Tensor], limit: float
) -> str | None:
    """Return the first value of `reference`, in order, that `other` has differently; None where none does.

    Args:
        other: values by name, as `values` or a target's `intermediate` gives them.
        names: from names in `other` to the reference's names for the same value.
        limit: relative error at a value from which it counts.
    """
    theirs = {names[name]: value for name, value in other.items() if name in names}
    nodes = {node.name: node for node in reference.module.graph.nodes}
    for name, value in values(reference.module, inputs).items():
        found = theirs.get(name)
        if found is None or found.shape != value.shape:
            continue
        peak = float(np.abs(value).max(initial=0.0)) or 1.0
        error = float(np.abs(value - found).max(initial=0.0)) / peak
        if not error <= limit:
            node = nodes[name]
            return f"{module_path(node) or 'the model'} ({operator_name(node)}, {name}), error {error:.2g} of its peak"
    return None


def captured_names(program: Program) -> dict[str, str]:
    """Return, for a rewritten program's node names, the captured nodes whose values they have."""
    return {node.name: equals(node) for node in program.module.graph.nodes if node.op == "call_function"}
