"""The rules that are published about the Neural Engine, as checks on a program: one `Rule` each, with its source.

A severity follows from who says so, as nobody outside Apple can look into the Neural Engine's compiler:

    error    Apple says that it is rejected, not executed there, or computed wrongly
    warning  it leaves the Neural Engine by what users measured or reported, but no text of Apple's says so; or padding
             adds up to more than the values themselves
    cost     it runs there and is right, and takes memory or time that another form would not
    note     advice that depends on the position, or that was given about another compiler of Apple's

A check gets a `View` of one function and yields positions with what was found there. To add a rule: write its check
below, and its line in docs/lint.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgesmith.errors import BadInput
from edgesmith.exporters.mil.program import (
    Constant,
    Function,
    Interface,
    Operand,
    Operation,
    Ref,
    StateType,
    TensorType,
    Type,
    Variable,
    references,
    walk,
    walk_all,
)
from edgesmith.exporters.precision.ends import find_ends, is_layer, is_view
from edgesmith.exporters.precision.policy import HALF_MAX

if TYPE_CHECKING:
    from torch import Tensor

SEVERITIES = ("error", "warning", "cost", "note")

APPLE_RULES = (
    "https://github.com/apple/coreai-models/blob/main/skills/skills/model-authoring/references/neural_engine_rules.md"
)
APPLE_ISSUES = (
    "https://github.com/apple/coreai-models/blob/main/skills/skills/model-authoring/references/common_issues.md"
)
APPLE_ARTICLE = "https://machinelearning.apple.com/research/neural-engine-transformers"
COREMLTOOLS = "https://github.com/apple/coremltools"

ALIGNMENT = 64
"""Bytes that the last axis of a buffer is padded to."""

WIDE = 32
"""Half-precision numbers in that many bytes."""

MASK = -40000.0
"""What Apple writes into a mask instead of minus infinity."""

LARGEST_GOOD_KERNEL = 8
"""Apple's text calls a kernel of 9 bad and one of 5 good, and is silent in between."""

LARGEST_PADDING = 2.0
"""The padded over the own memory of a program, beyond which padding is no matter of single values any more."""

LEAST_LOSS = 1 << 20
"""Bytes of padding that are worth a warning: less fits beside any program."""

LARGEST_AXIS = 16384
"""Core ML's limit by the threads that `long-axis` names."""

MAP_RANK = 3
"""Axes of a map of classes: batch, height, width."""

_FLOATS = frozenset({"fp16", "fp32", "fp64", "bf16"})
_SINGLE_FLOATS = frozenset({"fp32", "fp64"})
_NATIVE = frozenset({"fp16", "int8", "int16"})
_BYTES = {"fp16": 2, "bf16": 2, "int16": 2, "uint16": 2, "int8": 1, "uint8": 1, "fp32": 4, "fp64": 8}

_DATA = frozenset(
    {
        *("x", "y", "a", "b", "values", "weight", "bias", "gamma", "beta", "mean", "variance", "data", "updates"),
        *("query", "key", "value", "attn_mask", "constant_val", "weight_ih", "weight_hh", "input"),
    }
)
"""Parameters that hold numbers to compute with; the others are settings such as an epsilon."""


@dataclass(frozen=True)
class Advice:
    """The sentences of a rule, as a report shows them.

    Attributes:
        name: in kebab case; of a departure, its id.
        severity: one of `SEVERITIES`.
        why: one sentence.
        sources: addresses of the texts that say so.
        do: what to do about it.
    """

    name: str
    severity: str
    why: str
    sources: tuple[str, ...]
    do: str


@dataclass(frozen=True)
class Rule(Advice):
    """One rule.

    Attributes:
        check: yields positions in a function and the fact found at each.
    """

    check: Check


Position = Operation | Variable
Check = Callable[["View"], Iterator[tuple[Position, str]]]

RULES: dict[str, Rule] = {}
"""Every rule by name, the most severe first."""


def rule(name: str, severity: str, *, why: str, source: str | Sequence[str], do: str) -> Callable[[Check], Check]:
    """Register a check under a rule's name."""

    def register(check: Check) -> Check:
        sources = (source,) if isinstance(source, str) else tuple(source)
        RULES[name] = Rule(name, severity, why, sources, do, check)
        return check

    return register


