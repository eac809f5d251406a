"""Cases of operators: a function of tensors, and the inputs on which its file is held to PyTorch.

A case is one overload of an operator with fixed arguments and shapes. Its inputs are values of the file's inputs, so
that one file is run on all of them. `Together` makes one model of several cases, each with outputs of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

LARGEST_HALF = 240.0
"""Magnitude that finite inputs of a case in half precision have at most: its square, 57600, is below 65504."""


@dataclass(frozen=True)
class Case:
    """One overload of an operator with fixed arguments and shapes.

    Attributes:
        operator: the name in the table, such as `nn.functional.pad`.
        label: which case of the operator it is, in words.
        function: from tensors to a tensor, or a nest with tensors; a module where the operator has weights.
        values: the inputs of each call, of the same shapes and types every time.
        ulps: that a result may be off, in units of what one rounding of the inputs or of the result moves it by; see
            tolerance.py.
        mixes: whether each output is a sum over much of the input by way of values that are not outputs, as of a
            transform and its inverse. One rounding then moves every value by that of the largest.
        activation: whether the operator is an activation, which is composed of numbers of order one: the magnitude of
            the input counts beside the output's, as 1 at least and 10 at most.
        floor: error that is allowed beside these, relative to the square of the largest input and to the square of
            the roundoff: of variances, which are sums of squares of rounding where all values are equal.
    """

    operator: str
    label: str
    function: Callable[..., Any]
    values: tuple[tuple[Tensor, ...], ...]
    ulps: float = 16.0
    mixes: bool = False
    activation: bool = False
    floor: float = 0.0

    def __str__(self) -> str:
        return f"{self.operator} ({self.label})"

    def call(self, given: Sequence[Tensor]) -> list[Tensor]:
        """Return the function's tensors, complex ones as pairs of real numbers, in a last axis of 2."""
        leaves = [leaf for leaf in tree_leaves(self.function(*given)) if isinstance(leaf, Tensor)]
        return [torch.view_as_real(leaf.resolve_conj()) if leaf.is_complex() else leaf for leaf in leaves]

    def wide(self) -> Case:
        """Return the case with weights of float64."""
        if not isinstance(self.function, nn.Module):
            return self
        return replace(self, function=copy.deepcopy(self.function).double())


def in_half(case: Case) -> Case:
    """Return the case with inputs that half precision has, the finite ones of a magnitude whose square it has too."""
    values = tuple(tuple(_to_half(x) for x in given) for given in case.values)
    return replace(case, values=values)


def _to_half(x: Tensor) -> Tensor:
    """Return a tensor's numbers as half precision has them.

    Those beyond LARGEST_HALF become the numbers next to it, in the order that they had: the order of equal numbers is
    nobody's.
    """
    if not x.is_floating_point():
        return x
    held = x.clamp(-LARGEST_HALF, LARGEST_HALF).half()
    if bool((x.abs() > LARGEST_HALF).any()):
        finite = torch.where(x.isfinite(), x.abs(), 0.0)
        magnitudes, places = finite.unique(return_inverse=True)  # type: ignore[no-untyped-call]  # torch declares no types
        bits = magnitudes.clamp(max=LARGEST_HALF).half().view(torch.int16).int().flip(0)
        ranks = torch.arange(len(bits), dtype=torch.int32)
        below = ((bits + ranks).cummin(0).values - ranks).clamp(min=0)
        held = below.short().view(torch.half).flip(0)[places].copysign(x.half())
    return torch.where(x.isfinite(), held.to(x.dtype), x)


class _One(nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        if isinstance(case.function, nn.Module):
            self.layer = case.function.eval()

    def forward(self, *given: Tensor) -> list[Tensor]:
        return self.case.call(given)


class Together(nn.Module):
    """Several cases as one model: the inputs of all, one after another, to the outputs of all.

    Modules are called `case_0`, `case_1` ..., so that a refusal says whose operator it is about.
    """

    def __init__(self, cases: Sequence[Case]) -> None:
        super().__init__()
        self.counts = [len(case.values[0]) for case in cases]
        for k, case in enumerate(cases):
            self.add_module(f"case_{k}", _One(case))

    def forward(self, *given: Tensor) -> list[Tensor]:
        outputs, start = [], 0
        for module, count in zip(self.children(), self.counts, strict=True):
            outputs += module(*given[start : start + count])
            start += count
        return outputs


def calls_of(cases: Sequence[Case]) -> list[list[Tensor]]:
    """Return the inputs of `Together`: as many calls as the case with the most values has; the others' go round."""
    count = max(len(case.values) for case in cases)
    return [[x for case in cases for x in case.values[k % len(case.values)]] for k in range(count)]
