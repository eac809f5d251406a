"""Both ends of a model that gives a level back: graphs of any kind, without torch. See restored_levels.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

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