class View:
    """One function of a program, as checks ask about it.

    Attributes:
        function, interface: what it is made from.
        operations: its operators in order, those of inner blocks too, without `const` and `constexpr_*`.
        types: the type of every value by name.
        half: whether more of its operators compute in half precision than in single.
        ends: identities of operators that take a level from the inputs or give it back.
        class_ends: identities of operators of both ends of a map of classes.
    """

    def __init__(self, function: Function, interface: Interface) -> None:
        self.function = function
        self.interface = interface
        every = list(walk_all(function.block))
        self.operations = tuple(op for op in every if op.type != "const" and not op.type.startswith("constexpr_"))
        self.types: dict[str, Type] = {one.name: one.type for one in function.inputs}
        self._makers: dict[str, Operation] = {}
        self._readers: dict[str, list[tuple[Operation, str]]] = {}
        for operation in every:
            for block in operation.blocks:
                self.types |= {one.name: one.type for one in block.inputs}
            for one in operation.outputs:
                self.types[one.name] = one.type
                self._makers[one.name] = operation
            for parameter, name in references(operation.inputs):
                self._readers.setdefault(name, []).append((operation, parameter))
        results = [one.type.dtype for op in self.operations for one in op.outputs if isinstance(one.type, TensorType)]
        self.half = results.count("fp16") > results.count("fp32")
        self.ends = self._find_ends()
        self.class_ends = self._find_class_ends()

    def _find_ends(self) -> set[int]:
        """Return the identities of operators that take a level from the inputs or give it back, with their casts."""
        inputs, raw = {one.name for one in self.function.inputs}, dict[int, Operation]()

        def makers(operation: Operation) -> list[Operation]:
            refs = [one for _, one in self.operands(operation) if not self.is_stored(one)]
            return [made for one in refs if (made := self.maker(one)) is not None]

        for operation in self.operations:
            reads = [one for _, one in self.operands(operation) if isinstance(one, Ref) and not self.is_stored(one)]
            if not reads or operation.blocks or is_layer(operation.type):
                continue
            made = makers(operation)
            if all(one.name in inputs for one in reads if self.maker(one) is None) and all(id(m) in raw for m in made):
                raw[id(operation)] = operation
        outputs = [self._makers[name] for name in self.function.block.outputs if name in self._makers]
        ends = {id(one) for one in find_ends(raw.values(), makers, outputs, _kind)}
        casts = [one for one in self.operations if one.type == "cast" and id(one) not in ends]
        read_by = {id(one): [reader for out in one.outputs for reader, _ in self.readers(out.name)] for one in casts}
        return ends | {i for i, readers in read_by.items() if readers and all(id(one) in ends for one in readers)}

    def _find_class_ends(self) -> set[int]:
        """Return the identities of operators of both ends of a map of classes; none where no layer is half precision.

        The first end reads the inputs and itself alone, and only the last end and the argmax read the last one.
        """
        half = {
            id(operation)
            for operation in self.operations
            for one in operation.outputs
            if isinstance(one.type, TensorType) and one.type.dtype == "fp16"
        }
        has_half_layer = any(id(one) in half and is_layer(one.type) for one in self.operations)
        if not has_half_layer or any(one.blocks for one in self.operations):
            return set()
        first, last = set[int](), {id(one) for one in self._argmaxes()}
        if not last:
            return set()
        for operation in self.operations:
            refs = [Ref(name) for _, name in references(operation.inputs)]
            makers = [self.maker(one) for one in refs if not self.is_stored(one)]
            if id(operation) not in half and all(one is None or id(one) in first for one in makers):
                first.add(id(operation))
        for operation in reversed(self.operations):
            readers = [reader for one in operation.outputs for reader, _ in self.readers(one.name)]
            if id(operation) not in half and readers and all(id(one) in last for one in readers):
                last.add(id(operation))
        return first | last

    def _argmaxes(self) -> list[Operation]:
        """Return the argmaxes that make all outputs, with the views behind them; none where an output is no map."""
        found: list[Operation] = []
        for name in self.function.block.outputs:
            operation = self._makers.get(name)
            while operation is not None and is_view(_kind(operation)):
                found.append(operation)
                operation = self.maker(operation.inputs.get("x"))
            if operation is None or operation.type != "reduce_argmax" or len(self.shape(Ref(name))) < MAP_RANK:
                return []
            found.append(operation)
        return found

    def maker(self, operand: Operand | None) -> Operation | None:
        """The operator whose result an operand is; None for inputs and constants in place."""
        return self._makers.get(operand.name) if isinstance(operand, Ref) else None

    def readers(self, name: str) -> list[tuple[Operation, str]]:
        """Which operators read a value, and as which parameter."""
        return self._readers.get(name, [])

    def constant(self, operand: Operand | None) -> Constant | None:
        """The constant that an operand is, where it is one."""
        if isinstance(operand, Constant):
            return operand
        maker = self.maker(operand)
        value = maker.inputs.get("val") if maker is not None and maker.type == "const" else None
        return value if isinstance(value, Constant) else None

    def is_stored(self, operand: Operand | None) -> bool:
        """Return whether an operand is a constant, or is decompressed from constants."""
        maker = self.maker(operand)
        return self.constant(operand) is not None or (maker is not None and maker.type.startswith("constexpr_"))

    def type(self, operand: Operand | None) -> TensorType | None:
        """An operand's tensor type; None where it has none."""
        found = self.types.get(operand.name) if isinstance(operand, Ref) else getattr(operand, "type", None)
        found = found.wrapped if isinstance(found, StateType) else found
        return found if isinstance(found, TensorType) else None

    def shape(self, operand: Operand | None) -> tuple[int | None, ...]:
        """An operand's shape; () where it is not known."""
        found = self.type(operand)
        return found.shape if found is not None and found.shape is not None else ()

    def value(self, operation: Operation, parameter: str) -> Any:
        """The value of a constant parameter; None where it is absent or computed."""
        constant = self.constant(operation.inputs.get(parameter))
        return None if constant is None else constant.read()

    def ints(self, operation: Operation, parameter: str) -> list[int]:
        """The integers of a constant parameter; none where it is absent or computed. Raises BadInput for others."""
        from torch import Tensor

        value = self.value(operation, parameter)
        if not isinstance(value, Tensor):
            return []
        if value.is_floating_point():
            raise BadInput(
                f"{operation.site} has {parameter} of {value.dtype} where integers are wanted; the program is damaged"
            )
        return [int(one) for one in value.reshape(-1).tolist()]

    def flag(self, operation: Operation, parameter: str) -> bool:
        """A constant switch; False where it is absent."""
        value = self.value(operation, parameter)
        return bool(value) if value is not None else False

    def operands(self, operation: Operation) -> Iterator[tuple[str, Ref | Constant]]:
        """The operands that hold numbers to compute with, one by one."""
        for parameter, operand in operation.inputs.items():
            if parameter in _DATA and not (operation.type == "clip" and parameter == "beta"):
                yield from ((parameter, one) for one in (operand if isinstance(operand, tuple) else (operand,)))

    def values(self) -> Iterator[tuple[Position, Variable, TensorType]]:
        """Every tensor of the function that is computed or comes in, with where it is made."""
        for one in self.function.inputs:
            kind = one.type.wrapped if isinstance(one.type, StateType) else one.type
            if isinstance(kind, TensorType):
                yield one, one, kind
        for operation in self.operations:
            for one in operation.outputs:
                if isinstance(one.type, TensorType):
                    yield operation, one, one.type


