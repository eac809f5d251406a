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
    """Return the operators that stay fp32, none where no output has a level or a factor given back.

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
    made_of_inputs = {id(one) for one in raw}

    def reads_level(one: One) -> bool:
        return any(id(operand) in reduced for operand in operands(one))

    found: list[One] = []
    for output in outputs:
        path = list(_down_to_sum(output, operands, kind))
        total = path[-1]
        terms = [total, *(operands(total) if kind(total).startswith(_SUMS) else ())]
        factors = [one for one in terms if kind(one).startswith("mul") and reads_level(one)]
        is_level = kind(total).startswith(_SUMS) and reads_level(total)
        if id(total) not in made_of_inputs and (is_level or factors):
            found += [*path, *(one for one in factors if one is not total)]
    return [*raw, *found] if found else []


def _down_to_sum(output: One, operands: Callable[[One], Sequence[One]], kind: Callable[[One], str]) -> Iterator[One]:
    """Yield an output's maker and, through views, what makes that, up to the first that is no view."""
    yield output
    while is_view(kind(output)) and operands(output):
        output = operands(output)[0]
        yield output


def is_view(kind: str) -> bool:
    """Return whether an operator of this name changes no numbers."""
    return kind.startswith(_VIEWS)


def is_layer(kind: str) -> bool:
    """Return whether an operator of this name may have weights, whatever it reads."""
    return any(name in kind for name in _LAYERS)
