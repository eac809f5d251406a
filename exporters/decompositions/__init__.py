"""PyTorch's operators spelled in others of PyTorch's, ahead of a target's own translation.

A translation of an operator by somebody else (coremltools, torch's ONNX exporter, Core AI's compiler) may be missing,
wrong at a boundary, or coarser than fp32. Then the operator is replaced, right before lowering, by a function of
PyTorch that means the same and that the target translates well:

    @decomposes(aten.rms_norm.default, targets=("coreml",), why="coremltools scales by the peak: a zero row is NaN")
    def rms_norm(x, normalized_shape, weight=None, eps=None): ...

The function takes the operator's own arguments and may return `LEAVE` for those that it leaves to the target.
A module of this folder holds those of one class of operators and is found by listing it. Which operators need one is
measured by `edgesmith operators`, see verification/conformance.py.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Never, TypeVar, cast

import torch

Function = TypeVar("Function", bound=Callable[..., Any])

LEAVE: Never = cast(Never, NotImplemented)
"""What a function returns for arguments that it leaves to the target."""


@dataclass(frozen=True)
class Decomposition:
    """An operator's spelling in others.

    Attributes:
        overload: such as `torch.ops.aten.atan2.default`.
        function: what means the same, with the operator's arguments.
        targets: names under which they have lowerings, see `Target.lowers_as`; empty: all.
        why: half a sentence, with the source where others have reported it.
    """

    overload: torch._ops.OpOverload
    function: Callable[..., Any]
    targets: frozenset[str]
    why: str


_found: list[Decomposition] = []


def decomposes(
    *overloads: torch._ops.OpOverload, why: str, targets: tuple[str, ...] = ()
) -> Callable[[Function], Function]:
    """Make a function the spelling of operators for some targets, or for all.

    Raises:
        ValueError: one of these targets has another spelling of it already.
    """

    def register(function: Function) -> Function:
        for overload in overloads:
            for other in _found:
                if other.overload is overload and (not targets or not other.targets or other.targets & {*targets}):
                    raise ValueError(f"{other.function.__module__} spells {overload} for these targets already")
            _found.append(Decomposition(overload, function, frozenset(targets), why))
        return function

    return register


_kept: list[Decomposition] = []


def keeps_nan(*overloads: torch._ops.OpOverload, targets: tuple[str, ...]) -> Callable[[Function], Function]:
    """Make a function what stands around operators of some targets where their operands are NaN or infinite.

    It may call the operator itself, which becomes what it is for the target.
    """

    def register(function: Function) -> Function:
        why = "the target's own loses NaN, or has another value of what is not finite"
        _kept.extend(Decomposition(overload, function, frozenset(targets), why) for overload in overloads)
        return function

    return register


def keeping_nan(target: str) -> Mapping[torch._ops.OpOverload, Callable[..., Any]]:
    """Return what stands around a target's operators where their operands are not finite, by operator."""
    all_decompositions()
    return {one.overload: one.function for one in _kept if target in one.targets}


@cache
def all_decompositions() -> tuple[Decomposition, ...]:
    """Return every decomposition, by the operators' names."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__name__}.{module.name}")
    return tuple(sorted(_found, key=lambda one: str(one.overload)))


def for_target(target: str) -> Mapping[torch._ops.OpOverload, Callable[..., Any]]:
    """Return the spellings that hold for a target, by operator.

    Args:
        target: the name under which it has lowerings.
    """
    return {one.overload: one.function for one in all_decompositions() if not one.targets or target in one.targets}


def for_others(
    target: str, is_taken: Callable[[torch._ops.OpOverload], bool]
) -> Mapping[torch._ops.OpOverload, Callable[..., Any]]:
    """Return the spellings for other targets of operators that a target has nothing for, neither of ours nor its own.

    Args:
        target: the name under which it has lowerings.
        is_taken: whether the target, or what it is given by PyTorch, has something for an operator.
    """
    ours = for_target(target)
    others: dict[torch._ops.OpOverload, Callable[..., Any]] = {}
    for one in all_decompositions():
        if one.overload not in ours and one.overload not in others and not is_taken(one.overload):
            others[one.overload] = one.function
    return others