def _kind(operation: Operation) -> str:
    """Return an operator's name as `find_ends` knows it: a change of type is a view."""
    return "view" if operation.type in ("cast", "identity") else operation.type.removeprefix("reduce_")


def words(shape: Sequence[int | None] | None) -> str:
    """A shape in words."""
    return "[...]" if shape is None else f"[{', '.join('?' if size is None else str(size) for size in shape)}]"


def memory(kind: TensorType) -> tuple[int, int] | None:
    """Bytes of a tensor as it is, and with its last axis padded. None where that is not known, or it has no axis."""
    if not kind.shape or None in kind.shape or kind.dtype not in _BYTES:
        return None
    sizes = [size for size in kind.shape if size is not None]
    row = sizes[-1] * _BYTES[kind.dtype]
    rows = math.prod(sizes[:-1])
    return rows * row, rows * math.ceil(row / ALIGNMENT) * ALIGNMENT


def _kib(count: int) -> str:
    return (
        f"{count} B" if count < 1024 else f"{count / 1024:.1f} KiB" if count < 1 << 20 else f"{count / 2**20:.1f} MiB"
    )


# What Apple says cannot run there ---------------------------------------------------------------------------------


@rule(
    "rank",
    "error",
    why="Tensors of a rank above 5 are rejected.",
    source=APPLE_RULES,
    do="Reshape axes of size 1 away, or merge axes before and split them after.",
)
def _rank(view: View) -> Iterator[tuple[Position, str]]:
    for position, one, kind in view.values():
        if kind.shape is not None and len(kind.shape) > 5:
            yield position, f"{one.name} has rank {len(kind.shape)}: {words(kind.shape)}"


@rule(
    "fp32-computation",
    "error",
    why="The types are fp16, int8 and int16; what computes in fp32 falls back to the GPU or CPU.",
    source=APPLE_RULES,
    do="Export with --precision fp16; keep in fp32 only what overflows.",
)
def _fp32_computation(view: View) -> Iterator[tuple[Position, str]]:
    yield from ((one, said) for one, said in _single(view) if id(one) not in view.ends | view.class_ends)


def _single(view: View) -> Iterator[tuple[Operation, str]]:
    """Yield the operators that compute in single precision, with that in words."""
    for operation in view.operations:
        if operation.blocks or operation.type == "classify" or _is_cast_at_the_edge(operation, view):
            continue  # what is inside counts, and dictionaries are not computed there anyway
        outputs = [one.type.dtype for one in operation.outputs if isinstance(one.type, TensorType)]
        inputs = [
            kind.dtype
            for _, operand in view.operands(operation)
            if not view.is_stored(operand) and (kind := view.type(operand)) is not None
        ]
        single = [dtype for dtype in (*outputs, *inputs) if dtype in _SINGLE_FLOATS]
        if single:
            yield operation, f"computes in {single[0]}"


def _is_cast_at_the_edge(operation: Operation, view: View) -> bool:
    """Return whether an operator is a cast of the interface, see `fp32-interface`, or one out of fp32."""
    if operation.type != "cast":
        return False
    names = {one.name for one in operation.outputs}
    readers = [one for one in view.operations if any(name in names for _, name in references(one.inputs))]
    # A classifier's scores are a dictionary of Float32 numbers, which Core ML fills outside of the Neural Engine.
    is_returned = names <= set(view.function.block.outputs) or {one.type for one in readers} == {"classify"}
    return is_returned or _type(operation) not in _SINGLE_FLOATS


def _type(operation: Operation) -> str:
    kind = operation.outputs[0].type if operation.outputs else None
    return kind.dtype if isinstance(kind, TensorType) else ""


