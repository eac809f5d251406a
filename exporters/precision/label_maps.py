"""Classes of pixels in 16 bits: both ends of a program stay fp32, as far as near ties ask for it.

    share(k, l)    the pixels that are expected to have another class than in fp32 where the first k and the last l
                   operators are fp32: by the margins between the best two scores, and the error of those margins
    k, l           the fewest with share(k, l) <= aim, l a part of `PARTS`, k by bisection; none where classes have
                   margins, as those of trained weights do

Classes have no SNR. Two that score nearly alike change places with any rounding, and rounding adds up from the first
layer on, of weights more than of values; what the last layers add is small, and few operators. So the ends are kept,
and not what loses most: two borders, where islands would have many, each with its casts and, on a phone, its way
between processors.

Fused ops round their results alone here, as runtimes do that compute them in one kernel. What the file does is looked
at too, and a smaller aim taken where it changes more.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map

from edgesmith.exporters.graph.capture import Program, run
from edgesmith.exporters.graph.edit import aten, module_path, operators
from edgesmith.exporters.graph.interpret import Values, evaluate, interpret
from edgesmith.exporters.precision.half import half, is_kept, round_weight
from edgesmith.exporters.precision.task import Typed, TypingTask

AIMS = (0.7, 0.4, 0.2, 0.0)
"""Parts of the allowed share that are aimed at, one after the other until the file changes no more than is allowed."""


PARTS = (0.0, 1 / 16, 1 / 8)
"""Parts of a program's operators that its end may be."""

MANY = 65536
"""Pixels from which on one input says enough."""


def keep_ends(program: Program, task: TypingTask, kept: Mapping[str, str], dtype: torch.dtype) -> Typed:
    """Return a program of classes in a type of 16 bits, with as much of its ends in fp32 as they need.

    Args:
        program: rewritten, of float32, whose outputs are classes.
        kept: nodes that stay fp32 for other reasons.
    """
    inputs = task.inputs[:1] if _pixels(program) >= MANY else task.inputs
    wanted = [tree_leaves(run(program, given)) for given in inputs]
    typed = Typed(program)
    names_of = cache(lambda: task.operators_in([module_path(node) for node in operators(program.module)]))
    for aim in AIMS:
        ends = find_ends(program, inputs, kept, dtype, aim * task.other_classes)
        if task.types_programs:
            typed = Typed(half(program, {**ends, **kept}, dtype), {**ends, **kept} or None)
        elif ends:
            typed = Typed(program, _named(program, ends, names_of()))
        found = task.run_file(typed, inputs)
        if all(_share(wanted, outputs) <= task.other_classes for outputs in found.values()):
            break
    return typed


