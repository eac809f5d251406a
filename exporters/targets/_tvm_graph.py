"""A captured program as Relax, as fused loops and kernels, and as a listing of calls.

imported    torch's ExportedProgram -> Relax, by TVM's own importer, see docs/decisions/0097
chosen      operators that a kernel computes -> calls of it, see _tvm_kernels.py
fused       what is left -> loops, each operator's with those of the elementwise ones beside it
listed      the function `main` -> a Listing: calls, values and parameters
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgesmith.errors import EdgesmithError, Unsupported
from edgesmith.exporters.targets import _tvm_integers, _tvm_kernels, _tvm_norms, _tvm_sums
from edgesmith.exporters.targets._quiet import quiet
from edgesmith.exporters.targets._refusal import decompose, refuse
from edgesmith.exporters.targets._tvm_arrange import operator
from edgesmith.exporters.targets._tvm_plan import BYTES, Call, Listing, Value
from edgesmith.exporters.targets._tvm_processor import Processor

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from edgesmith.exporters.graph.capture import Program
    from edgesmith.exporters.targets._tvm_kernels import Chosen, Kernel

MULTIPLY = frozenset({"relax.matmul", *(f"relax.nn.conv{n}d" for n in (1, 2, 3)), "relax.nn.conv2d_transpose"})
"""Relax's operators that are counted in multiply-accumulates."""


@dataclass(frozen=True)
class Lowered:
    """A program in TVM's terms.

    Attributes:
        functions: an IRModule of loops, each with the name that the listing calls it by.
        kernels: that the listing calls.
        operators: how often each of Relax's operators occurs, and each fused op.
        covered: kernels, and operators that are loops, by what computes them: `kernels` and `tvm`.
        macs: multiply-accumulates by what computes them.
        integer_macs: how many of them are of 8-bit integers.
    """

    listing: Listing
    functions: Any
    processor: Processor
    kernels: Mapping[str, Any] = field(default_factory=dict)
    operators: Mapping[str, int] = field(default_factory=dict)
    covered: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    macs: Mapping[str, int] = field(default_factory=dict)
    integer_macs: int = 0


def lower(program: Program, lowerings: str, processor: Processor) -> Lowered:
    """Return a program as loops, kernels and a listing of calls.

    Raises:
        Unsupported: an operator that TVM's importer does not take, or a shape that is not known ahead.
    """
    with quiet():
        ready = imported(program, lowerings, processor)
        try:
            chosen = _tvm_kernels.choose(ready, processor)
            covered, macs = _account(chosen)
            module = fused(chosen.module, processor)
        except EdgesmithError:
            raise
        except Exception as error:  # TVMError, InternalError, ValueError, TypeError, RuntimeError alike
            raise refuse(error, program.module.graph.nodes, "TVM") from error
        listing, functions = listed(module)
    integer_macs = sum(one.macs for one in _kernels(chosen) if one.is_integer)
    return Lowered(listing, functions, processor, chosen.kernels, chosen.operators, covered, macs, integer_macs)


def share(program: Program, lowerings: str, processor: Processor) -> dict[str, dict[str, int]]:
    """Return the operators of a program, and its multiply-accumulates, by what computes them."""
    with quiet():
        chosen = _tvm_kernels.choose(imported(program, lowerings, processor), processor)
        covered, macs = _account(chosen)
    return {**{who: dict(found) for who, found in covered.items()}, "macs": dict(macs)}


def llvm(processor: Processor) -> Any:
    """Return TVM's description of a processor."""
    import tvm

    return tvm.target.Target({"kind": "llvm", "mtriple": processor.triple, "mcpu": processor.cpu})


def imported(program: Program, lowerings: str, processor: Processor) -> Any:
    """Return a program as Relax, its parameters as constants.

    Raises:
        Unsupported: an operator that TVM's importer does not take.
    """
    from tvm import relax
    from tvm.relax.frontend.torch import from_exported_program

    from edgesmith.exporters.graph.capture import exported
    from edgesmith.exporters.graph.subgraphs import refuse_control_flow
    from edgesmith.exporters.targets import _tvm_translations

    refuse_control_flow(program.module, "TVM")
    if _tvm_integers.has_rounding(program):
        program = _tvm_integers.with_float_weights(program)
    ready = exported(program, lowerings)
    ready = decompose(ready, _tvm_translations.decompositions(lowerings), "TVM")
    _refuse_unknown(ready, lowerings)
    try:
        module = from_exported_program(
            ready, run_ep_decomposition=False, custom_convert_map=_tvm_translations.translations(lowerings)
        )
        with llvm(processor):
            return relax.transform.DecomposeOpsForInference()(module)
    except Exception as error:  # TVMError, AssertionError, KeyError, ValueError, NotImplementedError alike
        raise refuse(error, ready.graph.nodes, "TVM") from error


