"""The split of sums of many numbers, for runtimes that add one number after another."""

from __future__ import annotations

LONG = 1024
"""Numbers from which a sum is one of sums."""

BLOCK = 256
"""Numbers that are added one after another, at most, where the length has such factors."""

FEWEST = 8
"""Numbers of a block that is worth a stage, at least."""


def of(length: int) -> list[int]:
    """Return the factors of a long length, the outermost first; of a short one itself.

    They are `BLOCK` at most, but for what is left where a length has no such factors.
    """
    return _factors(length) if length >= LONG else [length]


def _factors(n: int) -> list[int]:
    if n <= BLOCK:
        return [n]
    inner = next((b for b in range(BLOCK, FEWEST - 1, -1) if n % b == 0), 0)
    return [*_factors(n // inner), inner] if inner else [n]
