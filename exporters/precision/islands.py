"""Which nodes of a program stay fp32 when the rest has 16 bits: islands, found by running it on inputs.

Evaluated twice, step by step: in fp32, and as typed, where every operator of a half-precision node is computed in fp32
and rounded once, those inside a fused op's reference too. As for Core ML (mil/mixed.py) there are two kinds:

    range   what makes a value beyond the type's range, inside or as its result, and what reads one; in bf16 there is
            none that fp32 has not. The sum behind a mean
            and the sum of squares behind a norm count as values: in which precision a runtime adds up, no program says
    loss    while an output misses the SNR, the nodes that lose most, by the limits of mil/mixed.py: an SNR less than
            that of the worst operand, or than that of a value that was rounded once. Not where neurons spike: rounding
            anywhere before one flips spikes, and nothing short of all being fp32 helps
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from edgesmith.exporters.graph.capture import Program
from edgesmith.exporters.graph.edit import constant, count_operators, operator_name, site
from edgesmith.exporters.mil.mixed import LIMITS_DB
from edgesmith.exporters.mil.report import ROUNDING_DB
from edgesmith.exporters.precision.half import half, is_wide, round_weight
from edgesmith.exporters.precision.table import Typed, TypingTask
from edgesmith.kernels.op import all_ops, spikes_in

ROUNDS = 8
"""How often it may look again with what it has found kept wide."""


def find_wide(
    program: Program, inputs: Sequence[Sequence[Tensor]], snr_db: float, kind: torch.dtype = torch.float16
) -> dict[str, str]:
    """The names of nodes to keep in fp32, each with the reason in words.

    Args:
        program: rewritten, of float32.
        inputs: for calibration, one tuple for each call.
        snr_db: what every output has to reach against the same program in fp32.
        kind: float16 or bfloat16.
    """
    spikes = spikes_in(count_operators(program.module))
    found: dict[str, str] = {}
    for _ in range(ROUNDS):
        seen = _Seen(program, found, kind)
        for given in inputs:
            seen.add(given)
        new = seen.out_of_range() or ({} if spikes or seen.reach(snr_db) else seen.losers())
        if not new.keys() - found.keys():
            break
        found = {**new, **found}
    return found


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's base class carries no types
    """Largest magnitude that any operator makes, sums of reductions included; rounds results to a type when asked."""

    def __init__(self, rounds: torch.dtype | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.rounds = rounds
        self.peak = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.rounds is not None:
            return tree_map(partial(_rounded, kind=self.rounds), result)
        values = [_peak(value) for value in tree_leaves(result) if isinstance(value, Tensor)]
        self.peak = max(self.peak, _largest_sum(func, args, result), *values)
        return result


class _Seen:
    """What the nodes of a program met over several inputs."""

    def __init__(self, program: Program, wide: Collection[str], kind: torch.dtype) -> None:
        self.program, self.wide, self.kind = program, wide, kind
        self.largest = torch.finfo(kind).max
        self.rounding_db = ROUNDING_DB + 20 * math.log10(torch.finfo(torch.float16).eps / torch.finfo(kind).eps)
        self.references: dict[Any, Any] = {op.overload: op.reference for op in all_ops().values()}
        self.peaks: dict[str, float] = {}
        self.inner: dict[str, float] = {}
        self.figures: dict[str, tuple[float, float]] = {}
        self.nodes = [node for node in program.module.graph.nodes if node.op == "call_function"]

    def add(self, given: Sequence[Tensor]) -> None:
        exact: dict[Node, Any] = {}
        typed: dict[Node, Any] = {}
        placeholders = iter(given)
        last = {source: node for node in self.program.module.graph.nodes for source in node.all_input_nodes}
        with torch.no_grad():
            for node in self.program.module.graph.nodes:
                if node.op == "placeholder":
                    exact[node] = typed[node] = next(placeholders)
                elif node.op == "get_attr":
                    exact[node] = typed[node] = constant(self.program.module, node)
                elif node.op == "call_function":
                    self._step(node, exact, typed)
                for source in node.all_input_nodes:
                    if last[source] is node and node.op != "output":
                        del exact[source], typed[source]

    def _step(self, node: Node, exact: dict[Node, Any], typed: dict[Node, Any]) -> None:
        call: Any = self.references.get(node.target, node.target)

        def arguments(values: Mapping[Node, Any], rounds: bool) -> tuple[Any, Any]:
            def value(source: Node) -> Any:
                if not rounds:
                    return values[source]
                rounded = _rounded_weight if source.op == "get_attr" else _rounded
                return tree_map(partial(rounded, kind=self.kind), values[source])

            return torch.fx.map_arg(node.args, value), torch.fx.map_arg(node.kwargs, value)

        rounds = not is_wide(node, self.wide)
        args, kwargs = arguments(exact, False)
        with _Watch(None) as watch:
            exact[node] = call(*args, **kwargs)
        args, kwargs = arguments(typed, rounds)
        with _Watch(self.kind if rounds else None):
            typed[node] = call(*args, **kwargs)
        self.inner[node.name] = max(self.inner.get(node.name, 0.0), watch.peak)
        pairs = zip(tree_leaves(typed[node]), tree_leaves(exact[node]), strict=True)
        for value, true in pairs:
            if isinstance(true, Tensor) and true.is_floating_point():
                self.peaks[node.name] = max(self.peaks.get(node.name, 0.0), _peak(true))
                error = float((value - true).square().sum(dtype=torch.float64))
                signal, noise = self.figures.get(node.name, (0.0, 0.0))
                noise += error if math.isfinite(error) else math.inf
                self.figures[node.name] = signal + float(true.square().sum(dtype=torch.float64)), noise

    def snr_db(self, node: Node) -> float:
        """Of a node's results as typed against fp32; infinite where there is no error, or nothing is rounded."""
        signal, noise = self.figures.get(node.name, (0.0, 0.0))
        if noise == 0:
            return math.inf
        return 10 * math.log10(signal / noise) if signal and math.isfinite(noise) else -math.inf

    def reach(self, snr_db: float) -> bool:
        """Whether all outputs are that good."""
        return all(self.snr_db(node) >= snr_db for node in self.program.module.graph.output_node().all_input_nodes)

    def out_of_range(self) -> dict[str, str]:
        """Nodes that make or read what fp16 cannot hold, as far as they are not wide yet."""
        found = {}
        for node in self.nodes:
            made = max(self.inner[node.name], self.peaks.get(node.name, 0.0))
            read = max((self.peaks.get(source.name, 0.0) for source in node.all_input_nodes), default=0.0)
            if is_wide(node, self.wide) or max(made, read) <= self.largest:
                continue
            verb, value = ("makes", made) if made > self.largest else ("reads", read)
            found[node.name] = f"{_where(node)} {verb} {value:.3g}, and half precision ends at {self.largest:.6g}"
        return found

    def losers(self) -> dict[str, str]:
        """Half-precision nodes that lose most; of a wide one, those that make its operands."""
        losses = {}
        for node in self.nodes:
            before = min([self.rounding_db, *(self.snr_db(source) for source in node.all_input_nodes)])
            losses[node] = 0.0 if before == -math.inf else max(before - self.snr_db(node), 0.0)
        for limit in LIMITS_DB:
            makers = {maker: loss for node, loss in losses.items() if loss > limit for maker in self._narrow(node)}
            if makers:
                return {node.name: f"{_where(node)} loses {loss:.1f} dB" for node, loss in makers.items()}
        return {}

    def _narrow(self, node: Node) -> list[Node]:
        found, seen, waiting = list[Node](), set(), [node]
        while waiting:
            one = waiting.pop()
            if one in seen or one.op != "call_function":
                continue
            seen.add(one)
            if is_wide(one, self.wide):
                waiting += one.all_input_nodes
            else:
                found.append(one)
        return found


