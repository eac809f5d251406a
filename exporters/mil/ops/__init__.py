"""The MIL operators: what each computes, in torch, and the table in which the evaluator finds them.

A file of this folder registers functions with `@op("add")`; listing the folder finds the files. A function has the MIL
input names as keyword parameters, and the MIL default for an input that a program may leave out:

    @op("add")
    def add(*, x: Tensor, y: Tensor) -> Tensor:
        return wide(x) + wide(y)

What a function receives and returns:

    numbers and booleans   tensors of the type that `carrier` gives for the declared one, of rank 0 for scalars
    strings                `str`
    several values         a Python tuple, for MIL tuples and for inputs that take several operands (`concat`'s values)
    a list                 `ListValue`, which list operators copy before they change it
    a state                `StateValue`, which `write_state` overwrites

    returned               one value, or a tuple of them in the order of the operator's outputs

Half-precision floats are computed in fp32 (`wide`), and the evaluator rounds a result to its declared type once.
Evaluations in fp32 or fp64 hand over tensors of that type instead, and that type's name where a `dtype` or
`output_dtype` of the program is fp16 or fp32. So a function names no float type itself: it takes the type from its
operands, and from `carriers.carrier(dtype)` where a string names one.

A function that needs more than its operands is registered with `context=True` and takes a `Context` first. One whose
operator has many inputs takes them as one frozen dataclass, whose fields have the MIL names and defaults:

    @dataclass(frozen=True, kw_only=True)
    class Conv:
        x: Tensor
        ...

    @op("conv", context=True, inputs=Conv)
    def conv(context: Context, given: Conv) -> Tensor:
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from edgesmith.exporters.mil.program import Block, Operation


class Context(Protocol):
    """The evaluator, as a function registered with `context=True` may ask it.

    Attributes:
        operation: the operator being evaluated, with its declared output types, blocks and attributes.
        accumulate: "fp32", or "fp16" where partial sums of products are rounded to half (see `evaluate`).
        accumulate_block: how many products are summed in fp32 before a partial sum is rounded.
        precision: "declared", "fp32" or "fp64": the arithmetic of this evaluation.
        generator: for random operators; seeded by the evaluator.
    """

    operation: Operation
    accumulate: str
    accumulate_block: int
    precision: str
    generator: torch.Generator

    def run_block(self, block: Block, values: Sequence[Any]) -> tuple[Any, ...]:
        """Evaluate a block of the operator with `values` for its inputs; it sees the values around it by name."""
        ...

    def dtype(self, name: str) -> torch.dtype:
        """The torch type for a MIL type's name in this evaluation: floats are those of `precision`."""
        ...


@dataclass
class StateValue:
    """A state while a function runs: `tensor` is what `read_state` returns a copy of and `write_state` overwrites."""

    tensor: Tensor


@dataclass(frozen=True)
class ListValue:
    """A MIL list. `items` has None where nothing was written yet; `dynamic` lists grow when written past the end."""

    items: tuple[Tensor | None, ...]
    dynamic: bool = False


@dataclass(frozen=True)
class Entry:
    """An operator of the table: its MIL name, its function, and whether that takes a `Context` first."""

    name: str
    function: Callable[..., Any]
    context: bool


Function = TypeVar("Function", bound=Callable[..., Any])

_TABLE: dict[str, Entry] = {}


def op(*names: str, context: bool = False, inputs: type | None = None) -> Callable[[Function], Function]:
    """Register a function as the meaning of one MIL operator, or of several that mean the same.

    Args:
        names: of the operators.
        context: whether the function takes a `Context` first.
        inputs: the dataclass that it takes instead of keyword parameters.

    Raises:
        ValueError: the table has one of the names already.
    """

    def register(function: Function) -> Function:
        called = function if inputs is None else _taking(inputs, function)
        for name in names:
            if name in _TABLE and _TABLE[name].function.__qualname__ != function.__qualname__:
                raise ValueError(f"the MIL operator {name} is registered twice")
            _TABLE[name] = Entry(name, called, context)
        return function

    return register


def _taking(inputs: type, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of keyword parameters that makes one dataclass of them."""

    @wraps(function)
    def call(*context: Context, **given: Any) -> Any:
        return function(*context, inputs(**given))

    return call


@cache
def all_ops() -> Mapping[str, Entry]:
    """Return every operator by its MIL name, found by listing this folder."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__name__}.{module.name}")
    return dict(sorted(_TABLE.items()))


def wide(x: Tensor) -> Tensor:
    """Return half-precision floats as fp32, everything else as it is. Half operators are computed so, rounded once."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def ints(x: Tensor | Sequence[int]) -> list[int]:
    """Return a tensor of any rank as a flat list of Python integers: shapes, axes, strides and paddings."""
    return [int(value) for value in x.flatten().tolist()] if isinstance(x, Tensor) else [int(value) for value in x]


def number(x: Any) -> Any:
    """Return a tensor of one element as a Python number or boolean; a Python number as it is."""
    return x.item() if isinstance(x, Tensor) else x
