"""Islands of fp32 in a program of 16 bits: the nodes are found by running the program on calibration inputs.

Every node is evaluated twice, side by side: in fp32, and as typed. As typed, a half-precision node computes each of its
operators in fp32 and rounds the result once. So do the operators inside a fused op's reference. policy.py chooses by
what was seen:

    range   the sum behind a mean, and the sum of squares behind a norm, count as values of their operator, because no
            program says in which precision a runtime adds up. bf16 has the range of fp32, so nothing leaves it
    loss    no reason where neurons spike: rounding anywhere before one flips spikes, and only all of it in fp32 helps
    SNR     no reason here: where no node loses 1 dB, all of them together would have to be fp32

Beside what they show stays what a large constant runs through, see large_constants.py, or whole numbers that 16 bits
round, see whole_numbers.py, what takes a level from the data and gives it back, see restored_levels.py, and what half
precision has not, see single_only.py.

`type_mixed` leaves both the typing and the measuring to a target's converter and its files.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map

from edgesmith.exporters.graph.capture import Program
from edgesmith.exporters.graph.edit import count_operators, operator_name, site
from edgesmith.exporters.graph.interpret import Values, evaluate, interpret
from edgesmith.exporters.graph.watching import Watching
from edgesmith.exporters.precision.exact_modules import keep_exact, keep_in_file
from edgesmith.exporters.precision.half import half, is_kept, round_weight
from edgesmith.exporters.precision.label_maps import keep_ends
from edgesmith.exporters.precision.large_constants import find_large_constants
from edgesmith.exporters.precision.policy import ROUNDING_DB, Seen, choose, find
from edgesmith.exporters.precision.restored_levels import find_restored_levels
from edgesmith.exporters.precision.single_only import find_single_only
from edgesmith.exporters.precision.task import Typed, TypingTask
from edgesmith.exporters.precision.whole_numbers import find_whole_numbers
from edgesmith.kernels.op import spikes_in


def type_half(program: Program, task: TypingTask, dtype_name: str) -> Typed:
    """Return the program in a type of 16 bits, but for islands: of its constants, and of what its inputs show.

    Args:
        program: rewritten, of float32.
        task: a target whose converter types the program gets it as it is. Inputs show nothing where the target has no
            such islands, nor of a step: whole inputs say nothing about it.
        dtype_name: `float16` or `bfloat16`.
    """
    dtype: torch.dtype = getattr(torch, dtype_name)
    if not task.types_programs:
        if task.other_classes:
            return keep_ends(program, task, {}, dtype)
        return Typed(program, keep_in_file(program, task))
    kept = _find_by_reading(program, dtype) | keep_exact(program, task)
    if task.finds_islands and not task.is_step:
        kept = find_islands(program, task.inputs, task.thresholds.snr_db, dtype, keep_exact(program, task))
    if task.other_classes:
        return keep_ends(program, task, kept, dtype)
    return Typed(half(program, kept, dtype), kept or None)


def _find_by_reading(program: Program, dtype: torch.dtype) -> dict[str, str]:
    """Return the names of nodes that stay fp32 whatever the data are, each with the reason in words."""
    return {
        **find_single_only(program),
        **find_restored_levels(program),
        **find_whole_numbers(program, dtype),
        **find_large_constants(program, dtype),
    }


def type_mixed(program: Program, task: TypingTask) -> Typed:
    """Return the program as it is, and what the target's converter has to keep in fp32 by what its files show."""
    exact = keep_in_file(program, task) or {}
    return Typed(program, find(lambda kept: {**exact, **task.lossy_operators({**exact, **kept})}))


def find_islands(
    program: Program,
    inputs: Sequence[Sequence[Tensor]],
    snr_db: float,
    dtype: torch.dtype = torch.float16,
    exact: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, str]:
    """Return the names of nodes to keep in fp32, each with the reason in words.

    Args:
        program: rewritten, of float32.
        inputs: for calibration, one tuple for each call.
        snr_db: what every output has to reach against the same program in fp32.
        dtype: float16 or bfloat16.
        exact: nodes that stay fp32 for other reasons.
    """
    spikes = spikes_in(count_operators(program.module))
    large = {**_find_by_reading(program, dtype), **exact}

    def measure(kept: Mapping[str, str]) -> dict[str, str]:
        evaluation = _Evaluation(program, {**large, **kept}, dtype)
        for given in inputs:
            evaluation.add(given)
        return choose(evaluation.seen(), spikes or evaluation.reaches(snr_db), evaluation.largest)

    return {**large, **find(measure)}


