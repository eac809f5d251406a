"""A library of kernels, callable with numpy arrays.

library = Library(compile_units(units, path, host()))
y, = library.call(unit, x, packed)
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgesmith.errors import BadInput
from edgesmith.kernels.native.unit import ALIGNMENT, Unit


def aligned(shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    """Return an array, not initialised, that begins where kernels want it to."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


class Library:
    """A library of this machine's kind, opened. Calls from several threads at once are fine."""

    def __init__(self, path: Path) -> None:
        """Open it."""
        self._library = ctypes.CDLL(str(path))

    def set_threads(self, count: int) -> None:
        """Set how many threads run a kernel, the caller's included: 1 to 64, one until this is called.

        Raises:
            BadInput: the count is out of this range, or the system gives no more threads.
        """
        if self._library.es_set_threads(count):
            raise BadInput(f"kernels run on 1 to 64 threads, as many as the system gives, got {count}")

    def call(self, unit: Unit, *given: np.ndarray) -> list[np.ndarray]:
        """Return the outputs of a kernel. `given` are its inputs and packed parameters, in order.

        Raises:
            BadInput: an array has another size than the kernel was compiled for.
        """
        return self.prepare(unit, *given)()

    def prepare(self, unit: Unit, *given: np.ndarray) -> Callable[[], list[np.ndarray]]:
        """Return a call with its arguments in place; it writes the same outputs each time. Arguments as of `call`."""
        remaining = list(given)
        outputs, buffers = [], []
        for argument in unit.arguments:
            buffer = aligned(argument.shape, argument.dtype)
            if argument.role == "output":
                outputs.append(buffer)
            else:
                value = remaining.pop(0)
                if value.size != argument.size:
                    wanted, came = list(argument.shape), list(value.shape)
                    raise BadInput(f"{unit.symbol}: {argument.name} must be {wanted}, got {came}")
                buffer[...] = value.reshape(argument.shape)
            buffers.append(buffer)
        if unit.scratch_bytes:
            buffers.append(aligned((unit.scratch_bytes,), "uint8"))
        pointers = (ctypes.c_void_p * len(buffers))(*(buffer.ctypes.data for buffer in buffers))
        function = self._library[unit.symbol]

        def call() -> list[np.ndarray]:
            function(pointers)
            assert buffers  # they live as long as the call does
            return outputs

        return call
