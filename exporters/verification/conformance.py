"""Operators held to PyTorch on a target: each case is captured, rewritten, lowered and run as an export is.

    verdict          is
    right            every value of every call within the operator's tolerance, see tolerance.py
    mended           the same, by a decomposition, a lowering or a rewrite of our own
    refused          one sentence of ours, with the way out, before anything is published
    silently wrong   a file whose numbers are not PyTorch's
    leaks            refused in a third party's words
    crash            anything else

The last three are failures. Cases that are cheap one by one are cheaper together: `judge` lowers several as one model,
and looks at each alone only where the whole was refused or a value is wrong.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from edgesmith.errors import EdgesmithError, Unsupported
from edgesmith.exporters import decompositions
from edgesmith.exporters.graph.capture import Program, capture
from edgesmith.exporters.graph.edit import operator_name, operators
from edgesmith.exporters.precision import table as precisions
from edgesmith.exporters.precision.task import TypingTask
from edgesmith.exporters.rewrites.order import rewrite
from edgesmith.exporters.targets.target import NotHere, Request, Target
from edgesmith.exporters.verification.cases import Case, Together, calls_of, in_half
from edgesmith.exporters.verification.ties import outputs_of_ties
from edgesmith.exporters.verification.tolerance import expect
from edgesmith.profiles.device import DeviceProfile, all_devices

RIGHT, MENDED, REFUSED = "right", "mended", "refused"
WRONG, LEAKS, CRASH = "silently wrong", "leaks", "crash"
FAILURES = frozenset({WRONG, LEAKS, CRASH})

TOGETHER = 8
"""Cases of an operator that are lowered as one model."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of a case on a target.

    Attributes:
        kind: one of the six above.
        why: the refusal's sentence, how a value differs, or what was raised; empty for what is right.
    """

    kind: str
    why: str = ""


@dataclass(frozen=True)
class Column:
    """A target at a precision."""

    target: Target
    precision: str

    def __str__(self) -> str:
        return f"{self.target.name} {self.precision}"

    @property
    def profile(self) -> DeviceProfile | None:
        """The first device that the target makes files for, of a target that asks for one."""
        for profile in (None, *all_devices().values()):
            try:
                self.target.check_device(profile)
            except EdgesmithError:
                continue
            return profile
        return None


def judge(cases: Sequence[Case], column: Column, together: int = TOGETHER) -> list[Verdict]:
    """Return the verdict of each case, so many cases together where they are right together."""
    groups = [range(len(cases))[k : k + together] for k in range(0, len(cases), together)]
    found: dict[int, Verdict] = {}
    for group in groups:
        found |= _judge({k: cases[k] for k in group}, column)
    return [found[k] for k in range(len(cases))]


def _judge(cases: Mapping[int, Case], column: Column) -> dict[int, Verdict]:
    """Judge cases together, without those whose module is named where the whole is refused; else each alone."""
    if not cases:
        return {}
    try:
        together = dict(zip(cases, compare(list(cases.values()), column), strict=True))
    except Exception as error:
        found = failure(error)
        named = re.search(r"\bcase_(\d+)\b", str(error))
        culprit = list(cases)[int(named[1])] if named and int(named[1]) < len(cases) else None
        if len(cases) == 1:
            return dict.fromkeys(cases, found)
        if culprit is None or found.kind != REFUSED:
            return {k: one for j, case in cases.items() for k, one in _judge({j: case}, column).items()}
        return {culprit: found} | _judge({k: case for k, case in cases.items() if k != culprit}, column)
    if len(cases) == 1:
        return together
    right = (RIGHT, MENDED)
    return {k: one if one.kind in right else _judge({k: cases[k]}, column)[k] for k, one in together.items()}


def failure(error: Exception) -> Verdict:
    """Return the verdict on what lowering or running raised."""
    if not isinstance(error, EdgesmithError):
        lines = str(error).strip().splitlines()
        return Verdict(CRASH, f"{type(error).__name__}: {lines[0] if lines else ''}")
    return Verdict(LEAKS if leaked(error) else REFUSED, str(error))


def compare(cases: Sequence[Case], column: Column) -> list[Verdict]:
    """Lower cases as one model and compare each with PyTorch. Raises what lowering and running raise."""
    precision = precisions.get(column.precision)
    if precision.is_half:
        cases = [in_half(case) for case in cases]
    calls = calls_of(cases)
    with _quiet():
        program, _ = rewrite(capture(Together(cases), calls[0]), precision.costs(column.target.costs))
        outputs = _run(program, calls, column)
        wanted = [
            [expect(case, case.values[k % len(case.values)], precision.dtype) for case in cases]
            for k in range(len(calls))
        ]
    verdicts, start = [], 0
    for c, case in enumerate(cases):
        count = len(wanted[0][c])
        found = [of_call[start : start + count] for of_call in outputs]
        start += count
        difference = next(
            (
                said
                for k in range(len(case.values))
                for j, (one, value) in enumerate(zip(wanted[k][c], found[k], strict=True))
                if (said := one.differs(value)) is not None and not _is_of_ties(case, k, j)
            ),
            None,
        )
        kind = MENDED if _is_mended(program, c, column.target) else RIGHT
        verdicts.append(Verdict(kind) if difference is None else Verdict(WRONG, difference))
    return verdicts


def _is_of_ties(case: Case, call: int, output: int) -> bool:
    """Return whether PyTorch's own output is one of several, as half precision makes equal numbers of others."""
    of_each = outputs_of_ties(Together([case]), case.values[call])
    return bool(of_each) and of_each[output]