class _Watch(Watching):
    """Largest magnitude that any operator makes, sums of reductions included; rounds results to a type when asked."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.dtype = dtype
        self.peak = 0.0

    def watch(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        result = func(*args, **kwargs)
        if self.dtype is not None:
            return tree_map(partial(_rounded, dtype=self.dtype), result)
        values = [_peak(value) for value in tree_leaves(result) if isinstance(value, Tensor)]
        self.peak = max(self.peak, _largest_sum(func, args, result), *values)
        return result


class _Evaluation:
    """A program's two evaluations, and what its nodes met in them over several inputs.

    Args:
        program: of float32.
        keep_fp32: names of nodes that are not rounded.
        dtype: what the others are rounded to.
    """

    def __init__(self, program: Program, keep_fp32: Collection[str], dtype: torch.dtype) -> None:
        self.program, self.keep_fp32, self.dtype = program, keep_fp32, dtype
        self.largest = torch.finfo(dtype).max
        self.rounding_db = ROUNDING_DB + 20 * math.log10(torch.finfo(torch.float16).eps / torch.finfo(dtype).eps)
        self.peaks: dict[str, float] = {}
        self.inner: dict[str, float] = {}
        self.figures: dict[str, tuple[float, float]] = {}

    def add(self, given: Sequence[Tensor]) -> None:
        """Evaluate the program on one more input: in the first of two calls in fp32, in the second as typed."""
        for node, (exact, typed) in interpret(self.program.module, [given, given], self._compute):
            if node.op != "call_function":
                continue
            for value, true in zip(tree_leaves(typed), tree_leaves(exact), strict=True):
                if isinstance(true, Tensor) and true.is_floating_point():
                    self._compare(node.name, value, true)

    def _compute(self, node: Node, values: Values, call: int) -> Any:
        """Return a node's value in one of the two calls, and note the peak inside it."""
        if call == 0:
            with _Watch(None) as watch:
                result = evaluate(node, values)
            self.inner[node.name] = max(self.inner.get(node.name, 0.0), watch.peak)
            return result
        if is_kept(node, self.keep_fp32):
            return evaluate(node, values)

        def rounded(source: Node) -> Any:
            function = _rounded_weight if source.op == "get_attr" else _rounded
            return tree_map(partial(function, dtype=self.dtype), values(source))

        with _Watch(self.dtype):
            return evaluate(node, rounded)

    def _compare(self, name: str, value: Tensor, true: Tensor) -> None:
        """Note the peak of a result, and its signal and noise."""
        self.peaks[name] = max(self.peaks.get(name, 0.0), _peak(true))
        error = float((value - true).square().sum(dtype=torch.float64))
        signal, noise = self.figures.get(name, (0.0, 0.0))
        noise += error if math.isfinite(error) else math.inf
        self.figures[name] = signal + float(true.square().sum(dtype=torch.float64)), noise

    def snr_db(self, node: Node) -> float:
        """Return the SNR of a node's results against fp32; infinite where there is no error, or nothing is rounded."""
        signal, noise = self.figures.get(node.name, (0.0, 0.0))
        if noise == 0:
            return math.inf
        return 10 * math.log10(signal / noise) if signal and math.isfinite(noise) else -math.inf

    def reaches(self, snr_db: float) -> bool:
        """Return whether all outputs are that good."""
        return all(self.snr_db(node) >= snr_db for node in self.program.module.graph.output_node().all_input_nodes)

    def seen(self) -> list[Seen]:
        """Return what was seen of every node."""
        found: dict[Node, Seen] = {}
        for node in self.program.module.graph.nodes:
            if node.op != "call_function":
                continue
            sources = node.all_input_nodes
            makes = max(self.inner[node.name], self.peaks.get(node.name, 0.0))
            reads = max((self.peaks.get(source.name, 0.0) for source in sources), default=0.0)
            before = min([self.rounding_db, *(self.snr_db(source) for source in sources)])
            is_half = not is_kept(node, self.keep_fp32)
            found[node] = Seen(
                name=node.name,
                position=f"{operator_name(node).removeprefix('aten.')} at {site(node)}",
                makes=makes,
                reads=reads,
                loss_db=0.0 if before == -math.inf else max(before - self.snr_db(node), 0.0),
                is_half=is_half,
                overflows=is_half and max(makes, reads) > self.largest,
                operands=tuple(found[source] for source in sources if source in found),
            )
        return list(found.values())


