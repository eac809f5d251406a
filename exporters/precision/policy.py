"""The one policy for what stays fp32 in a program of half precision; those who ask it only measure.

    range   an operator that makes or reads a value beyond the type's range. A cast between two of them would overflow
            as well, so both stay fp32, whatever the outputs are worth
    loss    while an output misses its SNR, the operators that lose most: first those that lose 20 dB, and those that
            lose less only where none lose more. Where an operator is fp32 already, what it loses was rounded away in
            its operands (as in a difference of large values): then the half-precision operators nearest above it stay
    SNR     where nothing loses 1 dB and the outputs still miss theirs, every operator whose result misses it

What is kept changes what the others lose, so a program is measured again with it, `ROUNDS` times at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

LIMITS_DB = (20.0, 12.0, 6.0, 3.0, 1.0)
"""Losses that an operator may have, one after the other until the outputs are good enough."""

ROUNDS = 8
"""How often a program is measured, each time with what was found before kept in fp32."""

INPUTS = 2
"""Calibration inputs that it is measured over, the first of those that verification judges by."""

HALF_MAX = 65504.0
"""The largest fp16 number."""

ROUNDING_DB = 73.0
"""About the SNR of a value that was rounded to fp16 once: an error of up to 2^-11 of each element, evenly spread."""


@dataclass(frozen=True, eq=False)
class Seen:
    """The behaviour of one operator, as it was seen over all calibration inputs.

    Attributes:
        name: that it is kept in fp32 by.
        position: where it is, in words; empty where the name says so.
        makes, reads: largest magnitude inside it or of its results, and of its operands, in fp32. 0 for what is kept
            only with its neighbours, such as a cast.
        loss_db: its results' SNR below that of its worst operand, or below that of a value rounded once.
        misses: whether its results have less than the SNR that the outputs have to reach. Always False where being
            below it is no reason to keep an operator.
        is_half: whether it computes in half precision now.
        overflows: whether it does so beyond the type's range, here or as an operand's consequence.
        operands: the operators that make its operands.
    """

    name: str
    position: str = ""
    makes: float = 0.0
    reads: float = 0.0
    loss_db: float = 0.0
    misses: bool = False
    is_half: bool = True
    overflows: bool = False
    operands: tuple[Seen, ...] = field(default=(), repr=False)

    def describe(self, fact: str) -> str:
        """Return a fact about the operator with its position."""
        return f"{self.position} {fact}" if self.position else fact


def find(measure: Callable[[Mapping[str, str]], Mapping[str, str]]) -> dict[str, str]:
    """Return all that has to stay fp32, by name, each with the reason.

    Args:
        measure: takes what is kept so far, and returns what has to be kept too, as `choose` does.
    """
    kept: dict[str, str] = {}
    for _ in range(ROUNDS):
        found = measure(kept)
        if not found.keys() - kept.keys():
            break
        kept = {**found, **kept}
    return kept


def choose(operators: Sequence[Seen], reached: bool, largest: float = HALF_MAX) -> dict[str, str]:
    """Return what has to stay fp32 of what was seen, by name, each with the reason.

    Args:
        operators: in order of evaluation.
        reached: whether the outputs are good enough, so that only the range counts.
        largest: number of the type.
    """
    found = _out_of_range(operators, largest)
    return found if found or reached else _losers(operators)


def _out_of_range(operators: Sequence[Seen], largest: float) -> dict[str, str]:
    if not any(one.overflows for one in operators):
        return {}
    found = {}
    for one in operators:
        if max(one.makes, one.reads) > largest:
            verb, value = ("makes", one.makes) if one.makes > largest else ("reads", one.reads)
            found[one.name] = one.describe(f"{verb} {value:.3g}, and half precision ends at {largest:.6g}")
    return found


def _losers(operators: Sequence[Seen]) -> dict[str, str]:
    for limit in LIMITS_DB:
        found = _keep(one for one in operators if one.loss_db > limit)
        if found:
            return found
    return _keep(one for one in operators if one.misses)


def _keep(losers: Iterable[Seen]) -> dict[str, str]:
    """Return the half-precision operators that are, or feed, what loses, with what that loses."""
    return {half.name: half.describe(f"loses {one.loss_db:.1f} dB") for one in losers for half in _nearest_half(one)}


def _nearest_half(operator: Seen) -> list[Seen]:
    """Return the operator itself where it is half precision, or else the nearest ones that it reads from."""
    found: list[Seen] = []
    met: set[Seen] = set()
    waiting = [operator]
    while waiting:
        one = waiting.pop()
        if one in met:
            continue
        met.add(one)
        if one.is_half:
            found.append(one)
        else:
            waiting += one.operands
    return found
