"""int8, explicit in the graph: which layers, with which ranges, and what stays float by measurement.

    x_q = clamp(round(x / s), -128, 127)    s = the RANGE_PERCENT percentile of |x| / 127       one s a tensor
    W_q = round(W / s_c)                    s_c = max(max |W_c| / w, |b_c| / (s 2^30))           one an output channel c
    y   = f(s x_q, s_c W_q, b')             b' = b - E[f(s x_q, s_c W_q, b) - f(x, W, b)]       bias correction

w is 127, or 63 for runtimes whose kernels add two 8-bit products in 16 bits. Kernels for integers add a bias as an
int32 at the scale s s_c: where weights are tiny beside their bias, s_c follows from that, and the weights become 0.
Biases are corrected in order, each for what is left after those before. Layers are convolutions and matmuls with
constant weights, and a constant bias or none: b' cannot stand for a bias that is computed. A value is rounded once,
however many layers read it. A sum behind a layer reads the rounded value too, so that a residual need only be kept in
int8.

Where a runtime computes in integers between layers as well, and outputs stay far enough from what is wanted, values
there are rounded, too, and without a sign: see int8_joined.py. Everything else stays float, and so does every fused op
that says why (`FusedOp.stays_float`). Layers inside other fused ops are layers like any, but where a target's int8 is
for dense products alone (`Target.int8_is_dense`). Zero points are 0 else, as TensorRT wants it. In the graph these are
PyTorch's own operators, `quantized_decomposed`, which torch's ONNX exporter writes as QuantizeLinear and
DequantizeLinear.

While the outputs miss the wanted SNR on the calibration inputs, what costs most goes back to float, by sensitivity: the
noise at the outputs that one layer alone makes. Independent noises add up, so how many have to go follows from

    10 log10(signal / (noise - sum of what goes))

and is measured again. Sums save no multiplication and go first; then layers by noise per multiplication; last what
makes less than an even share of the noise that is allowed. What the program reaches the file has to reach as well, and
what every call has to, on each input and on the caller's example; see int8_in_file.py.

Sources: Nagel et al., "A White Paper on Neural Network Quantization", arXiv 2106.08295, section 3 (symmetric ranges,
bias correction); onnxruntime issue 21000 (biases beyond int32); NVIDIA, "Working with Quantized Types", TensorRT
documentation (where Q and DQ go).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.ao.quantization.fx import _decomposed as _registers_operators  # noqa: F401  # torch.ops.quantized_decomposed
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from edgesmith.errors import BadInput, Unsupported
from edgesmith.exporters.graph.capture import Program, capture, with_module
from edgesmith.exporters.graph.edit import (
    Emitter,
    add_constant,
    arguments,
    aten,
    constant,
    fork,
    operator_name,
    site,
    tidy,
    val,
)
from edgesmith.exporters.graph.interpret import interpret, recompute
from edgesmith.exporters.graph.linear import Linear, along, spelled
from edgesmith.exporters.precision.exact_modules import keep_exact
from edgesmith.exporters.precision.int8_in_file import find_spoiling
from edgesmith.exporters.precision.int8_joined import find_rounded
from edgesmith.exporters.precision.task import CountsMacs, RunFile, Thresholds, Typed, TypingTask, runs_nothing
from edgesmith.kernels.op import all_ops

LEAST, MOST = -128, 127
RANGE_PERCENT = 99.99
"""How much of a value's numbers, by magnitude, its range has to hold."""

MARGIN_DB = 1.5
"""How much better than wanted the outputs have to be on the calibration inputs, since others are what is judged."""

MARGIN_OF_ONE_DB = 1.0
"""How much better than wanted the worst of the calibration inputs has to be by itself: another may be worse."""

CORRECTION_INPUTS = 8
"""Inputs over which biases are corrected and the whole is measured; layers alone over SENSITIVITY_INPUTS of them."""

SENSITIVITY_INPUTS = 2

JOIN_MARGIN_DB = 3.0
"""How much better than that outputs have to be for what lies between layers to be rounded as well."""

ROUNDS = 6
"""How often layers may go back to float before the rest is left as it is; verification then says what is missing."""


MOST_OF_BIAS = 2.0**30
"""A bias at the scale of its layer's products, at most: half of what an int32 holds, since correction moves biases."""

LEAST_PRODUCT = 2.0**-100
"""The scale of a layer's products, at least: what divides by it must not overflow."""