@rule(
    "fp32-constant",
    "error",
    why="A single-precision literal among half-precision numbers makes a buffer that the Neural Engine cannot execute.",
    source=(APPLE_RULES, APPLE_ISSUES),
    do="Give the constant the type of what it is combined with.",
)
def _fp32_constant(view: View) -> Iterator[tuple[Position, str]]:
    if not view.half:
        return
    for operation in (one for one in view.operations if id(one) not in view.ends | view.class_ends):
        for parameter, operand in view.operands(operation):
            kind = view.type(operand)
            if view.constant(operand) is not None and kind is not None and kind.dtype in _SINGLE_FLOATS:
                yield operation, f"{parameter} is a constant in {kind.dtype}, {words(kind.shape)}"


@rule(
    "dynamic-shape",
    "error",
    why="Shapes have to be static; with a range, only the default shape runs on the Neural Engine.",
    source=(APPLE_RULES, "https://developer.apple.com/forums/thread/724930"),
    do="Export one program, or one function, for each shape.",
)
def _dynamic_shape(view: View) -> Iterator[tuple[Position, str]]:
    flexible = {feature.name: feature.flexible for feature in view.interface.inputs}
    enumerated = any(kind == "enumerated" for kind in flexible.values())
    for one in view.function.inputs:
        shape = view.shape(Ref(one.name))
        if flexible.get(one.name) == "range" or (None in shape and not enumerated):
            yield one, f"the input is {words(shape)}, with sizes that a call decides"
    for operation in view.operations:
        if any(None in view.shape(operand) for _, operand in view.operands(operation)):
            continue  # it only passes on what was dynamic before
        for one in operation.outputs:
            if isinstance(one.type, TensorType) and (one.type.shape is None or None in one.type.shape):
                yield operation, f"the result is {words(one.type.shape)}, with sizes that its values decide"


@rule(
    "infinite-constant",
    "error",
    why="Softmax on the Neural Engine does not handle infinity correctly.",
    source=(APPLE_RULES, APPLE_ISSUES),
    do=f"Mask with {MASK:.0f}, which fp16 has and whose exponential is zero; an fp16 export does so by itself.",
)
def _infinite_constant(view: View) -> Iterator[tuple[Position, str]]:
    for operation, parameter, value in _float_constants(view):
        if not math.isfinite(_largest(value)):
            count = int((~value.isfinite()).sum())
            sign = "-inf" if bool((value == -math.inf).any()) else "inf" if bool((value == math.inf).any()) else "NaN"
            many = f"{count} of {value.numel()} values are" if value.numel() > 1 else "is"
            yield operation, f"{parameter} {many} {sign}"


@rule(
    "fp16-overflow",
    "error",
    why="A finite constant beyond 65504 becomes infinite in half precision, and a mask of it NaN.",
    source=(f"{COREMLTOOLS}/pull/2669", APPLE_RULES),
    do=f"Scale it down; masks take {MASK:.0f}.",
)
def _fp16_overflow(view: View) -> Iterator[tuple[Position, str]]:
    if not view.half:
        return
    for operation, parameter, value in _float_constants(view, _FLOATS - {"fp16"}):
        largest = _largest(value)
        if not math.isfinite(largest):
            finite = value[value.isfinite()]
            largest = _largest(finite) if finite.numel() else 0.0
        if largest > HALF_MAX:
            yield operation, f"{parameter} goes up to {largest:.3g} in magnitude, and fp16 to {HALF_MAX:.0f}"


def _largest(value: Tensor) -> float:
    """Return the largest magnitude: infinity where there is one, NaN where there is one. One reading of the numbers."""
    low, high = value.aminmax()
    return float(max(-low, high))  # either both are NaN or none


def _float_constants(view: View, dtypes: Collection[str] = _FLOATS) -> Iterator[tuple[Operation, str, Tensor]]:
    import torch

    for operation in view.operations:
        for parameter, operand in view.operands(operation):
            constant, kind = view.constant(operand), view.type(operand)
            if constant is None or kind is None or kind.dtype not in dtypes:
                continue
            value = constant.read()
            if isinstance(value, torch.Tensor) and value.numel():
                yield operation, parameter, value.to(torch.float64) if value.dtype == torch.bfloat16 else value


@rule(
    "recurrent-operator",
    "error",
    why="The recurrent operators are not supported on the Neural Engine.",
    source=f"{COREMLTOOLS}/issues/1780",
    do="Write the step as matmuls and export it with --streaming, or use a form without a recurrence.",
)
def _recurrent_operator(view: View) -> Iterator[tuple[Position, str]]:
    for operation in view.operations:
        if operation.type in ("lstm", "gru", "rnn"):
            yield operation, f"{operation.type} over {words(view.shape(operation.inputs.get('x')))}"


@rule(
    "table-lookup",
    "error",
    why="Looking up rows of a two-dimensional table by a two-dimensional index gives a result of rank 3, which is"
    " rejected.",
    source=APPLE_ISSUES,
    do="Look the rows up outside and pass them as [1, D, 1, S], or give the table a middle axis of 1: [V, 1, D].",
)
def _table_lookup(view: View) -> Iterator[tuple[Position, str]]:
    for operation in view.operations:
        if operation.type in ("gather", "gather_nd") and view.is_stored(operation.inputs.get("x")):
            table, result = view.shape(operation.inputs.get("x")), operation.outputs[0].type
            if len(table) == 2 and isinstance(result, TensorType) and len(result.shape or ()) == 3:
                yield operation, f"the table {words(table)} gives {words(result.shape)}"


