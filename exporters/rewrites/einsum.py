"""`einsum` of two operands as one matrix product, which every target has.

    batch axes     in both operands and in the result          A [batch, left, inner]
    inner axes     in both operands, summed over               B [batch, inner, right]
    left, right    in one operand and in the result            A B [batch, left, right]

Each operand is permuted and flattened into that form where it is not in it already, and so is the result. Diagonals
(a letter twice in one operand), more than two operands and broadcasting between ellipses are left and reported.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from math import prod
from typing import Any

from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import arguments, aten, operators, rank, site, stand_for, val
from edgesmith.exporters.rewrites.complex_values import Arithmetic, NoRule
from edgesmith.exporters.rewrites.rewrite import Rejection, RewriteReport


class Einsum:
    """See the table above."""

    name = "einsum"

    def apply(self, module: GraphModule, costs: Costs) -> RewriteReport:
        """Rewrite in place."""
        applied, rejected = [], []
        arranged: dict[Any, Node] = {}
        for node in operators(module):
            if node.target is not aten.einsum.default:
                continue
            equation = str(node.args[0]).replace(" ", "")
            try:
                product = _as_product(Arithmetic(module, node), arranged)
            except NoRule as reason:
                rejected.append(Rejection(site(node), f"{equation}: {reason}"))
                continue
            stand_for(product, node)
            node.replace_all_uses_with(product)
            applied.append((site(node), f"{equation} -> matmul"))
        module.graph.eliminate_dead_code()
        return RewriteReport(self.name, tuple(applied), tuple(rejected))


def _as_product(emit: Arithmetic, arranged: dict[Any, Node]) -> Node:
    equation, operands, _ = arguments(emit.before)
    if len(operands) != 2:
        raise NoRule(f"it has {len(operands)} operands")
    a, b, out = letters(equation, [rank(operand) for operand in operands])
    length = dict(zip((*a, *b), (*val(operands[0]).shape, *val(operands[1]).shape), strict=True))
    for letter, n in zip(a, val(operands[0]).shape, strict=True):
        if letter in b and str(n) != str(length[letter]):
            raise NoRule(f"axis {letter} is broadcast")
    if any(letter not in b + out for letter in a) or any(letter not in a + out for letter in b):
        raise NoRule("it sums over an axis of one operand alone")
    batch = [x for x in a if x in b and x in out]
    inner = [x for x in a if x in b and x not in out]
    left, right = [x for x in a if x not in b], [x for x in b if x not in a]

    def arrange(operand: Node, has: Sequence[str], *groups: list[str]) -> Node:
        """Permute to the order of the groups, and make each group one axis."""
        order = [has.index(x) for group in groups for x in group]
        shape = [prod([length[x] for x in group]) for group in groups]
        key = (operand, tuple(order), str(shape))
        if key not in arranged:
            x = operand if order == sorted(order) else emit(aten.permute.default, operand, order)
            arranged[key] = emit.reshape(x, shape)  # type: ignore[assignment]  # a node gives a node
        return arranged[key]

    singles = [[x] for x in left] if not batch else [left]  # without a batch, matmul takes any number of left axes
    one = arrange(operands[0], a, *[[x] for x in batch], *singles, inner)
    two = arrange(operands[1], b, *[[x] for x in batch], inner, right)
    product = emit(aten.matmul.default, one, two)
    made = [*batch, *left, *right]
    product = emit.reshape(product, [length[x] for x in made])  # type: ignore[assignment]
    order = [made.index(x) for x in out]
    return product if order == sorted(order) else emit(aten.permute.default, product, order)


def letters(equation: str, ranks: Sequence[int]) -> tuple[str, ...]:
    """The letters of each operand and of the result, ellipses spelled out with letters that the equation has not.

    Raises NoRule for a letter that occurs twice in one place.
    """
    inputs, _, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if "->" not in equation:  # what occurs once, in alphabetical order
        named = sorted({x for x in inputs if x.isalpha() and inputs.count(x) == 1})
        output = ("..." if "..." in inputs else "") + "".join(named)
    spare = [x for x in string.ascii_letters if x not in equation]
    hidden = max((n - len(term) + 3 for term, n in zip(terms, ranks, strict=True) if "..." in term), default=0)
    spelled = []
    for term, n in (*zip(terms, ranks, strict=True), (output, len(output) - 3 + hidden)):
        count = n - len(term) + 3
        spelled.append(term.replace("...", "".join(spare[hidden - count : hidden])) if "..." in term else term)
        if len(set(spelled[-1])) < len(spelled[-1]):
            raise NoRule("it takes a diagonal")
    return tuple(spelled)