FILE_LOSS_DB = 1.0
"""How much of the program's SNR the file may lose to another rounding."""

Reach = Literal["layers", "dense", "joined"]

_quantised = torch.ops.quantized_decomposed


@dataclass(frozen=True)
class Quantised:
    """A program in int8 with what was found out about it.

    Attributes:
        kept: layers and sums that stay float, by node name, each with the reason in words.
        layers, sums: how many are int8.
        snr_db: of the worst output on the calibration inputs, against the program in float; None where equal.
        error: of the worst output, relative to its peak.
        is_joined: what lies between layers is rounded too.
    """

    program: Program
    kept: Mapping[str, str]
    layers: int
    sums: int
    snr_db: float | None
    error: float = 0.0
    is_joined: bool = False


def quantise(
    program: Program,
    inputs: Sequence[Sequence[Tensor]],
    snr_db: float,
    largest_weight: int = MOST,
    run_file: RunFile = runs_nothing,
    most_error: float = math.inf,
    exact: Mapping[str, str] = MappingProxyType({}),
    reach: Reach = "layers",
) -> Quantised:
    """The program with int8 layers; as few of them as the inputs ask for stay float.

    Args:
        program: rewritten, of float32.
        inputs: for calibration, one tuple for each call.
        snr_db: what every output should reach against the same program in float.
        largest_weight: w above.
        run_file: of the task; runs the file that a program becomes.
        most_error: that an output may have, relative to its peak.
        exact: nodes that stay float whatever the inputs say, each with the reason.
        reach: `layers`, also those inside fused ops, and sums behind layers; only `dense` ones, without any of these
            and without convolutions of groups; or layers and what lies between them, `joined` (int8_joined.py).

    Raises:
        Unsupported: there is no layer that could be int8.
        BadInput: the program does not run on an input, such as an index into a table that ends before it.
    """
    program = program if reach == "dense" else open_fused(program)
    layers = [layer for layer in find_layers(program.module) if layer.groups == 1 or reach != "dense"]
    if not layers:
        raise Unsupported(
            "int8 is for convolutions and matmuls with constant float32 weights and no computed bias, and this model"
            " has none; use --precision fp32"
        )
    exact = {**find_computed_biases(program.module), **exact}
    wanted = Thresholds(most_error, snr_db + MARGIN_DB)
    if reach == "joined":
        seen = _observe(program, layers, inputs, largest_weight, joins=True)
        if (joined := _join(program, layers, seen, exact, inputs, wanted, run_file)) is not None:
            return joined
    seen = replace(_observe(program, layers, inputs, largest_weight), rounds_sums=reach != "dense")
    kept = dict(exact)
    seen = _choose_ranges(program, layers, seen, kept, inputs[:CORRECTION_INPUTS], Thresholds(most_error, snr_db))
    costs: dict[str, float] | None = None
    for _ in range(ROUNDS):
        found = _apply(program, layers, seen, kept, inputs[:CORRECTION_INPUTS])
        now_db = _reached(found.snr_db, found.error, wanted.snr_db, most_error)
        if now_db >= wanted.snr_db:
            break
        if costs is None:
            costs = sensitivities(program, layers, seen, inputs[:SENSITIVITY_INPUTS])
        more = _choose(layers, seen, costs, kept, now_db, wanted.snr_db)
        if not more:
            break
        kept |= more
    return _settle_in_file(program, layers, seen, found, inputs, wanted, run_file)


def _join(
    program: Program,
    layers: Sequence[Linear],
    seen: Seen,
    exact: Mapping[str, str],
    inputs: Sequence[Sequence[Tensor]],
    wanted: Thresholds,
    run_file: RunFile,
) -> Quantised | None:
    """Return the program with what lies between its layers rounded too; None where that costs too much of the SNR."""
    seen = _choose_ranges(program, layers, seen, exact, inputs[:CORRECTION_INPUTS], wanted)
    found = _apply(program, layers, seen, exact, inputs[:CORRECTION_INPUTS])
    if _reached(found.snr_db, found.error, wanted.snr_db, wanted.relative_error) < wanted.snr_db + JOIN_MARGIN_DB:
        return None
    settled = _settle_in_file(program, layers, seen, found, inputs, wanted, run_file)
    return None if len(settled.kept) > len(exact) else settled