def find_ends(
    program: Program, inputs: Sequence[Sequence[Tensor]], kept: Mapping[str, str], dtype: torch.dtype, aim: float
) -> dict[str, str]:
    """Return the names of the first and the last nodes that have to stay fp32 for an aim, each with the reason."""
    nodes = list(operators(program.module))
    count = len(nodes)

    def share(first: int, last: int) -> float:
        ends = dict.fromkeys((node.name for node in (*nodes[:first], *nodes[count - last :])), "")
        return expected_share(program, inputs, {**ends, **kept}, dtype)

    before = share(0, 0)
    if before <= aim:
        return {}
    found: list[tuple[int, int]] = []
    for last in (int(count * part) for part in PARTS):
        least, most = -1, count - last
        while most - least > max(count // 32, 1):
            middle = (least + most + 1) // 2
            least, most = (least, middle) if share(middle, last) <= aim else (middle, most)
            if least + last >= sum(min(found, key=sum, default=(count, 0))):
                break  # no shorter than what was found
        else:
            found.append((most, last))
    first, last = min(found, key=sum)
    reason = f"without it {before:.2%} of the pixels would change their class"
    ends = (*nodes[:first], *nodes[count - last :])
    return {node.name: f"{module_path(node) or node.name}: {reason}" for node in ends}


def expected_share(
    program: Program, inputs: Sequence[Sequence[Tensor]], kept: Mapping[str, str], dtype: torch.dtype
) -> float:
    """Return the share of pixels that a type of 16 bits is expected to change, by the scores; 0 without an argmax."""

    def rounded(value: Any) -> Any:
        is_float = isinstance(value, Tensor) and value.dtype == torch.float32
        return value.to(dtype).float() if is_float else value

    def compute(node: Node, values: Values, call: int) -> Any:
        if call == 0 or is_kept(node, kept):
            return evaluate(node, values)

        def read(source: Node) -> Any:
            value = values(source)
            if source.op == "get_attr" and isinstance(value, Tensor) and value.dtype == torch.float32:
                return round_weight(value, dtype).float()
            return tree_map(rounded, value)

        return tree_map(rounded, evaluate(node, read))

    readers = {node.args[0]: node for node in operators(program.module) if node.target is aten.argmax.default}
    shares = [0.0]
    for given in inputs:
        for node, (exact, typed) in interpret(program.module, [given, given], compute):
            if (reader := readers.get(node)) is not None:
                read = typed if is_kept(reader, kept) else rounded(typed)  # which a half-precision argmax reads
                shares.append(_expected(exact, read, cast(int, reader.args[1])))
    return sum(shares) / max(len(shares) - 1, 1)


def _expected(exact: Tensor, typed: Tensor, axis: int) -> float:
    """Return the chance, over all positions, that the best two classes change places: erfc(m / (sqrt(2) s)) / 2.

    m is how far apart their scores are, s the root mean square of its error. Counting those that do change would take
    many more pixels to be as sure.
    """
    best = exact.topk(2, dim=axis)
    margin = best.values.diff(dim=axis).abs().double()
    error = typed.gather(axis, best.indices).diff(dim=axis).abs().double() - margin
    spread = float(error.square().mean().sqrt())
    if not math.isfinite(spread):
        return 1.0
    return float(torch.special.erfc(margin / (2**0.5 * spread)).mean() / 2) if spread else 0.0


def _pixels(program: Program) -> int:
    return sum(node.meta["val"].numel() for node in program.module.graph.output_node().all_input_nodes)


def _share(wanted: Sequence[Sequence[Any]], found: Sequence[Sequence[Any]]) -> float:
    """Return the share of elements that differ, over all outputs of all calls."""
    others = total = 0
    for ys, zs in zip(wanted, found, strict=True):
        for y, z in zip(ys, zs, strict=True):
            others += int((torch.as_tensor(y) != torch.as_tensor(z)).sum())
            total += torch.as_tensor(y).numel()
    return others / max(total, 1)


def _named(program: Program, kept: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
    """Return what stays fp32 by a converter's names, from each of which `names` leads to its module.

    A module stays fp32 where all of its operators do. Where a block's sum does not, as one of its two is between the
    ends, the layers before the other are no end any more: they would be an island, with a cast on either side.
    """
    nodes = {node: module_path(node) for node in operators(program.module)}
    reasons = {path: kept[node.name] for node, path in nodes.items() if node.name in kept}
    whole = set(nodes.values()) - {path for node, path in nodes.items() if node.name not in kept}
    while inside := _between(program, kept, {node for node, path in nodes.items() if path in whole}):
        whole -= {nodes[node] for node in inside}
    return {name: reasons[path] for name, path in names.items() if path in whole}


def _between(program: Program, kept: Mapping[str, str], single: Collection[Node]) -> set[Node]:
    """Return the fp32 operators that half precision comes before and after.

    An operator of an end that cannot be named, such as an argmax outside of all modules, is none where it is the end's
    first or last.

    Args:
        kept: names of what should stay fp32.
        single: the operators that do.
    """
    graph = list(program.module.graph.nodes)
    behind: set[Node] = set()
    before: set[Node] = set()
    first: set[Node] = set()
    last: set[Node] = set()
    for node in graph:
        behind |= {node} if any(one in single or one in behind for one in node.all_input_nodes) else set()
        is_passed = node.op != "call_function" or node in single or (node.name in kept and node not in behind)
        first |= {node} if is_passed and first.issuperset(node.all_input_nodes) else set()
    for node in reversed(graph):
        before |= {node} if any(one in single or one in before for one in node.users) else set()
        is_passed = node.op != "call_function" or node in single or (node.name in kept and node not in before)
        last |= {node} if is_passed and last.issuperset(node.users) else set()
    return set(single) - first - last
