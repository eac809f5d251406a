"""Operators that a kernel of kernels/native/ computes, chosen in Relax.

    conv2d, 1 x 1                         Pointwise       y = f(x W + b) g + r
    matmul by a constant                  Pointwise
    matmul of two values                  Matmul
    conv2d, a channel by itself           Depthwise
    conv2d of any kernel and groups       Convolution; Winograd where it is KH x 3, with stride 1
    conv2d or matmul of what lif fires    Spikes
    an image, channels last               Turn

What follows in the graph and is read nowhere else goes into the kernel's epilogue: bias, function, gate, residual.
Kernels read maps channels last. TVM's ConvertLayout turns the graph between them, through elementwise operators, norms
and reductions, so that transposes are left only where a model looks at its maps as sequences, or at its ends.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from edgesmith.errors import Unsupported
from edgesmith.exporters.targets._tvm_arrange import PERMUTES, RESHAPES, apply, arranged, operator, rebuilt, sizes
from edgesmith.exporters.targets._tvm_processor import Processor
from edgesmith.exporters.targets._tvm_sink import NEURONS, sunk
from edgesmith.kernels.additive_attention import WEIGHTS
from edgesmith.kernels.native import (
    additive_attention,
    convolution,
    depthwise,
    fft_filter,
    hidden_state_mixer,
    lif,
    lmu_memory,
    matmul,
    norms,
    pointwise,
    spikes,
    turn,
    winograd,
)
from edgesmith.kernels.native.epilogue import Epilogue
from edgesmith.kernels.native.toolchain import CpuTarget
from edgesmith.kernels.native.unit import Unit

if TYPE_CHECKING:
    import numpy as np

Shape = tuple[int, ...]

NO_NUMBERS: Any = ()
"""The weight and the bias of a site that keeps its own."""

FUNCTIONS = {
    "relax.nn.relu": "relu",
    "relax.nn.relu6": "relu6",
    "relax.nn.silu": "silu",
    "relax.nn.gelu": "gelu",
    "relax.sigmoid": "sigmoid",
    "relax.exp": "exp",
}
"""Functions of an epilogue, by Relax's operators."""


@dataclass(frozen=True)
class Kernel:
    """A kernel that a module calls.

    Attributes:
        kind: what it computes, in a word or two.
        unit: its source and arguments.
        macs: multiply-accumulates of one call.
    """

    kind: str
    unit: Unit
    macs: int


@dataclass(frozen=True)
class Chosen:
    """A module in which kernels are called by `call_dps_packed`.

    Attributes:
        kernels: by their symbols.
        operators: how often each operator of the module occurred before.
    """

    module: Any
    kernels: Mapping[str, Kernel] = field(default_factory=dict)
    operators: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Site:
    """A layer in the graph, with what its epilogue takes.

    Attributes:
        bindings: variables that the kernel computes, in order; only the last is read elsewhere.
        weight: as PyTorch has it.
        shape: of the last value.
        of_spikes: x is 0 or 1 everywhere.
    """

    bindings: tuple[Any, ...]
    x: Any
    weight: np.ndarray
    shape: tuple[int, ...]
    of_spikes: bool = False
    bias: np.ndarray | None = None
    function: str = "none"
    gate: tuple[str, Any] | None = None
    residual: tuple[str, Any] | None = None

    @property
    def epilogue(self) -> Epilogue:
        """The epilogue of the kernel: what it does to a number before it writes it."""
        gate, residual = (one[0] if one else "none" for one in (self.gate, self.residual))
        return Epilogue(self.function, gate, residual)  # type: ignore[arg-type]  # names of epilogue.py's literals

    @property
    def given(self) -> list[Any]:
        """The values that the kernel reads."""
        return [self.x, *(one[1] for one in (self.gate, self.residual) if one is not None)]


