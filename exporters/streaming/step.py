"""A step program that a runtime has opened, whatever the runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Call = Callable[[Sequence["np.ndarray"]], Sequence["np.ndarray"]]
"""One step: the values of all inputs, in order, to the values of all outputs."""


@dataclass(frozen=True)
class Step:
    """A step program, opened in a runtime.

    Attributes:
        call: runs one step.
        forget: gives the states that the runtime itself keeps their first values again.
        close: lets go of the runtime.
    """

    call: Call
    forget: Callable[[], None] = lambda: None
    close: Callable[[], None] = lambda: None
