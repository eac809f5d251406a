"""Operators that a kernel of kernels/native/ computes, chosen in Relax.

    conv2d, 1 x 1                         Pointwise       y = f(x W + b) g + r
    matmul by a constant                  Pointwise
    conv2d, a channel by itself           Depthwise
    conv2d of any kernel, one group       Convolution

What follows in the graph and is read nowhere else goes into the kernel's epilogue: bias, function, gate, residual.
Kernels read maps channels last. TVM's ConvertLayout turns the graph between them, through elementwise operators, norms
and reductions, so that transposes are left only where a model looks at its maps as sequences, or at its ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from edgesmith.exporters.targets._tvm_processor import Processor
from edgesmith.kernels.native import convolution, depthwise, pointwise
from edgesmith.kernels.native.epilogue import Epilogue

if TYPE_CHECKING:
    import numpy as np

    from edgesmith.kernels.native.toolchain import CpuTarget
    from edgesmith.kernels.native.unit import Unit

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

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one call."""
        return self.unit.flops // 2


@dataclass(frozen=True)
class Chosen:
    """A module in which kernels are called by `call_dps_packed`, and these kernels by their symbols."""

    module: Any
    kernels: Mapping[str, Kernel] = field(default_factory=dict)


@dataclass(frozen=True)
class Site:
    """A layer in the graph, with what its epilogue takes.

    Attributes:
        bindings: variables that the kernel computes, in order; only the last is read elsewhere.
        weight: as PyTorch has it.
        shape: of the last value.
    """

    bindings: tuple[Any, ...]
    x: Any
    weight: np.ndarray
    shape: tuple[int, ...]
    bias: np.ndarray | None = None
    function: str = "none"
    gate: tuple[str, Any] | None = None
    residual: tuple[str, Any] | None = None

    @property
    def epilogue(self) -> Epilogue:
        """What the kernel does to a number before it writes it."""
        gate, residual = (one[0] if one else "none" for one in (self.gate, self.residual))
        return Epilogue(self.function, gate, residual)  # type: ignore[arg-type]  # names of epilogue.py's literals


