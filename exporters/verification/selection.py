"""The inputs that an export is verified on: chosen by running PyTorch on them, and what was left out, with the reason.

An input counts only where eager PyTorch runs on it, is as finite as on the first one (log has no zeros), and does not
owe its result to the order of equal numbers, which topk leaves open. Of a model with several inputs, where changing
all of them at once does not count, each is changed alone.

A precision holds fewer scales than float32 does. The loud factor is the largest power of ten, 1e3 at most, at which no
value inside the program leaves the precision's range, with RANGE_MARGIN to spare for sums that are larger than their
result; the quiet one is the smallest, 1e-3 at least, at which the largest element of every value stays QUIET_MARGIN
above the precision's smallest normal number. Values that are outside on the first input already do not count: they are
kept in fp32, or that input fails.

Further inputs are those that the program asks for, see corners.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from edgesmith.errors import BadInput
from edgesmith.exporters.graph.capture import Program, run_eager, to_arrays
from edgesmith.exporters.inputs import ADVERSARIAL, NATURAL, Call, changeable, make
from edgesmith.exporters.outputs import Outputs
from edgesmith.exporters.precision.islands import Extent, find_extents
from edgesmith.exporters.verification.corners import corners
from edgesmith.exporters.verification.ties import depends_on_ties, picks
from edgesmith.models.registry import ImageInput

LOUD = (1e3, 1e2, 1e1)
QUIET = (1e-3, 1e-2, 1e-1)

RANGE_MARGIN = 4.0
QUIET_MARGIN = 16.0

TRIES = 4
"""Drawn inputs that are tried for each one that is wanted."""

OF_PICTURES = ("zeros", "constant", "padded")
"""Adversarial inputs that are pictures of bytes."""


@dataclass(frozen=True)
class Given:
    """Data of the caller's own, or held out of a calibration set.

    Attributes:
        kind: `given` or `held out`.
        inputs: one list of tensors for each call.
    """

    kind: str
    inputs: Sequence[Sequence[Tensor]]


@dataclass
class Selection:
    """The inputs that were chosen.

    Attributes:
        calls: what each is.
        inputs, reference: of each call, and PyTorch's outputs for them.
        left_out: what was not, each with the reason.
    """

    calls: list[Call] = field(default_factory=list)
    inputs: list[list[Tensor]] = field(default_factory=list)
    reference: Outputs = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, call: Call, inputs: Sequence[Tensor], outputs: Sequence[np.ndarray]) -> None:
        """Add one call."""
        self.calls.append(call)
        self.inputs.append(list(inputs))
        self.reference.append(list(outputs))

    def reorder(self, order: Sequence[int]) -> Selection:
        """Return the calls in another order."""
        picked = Selection(left_out=self.left_out)
        for i in order:
            picked.add(self.calls[i], self.inputs[i], self.reference[i])
        return picked


@dataclass(frozen=True)
class Subject:
    """A model, and what its inputs are chosen by.

    Attributes:
        captured: its program.
        is_named: of the registry, whose example stands for its seeded inputs.
        image: where the file takes images of bytes.
        dtype: that the file computes in.
    """

    model: nn.Module
    captured: Program
    is_named: bool
    image: ImageInput | None
    dtype: torch.dtype

    @cached_property
    def picks(self) -> bool:
        """Return whether the program picks among equal numbers."""
        return picks(self.captured)

    def make(self, call: Call) -> list[Tensor]:
        """Return the inputs of a call."""
        return make(call, self.captured.inputs, self.image, self.captured.dynamic_batch)

    def run(self, inputs: Sequence[Tensor]) -> list[np.ndarray]:
        """Return PyTorch's outputs as they are compared. Raises BadInput where it does not run."""
        return to_arrays(run_eager(self.model, inputs))


@dataclass(frozen=True)
class _Range:
    """The values inside a program, as a precision holds them.

    Attributes:
        subject: the program, and the precision.
        first: the input that others are compared with.
    """

    subject: Subject
    first: Sequence[Tensor]

    @cached_property
    def _before(self) -> dict[str, Extent]:
        return find_extents(self.subject.captured, self.first)

    def why_not(self, call: Call, inputs: Sequence[Tensor]) -> str | None:
        """Return why the precision does not hold the values inside a scaled input's program; None where it does."""
        dtype = self.subject.dtype
        if dtype == torch.float32:
            return None
        if call.kind == "infinite":
            largest = max((float(y[np.isfinite(y)].max(initial=0.0)) for y in self.subject.run(inputs)), default=0.0)
            return None if largest < torch.finfo(dtype).max else "infinities become numbers that the precision has not"
        if call.factor is None:
            return None
        info = torch.finfo(dtype)
        largest, smallest = info.max / RANGE_MARGIN, info.smallest_normal * QUIET_MARGIN
        name = str(dtype).removeprefix("torch.")
        for node, now in find_extents(self.subject.captured, inputs).items():
            was = self._before[node]
            if call.factor > 1 and was.peak <= largest < now.peak:
                return f"at every factor, values inside the model leave the range of {name}"
            if call.factor > 1 and now.unknown > was.unknown:
                return "values inside the model are not finite on it"
            if call.factor < 1 and _is_between(now, smallest) and was.result >= smallest:
                return f"at every factor, values inside the model are too small for {name}"
        return None