# What costs memory or time, or leaves by what users found -----------------------------------------------------------


@rule(
    "fp32-level",
    "cost",
    why="What takes a level from the data and gives it back computes in fp32, on the GPU or CPU; at 1000 fp16 knows"
    " halves.",
    source=APPLE_RULES,
    do="Take the level off outside, where the series are made, and add it to the forecast there.",
)
def _fp32_level(view: View) -> Iterator[tuple[Position, str]]:
    yield from ((one, said) for one, said in _single(view) if id(one) in view.ends)


@rule(
    "singleton-last-axis",
    "cost",
    why="The last axis is padded to 64 bytes: one of size 1 takes 32 times its memory in fp16.",
    source=(APPLE_RULES, APPLE_ARTICLE),
    do="Move a larger axis to the end.",
)
def _singleton_last_axis(view: View) -> Iterator[tuple[Position, str]]:
    yield from _unaligned(view, lambda last: last == 1)


@rule(
    "short-last-axis",
    "cost",
    why="The last axis is padded to 64 bytes, so it should have at least 32 fp16 elements.",
    source=(APPLE_RULES, APPLE_ARTICLE),
    do="Move a larger axis to the end, or choose an input size that leaves one.",
)
def _short_last_axis(view: View) -> Iterator[tuple[Position, str]]:
    yield from _unaligned(view, lambda last: 1 < last < WIDE)


@rule(
    "unaligned-last-axis",
    "cost",
    why="The last axis is padded to the next 64 bytes where it is no multiple of them.",
    source=(APPLE_RULES, APPLE_ARTICLE),
    do="Choose sizes that are multiples of 32, powers of 2 where possible.",
)
def _unaligned_last_axis(view: View) -> Iterator[tuple[Position, str]]:
    yield from _unaligned(view, lambda last: last > WIDE)


def _unaligned(view: View, wanted: Callable[[int], bool]) -> Iterator[tuple[Position, str]]:
    """Values whose last axis is padded; a value that is fp32 at the interface only counts as the half that it was."""
    for position, _, kind in view.values():
        counted = TensorType("fp16", kind.shape) if kind.dtype in _SINGLE_FLOATS else kind
        known = memory(counted) if counted.dtype in _NATIVE else None
        if known is None or not kind.shape or known[0] == known[1] or known[0] == 0:
            continue
        last = kind.shape[-1]
        if last is not None and wanted(last):
            size = _BYTES[counted.dtype]
            padded = math.ceil(last * size / ALIGNMENT) * ALIGNMENT // size
            own = f"last axis {last} of {words(kind.shape)}, padded to {padded}"
            yield position, f"{own}: {_kib(known[1])} for {_kib(known[0])}, {known[1] / known[0]:.2f} times"


@rule(
    "padding",
    "warning",
    why="The last axis is padded to 64 bytes; values that take twice their memory fill caches with zeros.",
    source=(APPLE_RULES, APPLE_ARTICLE),
    do="Keep the longest axis last through the layers that hold most, or choose another input size.",
)
def _padding(view: View) -> Iterator[tuple[Position, str]]:
    known = [(position, size) for position, _, kind in view.values() if (size := memory(kind)) is not None]
    own, padded = (sum(size[i] for _, size in known) for i in (0, 1))
    if padded - own >= LEAST_LOSS and padded > LARGEST_PADDING * own:
        worst, (least, most) = max(known, key=lambda one: one[1][1] - one[1][0])
        all_of_them = f"all values take {_kib(padded)} for {_kib(own)}, {padded / own:.2f} times"
        yield worst, f"{all_of_them}; this one {_kib(most)} for {_kib(least)}"


@rule(
    "linear",
    "cost",
    why="Convolutions are native, and a linear layer is decomposed into less efficient operators.",
    source=(APPLE_RULES, APPLE_ARTICLE),
    do="Keep data as [B, C, 1, S] and write the layer as a 1x1 convolution.",
)
def _linear(view: View) -> Iterator[tuple[Position, str]]:
    for operation in view.operations:
        x, y = operation.inputs.get("x"), operation.inputs.get("y")
        if operation.type == "linear":
            weight = view.shape(operation.inputs.get("weight"))
            yield operation, f"weight {words(weight)} on {words(view.shape(x))}"
        elif operation.type == "matmul" and view.is_stored(x) != view.is_stored(y):
            matrix, data = (x, y) if view.is_stored(x) else (y, x)
            yield operation, f"constant {words(view.shape(matrix))} with {words(view.shape(data))}"


@rule(
    "not-4d",
    "note",
    why="The format that suits the Neural Engine best has four axes, channels second: [B, C, 1, S].",
    source=(APPLE_ARTICLE, APPLE_RULES),
    do="Give convolutions over one axis a height of 1.",
)
def _not_4d(view: View) -> Iterator[tuple[Position, str]]:
    for operation in view.operations:
        if operation.type in ("conv", "conv_transpose") and len(view.shape(operation.inputs.get("x"))) == 3:
            yield operation, f"convolves {words(view.shape(operation.inputs.get('x')))}"


