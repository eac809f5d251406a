"""A kernel as source: one translation unit, the function in it, and what that function is called with.

    int SYMBOL(void* const* arguments)      inputs, packed parameters, outputs, scratch where there is some; returns 0

Every argument is the address of a contiguous array that begins at a multiple of 64 bytes. No output may overlap an
input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

ALIGNMENT = 64
"""Bytes that addresses of arguments are multiples of: a cache line, and the widest vector."""

Role = Literal["input", "packed", "output"]


@dataclass(frozen=True)
class Argument:
    """One array that a kernel is called with.

    Attributes:
        role: input, packed parameters or output.
        name: a word for it.
        shape: activations are NHWC.
        dtype: numpy's name of the type.
    """

    role: Role
    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def size(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Unit:
    """A kernel for one op at one shape on one instruction set.

    Attributes:
        symbol: the function's name, made of the op and its shape: equal names mean equal sources.
        source: C++20; it includes headers of this folder.
        arguments: in the order of the call.
        scratch_bytes: memory that the call may write, as its last argument; 0 where there is no such argument.
        flops: additions and multiplications of the layer itself, a multiply-accumulate as two.
    """

    symbol: str
    source: str
    arguments: tuple[Argument, ...]
    scratch_bytes: int
    flops: int


Constant = int | float | str
"""A number, or an expression of C++."""


def render(
    header: str, template: str, symbol: str, lanes: int, constants: Mapping[str, Constant], types: str = ""
) -> str:
    """Return the source of a unit: a struct of constants, and a function that runs a template with it.

    Args:
        header: the template's, without `.h`.
        template: in namespace `es`.
        lanes: floats in a vector that the constants and the packed weights were made for; the compiler refuses the
            source where it has another width.
        constants: by name; integers are ints, floats are floats, expressions say their own type by `auto`.
        types: more lines for the struct.
    """
    lines = [f"    static constexpr {_declared(name, value)};" for name, value in constants.items()]
    lines += [f"    {line}" for line in types.splitlines()]
    shape = f"{symbol}_shape"
    return "\n".join(
        [
            f'#include "{header}.h"',
            f'static_assert(es::LANES == {lanes}, "weights are packed for vectors of {lanes} floats");',
            "namespace {",
            f"struct {shape} {{",
            *lines,
            "};",
            "}  // namespace",
            f"ES_KERNEL {symbol}(void* const* arguments) {{ return es::{template}<{shape}>::run(arguments); }}",
            "",
        ]
    )


def _declared(name: str, value: Constant) -> str:
    if isinstance(value, str):
        return f"auto {name} = {value}"
    if isinstance(value, float):
        return f"float {name} = {float.hex(value)}f"
    return f"int {name} = {value}"


def make_symbol(op: str, *parts: object) -> str:
    """Return a kernel's name, such as es_pointwise_m49_k220_n880_gelu. Empty parts are left out."""
    return "_".join(["es", op, *(str(part).replace("-", "m").replace(".", "p") for part in parts if str(part))])