def _run(program: Program, calls: Sequence[Sequence[Tensor]], column: Column) -> list[list[np.ndarray]]:
    """Type, lower, open and run a program as an export does. Returns the outputs of each call."""
    target, precision = column.target, precisions.get(column.precision)
    task = TypingTask(
        inputs=calls[:4],
        calibration=None,
        thresholds=precision.limits(),
        is_step=False,
        types_programs=target.types_programs,
        finds_islands=target.finds_islands,
        largest_int8_weight=target.largest_int8_weight,
        int8_is_dense=target.int8_is_dense,
        int8_joins=target.int8_joins,
        lossy_operators=lambda _: {},
    )
    typed = precision.type(program, task)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"case{target.suffix}"
        target.lower(
            typed.program, path, Request("case", precision, keep_fp32=typed.keep_fp32 or {}, profile=column.profile)
        )
        file = target.open(path)
        file.check()
        found = file.run([[x.numpy() for x in given] for given in calls])
    if isinstance(found, NotHere):
        raise Unsupported(f"{target.name} files cannot be run here: {found.reason}")
    return found


def _is_mended(program: Program, case: int, target: Target) -> bool:
    """Return whether operators of a case are spelled, lowered or rewritten by us."""
    ours = decompositions.for_target(target.lowers_as)
    named = target.own_translations()
    module = f"case_{case}"
    for node in operators(program.module):
        stack = node.meta.get("nn_module_stack", {})
        if stack and not any(path.split(".")[-1] == module for path, _ in stack.values()):
            continue
        name = operator_name(node)
        if node.target in ours or name in named or name.startswith("edgesmith."):
            return True
    return False


_RAW = re.compile(
    r"Traceback|Error\b|Exception\b|\[ONNXRuntime|index out of range|NoneType|object at 0x| object has no |keyword arg"
    r"|positional arg|\bgot \d+ input|\.cpp|\.cc:|\.h:\d|not subscriptable|KeyError|assert"
)


def leaked(error: EdgesmithError) -> str | None:
    """Return the part of a refusal that is a third party's own words, or None.

    A sentence leaks where it has the marks of an exception's text, runs over several lines, or repeats 24 characters
    or more of the message that it was raised from.
    """
    sentence = str(error)
    if found := _RAW.search(sentence):
        return found.group()
    if "\n" in sentence:
        return "a line break"
    cause = error.__cause__ or error.__context__
    while cause is not None:
        if not isinstance(cause, EdgesmithError) and (shared := _shared(sentence, str(cause))):
            return shared
        cause = cause.__cause__ or cause.__context__
    return None


def _shared(sentence: str, message: str, length: int = 24) -> str | None:
    """Return words that a sentence has from a message: so many characters in a row, three words at least."""
    for start in range(len(sentence) - length + 1):
        part = sentence[start : start + length]
        if part.count(" ") >= 2 and part in message:
            return part
    return None


class _quiet(warnings.catch_warnings):  # noqa: N801 - a context manager, as its base
    """Keep warnings of PyTorch about samples off the terminal."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