@rule(
    "copy-of-last-axis",
    "cost",
    why="A reshape or transpose that touches the last axis rewrites the data in memory.",
    source=(APPLE_RULES, APPLE_ARTICLE),
    do="Leave the last axis in its place: [B, C, 1, S] all through, and einsum 'bchq,bkhc->bkhq' for attention.",
)
def _copy_of_last_axis(view: View) -> Iterator[tuple[Position, str]]:
    for operation in view.operations:
        x = operation.inputs.get("x")
        before, kind = view.shape(x), operation.outputs[0].type if operation.outputs else None
        if view.is_stored(x) or not before or not isinstance(kind, TensorType) or not kind.shape:
            continue
        if operation.type == "transpose":
            order = [axis % len(before) for axis in view.ints(operation, "perm")]
            sizes = [before[axis] for axis in order]
            if order and order[-1] != len(before) - 1 and not _is_view(before, order):
                yield operation, f"moves the last axis: {words(before)} to {words(sizes)}"
        elif operation.type == "reshape" and before[-1] != kind.shape[-1]:
            yield operation, f"cuts the last axis anew: {words(before)} to {words(kind.shape)}"


def _is_view(shape: Sequence[int | None], order: Sequence[int]) -> bool:
    """Return whether a transpose leaves the numbers where they are: only axes of size 1 move."""
    moved = [axis for axis in order if shape[axis] != 1]
    return moved == sorted(moved)


@rule(
    "softmax-axis",
    "cost",
    why="A softmax over height or width keeps the compiler from splitting the work; the channels are the axis for it.",
    source=(APPLE_RULES, "https://github.com/apple/ml-ane-transformers"),
    do="Arrange attention weights as [B, keys, 1, queries] and take the softmax over axis 1.",
)
def _softmax_axis(view: View) -> Iterator[tuple[Position, str]]:
    for operation in view.operations:
        if operation.type == "softmax":
            shape = view.shape(operation.inputs.get("x"))
            axis = (view.ints(operation, "axis") or [-1])[0] % max(len(shape), 1)
            if len(shape) > 1 and axis != 1:
                yield operation, f"softmax over axis {axis} of {words(shape)}"


@rule(
    "fused-attention",
    "cost",
    why="There is no fused attention on the Neural Engine; heads are computed one by one. (For large fp16 tensors a"
    " user's compute plan shows the operator there all the same.)",
    source=(APPLE_RULES, "https://github.com/vx-lang/Vx/issues/437"),
    do="Split the heads: 'bchq,bkhc->bkhq' and a softmax over axis 1 for each.",
)
def _fused_attention(view: View) -> Iterator[tuple[Position, str]]:
    for operation in view.operations:
        if operation.type == "scaled_dot_product_attention":
            yield operation, f"queries {words(view.shape(operation.inputs.get('query')))}"


@rule(
    "stride",
    "cost",
    why="Strides whose factors are 2 and 3 map well: 4, 6, 8, 9, 12, 16, 24, 32 above 2, equal in both directions; or 2"
    " beside 3, 4, 8 or 9.",
    source=APPLE_RULES,
    do="Change the stride and train again, or use a pixel shuffle.",
)
def _stride(view: View) -> Iterator[tuple[Position, str]]:
    for operation in view.operations:
        strides = view.ints(operation, "strides")
        if operation.type in ("conv", "conv_transpose") and not _maps_well(strides):
            yield operation, f"stride {' x '.join(map(str, strides))}"


def _maps_well(strides: Sequence[int]) -> bool:
    """Return whether strides are such as Apple recommends. Sizes 1 and 2 go with each other."""
    large = {stride for stride in strides if stride > 2}
    if not large:
        return True
    if len(large) > 1:
        return False
    (stride,) = large
    if 2 in strides:
        return stride in (3, 4, 8, 9)
    rest = stride
    for factor in (2, 3):
        while rest % factor == 0:
            rest //= factor
    return rest == 1 and stride <= 32


@rule(
    "palettised-stride",
    "warning",
    why="With palettised kernels, strides are supported up to 2.",
    source=APPLE_RULES,
    do="Leave this layer's weights as they are.",
)
def _palettised_stride(view: View) -> Iterator[tuple[Position, str]]:
    for operation in view.operations:
        maker = view.maker(operation.inputs.get("weight"))
        strides = view.ints(operation, "strides")
        if maker is not None and maker.type == "constexpr_lut_to_dense" and max(strides, default=1) > 2:
            yield operation, f"a palettised kernel with stride {' x '.join(map(str, strides))}"


@rule(
    "large-kernel",
    "cost",
    why="Large kernels are expensive; 9 is the size that Apple's text gives as too large, and 5 as good.",
    source=APPLE_RULES,
    do="Use two kernels after each other: k = k1 + k2 - 1.",
)
def _large_kernel(view: View) -> Iterator[tuple[Position, str]]:
    for operation in view.operations:
        if operation.type in ("conv", "conv_transpose"):
            kernel = view.shape(operation.inputs.get("weight"))[2:]
            if any(size is not None and size > LARGEST_GOOD_KERNEL for size in kernel):
                yield operation, f"kernel {' x '.join(map(str, kernel))}"


