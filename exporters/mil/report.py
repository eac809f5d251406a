"""The range of every operator in an evaluation, and what half precision costs there: no bisecting a model by hand.

`ranges` evaluates a package over several inputs and keeps each operator's extremes. `compare` evaluates it twice, step
by step side by side: at the precision that its types declare, and with every float in fp32 (or fp64). Operators need
no matching by name, as both runs are of one program. Of a value y of the second run and y' of the first, over all
inputs:

    error   max |y - y'| / max |y|
    SNR     10 log10( sum y^2 / sum (y - y')^2 ), in dB; None where the two are equal
    loss    the SNR of the operator's worst operand, at most `policy.ROUNDING_DB`, minus its own SNR

A value that is infinite or NaN in both runs (a mask) counts for neither; one that is so in one of them makes the SNR
minus infinity. Rounding a value to half once leaves about 73 dB, so what an operator with exact operands loses is
counted from there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgesmith.errors import BadInput
from edgesmith.exporters.figures import Figures, measure
from edgesmith.exporters.mil.carriers import carrier
from edgesmith.exporters.mil.evaluate import BLOCK, Evaluator, Step
from edgesmith.exporters.mil.program import MlProgram, Operation, TensorType, load, references
from edgesmith.exporters.precision.policy import HALF_MAX, ROUNDING_DB
from edgesmith.exporters.precision.table import FP16

LOSS_DB = 20.0
"""What an operator may lose before a report points at it, unless a caller says otherwise: a factor of ten in error."""

_TIE = FP16.limits().relative_error
"""The relative error up to which another best class is a tie, see `figures.measure`."""

Inputs = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Met:
    """The range of one output of an operator, over all inputs and all iterations of a loop.

    Attributes:
        name, type, source: the operator's own name, MIL type and module (None where the package does not say).
        site: all of that in words.
        output: the output's name.
        dtype: its declared type.
        minimum, maximum: of the finite elements; NaN where there were none.
        elements, non_finite: how many there were, and how many of them were infinite or NaN.
    """

    name: str
    type: str
    source: str | None
    site: str
    output: str
    dtype: str
    minimum: float
    maximum: float
    elements: int
    non_finite: int

    @property
    def peak(self) -> float:
        """The largest finite magnitude; 0 where there was no finite element."""
        return 0.0 if math.isnan(self.minimum) else max(abs(self.minimum), abs(self.maximum))

    @property
    def beyond_half(self) -> bool:
        """True where a finite element is one that fp16 cannot hold."""
        return self.peak > HALF_MAX


@dataclass(frozen=True)
class Cost:
    """The cost of the declared types at one output of an operator.

    Attributes:
        met: the output's values in the evaluation at declared precision.
        exact: those of the evaluation in fp32 or fp64.
        error: relative to the peak; infinite where a value is finite in one evaluation only.
        snr_db: None where the two evaluations agree exactly.
        loss_db: see the module's docstring; 0 where nothing is lost.
        overflowed: elements that only the evaluation at declared precision has as infinite or NaN.
        vanished: elements that only the evaluation at declared precision has as zero.
    """

    met: Met
    exact: Met
    error: float
    snr_db: float | None
    loss_db: float
    overflowed: int
    vanished: int

    @property
    def leaves_half(self) -> bool:
        """True where an fp16 result has left fp16's range, here for the first time or as an operand's consequence."""
        return self.met.dtype == "fp16" and (self.overflowed > 0 or self.exact.beyond_half)


@dataclass(frozen=True)
class OutputFigures:
    """Figures of one output of the program: at declared precision against the exact one, and against references."""

    name: str
    rounding: Figures
    against_reference: Figures | None


@dataclass(frozen=True)
class Report:
    """The findings of `compare`.

    Attributes:
        operators: in order of evaluation, one entry for each output.
        outputs: of the program, tensors and a classifier's probabilities.
        limit_db: the loss from which an operator counts for `first_loss`.
        inputs: how many inputs were evaluated.
    """

    operators: tuple[Cost, ...]
    outputs: tuple[OutputFigures, ...]
    limit_db: float
    inputs: int

    @property
    def first_overflow(self) -> Cost | None:
        """The first operator whose result leaves fp16's range."""
        return next((cost for cost in self.operators if cost.leaves_half), None)

    @property
    def first_loss(self) -> Cost | None:
        """The first operator that loses more than `limit_db`."""
        return next((cost for cost in self.operators if cost.loss_db > self.limit_db), None)

    def below(self, snr_db: float) -> tuple[Cost, ...]:
        """The operators' outputs that fall below an SNR."""
        return tuple(cost for cost in self.operators if cost.snr_db is not None and cost.snr_db < snr_db)