def _refuse_unknown(program: ExportedProgram, lowerings: str) -> None:
    """Raise Unsupported for the first operator that the importer has no translation of."""
    from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

    from edgesmith.exporters.targets import _tvm_translations
    from edgesmith.exporters.targets._refusal import WAY_OUT, describe

    known = {*ExportedProgramImporter().convert_map, *_tvm_translations.translations(lowerings)}
    for node in program.graph.nodes:
        if (made := node.meta.get("val")) is not None and _is_empty(made) and node.op != "output":
            raise Unsupported(
                f"TVM cannot express this model: {node.name} has no numbers, {list(made.shape)}, and TVM no tensors"
                " without any; leave it out of the model, or choose another target"
            )
        if node.op == "call_function" and node.target.__name__ not in known:
            raise Unsupported(f"TVM cannot express this model: it does not take {describe(node)}; {WAY_OUT}")


def _is_empty(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and any(isinstance(size, int) and size == 0 for size in value.shape)


def fused(module: Any, processor: Processor) -> Any:
    """Return a module in which `main` calls loops and kernels, and reshapes, and nothing else."""
    import tvm
    from tvm import relax

    with llvm(processor), tvm.transform.PassContext(opt_level=3):
        return tvm.transform.Sequential(
            [
                relax.transform.CanonicalizeBindings(),
                relax.transform.EliminateCommonSubexpr(),
                relax.transform.LegalizeOps(
                    {**_tvm_norms.legalizations(), **_tvm_sums.legalizations()}, enable_warning=False
                ),
                relax.transform.AnnotateTIROpPattern(),
                relax.transform.FoldConstant(),
                relax.transform.FuseOps(),
                relax.transform.FuseTIR(),
                relax.transform.DeadCodeElimination(),
                relax.transform.RewriteDataflowReshape(),
                relax.transform.CanonicalizeBindings(),
                relax.transform.DeadCodeElimination(),
            ]
        )(module)


def _account(chosen: Chosen) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    """Return operators, and multiply-accumulates, by what computes them."""
    kernels, loops = Counter[str](), Counter[str]()
    macs = {"kernels": 0, "tvm": 0}
    for _, value in bindings(chosen.module):
        name = operator(value)
        if name == "relax.call_dps_packed":
            kernel = chosen.kernels[str(value.args[0].global_symbol)]
            kernels[kernel.kind] += 1
            macs["kernels"] += kernel.macs
        elif name:
            loops[name] += 1
            macs["tvm"] += _macs(name, value) if name in MULTIPLY else 0
    return {"kernels": dict(kernels), "tvm": dict(loops)}, macs


def _kernels(chosen: Chosen) -> Iterator[Kernel]:
    """Yield the kernel of each call of one."""
    for _, value in bindings(chosen.module):
        if operator(value) == "relax.call_dps_packed":
            yield chosen.kernels[str(value.args[0].global_symbol)]


def _macs(name: str, call: Any) -> int:
    """Return the multiply-accumulates of a matmul or a convolution."""
    left, right, made = (shape_of(one) for one in (call.args[0], call.args[1], call))
    if name == "relax.matmul":
        return math.prod(made) * left[-1]
    if "transpose" in name:
        return math.prod(left) * math.prod(right[1:])
    layout = str(call.attrs.kernel_layout)
    return math.prod(made) * math.prod(right) // right[layout.index("O")]


def bindings(module: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the variables of `main` and what they are, in order."""
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            yield binding.var, binding.value


def shape_of(value: Any) -> tuple[int, ...]:
    """Return the shape of a tensor. Raises Unsupported where it is not known ahead."""
    shape = value.ty.shape
    sizes = list(shape) if shape is not None else [None]
    try:
        return tuple(int(size) for size in sizes)  # type: ignore[arg-type]  # None is what raises
    except TypeError as error:
        raise Unsupported(
            "TVM does not know the shape of a value ahead, because it depends on numbers; export a part of the model"
            " whose shapes are fixed, or choose another target"
        ) from error


def dtype_of(value: Any) -> str:
    """Return numpy's name of a tensor's type. Raises Unsupported for a type that no library here has."""
    name = str(value.ty.dtype.dtype)
    if name not in BYTES:
        raise Unsupported(f"target tvm has no numbers of type {name}; choose fp32, or another target")
    return name


# The listing


class _Lister:
    """Walks through `main` once, and names every value."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.values: dict[str, Value] = {}
        self.aliases: dict[str, str] = {}
        self.parameters: dict[str, bytes] = {}
        self.calls: list[Call] = []
        self.symbols: dict[str, Any] = {}
        self._names: dict[Any, Any] = {}

    def input(self, variable: Any) -> Value:
        """Name an input."""
        value = self._new(variable)
        self._names[variable] = value.name
        return value

    def bind(self, variable: Any, value: Any) -> None:
        """List what a binding does."""
        name = operator(value)
        if name in ("relax.call_tir", "relax.call_dps_packed"):
            self._names[variable] = self._call(variable, value, name == "relax.call_dps_packed")
        elif name == "relax.reshape":
            made = self._new(variable)
            self.aliases[made.name] = self.name(value.args[0])
            self._names[variable] = made.name
        else:
            self._names[variable] = self._resolve(value)

    def name(self, expression: Any) -> str:
        """Return the name of a tensor."""
        found = self._resolve(expression)
        if not isinstance(found, str):
            raise Unsupported("TVM hands on several values as one here, which no listing has; choose another target")
        return found

    def names(self, expression: Any) -> list[str]:
        """Return the names of the tensors of an expression, nested ones one by one."""
        found = self._resolve(expression)
        return [found] if isinstance(found, str) else [name for one in found for name in _flat(one)]

    def _resolve(self, expression: Any) -> Any:
        """Return the name of a tensor, or a nest of them."""
        import tvm
        from tvm import relax

        if isinstance(expression, tvm.ir.GenericConst):
            return self._constant(expression)
        if isinstance(expression, relax.Tuple):
            return [self._resolve(one) for one in expression.fields]
        if isinstance(expression, relax.TupleGetItem):
            return self._resolve(expression.tuple_value)[expression.index]
        if expression in self._names:
            return self._names[expression]
        raise Unsupported(
            f"TVM keeps {operator(expression) or type(expression).__name__} as a call into its own runtime, which a"
            " library by itself has not; spell it with other operators, or choose another target"
        )

    def _call(self, variable: Any, value: Any, is_kernel: bool) -> Any:
        """List a call, and return the names of what it writes."""
        import tvm

        symbol = str(value.args[0].global_symbol) if is_kernel else f"loop_{value.args[0].name_hint}"
        made = value.ty_args[0]
        types = list(made.fields) if isinstance(made, tvm.relax.TupleType) else [made]
        writes = [self._new(variable, one) for one in types]
        reads = tuple(name for one in value.args[1].fields for name in self.names(one))
        self.calls.append(Call(symbol, reads, tuple(one.name for one in writes), is_kernel))
        if not is_kernel:
            self.symbols[symbol] = self.module[value.args[0]]
        return [one.name for one in writes] if isinstance(made, tvm.relax.TupleType) else writes[0].name

    def _constant(self, constant: Any) -> str:
        import numpy as np

        content = np.ascontiguousarray(constant.value.numpy())
        made = self._new(constant)
        self.parameters[made.name] = content.tobytes()
        return made.name

    def _new(self, expression: Any, kind: Any = None) -> Value:
        typed = expression if kind is None else _Typed(kind)
        value = Value(f"v{len(self.values)}", shape_of(typed), dtype_of(typed))
        self.values[value.name] = value
        return value


@dataclass(frozen=True)
class _Typed:
    """A type where an expression is asked for one."""

    ty: Any


def _flat(nested: Any) -> Iterator[str]:
    if isinstance(nested, str):
        yield nested
    else:
        for one in nested:
            yield from _flat(one)


def listed(module: Any) -> tuple[Listing, dict[str, Any]]:
    """Return `main` as a listing, and the loops that it calls, by symbol."""
    lister = _Lister(module)
    main = module["main"]
    inputs = tuple(lister.input(variable) for variable in main.params)
    for variable, value in bindings(module):
        lister.bind(variable, value)
    outputs = tuple(lister.values[name] for name in lister.names(main.body.body))
    for one in (*inputs, *outputs):
        if one.dtype == "float16":
            raise Unsupported(
                "target tvm has no inputs and outputs of half precision, as C has none; give and return float32, or"
                " choose another target"
            )
    listing = Listing(inputs, outputs, tuple(lister.calls), lister.values, lister.parameters, lister.aliases)
    return listing, lister.symbols