@rule(
    "dilation",
    "cost",
    why="Large dilations are expensive; 2 and 3 are what to build others from.",
    source=APPLE_RULES,
    do="Use convolutions of dilation 2 and 3 after each other: 8 = 2 x 2 x 2.",
)
def _dilation(view: View) -> Iterator[tuple[Position, str]]:
    for operation in view.operations:
        dilations = view.ints(operation, "dilations")
        if operation.type in ("conv", "conv_transpose") and max(dilations, default=1) > 3:
            yield operation, f"dilation {' x '.join(map(str, dilations))}"


@rule(
    "pooling-stride",
    "cost",
    why="Pooling is made for strides 2 and 4.",
    source=APPLE_RULES,
    do="Pool with stride 2 or 4, or reduce over the whole map.",
)
def _pooling_stride(view: View) -> Iterator[tuple[Position, str]]:
    for operation in view.operations:
        strides = view.ints(operation, "strides")
        if operation.type in ("max_pool", "avg_pool", "l2_pool") and any(s not in (1, 2, 4) for s in strides):
            yield operation, f"{operation.type} with stride {' x '.join(map(str, strides))}"


@rule(
    "spelled-layer-norm",
    "cost",
    why="The compiler maps layer_norm better than the reductions and multiplies that it consists of.",
    source=APPLE_RULES,
    do="Use torch.nn.LayerNorm, and let the converter fuse what it finds.",
)
def _spelled_layer_norm(view: View) -> Iterator[tuple[Position, str]]:
    """A norm is y = x - mean(x) divided by the square root of mean(y^2), with an epsilon or without."""
    for operation in view.operations:
        variance = _variance_under_root(view, operation)
        if variance is None:
            continue
        difference = view.maker(_squared(view, view.maker(variance.inputs.get("x"))))
        if difference is None or difference.type != "sub":
            continue
        mean = view.maker(difference.inputs.get("y"))
        if mean is not None and mean.type == "reduce_mean" and mean.inputs.get("x") == difference.inputs.get("x"):
            yield difference, f"a norm of {words(view.shape(mean.inputs.get('x')))} over {view.ints(mean, 'axes')}"


def _variance_under_root(view: View, root: Operation) -> Operation | None:
    """Return the mean that an operator takes the square root of, directly or with an epsilon added."""
    operand = view.maker(root.inputs.get("x")) if root.type in ("rsqrt", "sqrt") else None
    if operand is None:
        return None
    added = [view.maker(operand.inputs.get(name)) for name in ("x", "y")] if operand.type == "add" else [operand]
    return next((one for one in added if one is not None and one.type == "reduce_mean"), None)


def _squared(view: View, operation: Operation | None) -> Operand | None:
    """Return what an operator squares."""
    if operation is None:
        return None
    x, y = operation.inputs.get("x"), operation.inputs.get("y")
    if operation.type == "square" or (operation.type == "mul" and x == y):
        return x
    if operation.type == "pow":
        exponent = view.value(operation, "y")
        return x if exponent is not None and float(exponent) == 2 else None
    return None


@rule(
    "fp32-near-ties",
    "warning",
    why="Both ends of a map of classes compute in fp32, on the GPU or CPU, so that pixels whose best two classes score"
    " nearly alike keep theirs.",
    source=APPLE_RULES,
    do="Export with --inputs, images of the use: trained weights have margins on them; or take the argmax outside.",
)
def _fp32_near_ties(view: View) -> Iterator[tuple[Position, str]]:
    yield from ((one, said) for one, said in _single(view) if id(one) in view.class_ends - view.ends)


@rule(
    "state-size",
    "warning",
    why="A model fails on the Neural Engine when a state's last axis is no multiple of 32 (a user's report, open).",
    source=f"{COREMLTOOLS}/issues/2631",
    do="Pad the state, or pass it as an input and an output.",
)
def _state_size(view: View) -> Iterator[tuple[Position, str]]:
    for one in view.function.inputs:
        if isinstance(one.type, StateType):
            shape = one.type.wrapped.shape
            if shape and shape[-1] is not None and shape[-1] % WIDE:
                yield one, f"the state is {words(shape)}, and {shape[-1]} is no multiple of {WIDE}"


@rule(
    "state-type",
    "error",
    why="The types are fp16, int8 and int16, for states as for other tensors.",
    source=(APPLE_RULES, "https://apple.github.io/coremltools/docs-guides/source/stateful-models.html"),
    do="Keep states in fp16.",
)
def _state_type(view: View) -> Iterator[tuple[Position, str]]:
    for one in view.function.inputs:
        if isinstance(one.type, StateType) and one.type.wrapped.dtype not in _NATIVE:
            yield one, f"the state is {one.type.wrapped.dtype}"


@rule(
    "control-flow",
    "warning",
    why="Loops were not seen to run on the Neural Engine (a user's report, unanswered; no text of Apple's).",
    source=f"{COREMLTOOLS}/issues/2208",
    do="Use a form without a loop, or export one step with --streaming.",
)
def _control_flow(view: View) -> Iterator[tuple[Position, str]]:
    for operation in view.operations:
        if operation.type in ("while_loop", "cond"):
            inner = sum(1 for block in operation.blocks for _ in walk(block))
            yield operation, f"{operation.type} of {inner} operators"


