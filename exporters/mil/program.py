"""ML Programs as they are saved: functions, blocks and operators, typed, with their weights read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TensorType:
    """A tensor's type. `shape` has None for sizes that a run decides; `shape` is None where even the rank is unknown.

    `dtype` is MIL's name: fp16, fp32, int32, bool, string, int4, uint16 ... Scalars have the shape ().
    """

    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class ListType:
    """A list of `length` (None: grows) elements of one type."""

    element: Type
    length: int | None


@dataclass(frozen=True)
class TupleType:
    """A tuple, with each element's type."""

    elements: tuple[Type, ...]


@dataclass(frozen=True)
class DictionaryType:
    """A dictionary: what `classify` makes."""

    key: Type
    value: Type


@dataclass(frozen=True)
class StateType:
    """A state that holds a tensor of the type `wrapped` between calls."""

    wrapped: TensorType


Type = TensorType | ListType | TupleType | DictionaryType | StateType


@dataclass(frozen=True)
class Variable:
    """A named value: an input of a function or block, or an output of an operator."""

    name: str
    type: Type


@dataclass(frozen=True)
class Ref:
    """An operand that another operator or an input gives."""

    name: str


@dataclass(frozen=True)
class Constant:
    """An operand that is in the program or in a weight file. `read()` gives its value, from the file each time."""

    type: Type
    read: Callable[[], Any] = field(repr=False, compare=False)


Operand = Ref | Constant | tuple[Ref | Constant, ...]


@dataclass(frozen=True)
class Operation:
    """One operator.

    Attributes:
        type: its MIL name, `conv`.
        name: its own name, from the attribute that coremltools writes; the first output's where there is none.
        inputs: operands by MIL parameter name. A `const`'s value (`val`) and what older `constexpr` operators keep
            among their attributes are here too.
        attributes: the other attributes.
    """

    type: str
    name: str
    inputs: Mapping[str, Operand]
    outputs: tuple[Variable, ...]
    attributes: Mapping[str, Constant] = field(default_factory=dict)
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True)
class Block:
    """Operators in the order in which they run, and the names of the values that leave."""

    inputs: tuple[Variable, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Function:
    """One function of a program: its inputs (states among them), its block, and the opset that it is written in."""

    name: str
    inputs: tuple[Variable, ...]
    block: Block
    opset: str