def _observe(
    program: Program, layers: Sequence[Linear], inputs: Sequence[Sequence[Tensor]], largest: int, joins: bool = False
) -> Seen:
    """Return what is seen on the calibration inputs. Raises BadInput where the model does not run on one."""
    try:
        return observe(program, layers, inputs, largest, joins)
    except (IndexError, RuntimeError) as error:
        raise BadInput(
            f"--calibration: the model does not run on what it was given ({str(error).partition(chr(10))[0]});"
            " give samples that it takes"
        ) from error


def _choose_ranges(
    program: Program,
    layers: Sequence[Linear],
    seen: Seen,
    kept: Mapping[str, str],
    inputs: Sequence[Sequence[Tensor]],
    wanted: Thresholds,
) -> Seen:
    """Return what was seen with ranges that clip nothing, where the error of what is clipped is too large."""
    clipped = _apply(program, layers, seen, kept, inputs)
    if clipped.error <= wanted.relative_error / 2:
        return seen
    wide = replace(seen, scales=seen.widest)
    other = _apply(program, layers, wide, kept, inputs)
    return wide if other.error < clipped.error else seen


def _reached(snr_db: float | None, error: float, wanted_db: float, most_error: float) -> float:
    """Return an SNR, or that at which the largest error would be what is allowed, if it were to fall with the noise."""
    if snr_db is None:
        return math.inf
    return snr_db if error <= most_error else min(snr_db, wanted_db - 20 * math.log10(error / most_error))


def _settle_in_file(
    program: Program,
    layers: Sequence[Linear],
    seen: Seen,
    found: Quantised,
    inputs: Sequence[Sequence[Tensor]],
    wanted: Thresholds,
    run_file: RunFile,
) -> Quantised:
    """Return the program with those layers in float as well that its file spoils, on all inputs or on one of them.

    The first of these is the caller's example, which is judged and has not been seen: it may go beyond a range.
    """
    given = [program.inputs, *inputs[:CORRECTION_INPUTS]]
    wanted_of = [_outputs(program, program.inputs), *seen.outputs]
    made: dict[frozenset[str], Quantised] = {frozenset(): found}
    told: dict[float, float] = {}  # from what counts to what is said

    def measure(more: Sequence[str]) -> float:
        key = frozenset(more)
        if key not in made:
            kept = {**found.kept, **dict.fromkeys(more, "")}
            made[key] = _apply(program, layers, seen, kept, given[1:])
        typed = Typed(made[key].program, made[key].kept)
        answers = [_doubles(outputs) for outputs in run_file(typed, given).values()]
        return min(map(judged, answers), default=math.inf)

    def judged(answer: Sequence[Sequence[Tensor]]) -> float:
        of_all = reached(_snr_db(seen.outputs, answer[1:]), _error(seen.outputs, answer[1:]))
        of_one = _snr_of_worst_call(wanted_of, answer)
        above = of_one - (wanted.snr_db - MARGIN_DB + MARGIN_OF_ONE_DB)
        told[counted := min(of_all, least_db + above)] = min(of_all, of_one)
        return counted

    def reached(snr_db: float | None, error: float) -> float:
        return _reached(snr_db, error, wanted.snr_db, wanted.relative_error)

    names = [layer.node.name for layer in layers if layer.node.name not in found.kept]
    least_db = min(wanted.snr_db, reached(found.snr_db, found.error) - FILE_LOSS_DB)
    spoiling = find_spoiling(names, measure, least_db)
    if not spoiling:
        return found
    nodes = {layer.node.name: layer.node for layer in layers}
    reasons = {
        name: f"{operator_name(nodes[name]).removeprefix('aten.')} at {site(nodes[name])} leaves the file"
        f" {told.get(snr, snr):.1f} dB"
        for name, snr in spoiling.items()
    }
    return replace(made[frozenset(spoiling)], kept={**found.kept, **reasons})


def _outputs(program: Program, given: Sequence[Tensor]) -> list[Tensor]:
    """Return a program's outputs, in float64."""
    values = (value for node, (value,) in interpret(program.module, [given]) if node.op == "output")
    return [y.double() for y in tree_leaves(next(values))]


def _doubles(outputs: Sequence[Sequence[np.ndarray]]) -> list[list[Tensor]]:
    return [[torch.from_numpy(y).double() for y in each] for each in outputs]