@rule(
    "other-types",
    "warning",
    why="The list of types has fp16, int8 and int16; what happens to others than fp32 is not said.",
    source=(APPLE_RULES, f"{COREMLTOOLS}/issues/2365"),
    do="Compute indices and conditions outside, or keep them few: each may be a way to the CPU and back.",
)
def _other_types(view: View) -> Iterator[tuple[Position, str]]:
    for position, _, kind in view.values():
        if kind.dtype not in _NATIVE | _FLOATS and kind.dtype != "string":
            yield position, f"{kind.dtype} {words(kind.shape)}"


@rule(
    "indexing",
    "warning",
    why="Sorting, and gathering by computed indices, were placed on the CPU in the compute plans that users published.",
    source=("https://github.com/roboflow/rf-detr/pull/1495", f"{COREMLTOOLS}/issues/1103"),
    do="Do it at the very end or outside of the model.",
)
def _indexing(view: View) -> Iterator[tuple[Position, str]]:
    for operation in view.operations:
        indices = operation.inputs.get("indices")
        gathers = operation.type in ("gather", "gather_nd", "gather_along_axis") and not view.is_stored(indices)
        if operation.type == "topk" or gathers:
            yield operation, f"{operation.type} on {words(view.shape(operation.inputs.get('x')))}"


@rule(
    "overflowing-function",
    "warning",
    why="On the Neural Engine softplus (from about 10.4) and reduce_log_sum_exp (from about 11 less the logarithm of"
    " the count) overflow in fp16 and give 0; users measured it.",
    source=(f"{COREMLTOOLS}/pull/2725", f"{COREMLTOOLS}/issues/2690", f"{COREMLTOOLS}/issues/2359"),
    do="Write softplus as max(x, 0) + log(1 + exp(-|x|)), and subtract the maximum before a sum of exponentials.",
)
def _overflowing_function(view: View) -> Iterator[tuple[Position, str]]:
    for operation in view.operations:
        kind = view.type(operation.inputs.get("x"))
        named = operation.type in ("softplus", "softplus_parametric", "reduce_log_sum_exp")
        if named and kind is not None and kind.dtype == "fp16":
            yield operation, f"{operation.type} in fp16"


@rule(
    "long-axis",
    "warning",
    why="Core ML does not take axes above 16384 by what users of its providers met; no text of Apple's says so.",
    source=("https://github.com/microsoft/onnxruntime/issues/19543", "https://github.com/apple/ml-fastvlm/issues/50"),
    do="Fold the axis into two.",
)
def _long_axis(view: View) -> Iterator[tuple[Position, str]]:
    for position, one, kind in view.values():
        longest = max((size for size in kind.shape or () if size is not None), default=0)
        if longest > LARGEST_AXIS:
            yield position, f"{one.name} is {words(kind.shape)}"


# Advice -------------------------------------------------------------------------------------------------------------


@rule(
    "enumerated-shapes",
    "note",
    why="Each of the listed shapes can run on the Neural Engine; a user found that a layer norm ends that.",
    source=("https://developer.apple.com/forums/thread/724930", f"{COREMLTOOLS}/issues/1909"),
    do="Prefer one function for each shape, with shared weights.",
)
def _enumerated_shapes(view: View) -> Iterator[tuple[Position, str]]:
    listed = {feature.name for feature in view.interface.inputs if feature.flexible == "enumerated"}
    for one in view.function.inputs:
        if one.name in listed:
            yield one, f"the input has a list of shapes, {words(view.shape(Ref(one.name)))}"


@rule(
    "fp32-interface",
    "note",
    why="An fp32 input or output of an fp16 program takes a cast, which is a copy that the compiler may not remove.",
    source=APPLE_RULES,
    do="Declare it Float16 where the caller can take that; edgesmith's outputs are Float32 so that all callers can.",
)
def _fp32_interface(view: View) -> Iterator[tuple[Position, str]]:
    if not view.half:
        return
    for one in view.function.inputs:
        if isinstance(one.type, TensorType) and one.type.dtype in _SINGLE_FLOATS:
            yield one, f"the input is {one.type.dtype}"
    for name in view.function.block.outputs:
        kind, maker = view.type(Ref(name)), view.maker(Ref(name))
        if kind is not None and kind.dtype in _SINGLE_FLOATS:
            yield maker or Variable(name, kind), f"the output {name} is {kind.dtype}"


@rule(
    "silu-or-tanh",
    "note",
    why="In Core AI's compiler silu goes through fp32, and tanh is better written with a sigmoid; Core ML's is not"
    " mentioned.",
    source=APPLE_ISSUES,
    do="Ask a compute plan first; tanh is 2 * sigmoid(2 x) - 1, and coremltools writes x * sigmoid(x) as silu again.",
)
def _silu_or_tanh(view: View) -> Iterator[tuple[Position, str]]:
    for operation in view.operations:
        if operation.type in ("silu", "tanh"):
            yield operation, f"{operation.type} of {words(view.shape(operation.inputs.get('x')))}"


for _name in sorted(RULES, key=lambda name: SEVERITIES.index(RULES[name].severity)):  # stable: as written otherwise
    RULES[_name] = RULES.pop(_name)
