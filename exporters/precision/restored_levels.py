"""Levels that are taken from a model's inputs and given back to its outputs, as forecasters do.

    loc = mean(x),  s = sqrt(mean((x - loc)^2)),  y = s f((x - loc) / s) + loc
    s = max(mean(|x|), 1e-10),                    y = s f(x / s)

Both ends are in the data's scale, where 16 bits are coarse: at a level of 1000 and deviations of 1, fp16 knows halves,
and a bound of 1e-10 is 0, so that a series of zeros becomes 0 / 0. So what is computed of inputs alone up to the level,
and the sum and the factor that give it back, stay fp32, whatever the data are. That is read off the program: data with
levels near 0 would not show it.
"""

from __future__ import annotations

from torch.fx import Node

from edgesmith.exporters.graph.capture import Program
from edgesmith.exporters.graph.edit import constant, operator_name, site
from edgesmith.exporters.precision.ends import find_ends, is_layer


def find_restored_levels(program: Program) -> dict[str, str]:
    """Return the names of nodes that stay fp32 at both ends of a program, each with the reason in words."""
    raw: list[Node] = []
    inputs = {node for node in program.module.graph.nodes if node.op == "placeholder"}
    for node in program.module.graph.nodes:
        reads = [one for one in node.all_input_nodes if not _is_uniform(program, one)]
        if node.op != "call_function" or not reads or is_layer(_name(node)):
            continue
        if all(one in inputs or one in raw for one in reads):
            raw.append(node)
    (output,) = (node for node in program.module.graph.nodes if node.op == "output")

    def operands(node: Node) -> list[Node]:
        return [one for one in node.all_input_nodes if one.op == "call_function"]

    makers = [node for node in output.all_input_nodes if node.op == "call_function"]
    return {
        node.name: f"{_name(node)} at {site(node)} takes a level from the data, or gives it back"
        for node in find_ends(raw, operands, makers, _name)
    }


def _is_uniform(program: Program, node: Node) -> bool:
    """Return whether a node is one number throughout, as the weight of a norm without its affine is."""
    value = constant(program.module, node)
    return value is not None and (value.numel() == 0 or bool(value.min() == value.max()))


def _name(node: Node) -> str:
    return operator_name(node).partition(".")[2].lstrip("_") if node.op == "call_function" else ""
