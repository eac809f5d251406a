"""The end of a layer, before a number is written: a function, a gate, a residual (epilogue.h has the formula)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgesmith.kernels.native.unit import Argument

Function = Literal["none", "relu", "relu6", "silu", "gelu", "sigmoid", "hardswish", "hardsigmoid", "exp"]
GateKind = Literal["none", "channel", "pixel", "full"]
ResidualKind = Literal["none", "before", "after"]


@dataclass(frozen=True)
class Epilogue:
    """y = f(s) g + r, or y = f(s + r) g with the residual before the function.

    Attributes:
        function: of the sum s, elementwise.
        gate: a factor for each channel, each pixel, or each number; the kernel has it as an argument.
        residual: a map that is added after the function, or before it; as an argument too.
    """

    function: Function = "none"
    gate: GateKind = "none"
    residual: ResidualKind = "none"

    @property
    def type(self) -> str:
        """The C++ type."""
        kinds = (f"Function::{self.function}", f"Gate::{self.gate}", f"Residual::{self.residual}")
        return f"es::Epilogue<{', '.join(f'es::{kind}' for kind in kinds)}>"

    @property
    def words(self) -> str:
        """The part of a symbol: empty for an epilogue that does nothing."""
        parts = (self.function, f"g{self.gate}", f"r{self.residual}")
        return "_".join(part for part in parts if not part.endswith("none"))

    def arguments(self, pixels: int, channels: int) -> tuple[Argument, ...]:
        """The gate and the residual, as inputs behind x. Pixels are those of all maps."""
        shapes = {"channel": (channels,), "pixel": (pixels,), "full": (pixels, channels)}
        gate = () if self.gate == "none" else (Argument("input", "gate", shapes[self.gate]),)
        residual = () if self.residual == "none" else (Argument("input", "residual", (pixels, channels)),)
        return (*gate, *residual)


NOTHING = Epilogue()
"""y = s."""
