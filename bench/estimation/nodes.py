"""Operators and values as both formats have them: what the readers of files make, and what work is counted of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgesmith.errors import Unsupported


@dataclass(frozen=True)
class Value:
    """A tensor: how many numbers in which shape, of how many bits, and whether it is in the file."""

    name: str
    shape: tuple[int, ...]
    bits: int
    constant: bool = False

    @property
    def size(self) -> int:
        """The count of its numbers."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """The bytes that it takes."""
        return math.ceil(self.size * self.bits / 8)


@dataclass(frozen=True)
class Node:
    """An operator as both formats have it: operands in the format's order, those left out as None."""

    type: str
    name: str
    module: str | None
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def operands(self) -> Iterator[Value]:
        """The inputs that it has."""
        return (value for value in self.inputs if value is not None)


def fixed(shape: Sequence[int | None] | None, site: str, file: Path) -> tuple[int, ...]:
    """Return a shape. Raises Unsupported where an axis is free."""
    if shape is None or any(size is None for size in shape):
        raise Unsupported(
            f"{file.name}: the size of what {site} reads or makes is decided by a run; give the batch a size"
        )
    return tuple(size for size in shape if size is not None)


def kinds_of(table: Mapping[str, str]) -> dict[str, str]:
    """Return the kind of every operator in a table of kinds, each with its operators in words."""
    return {name: kind for kind, names in table.items() for name in names.split()}