def select(subject: Subject, given: Given | None) -> Selection:
    """Choose the inputs that a model is verified on: two natural ones, the adversarial ones, the other natural ones.

    Raises:
        BadInput: the model does not run on its example, or on data of the caller's own.
    """
    found = Selection()
    if given is None and subject.is_named:
        for seed in range(NATURAL):
            call = Call("seeded", seed)
            inputs = subject.make(call)
            found.add(call, inputs, subject.run(inputs))
    elif not subject.is_named:
        found.add(Call("example"), subject.captured.inputs, subject.run(subject.captured.inputs))
    if given is not None:
        for data in given.inputs:
            found.add(Call(given.kind), data, subject.run(data))
    elif not subject.is_named:
        _draw(subject, found)
    natural = len(found.calls)
    if subject.image is None and given is not None and subject.is_named:
        subject = replace(subject, captured=replace(subject.captured, inputs=tuple(found.inputs[0])))
    held = _Range(subject, found.inputs[0])
    for kind in OF_PICTURES if subject.image is not None else ADVERSARIAL:
        _add_adversarial(held, kind, _candidates(kind, changeable(subject.captured.inputs)), found)
    for calls in corners(subject.captured, subject.dtype) if subject.image is None else ():
        _add_adversarial(held, calls[0].kind, calls, found)
    first = min(2, natural)
    return found.reorder([*range(first), *range(natural, len(found.calls)), *range(first, natural)])


def _draw(subject: Subject, found: Selection) -> None:
    """Add drawn inputs: as many as there should be natural ones, of those on which PyTorch is as finite."""
    wanted, rejected = NATURAL - 1, 0
    for seed in range(1, TRIES * wanted + 1):
        if sum(call.kind == "drawn" for call in found.calls) == wanted:
            break
        call = Call("drawn", seed)
        inputs = subject.make(call)
        if _is_in(inputs, found.inputs):
            continue  # nothing to draw: an input of one integer, or an empty one
        if isinstance(outputs := _try(subject, inputs, found.reference[0]), str):
            rejected += 1
        else:
            found.add(call, inputs, outputs)
    if rejected:
        found.left_out.append(
            f"{rejected} drawn inputs, on which PyTorch does not run, is not finite, or picks among equal numbers"
        )


def _add_adversarial(held: _Range, kind: str, calls: Iterable[Call], found: Selection) -> None:
    """Add one adversarial input, the first of those that it may be, or the reason why there is none."""
    subject, reason = held.subject, ""
    for call in calls:
        inputs = subject.make(call)
        if _is_in(inputs, found.inputs):
            reason = reason or "is one of the others"
            continue
        outputs = _try(subject, inputs, found.reference[0])
        why = outputs if isinstance(outputs, str) else held.why_not(call, inputs)
        if isinstance(outputs, str) or why is not None:
            reason = reason or str(why)
            continue
        found.add(call, inputs, outputs)
        return
    if reason and f"{kind}: {reason}" not in found.left_out:
        found.left_out.append(f"{kind}: {reason}")


def _candidates(kind: str, positions: Sequence[int]) -> Iterator[Call]:
    """Yield what an adversarial input may be, the best first: of all inputs, or else of one of them."""
    scopes: list[int | None] = [None, *positions] if len(positions) > 1 else [None] if positions else []
    factors = {"loud": LOUD, "quiet": QUIET}.get(kind, (None,))
    for only in scopes:
        for factor in factors:
            yield Call(kind, factor=factor, only=only)


def _try(subject: Subject, inputs: Sequence[Tensor], first: Sequence[np.ndarray]) -> list[np.ndarray] | str:
    """Return PyTorch's outputs, or why an input does not count."""
    try:
        outputs = subject.run(inputs)
    except BadInput:
        return "PyTorch does not run on it"
    if any(_finite(y) < _finite(known) for y, known in zip(outputs, first, strict=True)):
        return "PyTorch's outputs are not finite on it"
    if subject.picks and depends_on_ties(subject.model, inputs):
        return "PyTorch picks among equal numbers on it, in no stated order"
    return outputs


def _finite(y: np.ndarray) -> float:
    """Return the share of finite values."""
    return float(np.isfinite(y).mean()) if y.size else 1.0


def _is_in(inputs: Sequence[Tensor], others: Sequence[Sequence[Tensor]]) -> bool:
    return any(all(torch.equal(a, b) for a, b in zip(inputs, other, strict=True)) for other in others)


def _is_between(extent: Extent, smallest: float) -> bool:
    return 0 < extent.result < smallest
