"""The task of typing a program, and its result: passed between the table of precisions and those that type.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from edgesmith.exporters.graph.capture import Program
    from edgesmith.exporters.precision.calibration import Calibration

Calls = Sequence[Sequence["Tensor"]]
"""The inputs of several calls."""

RunFile = Callable[["Typed", Calls], "Mapping[str, list[list[np.ndarray]]]"]
"""Lowers a typed program and runs the file: the outputs of every call, by what executed it."""


def runs_nothing(typed: Typed, calls: Calls) -> Mapping[str, list[list[np.ndarray]]]:
    """Return no outputs: of what cannot be lowered or run while it is typed."""
    return {}


def names_nothing(modules: Sequence[str]) -> Mapping[str, str]:
    """Return no operators: of a target whose programs are typed here."""
    return {}


@dataclass(frozen=True)
class Thresholds:
    """The limits: largest error relative to the reference's peak, smallest SNR in dB; a decided top-1 always agrees."""

    relative_error: float
    snr_db: float


class CountsMacs(Protocol):
    """A lowered file, as far as a precision asks it."""

    def count_macs(self) -> dict[str, int]:
        """Return the multiply-accumulates of the first batch: `all`, and `int8`."""
        ...


@dataclass(frozen=True)
class Typed:
    """A program in its precision.

    Attributes:
        keep_fp32: what stays fp32, each with the reason; None where the precision keeps nothing back.
        describe: from the lowered file to what the manifest says of how it was made.
    """

    program: Program
    keep_fp32: Mapping[str, str] | None = None
    describe: Callable[[CountsMacs], Mapping[str, Any]] = lambda _: {}


@dataclass(frozen=True)
class TypingTask:
    """A program's typing: what it is for, and by what it is done.

    Attributes:
        inputs: of a few of the calls that verification judges by.
        calibration: the data of the caller's; None where the precision needs none.
        thresholds: that every output has to reach.
        is_step: whether the program is one step of a sequence, to which whole inputs say nothing.
        types_programs, finds_islands, largest_int8_weight, int8_is_dense, int8_joins: of the target, see `Target`.
        lossy_operators: lowers the program with some operators kept in fp32, and returns those that still spoil its
            numbers, each with the reason. Of targets whose converter types the program.
        run_file: shows what the file makes of a typed program, in each runtime that is here.
        other_classes: share of pixels that may have another class; 0 where outputs are no classes of pixels.
        operators_in: from modules to the names that the converter has for their operators, and the module of each. Of
            targets whose converter types the program.
        fp32_module: the name of a module that stays fp32 whatever inputs show; empty for none.
    """

    inputs: Calls
    calibration: Calibration | None
    thresholds: Thresholds
    is_step: bool
    types_programs: bool
    finds_islands: bool
    largest_int8_weight: int | None
    lossy_operators: Callable[[Mapping[str, str]], Mapping[str, str]]
    run_file: RunFile = runs_nothing
    other_classes: float = 0.0
    operators_in: Callable[[Sequence[str]], Mapping[str, str]] = names_nothing
    fp32_module: str = ""
    int8_is_dense: bool = False
    int8_joins: bool = False