def open_fused(program: Program) -> Program:
    """Return the program with the references of those fused ops whose layers can be int8 instead of the ops."""
    references = {op.overload: op.reference for op in all_ops().values() if not op.stays_float}
    if not any(node.target in references for node in program.module.graph.nodes):
        return program
    module = fork(program.module)
    for node in module.graph.nodes:
        node.target = references.get(node.target, node.target)
    module.recompile()
    return capture(module, program.inputs, program.input_names, program.output_names, program.dynamic_batch)


def find_layers(module: GraphModule) -> list[Linear]:
    """The layers that can be int8, in order: float32, with constant weights and a constant bias or none."""
    return [layer for layer in _candidates(module) if not layer.has_computed_bias]


def find_computed_biases(module: GraphModule) -> dict[str, str]:
    """Return what would be a layer but for a computed bias: the reason to stay float by node name."""
    return {
        layer.node.name: f"{operator_name(layer.node).removeprefix('aten.')} at {site(layer.node)} has a computed bias"
        for layer in _candidates(module)
        if layer.has_computed_bias
    }


def _candidates(module: GraphModule) -> Iterator[Linear]:
    """Layers, whatever their bias."""
    for node in module.graph.nodes:
        layer = next((layer for layer in spelled(module, node) if _is_float32(layer)), None)
        if layer is not None:
            yield layer


def _is_float32(layer: Linear) -> bool:
    """Return whether a layer multiplies a computed float32 value by a float32 weight that is not empty."""
    weight, read = layer.own_weight, layer.read
    is_computed = isinstance(read, Node) and constant(layer.module, read) is None
    return weight.dtype == torch.float32 and bool(weight.numel()) and is_computed and val(read).dtype == torch.float32


def find_sums(layers: Sequence[Linear]) -> dict[Node, list[tuple[Node, int]]]:
    """Of every value that layers read, the sums behind layers that read it too, each with the position."""
    behind = {layer.node for layer in layers}
    found: dict[Node, list[tuple[Node, int]]] = {}
    for value in dict.fromkeys(layer.read for layer in layers):
        for user in value.users:
            if user.target is not aten.add.Tensor or len(user.args) < 2 or user.kwargs:
                continue
            for i in (0, 1):
                other = user.args[1 - i]
                if user.args[i] is value and other in behind and val(user).shape == val(value).shape:
                    found.setdefault(value, []).append((user, i))
    return found


