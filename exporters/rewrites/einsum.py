"""`einsum` of two operands as one matmul, which every target has.

    batch axes     in both operands and in the result          A [batch, left, inner]
    inner axes     in both operands, summed over               B [batch, inner, right]
    left, right    in one operand and in the result            A B [batch, left, right]

Each operand is permuted and flattened into that form where it is not in it already, and so is the result. Diagonals
(a letter twice in one operand), more than two operands and broadcasting between ellipses are left and reported.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import arguments, aten, operators, replace, val
from edgesmith.exporters.rewrites.complex_values import Arithmetic
from edgesmith.exporters.rewrites.rewrite import Fired, Reject, Rejection, attempt, searches


@searches(rule="einsum(A, B) -> matmul(A', B')")
def einsum(module: GraphModule, costs: Costs) -> Iterator[Fired | Rejection]:
    """See the table above. Operands that several matmuls want arranged alike are arranged once."""
    arranged: dict[Any, Node] = {}
    for node in operators(module):
        if node.target is aten.einsum.default:
            outcome = attempt(node, _as_matmul, Arithmetic(module, node), arranged)
            if outcome is not None:
                yield outcome


@dataclass(frozen=True)
class _Axes:
    """The axes of a matmul, by letters, each group in the order of the operands.

    Attributes:
        a, b, out: of the operands and the result.
        length: of every letter.
    """

    a: str
    b: str
    out: str
    length: Mapping[str, Any]

    @property
    def batch(self) -> list[str]:
        return [x for x in self.a if x in self.b and x in self.out]

    @property
    def inner(self) -> list[str]:
        return [x for x in self.a if x in self.b and x not in self.out]

    @property
    def left(self) -> list[str]:
        return [x for x in self.a if x not in self.b]

    @property
    def right(self) -> list[str]:
        return [x for x in self.b if x not in self.a]


def as_matmul(module: GraphModule, node: Node) -> str:
    """Put a matmul in an einsum's place. Raises `Reject` where it is none."""
    return _as_matmul(Arithmetic(module, node), {})


def _as_matmul(emit: Arithmetic, arranged: dict[Any, Node]) -> str:
    equation, operands, _ = arguments(emit.before)
    equation = str(equation).replace(" ", "")
    try:
        axes = _axes(equation, operands)
    except Reject as declined:
        raise Reject(f"{equation}: {declined.reason}") from None

    def arrange(operand: Node, has: str, *groups: list[str]) -> Node:
        """Permute to the order of the groups, and make each group one axis."""
        order = [has.index(x) for group in groups for x in group]
        shape = [prod([axes.length[x] for x in group]) for group in groups]
        key = (operand, tuple(order), str(shape))
        if key not in arranged:
            x = operand if order == sorted(order) else emit(aten.permute.default, operand, order)
            arranged[key] = emit.reshape(x, shape)  # type: ignore[assignment]  # a node gives a node
        return arranged[key]

    batch, left, right = axes.batch, axes.left, axes.right
    singles = [[x] for x in left] if not batch else [left]  # without a batch, matmul takes any number of left axes
    one = arrange(operands[0], axes.a, *[[x] for x in batch], *singles, axes.inner)
    two = arrange(operands[1], axes.b, *[[x] for x in batch], axes.inner, right)
    result = emit(aten.matmul.default, one, two)
    made = [*batch, *left, *right]
    result = emit.reshape(result, [axes.length[x] for x in made])  # type: ignore[assignment]  # as above
    order = [made.index(x) for x in axes.out]
    replace(emit.before, result if order == sorted(order) else emit(aten.permute.default, result, order))
    return f"{equation} -> matmul"


def _axes(equation: str, operands: Sequence[Node]) -> _Axes:
    """Return the axes of an einsum that is a matmul. Raises `Reject` where it is none."""
    if len(operands) != 2:
        raise Reject(f"it has {len(operands)} operands")
    shapes = [val(operand).shape for operand in operands]
    a, b, out = letters(equation, [len(shape) for shape in shapes])
    length = dict(zip((*a, *b), (*shapes[0], *shapes[1]), strict=True))
    for letter, n in zip(a, shapes[0], strict=True):
        if letter in b and str(n) != str(length[letter]):
            raise Reject(f"axis {letter} is broadcast")
    if any(letter not in b + out for letter in a) or any(letter not in a + out for letter in b):
        raise Reject("it sums over an axis of one operand alone")
    return _Axes(a, b, out, length)


def letters(equation: str, ranks: Sequence[int]) -> tuple[str, ...]:
    """The letters of each operand and of the result, ellipses spelled out with letters that the equation has not.

    Raises Reject for a letter that occurs twice in one operand.
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
            raise Reject("it takes a diagonal")
    return tuple(spelled)