def _where(node: Node) -> str:
    return f"{operator_name(node).removeprefix('aten.')} at {site(node)}"


def _rounded(value: Any, kind: torch.dtype) -> Any:
    """A value of fp32 as a type of 16 bits holds it; complex numbers by their halves."""
    if not isinstance(value, Tensor) or value.dtype not in (torch.float32, torch.complex64):
        return value
    if value.is_complex():
        return torch.view_as_complex(torch.view_as_real(value).to(kind).float())
    return value.to(kind).float()


def _rounded_weight(value: Any, kind: torch.dtype) -> Any:
    is_float = isinstance(value, Tensor) and value.dtype == torch.float32
    return round_weight(value, kind).float() if is_float else value


def _peak(value: Tensor) -> float:
    """The largest finite magnitude; of complex numbers that of their halves."""
    if value.is_complex():
        value = torch.view_as_real(value)
    if not value.is_floating_point() or not value.numel():
        return 0.0
    peak = float(value.abs().max())
    return peak if math.isfinite(peak) else float(value.abs().nan_to_num(0.0, 0.0, 0.0).max())


def _largest_sum(func: Any, args: Sequence[Any], result: Any) -> float:
    """What a reduction adds up before it divides: elements, or, for a norm, their squares. 0 for other operators."""
    name = func._schema.name
    if name in ("aten::mean", "aten::var", "aten::_adaptive_avg_pool2d", "aten::adaptive_avg_pool2d"):
        return float(_peak(result) * args[0].numel() / max(result.numel(), 1))
    if name == "aten::native_group_norm":
        x, groups = args[0], args[6]
        return _peak(x.square().reshape(x.shape[0], groups, -1).sum(-1))
    if name == "aten::native_layer_norm":
        return _peak(args[0].square().flatten(-len(args[1])).sum(-1))
    return 0.0


def type_half(program: Program, task: TypingTask, dtype: str) -> Typed:
    """Return the program in a type of 16 bits, with islands where the target finds them."""
    if not task.types_programs:
        return Typed(program)
    kind = getattr(torch, dtype)
    kept: dict[str, str] = {}
    if task.finds_islands and not task.is_step:
        kept = find_wide(program, task.inputs, task.thresholds.snr_db, kind)
    return Typed(half(program, kept, kind), kept or None)


def type_mixed(program: Program, task: TypingTask) -> Typed:
    """Return the program with what its converter has to keep in fp32."""
    kept: dict[str, str] = {}
    for _ in range(ROUNDS):
        found = task.lossy_operators(kept)
        if not found.keys() - kept.keys():
            break
        kept = {**found, **kept}
    return Typed(program, kept)