def ranges(program: MlProgram | Any, inputs: Inputs, *, function: str | None = None, **options: Any) -> tuple[Met, ...]:
    """Return the range of every operator's outputs over several inputs, in order of evaluation.

    Args:
        program: what `load` returned, or a path.
        inputs: one mapping from names to values for each evaluation, as `Evaluator.run` takes them. A function with
            states carries them from one to the next.
        function, options: those of `Evaluator`.

    Raises:
        BadInput, Unsupported: as `Evaluator` and its `run`; also BadInput for no inputs at all.
    """
    _refuse_none(inputs)
    evaluator = Evaluator(program, function, **options)
    seen: dict[tuple[int, int], _Extent] = {}
    states = evaluator.make_states()

    def watch(operation: Operation, outputs: tuple[Any, ...]) -> None:
        for index, value in enumerate(outputs):
            if isinstance(value, Tensor):
                seen.setdefault((id(operation), index), _Extent(operation, index)).add(value)

    for given in inputs:
        evaluator.run(given, states, watch)
    return tuple(extent.met() for extent in seen.values())


def compare(
    program: MlProgram | Any,
    inputs: Inputs,
    references: Sequence[Sequence[np.ndarray]] | None = None,
    *,
    function: str | None = None,
    accumulate: str = "fp32",
    accumulate_block: int = BLOCK,
    against: str = "fp32",
    limit_db: float = LOSS_DB,
) -> Report:
    """Evaluate a package at declared precision and in fp32 or fp64, and compare operator by operator.

    Args:
        program, inputs: as for `ranges`.
        references: PyTorch's outputs for each input, in the program's order.
        function, accumulate, accumulate_block: those of the `Evaluator` at declared precision.
        against: "fp32" or "fp64", the precision of the other one.
        limit_db: see `Report`.

    Raises:
        BadInput, Unsupported: as for `ranges`; BadInput also where references and outputs do not fit together.
    """
    _refuse_none(inputs)
    if against not in ("fp32", "fp64"):
        raise BadInput(f"a package is compared with fp32 or fp64, not with {against!r}")
    opened = program if isinstance(program, MlProgram) else load(program)
    declared = Evaluator(opened, function, accumulate=accumulate, accumulate_block=accumulate_block)
    exact = Evaluator(opened, function, precision=against)
    pairs: dict[tuple[int, int], _Pair] = {}
    results: list[list[np.ndarray]] = []
    expected: list[list[np.ndarray]] = []
    own, other = declared.make_states(), exact.make_states()
    for given in inputs:
        left, right = declared.bind(given, own), exact.bind(given, other)
        for step, exact_step in zip(declared.steps(left), exact.steps(right), strict=True):
            _add(pairs, step, exact_step)
        results.append(declared.arrays(declared.outputs(left)))
        expected.append(exact.arrays(exact.outputs(right)))
    return Report(
        operators=_costs(list(pairs.values())),
        outputs=_output_figures(declared, results, expected, references),
        limit_db=limit_db,
        inputs=len(inputs),
    )


def _refuse_none(inputs: Inputs) -> None:
    if not inputs:
        raise BadInput("a report takes one input at least, a mapping from names to values")


def _output_figures(
    evaluator: Evaluator,
    results: list[list[np.ndarray]],
    expected: list[list[np.ndarray]],
    references: Sequence[Sequence[np.ndarray]] | None,
) -> tuple[OutputFigures, ...]:
    label = evaluator.interface.label
    names = [name for name in evaluator.function.block.outputs if name != label]
    found = []
    for j, name in enumerate(names):
        ours = [[outs[j]] for outs in results]
        reference = None
        if references is not None:
            try:
                reference = measure([[outs[j]] for outs in references], ours, _TIE)
            except (IndexError, ValueError) as error:
                raise BadInput(f"the references do not fit the output {name}: {error}") from error
        found.append(OutputFigures(name, measure([[outs[j]] for outs in expected], ours, _TIE), reference))
    return tuple(found)