class Histogram:
    """Counts of a value's magnitudes over any number of tensors. Zeros do not count.

    The width of the bins is a power of two, and doubles when a magnitude lies beyond them, so that no count moves. Of a
    large tensor SAMPLES numbers are counted, evenly spread: with all of them calibration takes twice as long.
    """

    BINS = 4096
    SAMPLES = 2**16

    def __init__(self) -> None:
        self.counts = torch.zeros(self.BINS, dtype=torch.int64)
        self.width = 0.0
        self.is_negative = False

    def add(self, value: Tensor) -> None:
        step = max(1, value.numel() // self.SAMPLES)
        while math.gcd(step, value.numel()) > 1:  # or it would see some columns of a map more often than others
            step += 1
        self.is_negative = self.is_negative or bool((value < 0).any())
        sizes = value.detach().flatten()[::step].abs().nan_to_num(0.0, 0.0, 0.0)
        peak = float(sizes.max()) if sizes.numel() else 0.0
        if not peak:
            return
        self.width = self.width or 2.0 ** math.ceil(math.log2(peak / self.BINS))
        while peak > self.BINS * self.width:
            self.counts = torch.cat((self.counts.reshape(-1, 2).sum(1), torch.zeros_like(self.counts[::2])))
            self.width *= 2
        self.counts += torch.histc(sizes, self.BINS, 0, self.BINS * self.width).long()
        self.counts[0] -= int((sizes == 0).sum())

    def percentile(self, per_cent: float) -> float:
        """The smallest edge of a bin below which that share of the magnitudes lies; 0 where there were only zeros."""
        total = int(self.counts.sum())
        if not total:
            return 0.0
        needed = math.ceil(total * per_cent / 100)
        index = int(torch.searchsorted(self.counts.cumsum(0), needed))
        return (index + 1) * self.width


@dataclass(frozen=True)
class Grid:
    """The numbers that a value is rounded to: a scale times the integers from `least` to `most`, less `zero`."""

    zero: int
    least: int
    most: int
    dtype: torch.dtype

    @property
    def steps(self) -> int:
        """The largest multiple of the scale."""
        return self.most - self.zero


SIGNED = Grid(0, LEAST, MOST, torch.int8)
POSITIVE, AROUND_128 = Grid(0, 0, 255, torch.uint8), Grid(128, 0, 255, torch.uint8)
"""Without a sign: of what was never negative, and of all other values."""


@dataclass(frozen=True)
class Seen:
    """The values that a program met in float over the calibration inputs.

    Attributes:
        scales: of every value that a layer reads.
        macs: multiplications of every layer, by node name.
        means: of every layer's output by channel, over CORRECTION_INPUTS.
        outputs: for each of these inputs.
        largest_weight: as an integer.
        widest: scales with which nothing that was met is clipped.
        grids: the numbers that each of these values is rounded to.
        rounds_sums: whether sums behind layers read what layers read, rounded.
        joins: whether what lies between layers is rounded too.
    """

    scales: Mapping[Node, float]
    macs: Mapping[str, int]
    means: Mapping[Node, Tensor]
    outputs: Sequence[Sequence[Tensor]]
    largest_weight: int
    widest: Mapping[Node, float]
    grids: Mapping[Node, Grid]
    rounds_sums: bool = True
    joins: bool = False

    def sums(self, layers: Sequence[Linear]) -> dict[Node, list[tuple[Node, int]]]:
        """Return the sums that are rounded, of layers that are int8: as `find_sums`."""
        return find_sums(layers) if self.rounds_sums else {}


def observe(
    program: Program,
    layers: Sequence[Linear],
    inputs: Sequence[Sequence[Tensor]],
    largest_weight: int = MOST,
    joins: bool = False,
) -> Seen:
    """Run a program in float: ranges over all inputs, means of outputs over the first few."""
    macs: dict[str, int] = {}
    outputs: list[list[Tensor]] = []
    values = find_rounded(program.module, layers) if joins else {layer.read: layer.read for layer in layers}
    histograms = {node: Histogram() for node in values.values()}
    by_node = {layer.node: layer for layer in layers}
    sums: dict[Node, list[Tensor]] = {}
    for i, given in enumerate(inputs):
        for node, (value,) in interpret(program.module, [given]):
            if node in histograms:
                histograms[node].add(value)
            if node in by_node and i < CORRECTION_INPUTS:
                layer = by_node[node]
                macs[node.name] = value.numel() * layer.own_weight.numel() // layer.channels
                sums.setdefault(node, []).append(_by_channel(layer, value))
            if node.op == "output" and i < CORRECTION_INPUTS:
                outputs.append([y.double() for y in tree_leaves(value)])
    means = {node: torch.stack(parts).mean(0) for node, parts in sums.items()}
    unsigned = {node: AROUND_128 if one.is_negative else POSITIVE for node, one in histograms.items()}
    grids = {node: unsigned[of] if joins else SIGNED for node, of in values.items()}

    def scales(per_cent: float) -> dict[Node, float]:
        return {node: _scale(histograms[of].percentile(per_cent), grids[node].steps) for node, of in values.items()}

    return Seen(scales(RANGE_PERCENT), macs, means, outputs, largest_weight, scales(100.0), grids, joins=joins)


def _scale(limit: float, steps: int = MOST) -> float:
    """The scale of a range, as a float32 has it; 1 for what was always zero."""
    return float(torch.tensor(limit / steps)) if limit / steps > torch.finfo(torch.float32).tiny else 1.0


def _by_channel(layer: Linear, value: Tensor) -> Tensor:
    """The mean of every output channel."""
    return value.mean([i for i in range(value.dim()) if i != layer.axis]).double()


def _apply(
    program: Program,
    layers: Sequence[Linear],
    seen: Seen,
    kept: Mapping[str, str],
    inputs: Sequence[Sequence[Tensor]],
) -> Quantised:
    """Quantise all but what is kept, correct the biases, and measure."""
    module = fork(program.module)
    twins = dict(zip(program.module.graph.nodes, module.graph.nodes, strict=True))
    chosen = [layer for layer in layers if layer.node.name not in kept]
    rounded: dict[Node, Node] = {}
    for value in dict.fromkeys(layer.read for layer in chosen):
        rounded[value] = _round_value(module, twins[value], seen.scales[value], seen.grids[value])
    if seen.joins:
        for value in find_rounded(program.module, chosen):
            if value not in rounded:
                rounded[value] = _round_value(module, twins[value], seen.scales[value], seen.grids[value])
        _read_rounded({twins[value]: made for value, made in rounded.items()})
    for layer in chosen:
        node = twins[layer.node]
        weight = _round_weight(module, node, layer, seen)
        args = list(arguments(node))
        args[layer.at.data], args[layer.at.weight] = rounded[layer.read], weight
        node.args, node.kwargs = _by_kind(node, args)
    count = sum(value.target is aten.add.Tensor for value in rounded) if seen.joins else 0
    for value, readers in seen.sums(chosen).items():
        for reader, i in readers:
            if reader.name not in kept:
                twins[reader].update_arg(i, rounded[value])
                count += 1
    outputs = _correct_biases(module, {twins[layer.node]: layer for layer in chosen}, seen, inputs)
    snr, error = _snr_db(seen.outputs, outputs), _error(seen.outputs, outputs)
    return Quantised(with_module(program, tidy(module)), dict(kept), len(chosen), count, snr, error, seen.joins)


def _correct_biases(
    module: GraphModule, layers: Mapping[Node, Linear], seen: Seen, inputs: Sequence[Sequence[Tensor]]
) -> list[list[Tensor]]:
    """Take from each bias, in order, what rounding has added to the layer's mean. Returns the outputs of every call.

    Args:
        layers: by node of `module`, the layer of the program in float.
    """
    outputs: list[list[Tensor]] = []
    biases: dict[Node, Tensor] = {}
    for node, values in interpret(module, inputs):
        if node in layers and layers[node].at.bias >= 0:
            layer = layers[node]
            mean = seen.means[layer.node]
            wrong = torch.stack([_by_channel(layer, value) for value in values]).mean(0) - mean
            shift = along(wrong.float(), layer.axis, values[0].dim())
            values[:] = [value - shift for value in values]
            biases[node] = (torch.zeros_like(mean) if layer.bias is None else layer.bias) - wrong
        if node.op == "output":
            outputs = [[y.double() for y in tree_leaves(value)] for value in values]
    for node, bias in biases.items():
        at = layers[node].at
        name = f"{arguments(node)[at.weight].meta['weight']}_bias"
        node.update_arg(at.bias, add_constant(module, name, bias.float(), node))
    return outputs


def _by_kind(node: Node, values: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """All arguments of an operator, as `arguments` has them, apart: those by position and those by keyword only."""
    assert isinstance(node.target, torch._ops.OpOverload)
    named = list(zip(node.target._schema.arguments, values, strict=True))
    by_position = tuple(value for argument, value in named if not argument.kwarg_only)
    return by_position, {argument.name: value for argument, value in named if argument.kwarg_only}


def _read_rounded(rounded: Mapping[Node, Node]) -> None:
    """Have all readers of values read them rounded, but the model's outputs."""
    for value, made in rounded.items():
        for reader in [user for user in value.users if user.op != "output" and user is not made.args[0]]:
            reader.replace_input_with(value, made)


def _round_value(module: GraphModule, node: Node, scale: float, grid: Grid) -> Node:
    """A value as integers hold it, after the node that makes it; after all placeholders when it is one."""
    after = [n for n in module.graph.nodes if n.op == "placeholder"][-1] if node.op == "placeholder" else node
    emit = Emitter(module, after.next)
    emit.source = node
    range_of_all = (scale, grid.zero, grid.least, grid.most, grid.dtype)
    numbers = emit(_quantised.quantize_per_tensor.default, node, *range_of_all)
    return emit(_quantised.dequantize_per_tensor.default, numbers, *range_of_all)


def _round_weight(module: GraphModule, node: Node, layer: Linear, seen: Seen) -> Node:
    """A layer's weight as int8 numbers with a scale for each output channel."""
    least = least_scales(layer, seen.scales[layer.read])
    numbers, scales = round_weight(layer.own_weight, layer.at.rows, seen.largest_weight, least)
    emit = Emitter(module, node)
    name = str(layer.weight_node.target)
    held = emit.constant(f"{name}_int8", numbers)
    factors = emit.constant(f"{name}_scale", scales)
    zeros = emit.constant(f"{name}_zero", torch.zeros_like(scales, dtype=torch.int8))
    made = emit(_quantised.dequantize_per_channel.default, held, factors, zeros, layer.at.rows, LEAST, MOST, torch.int8)
    made.meta["weight"] = name
    return made


def round_weight(weight: Tensor, axis: int, largest: int = MOST, least: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """int8 numbers of a weight's shape and float32 scales [C], C the channels along `axis`; at least `least` [C]."""
    peaks = weight.movedim(axis, 0).flatten(1).abs().amax(1)
    scales = torch.where(peaks > 0, peaks / largest, torch.ones_like(peaks)).clamp(min=torch.finfo(torch.float32).tiny)
    if least is not None:
        scales = torch.maximum(scales, least.to(scales))
    broadcast = scales.reshape([-1 if i == axis else 1 for i in range(weight.dim())])
    return (weight / broadcast).round().clamp(-largest, largest).to(torch.int8), scales


def least_scales(layer: Linear, scale: float) -> Tensor:
    """Return the scales [C] that a layer's weight has at least: its bias fits an int32 at the scale of its products.

    A constant that is added right behind a matmul counts as its bias, since runtimes join the two.

    Args:
        scale: of what the layer reads.
    """
    sizes = torch.zeros(layer.channels, dtype=torch.float64)
    for bias in (layer.bias, *_added_behind(layer)):
        if bias is not None and bias.numel():
            flat = bias.abs().flatten()
            sizes = torch.maximum(sizes, flat if flat.numel() == layer.channels else flat.max())
    return torch.clamp(sizes / MOST_OF_BIAS, min=LEAST_PRODUCT).div(scale).clamp(max=torch.finfo(torch.float32).max)


def _added_behind(layer: Linear) -> Iterator[Tensor]:
    """Constants that are added to what a layer makes."""
    for user in layer.node.users:
        if user.target is aten.add.Tensor:
            for other in user.args:
                value = constant(layer.module, other) if isinstance(other, Node) else None
                if value is not None:
                    yield value.double()


def _snr_db(reference: Sequence[Sequence[Tensor]], outputs: Sequence[Sequence[Tensor]]) -> float | None:
    """Of the worst output; None where all are equal."""
    ratios = [_ratio(*pair) for pair in zip(_power(reference), _noise(reference, outputs), strict=True)]
    worst = min(ratios)
    return None if worst == math.inf else worst


def _snr_of_worst_call(reference: Sequence[Sequence[Tensor]], outputs: Sequence[Sequence[Tensor]]) -> float:
    """Return the least SNR of an output of one call, its signal as strong as that of all calls on average at least."""
    mean = [power / len(reference) for power in _power(reference)]
    ratios = [
        _ratio(max(own, of_all), noise)
        for ys, zs in zip(reference, outputs, strict=True)
        for own, of_all, noise in zip(_power([ys]), mean, _noise([ys], [zs]), strict=True)
    ]
    return min(ratios)


def _error(reference: Sequence[Sequence[Tensor]], outputs: Sequence[Sequence[Tensor]]) -> float:
    """Return the largest error of any output of any call, relative to its peak."""
    worst = 0.0
    for ys, zs in zip(reference, outputs, strict=True):
        for y, z in zip(ys, zs, strict=True):
            gap = float((z - y).abs().max()) if y.numel() else 0.0
            if gap:
                worst = max(worst, gap / float(y.abs().max()) if y.any() else math.inf)
    return worst


def _ratio(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 and math.isfinite(noise) else -math.inf


def _power(outputs: Sequence[Sequence[Tensor]]) -> list[float]:
    return [sum(float(y.square().sum()) for y in each) for each in zip(*outputs, strict=True)]


def _noise(reference: Sequence[Sequence[Tensor]], outputs: Sequence[Sequence[Tensor]]) -> list[float]:
    pairs = zip(zip(*reference, strict=True), zip(*outputs, strict=True), strict=True)
    return [sum(float((z - y).square().sum()) for y, z in zip(*pair, strict=True)) for pair in pairs]


def sensitivities(
    program: Program, layers: Sequence[Linear], seen: Seen, inputs: Sequence[Sequence[Tensor]]
) -> dict[str, float]:
    """By node name, the noise that a layer or a sum alone makes at the outputs, relative to the signal: of the worst.

    Everything else stays float, so that only what is behind it has to be computed again.
    """
    found: dict[str, float] = {}
    for j, given in enumerate(inputs):
        values = {node: value for node, (value,) in interpret(program.module, [given])}
        signal = _power(seen.outputs[j : j + 1])
        for node, made in _rounded_alone(layers, seen, values):
            returned = recompute(program.module, values, node, made)
            noise = _noise(seen.outputs[j : j + 1], [[y.double() for y in tree_leaves(returned)]])
            worst = max(n / s if s else 0.0 for n, s in zip(noise, signal, strict=True))
            found[node.name] = found.get(node.name, 0.0) + worst
    return {name: value / len(inputs) for name, value in found.items()}


def _rounded_alone(layers: Sequence[Linear], seen: Seen, values: Mapping[Node, Any]) -> Iterator[tuple[Node, Tensor]]:
    """Each layer, and each sum behind one, with what it makes of rounded operands."""
    rounded = {
        read: _as_integers(values[read], seen.scales[read], seen.grids[read])
        for read in dict.fromkeys(one.read for one in layers)
    }

    def made(node: Node, given: Sequence[Any]) -> Tensor:
        args, kwargs = torch.fx.map_arg(_by_kind(node, given), values.__getitem__)
        with torch.no_grad():
            result: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]  # an operator
        return result

    for layer in layers:
        args: list[Any] = list(arguments(layer.node))
        least = least_scales(layer, seen.scales[layer.read])
        numbers, scales = round_weight(layer.own_weight, layer.at.rows, seen.largest_weight, least)
        args[layer.at.data], args[layer.at.weight] = rounded[layer.read], numbers * layer.of_rows(scales)
        yield layer.node, made(layer.node, args)
    for reader, i in (pair for readers in seen.sums(layers).values() for pair in readers):
        args = list(arguments(reader))
        args[i] = rounded[args[i]]
        yield reader, made(reader, args)


def _as_integers(value: Tensor, scale: float, grid: Grid) -> Tensor:
    return (value / scale).round().clamp(grid.least - grid.zero, grid.steps) * scale


def _choose(
    layers: Sequence[Linear],
    seen: Seen,
    costs: Mapping[str, float],
    kept: Mapping[str, str],
    now_db: float,
    wanted_db: float,
) -> dict[str, str]:
    """Return the layers that have to be float as well, with the reasons, until the rest should be good enough.

    What makes less than its even share of the noise that is allowed comes last, since little would be gained.
    """
    chosen = [layer for layer in layers if layer.node.name not in kept]
    sums = [reader for readers in seen.sums(chosen).values() for reader, _ in readers if reader.name not in kept]
    ordered = sorted(dict.fromkeys(sums), key=lambda node: -costs[node.name])
    ordered += sorted((layer.node for layer in chosen), key=lambda node: -costs[node.name] / seen.macs[node.name])
    noise = 10 ** (-now_db / 10) if math.isfinite(now_db) else math.inf
    allowed = 10 ** (-wanted_db / 10)
    alone = sum(costs[node.name] for node in ordered)
    factor = noise / alone if alone and math.isfinite(noise) else 1.0
    share = allowed / max(len(ordered), 1)
    ordered.sort(key=lambda node: costs[node.name] * factor <= share)
    found: dict[str, str] = {}
    for node in ordered:
        if noise <= allowed:
            break
        noise -= costs[node.name] * factor
        found[node.name] = (
            f"{operator_name(node).removeprefix('aten.')} at {site(node)} alone leaves"
            f" {-10 * math.log10(max(costs[node.name], 1e-30)):.1f} dB"
        )
    return found


def type_int8(program: Program, task: TypingTask) -> Typed:
    """Return the program with int8 layers, made on the task's calibration data.

    Raises:
        Unsupported, BadInput: as `quantise`.
    """
    assert task.calibration is not None
    assert task.largest_int8_weight is not None, "the target lists int8 and says no largest weight"
    data, largest = task.calibration, task.largest_int8_weight
    limits, exact = task.thresholds, keep_exact(program, task)
    found = quantise(
        program,
        data.inputs,
        limits.snr_db,
        largest,
        task.run_file,
        limits.relative_error,
        exact,
        "dense" if task.int8_is_dense else "joined" if task.int8_joins else "layers",
    )

    def describe(file: CountsMacs) -> dict[str, Any]:
        macs = file.count_macs()
        return {
            "int8": {
                "layers": found.layers,
                "sums": found.sums,
                "macs": macs,
                "share_of_macs": round(macs["int8"] / macs["all"], 4),
                "weight_bits": largest.bit_length() + 1,
                "snr_db": None if found.snr_db is None else round(found.snr_db, 1),
                "calibration": data.described,
                **({"joined": found.is_joined} if task.int8_joins else {}),
            }
        }

    return Typed(found.program, found.kept or None, describe)