def choose(module: Any, processor: Processor) -> Chosen:
    """Return a module with calls of kernels in place of what they compute."""
    import tvm
    from tvm import relax

    target = processor.cpu_target()
    if target is None:
        return Chosen(module)
    turned = tvm.transform.Sequential(
        [
            relax.transform.ConvertLayout({"relax.nn.conv2d": ["NHWC", "OHWI"]}),
            relax.transform.CanonicalizeBindings(),
            relax.transform.FoldConstant(),
            relax.transform.EliminateCommonSubexpr(),
            relax.transform.DeadCodeElimination(),
        ]
    )(module)
    return _Chooser(turned, target).choose()


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
        self.returned = Counter(_reads(main.body.body))

    def choose(self) -> Chosen:
        """Return the module with its kernels."""
        import tvm
        from tvm import relax

        calls: dict[Any, Any] = {}
        gone: set[Any] = set()
        for variable, value in self.values.items():
            if variable not in gone and (site := self._site(variable, value)) is not None:
                gone.update(site.bindings)
                calls[site.bindings[-1]] = self._call(site)
        main = self.module["main"]
        blocks = []
        for block in main.body.blocks:
            kept = [
                relax.VarBinding(one.var, calls[one.var]) if one.var in calls else one
                for one in block.bindings
                if one.var in calls or one.var not in gone
            ]
            blocks.append(type(block)(kept))
        made = relax.Function(main.params, relax.SeqExpr(blocks, main.body.body), main.ret_ty, main.is_pure, main.attrs)
        module = tvm.IRModule({**dict(self.module.functions.items()), self.module.get_global_var("main"): made})
        return Chosen(relax.transform.Normalize()(module), self.kernels)

    def _site(self, variable: Any, value: Any) -> Site | None:
        """Return the layer that begins at a variable; None where there is none, or no kernel for it."""
        name = _operator(value)
        if name not in ("relax.nn.conv2d", "relax.matmul") or _dtype(variable) != "float32":
            return None
        weight = self._weight(value, name)
        if weight is None:
            return None
        site = Site((variable,), value.args[0], weight, _shape(variable))
        if self._op(site, value) is None:
            return None
        return self._with_epilogue(site)

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
        if _operator(value) == "relax.matmul":
            pixels = _product(site.shape[:-1])
            return pointwise.Pointwise(pixels, site.weight.shape[1], site.weight.shape[0], site.epilogue)
        batch, height, width, channels = _shape(site.x)
        given, (outputs, inputs, *kernel) = value.attrs, site.weight.shape
        strides, padding, dilation = (
            [int(n) for n in one] for one in (given.strides, given.padding, given.dilation)
        )
        if strides[0] != strides[-1] or dilation[0] != dilation[-1] or str(given.data_layout) != "NHWC":
            return None
        sides = tuple(padding * (4 // len(padding)))
        groups, size = int(given.groups), tuple(kernel)
        if groups == channels == outputs and inputs == 1 and dilation[0] == 1 and channels > 1:
            return depthwise.Depthwise(batch, height, width, channels, size, strides[0], sides, site.epilogue)
        if groups != 1:
            return None
        if size == (1, 1) and strides[0] == 1 and not any(sides):
            return pointwise.Pointwise(batch * height * width, channels, outputs, site.epilogue)
        return convolution.Convolution(
            batch, height, width, channels, outputs, size, strides[0], sides, dilation[0], site.epilogue
        )

    def _with_epilogue(self, site: Site) -> Site:
        """Return a site with all that can follow in its kernel."""
        while (following := self._following(site)) is not None:
            site = following
        return site

    def _following(self, site: Site) -> Site | None:
        """Return a site with the operator that follows it, or None where that is not the kernel's."""
        last = site.bindings[-1]
        readers = self.readers.get(last, [])
        if len(readers) != 1 or last in self.returned:
            return None
        (reader,) = readers
        value, name = self.values[reader], _operator(self.values[reader])
        if _dtype(reader) != "float32" or _shape(reader) != site.shape:
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
        if constant is not None and is_bare and site.residual is None and site.bias is None:
            if constant.size == channels and constant.shape[-1:] == (channels,):
                return replace(grown, bias=constant.reshape(channels))
        if site.residual is None and constant is None and _shape(other) == site.shape:
            return replace(grown, residual=("after", other))
        return None

    def _gated(self, site: Site, grown: Site, other: Any) -> Site | None:
        """Return a site with a factor."""
        if site.gate is not None or (site.residual is not None and site.residual[0] == "after"):
            return None
        shape, channels = _shape(other), site.shape[-1]
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
        from tvm import relax

        first = self.values[site.bindings[0]]
        op = self._op(site, first)
        module = next(one for one in (pointwise, convolution, depthwise) if one.__name__ == type(op).__module__)
        unit = module.emit(op, self.target)
        self.kernels[unit.symbol] = Kernel(type(op).__name__.lower(), unit)
        packed = relax.const(module.pack(op, self.target, site.weight, site.bias))
        given = [site.x, *(one[1] for one in (site.gate, site.residual) if one is not None), packed]
        return relax.call_dps_packed(
            unit.symbol, relax.Tuple(given), relax.TensorType(list(site.shape), "float32")
        )


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


def _operator(value: Any) -> str:
    import tvm

    return str(value.op.name) if isinstance(value, tvm.ir.Call) and isinstance(value.op, tvm.ir.Op) else ""


def _constant(value: Any, values: Mapping[Any, Any]) -> np.ndarray | None:
    """Return the numbers of a constant, or of a permuted or reshaped one."""
    import tvm

    if isinstance(value, tvm.ir.GenericConst):
        found: np.ndarray = value.value.numpy()
        return found
    if value not in values:
        return None
    made = values[value]
    name = _operator(made)
    if name not in ("relax.permute_dims", "relax.reshape"):
        return None
    inner = _constant(made.args[0], values)
    if inner is None:
        return None
    if name == "relax.reshape":
        return inner.reshape(_shape(value))
    axes = made.attrs.axes
    return inner.transpose() if axes is None else inner.transpose([int(axis) for axis in axes])


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in value.ty.shape)


def _dtype(value: Any) -> str:
    return str(value.ty.dtype.dtype) if hasattr(value.ty, "dtype") else ""


def _product(shape: tuple[int, ...]) -> int:
    found = 1
    for size in shape:
        found *= size
    return found