def choose(module: Any, processor: Processor) -> Chosen:
    """Return a module with calls of kernels in place of what they compute."""
    import tvm
    from tvm import relax

    target = processor.cpu_target()
    turned = tvm.transform.Sequential(
        [
            relax.transform.FoldConstant(),
            relax.transform.ConvertLayout({"relax.nn.conv2d": ["NHWC", "OHWI"]}),
            relax.transform.CanonicalizeBindings(),
        ]
    )(arranged(module))
    shared = relax.transform.EliminateCommonSubexpr()(arranged(sunk(arranged(turned))))
    return _Chooser(shared, target).choose()


class _Chooser:
    """Walks through `main` once, and replaces each layer, with what follows it, by a call."""

    def __init__(self, module: Any, target: CpuTarget) -> None:
        self.module, self.target = module, target
        self.kernels: dict[str, Kernel] = {}
        main = module["main"]
        self.values = {binding.var: binding.value for block in main.body.blocks for binding in block.bindings}
        self.order = {variable: i for i, variable in enumerate(self.values)}
        self.readers: dict[Any, list[Any]] = {}
        for variable, value in self.values.items():
            for read in _reads(value):
                self.readers.setdefault(read, []).append(variable)
        self.gone: set[Any] = set()  # variables that a kernel computes
        self.returned = Counter(_reads(main.body.body))

    def choose(self) -> Chosen:
        """Return the module with its kernels."""
        calls: dict[Any, Any] = {}
        gone = self.gone
        for variable, value in self.values.items():
            if variable in gone:
                continue
            if (fused := self._fused(variable, value)) is not None:
                gone.update(fused[0])
                calls[fused[0][-1]] = fused[1]
            elif (alone := self._alone(variable, value)) is not None:
                calls[variable] = alone
            elif (site := self._site(variable, value)) is not None:
                gone.update(site.bindings)
                calls[site.bindings[-1]] = self._call(site)
        names = Counter(_called_name(value) for value in self.values.values())
        del names[""]
        module = rebuilt(self.module, lambda variable, value: calls.get(variable, value))
        return Chosen(module, self.kernels, dict(names))

    def _fused(self, variable: Any, value: Any) -> tuple[tuple[Any, ...], Any] | None:
        """Return the call of the kernel of a fused op, and the variables that it computes, the last of them last.

        The op's own lowering has put a call there under the op's name.
        """
        if operator(value) != "relax.call_dps_packed" or str(value.args[0].global_symbol) not in FUSED:
            return None
        name = str(value.args[0].global_symbol)
        kind = name.removeprefix("edgesmith.").replace("_", " ")
        x, *weights = value.args[1].fields
        numbers = [_constant(one, self.values) for one in weights]
        if any(one is None for one in numbers):
            raise Unsupported(
                f"the kernel of {kind} takes weights that are constants, and here the model computes them; choose"
                " another target"
            )
        made, site = value.ty_args[0], Site((variable,), x, NO_NUMBERS, (), bias=NO_NUMBERS)
        if name in FINISHED:
            site = self._with_epilogue(replace(site, shape=sizes(variable)))
            made = self.values[site.bindings[-1]].ty
        unit, packed, macs = FUSED[name](sizes(x), numbers, self.target, site.epilogue)
        return site.bindings, self._called(kind, unit, site.given, packed, made, macs)

    def _alone(self, variable: Any, value: Any) -> Any:
        """Return the call of a kernel that computes one operator alone: a norm, a mean over pixels, an image turned."""
        name = operator(value)
        if name not in ALONE or _dtype(variable) != "float32":
            return None
        if (
            name == "relax.matmul"
            and _constant(value.args[1], self.values) is not None
            and len(sizes(value.args[1])) == 2
        ):
            return None  # a layer, with an epilogue
        op = ALONE[name](value)
        if op is None:
            return None
        kind, unit = op[0], op[1](self.target)
        if kind == "matmul":
            return self._called(kind, unit, list(value.args), (), variable.ty, unit.flops // 2)
        packed = tuple[Any, ...]()
        if kind not in ("mean", "softmax", "turn"):
            weight, bias = (_constant(one, self.values) for one in value.args[1:3])
            if weight is None or bias is None:
                return None
            packed = (norms.pack(weight.size, weight, bias),)
        return self._called(kind, unit, [value.args[0]], packed, variable.ty, macs=0)

    def _site(self, variable: Any, value: Any) -> Site | None:
        """Return the layer that begins at a variable; None where there is none, or no kernel for it."""
        name = operator(value)
        if name not in ("relax.nn.conv2d", "relax.matmul") or _dtype(variable) != "float32":
            return None
        weight = self._weight(value, name)
        if weight is None:
            return None
        site = Site((variable,), value.args[0], weight, sizes(variable), self._are_spikes(value.args[0]))
        if self._op(site, value) is None:
            return None
        return self._with_epilogue(site)

    def _are_spikes(self, variable: Any) -> bool:
        """Return whether a value is what neurons fire: 0 or 1, in whatever arrangement."""
        from tvm import relax

        value: Any = self.values.get(variable)
        name = operator(value)
        if name == PERMUTES or name in RESHAPES:
            return self._are_spikes(value.args[0])
        if name == "relax.concat" and isinstance(value.args[0], relax.Tuple):
            return all(self._are_spikes(one) for one in value.args[0].fields)
        return _called_name(value) == NEURONS

    def _weight(self, value: Any, name: str) -> np.ndarray | None:
        """Return a layer's weight as PyTorch has it, where it is a constant."""
        found = _constant(value.args[1], self.values)
        if found is None:
            return None
        if name == "relax.matmul":
            return found.T if found.ndim == 2 else None
        return found.transpose(0, 3, 1, 2)  # OHWI

    def _op(self, site: Site, value: Any) -> Any:
        """Return the kernel's op for a layer; None where none computes it."""
        if operator(value) == "relax.matmul":
            pixels = _product(site.shape[:-1])
            if site.of_spikes:
                return spikes.Spikes(_line(pixels, site))
            return pointwise.Pointwise(pixels, site.weight.shape[1], site.weight.shape[0], site.epilogue)
        return self._convolution(site, value)

    def _convolution(self, site: Site, value: Any) -> Any:
        """Return the kernel's op for a convolution; None where none computes it."""
        batch, height, width, channels = sizes(site.x)
        given, (outputs, inputs, *kernel) = value.attrs, site.weight.shape
        padding, out = [int(n) for n in given.padding], sizes(value)[1:3]
        stride, dilation = _same(given.strides, out), _same(given.dilation, kernel)
        if stride is None or dilation is None or str(given.data_layout) != "NHWC":
            return None
        sides: Any = tuple(padding * (4 // len(padding)))
        groups, size = int(given.groups), (kernel[0], kernel[1])
        made: Any
        if groups == channels == outputs and inputs == 1 and channels > 1:
            made = depthwise.Depthwise(batch, height, width, channels, size, stride, sides, site.epilogue, dilation)
            return made if made.out == out else None
        if size == (1, 1) and stride == groups == 1 and not any(sides) and not site.of_spikes:
            return pointwise.Pointwise(batch * height * width, channels, outputs, site.epilogue)
        made = convolution.Convolution(
            batch, height, width, channels, outputs, size, stride, sides, dilation, site.epilogue, groups
        )
        if made.out != out:
            return None
        if site.of_spikes and groups == 1:
            return spikes.Spikes(made)
        return winograd.Winograd(made) if winograd.suits(made) else made

    def _with_epilogue(self, site: Site) -> Site:
        """Return a site with all that can follow in its kernel."""
        while (following := self._following(site)) is not None:
            site = following
        return site

    def _following(self, site: Site) -> Site | None:
        """Return a site with the operator that follows it, or None where that is not the kernel's."""
        last = site.bindings[-1]
        readers = self.readers.get(last, [])
        if len(readers) != 1 or last in self.returned or readers[0] in self.gone:
            return None
        (reader,) = readers
        value, name = self.values[reader], operator(self.values[reader])
        if _dtype(reader) != "float32" or sizes(reader) != site.shape:
            return None
        grown = replace(site, bindings=(*site.bindings, reader))
        is_bare = site.function == "none" and site.gate is None
        if name in FUNCTIONS and is_bare and (site.residual is None or self._can_be_before(site)):
            residual = ("before", site.residual[1]) if site.residual else None
            return replace(grown, function=FUNCTIONS[name], residual=residual)
        if name not in ("relax.add", "relax.multiply"):
            return None
        other = value.args[1] if value.args[0].same_as(last) else value.args[0]
        if other.same_as(last):
            return None
        if name == "relax.add":
            return self._added(site, grown, other, is_bare)
        return self._gated(site, grown, other)

    def _can_be_before(self, site: Site) -> bool:
        """Return whether the residual may come before the function: nothing else has come after it."""
        return site.residual is not None and site.residual[0] == "after" and site.function == "none"

    def _added(self, site: Site, grown: Site, other: Any, is_bare: bool) -> Site | None:
        """Return a site with what is added to it: its bias, or a residual."""
        constant = _constant(other, self.values)
        channels = site.shape[-1]
        is_bias = constant is not None and constant.size == channels and constant.shape[-1:] == (channels,)
        if constant is not None and is_bias and is_bare and site.residual is None and site.bias is None:
            return replace(grown, bias=constant.reshape(channels))
        if site.residual is None and constant is None and sizes(other) == site.shape:
            return replace(grown, residual=("after", other))
        return None

    def _gated(self, site: Site, grown: Site, other: Any) -> Site | None:
        """Return a site with a factor."""
        if site.gate is not None or (site.residual is not None and site.residual[0] == "after"):
            return None
        shape, channels = sizes(other), site.shape[-1]
        kind = ""
        if shape == site.shape:
            kind = "full"
        elif _product(shape) == channels and shape[-1:] == (channels,):
            kind = "channel"
        elif shape == (*site.shape[:-1], 1):
            kind = "pixel"
        return replace(grown, gate=(kind, other)) if kind else None

    def _call(self, site: Site) -> Any:
        """Return the call of a site's kernel, which is added to the kernels."""
        op = self._op(site, self.values[site.bindings[0]])
        module = next(
            one for one in (pointwise, convolution, depthwise, spikes, winograd) if one.__name__ == type(op).__module__
        )
        unit = module.emit(op, self.target)
        packed = module.pack(op, self.target, site.weight, site.bias)
        made = self.values[site.bindings[-1]].ty
        return self._called(type(op).__name__.lower(), unit, site.given, (packed,), made, unit.flops // 2)

    def _called(self, kind: str, unit: Unit, given: Sequence[Any], packed: Sequence[Any], made: Any, macs: int) -> Any:
        """Return a call of a kernel, which is added to the kernels.

        Args:
            made: the type of the result.
        """
        from tvm import relax

        self.kernels[unit.symbol] = Kernel(kind, unit, macs)
        reads = relax.Tuple([*given, *(relax.const(one) for one in packed)])
        types = list(made.fields) if isinstance(made, relax.TupleType) else made
        return relax.call_dps_packed(unit.symbol, reads, types)


Whole = tuple[Unit, tuple[Any, ...], int]
"""The kernel of a fused op, its packed weights, and its multiply-accumulates."""


def _additive_attention(shape: Shape, weights: Sequence[Any], target: CpuTarget, epilogue: Epilogue) -> Whole:
    """Of queries, keys and values [B, H, W, 3C]."""
    batch, height, width, triple = shape
    op = additive_attention.AdditiveAttention(batch, height, width, triple // 3, epilogue)
    unit = additive_attention.emit(op, target)
    named = dict(zip(WEIGHTS, weights, strict=True))
    return unit, (additive_attention.pack(op, target, named),), unit.flops // 2


def _hidden_state_mixer(shape: Shape, weights: Sequence[Any], target: CpuTarget, _: Epilogue) -> Whole:
    """Of maps [B, H, W, D]."""
    named = dict(zip(("project", "local", "gate", "out", "skip"), weights, strict=True))
    batch, height, width, channels = shape
    op = hidden_state_mixer.HiddenStateMixer(batch, height, width, channels, len(named["project"]) // 3)
    unit = hidden_state_mixer.emit(op, target)
    return unit, (hidden_state_mixer.pack(op, target, named),), unit.flops // 2


def _fft_filter(shape: Shape, weights: Sequence[Any], target: CpuTarget, _: Epilogue) -> Whole:
    """Of maps [B, H, W, C]; the threshold, whether by relu, and whether a mask, are behind the weights."""
    *given, (threshold, is_relu, masks) = weights
    named = dict(zip(("w1", "b1", "w2", "b2"), given, strict=True))
    _, blocks, _, hidden = named["w1"].shape
    batch, height, width, channels = shape
    how = float(threshold), hidden, "relu" if is_relu else "silu", bool(masks)
    op = fft_filter.FftFilter(batch, height, width, channels, blocks, *how)
    unit = fft_filter.emit(op, target)
    return unit, (fft_filter.pack(op, target, named),), unit.flops // 2


def _lmu_memory(shape: Shape, weights: Sequence[Any], target: CpuTarget, _: Epilogue) -> Whole:
    """Of a signal [B, T]."""
    (impulse,) = weights
    batch, length = shape
    op = lmu_memory.LmuMemory(batch, length, len(impulse))
    unit = lmu_memory.emit(op, target)
    return unit, (lmu_memory.pack(op, target, impulse),), unit.flops // 2


def _lif(shape: Shape, weights: Sequence[Any], target: CpuTarget, _: Epilogue) -> Whole:
    """Of currents [outer, T, inner]; its settings are numbers, NaN for None."""
    tau, threshold, reset, decays, beta, late, drop = (None if math.isnan(one) else float(one) for one in weights[0])
    outer, length, inner = shape
    op = lif.Lif(outer, length, inner, tau or 1.0, threshold or 0.0, reset, bool(decays), beta, bool(late), drop)
    return lif.emit(op, target), (), 0


FUSED: dict[str, Callable[[Shape, Sequence[Any], CpuTarget, Epilogue], Whole]] = {
    "edgesmith.additive_attention": _additive_attention,
    "edgesmith.hidden_state_mixer": _hidden_state_mixer,
    "edgesmith.fft_filter": _fft_filter,
    "edgesmith.lmu_memory": _lmu_memory,
    "edgesmith.lif": _lif,
}
"""Kernels of fused ops, from the first argument's shape, the constants behind it, the processor, and the epilogue."""

FINISHED = frozenset(["edgesmith.additive_attention"])
"""Fused ops whose kernels have an epilogue."""


def _layer_norm(value: Any) -> tuple[str, Any] | None:
    """Return the kernel of a norm over the last axis."""
    shape, axes = sizes(value), [int(axis) % len(sizes(value)) for axis in value.attrs.axes]
    if axes != [len(shape) - 1]:
        return None
    op = norms.LayerNorm(_product(shape[:-1]), shape[-1], float(value.attrs.epsilon))
    return "layer norm", partial(norms.emit_layer_norm, op)


def _group_norm(value: Any) -> tuple[str, Any] | None:
    """Return the kernel of a norm over groups of channels, which are last."""
    shape, given = sizes(value), value.attrs
    last = len(shape) - 1
    if int(given.channel_axis) % len(shape) != last or sorted(int(a) for a in given.axes) != [*range(1, last)]:
        return None
    pixels, groups = _product(shape[1:-1]), int(given.num_groups)
    op = norms.GroupNorm(shape[0], pixels, shape[-1], groups, float(given.epsilon))
    return "group norm", partial(norms.emit_group_norm, op)


def _mean(value: Any) -> tuple[str, Any] | None:
    """Return the kernel of a mean over all axes but the first and the last."""
    shape = sizes(value.args[0])
    axes = [int(axis) % len(shape) for axis in value.attrs.axis or range(len(shape))]
    if len(shape) < 3 or sorted(axes) != [*range(1, len(shape) - 1)]:
        return None
    return "mean", partial(norms.emit_mean, norms.Mean(shape[0], _product(shape[1:-1]), shape[-1]))


def _softmax(value: Any) -> tuple[str, Any] | None:
    """Return the kernel of a softmax over the last axis."""
    shape = sizes(value)
    if int(value.attrs.axis) % len(shape) != len(shape) - 1:
        return None
    return "softmax", partial(norms.emit_softmax, norms.Softmax(_product(shape[:-1]), shape[-1]))


def _turn(value: Any) -> tuple[str, Any] | None:
    """Return the kernel of an image that is turned to channels last."""
    shape, axes = sizes(value.args[0]), value.attrs.axes
    if axes is None or len(shape) < 3 or [int(axis) for axis in axes] != [0, *range(2, len(shape)), 1]:
        return None
    op = turn.Turn(shape[0], shape[1], _product(shape[2:]))
    return ("turn", partial(turn.emit, op)) if turn.suits(op) else None


def _matmul(value: Any) -> tuple[str, Any] | None:
    """Return the kernel of a product of two values, whose batches are the same, or the right one has none."""
    left, right = (sizes(one) for one in value.args)
    if len(left) < 2 or len(right) < 2 or value.ty.dtype.dtype != value.args[0].ty.dtype.dtype:
        return None
    is_shared = _product(right[:-2]) == 1
    if is_shared:
        op = matmul.Matmul(1, _product(left[:-1]), left[-1], right[-1])
    elif left[:-2] == right[:-2]:
        op = matmul.Matmul(_product(left[:-2]), left[-2], left[-1], right[-1])
    else:
        return None
    return "matmul", partial(matmul.emit, op)


ALONE: dict[str, Callable[[Any], tuple[str, Any] | None]] = {
    "relax.nn.layer_norm": _layer_norm,
    "relax.nn.group_norm": _group_norm,
    "relax.mean": _mean,
    "relax.nn.softmax": _softmax,
    "relax.matmul": _matmul,
    PERMUTES: _turn,
}
"""Operators that a kernel computes without what follows, and which kernel that is."""


def _line(pixels: int, site: Site) -> convolution.Convolution:
    """Return a linear layer as a convolution of one row."""
    outputs, inputs = site.weight.shape
    return convolution.Convolution(1, 1, pixels, inputs, outputs, (1, 1), 1, (0, 0, 0, 0), 1, site.epilogue)


def _same(steps: Any, sizes: Sequence[int]) -> int | None:
    """Return the step of both axes, None where the two differ; an axis with one place takes the other's."""
    if len({int(step) for step in steps}) == 1:
        return int(steps[0])
    counted = {int(step) for step, size in zip(steps, sizes, strict=True) if size > 1}
    return counted.pop() if len(counted) == 1 else 1 if not counted else None


def _called_name(value: Any) -> str:
    """Return the name of an operator, or of the fused op or the loops that a call stands for."""
    name = operator(value)
    if name == "relax.call_dps_packed":
        return str(value.args[0].global_symbol)
    return str(value.args[0].name_hint) if name == "relax.call_tir" else name


def _reads(value: Any) -> Iterator[Any]:
    """Yield the variables that an expression reads."""
    import tvm
    from tvm import relax

    if isinstance(value, tvm.ir.Var):
        yield value
    elif isinstance(value, relax.Tuple):
        for one in value.fields:
            yield from _reads(one)
    elif isinstance(value, relax.TupleGetItem):
        yield from _reads(value.tuple_value)
    elif isinstance(value, tvm.ir.Call):
        for one in value.args:
            yield from _reads(one)


def _constant(value: Any, values: Mapping[Any, Any]) -> np.ndarray | None:
    """Return the numbers of a constant, or of an arrangement of one."""
    import tvm

    if isinstance(value, tvm.ir.GenericConst):
        found: np.ndarray = value.value.numpy()
        return found
    made: Any = values.get(value)
    if operator(made) != PERMUTES and operator(made) not in RESHAPES:
        return None
    inner = _constant(made.args[0], values)
    return None if inner is None else apply(inner, made)


def _dtype(value: Any) -> str:
    return str(value.ty.dtype.dtype) if hasattr(value.ty, "dtype") else ""


def _product(shape: tuple[int, ...]) -> int:
    found = 1
    for size in shape:
        found *= size
    return found
