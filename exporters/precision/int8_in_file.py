"""int8 judged on the file: layers that a runtime's own kernels spoil go back to float.

A runtime fuses QuantizeLinear, a layer and DequantizeLinear into one kernel for integers, and what that does to a bias,
to a sum or to its rounding is nowhere in the program. So the file is run on the calibration inputs, in every way that
users run it. While it misses what the program reaches, the layers that cost it that are searched for:

    the shortest run of layers, from the first, that has to be float for the file to pass ends in one that spoils it

Halving finds its end in log2(layers) files. It is kept in float, and the rest is searched again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Measure = Callable[[Sequence[str]], float]
"""The SNR of the file, dB, with some layers in float."""

SPOILING = 4
"""Layers that are searched for one by one; where that is not enough, all up to the last of them become float."""


def find_spoiling(layers: Sequence[str], measure: Measure, wanted_db: float) -> dict[str, float]:
    """Return the layers that have to be float for the file to reach an SNR, each with the SNR that it has with it.

    Args:
        layers: names of those in int8, in the program's order.
        measure: lowers and runs; what it gets are names of layers in float.
    """
    found: dict[str, float] = {}
    for i in range(SPOILING + 1):
        now_db = measure([*found])
        if now_db >= wanted_db:
            return found
        rest = [name for name in layers if name not in found]
        if not rest:
            return found
        fails, passes = 0, len(rest)
        while passes - fails > 1:
            middle = (fails + passes) // 2
            if measure([*found, *rest[:middle]]) >= wanted_db:
                passes = middle
            else:
                fails = middle
        spoiling = rest[:passes] if i == SPOILING else rest[passes - 1 : passes]
        found |= dict.fromkeys(spoiling, now_db)
    return found