def _add(pairs: dict[tuple[int, int], _Pair], declared: Step, exact: Step) -> None:
    """Record a step of both evaluations. Of loops that iterate another number of times only the results count."""
    if [id(operation) for operation, _ in declared] != [id(operation) for operation, _ in exact]:
        declared, exact = declared[-1:], exact[-1:]
    for (operation, ours), (_, theirs) in zip(declared, exact, strict=True):
        for index, (value, true) in enumerate(zip(ours, theirs, strict=True)):
            if isinstance(value, Tensor) and isinstance(true, Tensor) and value.shape == true.shape:
                pairs.setdefault((id(operation), index), _Pair(operation, index)).add(value, true)


@dataclass
class _Extent:
    """The extremes of one output while they are collected."""

    operation: Operation
    index: int
    low: float = math.inf
    high: float = -math.inf
    elements: int = 0
    non_finite: int = 0

    def add(self, value: Tensor) -> None:
        self.elements += value.numel()
        finite = value
        if value.is_floating_point():
            known = torch.isfinite(value)
            if not bool(known.all()):
                finite = value[known]
                self.non_finite += value.numel() - finite.numel()
        if finite.numel():
            low, high = (finite.int() if value.dtype == torch.bool else finite).aminmax()
            self.low, self.high = min(self.low, float(low)), max(self.high, float(high))

    def met(self) -> Met:
        variable = self.operation.outputs[self.index]
        known = self.low <= self.high
        return Met(
            name=self.operation.name,
            type=self.operation.type,
            source=self.operation.source,
            site=self.operation.site,
            output=variable.name,
            dtype=variable.type.dtype if isinstance(variable.type, TensorType) else "",
            minimum=self.low if known else math.nan,
            maximum=self.high if known else math.nan,
            elements=self.elements,
            non_finite=self.non_finite,
        )


@dataclass
class _Pair:
    """One output in both evaluations while it is collected."""

    operation: Operation
    index: int
    signal: float = 0.0
    noise: float = 0.0
    worst: float = 0.0
    overflowed: int = 0
    vanished: int = 0
    diverges: bool = False
    extents: list[_Extent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.extents = [_Extent(self.operation, self.index) for _ in range(2)]

    def add(self, value: Tensor, exact: Tensor) -> None:
        for extent, one in zip(self.extents, (value, exact), strict=True):
            extent.add(one)
        x, y = value.to(carrier("fp64")), exact.to(carrier("fp64"))
        finite_x, finite_y = torch.isfinite(x), torch.isfinite(y)
        self.overflowed += int((finite_y & ~finite_x).sum())
        self.vanished += int(((x == 0) & (y != 0)).sum())
        both = finite_x & finite_y
        if not bool(both.all()):
            self.diverges |= not torch.equal(x[~both].nan_to_num(2.0), y[~both].nan_to_num(2.0))
            x, y = x[both], y[both]
        if y.numel():
            difference = (y - x).abs()
            self.signal += float(y.square().sum())
            self.noise += float(difference.square().sum())
            self.worst = max(self.worst, float(difference.max()))

    @property
    def snr_db(self) -> float | None:
        if self.diverges:
            return -math.inf
        if self.noise == 0:
            return None
        return 10 * math.log10(self.signal / self.noise) if self.signal > 0 else -math.inf

    @property
    def error(self) -> float:
        if self.diverges:
            return math.inf
        peak = self.extents[1].met().peak
        return self.worst / peak if peak > 0 else (0.0 if self.worst == 0 else math.inf)


def _costs(pairs: list[_Pair]) -> tuple[Cost, ...]:
    """The entries, with each operator's loss from its operands' SNR."""
    ratios = {pair.operation.outputs[pair.index].name: pair.snr_db for pair in pairs}
    found = []
    for pair in pairs:
        own = pair.snr_db
        operands = [ratios.get(name) for _, name in references(pair.operation.inputs)]
        before = min([ROUNDING_DB, *(snr for snr in operands if snr is not None)])
        loss = 0.0 if own is None or before == -math.inf else max(before - own, 0.0)
        met, exact = (extent.met() for extent in pair.extents)
        found.append(Cost(met, exact, pair.error, own, loss, pair.overflowed, pair.vanished))
    return tuple(found)
