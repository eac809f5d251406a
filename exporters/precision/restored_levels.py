"""Levels that are taken from a model's inputs and given back to its outputs, as forecasters do.

    loc = mean(x),  s = sqrt(mean((x - loc)^2)),  y = s f((x - loc) / s) + loc

Both ends are in the data's scale, where 16 bits are coarse: at a level of 1000 and deviations of 1, fp16 knows halves.
So what is computed of inputs alone up to the level, and the sum and the factor that give it back, stay fp32, whatever
the data are. That is read off the program: data with levels near 0 would not show it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from torch.fx import Node

from edgesmith.exporters.graph.capture import Program
from edgesmith.exporters.graph.edit import constant, operator_name, site

One = TypeVar("One")

_LAYERS = ("linear", "addmm", "mm", "bmm", "matmul", "einsum", "conv", "embedding", "attention", "rnn", "lstm", "gru")
_SUMS = ("add", "sub")
_VIEWS = ("view", "reshape", "transpose", "permute", "unsqueeze", "squeeze", "slice", "clone", "alias", "contiguous")
_REDUCTIONS = ("mean", "sum", "var", "amax", "amin", "norm")


def find_ends(
    makers: Iterable[One],
    operands: Callable[[One], Sequence[One]],
    outputs: Iterable[One],
    kind: Callable[[One], str],
) -> list[One]:
    """Return the operators that stay fp32, none where no output has a level given back.

    Args:
        makers: operators that read inputs alone, and no weights, in program order.
        operands: of an operator, the operators that make what it reads.
        outputs: the operators that make the outputs.
        kind: the name of an operator, without a namespace.
    """
    raw = list(makers)
    reduced = {id(one) for one in raw if kind(one).startswith(_REDUCTIONS)}
    for one in raw:
        if any(id(operand) in reduced for operand in operands(one)):
            reduced.add(id(one))
    found: list[One] = []
    for output in outputs:
        path = list(_down_to_sum(output, operands, kind))
        total = path[-1]
        if id(total) in {id(one) for one in raw} or not kind(total).startswith(_SUMS):
            continue
        if not any(id(operand) in reduced for operand in operands(total)):
            continue
        found += path
        for operand in operands(total):
            is_factor = kind(operand).startswith("mul") and any(id(one) in reduced for one in operands(operand))
            found += [operand] if is_factor else []
    return [*raw, *found] if found else []


def _down_to_sum(output: One, operands: Callable[[One], Sequence[One]], kind: Callable[[One], str]) -> Iterator[One]:
    """Yield an output's maker and, through views, what makes that, up to the first that is no view."""
    yield output
    while kind(output).startswith(_VIEWS) and operands(output):
        output = operands(output)[0]
        yield output


def is_layer(kind: str) -> bool:
    """Return whether an operator of this name may have weights, whatever it reads."""
    return any(name in kind for name in _LAYERS)


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