def _rounded(value: Any, dtype: torch.dtype) -> Any:
    """Return a value of fp32 as a type of 16 bits holds it; complex numbers by their halves."""
    if not isinstance(value, Tensor) or value.dtype not in (torch.float32, torch.complex64):
        return value
    if value.is_complex():
        return torch.view_as_complex(torch.view_as_real(value.resolve_conj()).to(dtype).float())
    return value.to(dtype).float()


def _rounded_weight(value: Any, dtype: torch.dtype) -> Any:
    """Return a weight as `half` writes it."""
    is_float = isinstance(value, Tensor) and value.dtype == torch.float32
    return round_weight(value, dtype).float() if is_float else value


def _magnitude(value: Tensor) -> float:
    """Return the largest magnitude, of complex numbers that of their halves; not finite where an element is not."""
    if value.is_complex():
        value = torch.view_as_real(value.resolve_conj())
    if not value.is_floating_point() or not value.numel():
        return 0.0
    low, high = value.detach().aminmax()  # passes memory once; a NaN anywhere is in both
    return max(-float(low), float(high))


def _peak(value: Tensor) -> float:
    """Return the largest finite magnitude; of complex numbers that of their halves."""
    peak = _magnitude(value)
    if math.isfinite(peak):
        return peak
    value = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
    return float(value.abs().nan_to_num(0.0, 0.0, 0.0).max())


def _largest_sum(func: Any, args: Sequence[Any], result: Any) -> float:
    """Return what a reduction adds up before it divides: elements, or, for a norm, their squares. 0 for others."""
    name = func._schema.name
    if name in ("aten::mean", "aten::var", "aten::_adaptive_avg_pool2d", "aten::adaptive_avg_pool2d"):
        return float(_peak(result) * args[0].numel() / max(result.numel(), 1))
    if name == "aten::native_group_norm":
        x, groups = args[0], args[6]
        return _peak(x.square().reshape(x.shape[0], groups, -1).sum(-1))
    if name == "aten::native_layer_norm":
        return _peak(args[0].square().flatten(-len(args[1])).sum(-1))
    return 0.0


@dataclass(frozen=True)
class Extent:
    """The size of one node's values in a run.

    Attributes:
        peak: largest finite magnitude inside it, sums of reductions included, or of its result.
        result: that of its result alone.
        unknown: how many elements of its result are not finite.
    """

    peak: float
    result: float
    unknown: int


def find_extents(program: Program, inputs: Sequence[Tensor]) -> dict[str, Extent]:
    """Return the size of every value that a program makes of some inputs, by its node's name."""
    inner: dict[str, float] = {}

    def compute(node: Node, values: Values, call: int) -> Any:
        with _Watch(None) as watch:
            result = evaluate(node, values)
        inner[node.name] = watch.peak
        return result

    found = {}
    for node, (value,) in interpret(program.module, [[x.clone() for x in inputs]], compute):
        if node.op not in ("call_function", "placeholder"):
            continue
        floats = [x for x in tree_leaves(value) if isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())]
        result = max(map(_peak, floats), default=0.0)
        unknown = sum(int((~x.isfinite()).sum()) for x in floats if not math.isfinite(_magnitude(x)))
        found[node.name] = Extent(max(result, inner.get(node.name, 0.0)), result, unknown)
    return found
