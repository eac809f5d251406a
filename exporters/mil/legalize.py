"""Legalization by the Core ML lowering itself, in half precision: masks here, other forms in safe_forms.py.

Masks become finite, or else their sums stay fp32.

The Neural Engine's softmax does not handle infinity (rule `infinite-constant`), a finite mask such as -1e9 becomes
infinite in fp16 (rule `fp16-overflow`), and coremltools leaves an operator with such a constant in fp32 (rule
`fp32-computation`). A constant whose values below -65504 can reach nothing but softmaxes is therefore written with
-40000 instead. The exponential of either is zero beside any score above -39000, so no number changes, but in
rows that are masked throughout: NaN before, finite now.

Of a finite mask such a row is even, and beside -40000 the scores' sum is too coarse for that. So of finite masks only
the last that scores meet is written so. What runs through other arithmetic, as (1 - keep) * -1e9, stays fp32 up to the
softmax or another operator with a bounded result, as `large_constants` has it for other targets. coremltools keeps the
operator alone, and takes a finite number above 1e38, the least fp32 number, for infinity, whose product with 0 is NaN.

What runs through whole numbers beyond 2048 stays fp32 too, see whole_numbers.py.

Other findings are left, as what would legalize them has a price of its own; docs/lint.md says which.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgesmith.exporters.mil.program import MlProgram
from edgesmith.exporters.mil.rules import MASK
from edgesmith.exporters.mil.safe_forms import write_safe_forms
from edgesmith.exporters.mil.whole_numbers import Reach, find_whole_numbers
from edgesmith.exporters.precision.ends import find_ends, is_layer
from edgesmith.exporters.precision.large_constants import SHARE
from edgesmith.exporters.precision.policy import HALF_MAX
from edgesmith.readers.documents import read_json

LEGALIZED = "edgesmith.mended"
"""User-defined metadata: a JSON list of what the lowering has changed, as `Legalization`. The key is of packages that
exist, so it keeps its old name."""

_PASS = "edgesmith::legalize_masks"  # noqa: S105 - a graph pass, no password
_BEFORE = "common::add_fp16_cast"
VIEWS = frozenset({"reshape", "transpose", "expand_dims", "squeeze", "slice_by_index", "slice_by_size", "identity"})
"""Operators that change no numbers."""
_SEEDS = frozenset(
    {"add", "sub", "mul", "real_div", "select", "pad", "fill", "scatter", "scatter_nd", "scatter_along_axis"}
)
"""Operators whose results are as large as a constant that they read. Bounds of a clip or a maximum are none."""
_CARRYING = frozenset(
    {
        *(*_SEEDS, *VIEWS, "tile", "concat", "stack", "gather"),
        *("maximum", "minimum", "clip", "abs", "reduce_max", "reduce_min"),
    }
)
_BOUNDING = frozenset(
    {
        *("softmax", "scaled_dot_product_attention", "sigmoid", "tanh", "reduce_argmax", "reduce_argmin"),
        *("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"),
    }
)
_MASKS = Reach(_CARRYING, _BOUNDING)
_JOINING = {"add": ("x", "y"), "select": ("a", "b")}
"""Operators that put a mask onto scores, and the parameters that the mask may be."""


@dataclass(frozen=True)
class Legalization:
    """One change of the lowering's, so that a rule is kept.

    Attributes:
        rule: a key of `rules.RULES`; `level`, what precision/restored_levels.py finds; `whole-numbers`; `comparison`,
            of safe_forms.py; or a departure's id.
        name: of the operator.
        change: in words.
    """

    rule: str
    name: str
    change: str


def legalizations_of(program: MlProgram) -> tuple[Legalization, ...]:
    """Return what a package says was legalized; nothing where somebody else's entry has that name."""
    try:
        listed = read_json(program.metadata.get(LEGALIZED, "[]"), "list of what was legalized")
        return tuple(Legalization(one["rule"], one["name"], one["change"]) for one in listed)
    except (ValueError, KeyError, TypeError):
        return ()


@dataclass
class Legalizing:
    """A conversion that legalizes: coremltools' passes with ours among them, what it has done, and what stays fp32."""

    pipeline: Any
    done: list[Legalization] = field(default_factory=list)
    keep_fp32: set[str] = field(default_factory=set)


@contextlib.contextmanager
def legalizing(kept: Collection[str] = ()) -> Iterator[Legalizing]:
    """Have a conversion to half precision that is given `pipeline` legalize masks, and write safe forms.

    Args:
        kept: operators that stay fp32 for other reasons.
    """
    import coremltools as ct
    from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

    done: list[Legalization] = []
    keep_fp32: set[str] = set()

    class LegalizeMasks(AbstractGraphPass):  # type: ignore[misc]
        """Find what stays fp32, write -40000 into the other masks, and safe forms for what the engine gets wrong."""

        def apply(self, prog: Any) -> None:
            for function in prog.functions.values():
                for path, legalization in _find_large_constants(function):
                    keep_fp32.update(path)
                    done.append(legalization)
                for maker, names in find_whole_numbers(function):
                    keep_fp32.update(names)
                    done.append(_of_whole_numbers(maker, names))
                for name, legalization in _find_restored_levels(function):
                    keep_fp32.add(name)
                    done.append(legalization)
                done.extend(_legalize_block(function, keep_fp32))
                stays = keep_fp32 | {*kept}
                done.extend(Legalization(*one) for one in write_safe_forms(function, stays))

    PASS_REGISTRY.passes[_PASS] = LegalizeMasks
    try:
        pipeline = ct.PassPipeline()
        pipeline.insert_pass(pipeline.passes.index(_BEFORE), _PASS)
        yield Legalizing(pipeline, done, keep_fp32)
    finally:
        del PASS_REGISTRY.passes[_PASS]


def _find_large_constants(block: Any) -> Iterator[tuple[list[str], Legalization]]:
    """Yield the names of operators that stay fp32 for a constant beyond fp16's range which is no plain mask."""
    for op in block.operations:
        for inner in op.blocks:
            yield from _find_large_constants(inner)
        large = [value for value in op.inputs.values() if op.op_type in _SEEDS and _is_large(value, HALF_MAX * SHARE)]
        path = _MASKS.of(op) if large else None
        if not large or (all(_takes_mask(op, value) and _is_mask(value.val) for value in large) and _is_last(path)):
            continue
        if path is None and not any(_is_large(value, HALF_MAX) for value in large):
            continue
        names = list(dict.fromkeys(one.name for one in path or [op]))
        what = f"it and {len(names) - 1} after it stay" if names[1:] else "it stays"
        yield names, Legalization("fp16-overflow", op.name, f"reads a constant too large for fp16, so {what} fp32")


def _of_whole_numbers(op: Any, names: Sequence[str]) -> Legalization:
    after = len({*names}) - 1
    what = f"it and {after} after it stay" if after else "it stays"
    return Legalization("whole-numbers", op.name, f"makes or reads numbers that fp16 rounds, so {what} fp32")


def _find_restored_levels(function: Any) -> Iterator[tuple[str, Legalization]]:
    """Yield the names of operators that take a level from the inputs or give it back: they stay fp32."""
    raw: list[Any] = []
    for op in function.operations:
        given = [value for value in _values(op) if value.val is None]
        if not given or op.blocks or is_layer(op.op_type) or _looks_up(op) or not _has_floats(op):
            continue
        if all(value.op is None or value.op in raw for value in given):
            raw.append(op)

    def operands(op: Any) -> list[Any]:
        return [value.op for value in _values(op) if value.op is not None and value.val is None]

    makers = [value.op for value in function.outputs if value.op is not None]
    for op in find_ends(raw, operands, makers, lambda op: str(op.op_type).removeprefix("reduce_")):
        reason = "takes a level from the data, or gives it back, so it stays fp32"
        yield op.name, Legalization("level", op.name, reason)


def _looks_up(op: Any) -> bool:
    """Return whether an operator picks rows of a table, which are weights."""
    return str(op.op_type).startswith("gather") and op.inputs["x"].val is not None


def _has_floats(op: Any) -> bool:
    """Return whether an operator reads or makes a float; tokens and their positions have no level."""
    return any(value.is_tensor_or_scalar_of("fp32") for value in (*_values(op), *op.outputs))


def _values(op: Any) -> Iterator[Any]:
    """Yield the values that an operator reads."""
    for value in op.inputs.values():
        yield from value if isinstance(value, list | tuple) else (value,)


def _is_last(path: Sequence[Any] | None) -> bool:
    """Return whether the first operator of a path masks last: no sum or further mask comes before the softmax."""
    return all(one.op_type in VIEWS or _MASKS.is_bounded(one) for one in (path or [])[1:])


def _is_large(value: Any, limit: float) -> bool:
    """Return whether a value is a constant with finite elements beyond a limit."""
    known = getattr(value, "val", None)
    array = np.asarray(0.0 if known is None else known)
    return array.dtype.kind == "f" and bool((np.isfinite(array) & (np.abs(array) > limit)).any())


def _legalize_block(block: Any, keep_fp32: Collection[str]) -> Iterator[Legalization]:
    """Legalize the constants of a block and of those inside it, but for what reads them in fp32."""
    from coremltools.converters.mil import Builder as mb

    for op in list(block.operations):
        for inner in op.blocks:
            yield from _legalize_block(inner, keep_fp32)
        if op.op_type != "const" or not _is_mask(op.val.val) or not _only_masks(op.outputs[0]):
            continue
        mask, value = op.outputs[0], np.asarray(op.val.val)
        if any(child.name in keep_fp32 for child in mask.child_ops):
            continue
        readers = [child.name for child in mask.child_ops]
        low = value < -HALF_MAX
        with block:
            finite = mb.const(val=np.where(low, value.dtype.type(MASK), value), before_op=op)
        block.replace_uses_of_var_after_op(anchor_op=op, old_var=mask, new_var=finite)
        block.remove_ops([op])
        infinite = bool(np.isneginf(value).any())
        rule, before = ("infinite-constant", "-inf") if infinite else ("fp16-overflow", f"{value[low].min():.3g}")
        many = f"{low.sum()} of {value.size} values" if value.size > 1 else "a value"
        for name in readers:
            yield Legalization(rule, name, f"{many} of {before} in a mask became {MASK:.0f}")


def _is_mask(value: Any) -> bool:
    """Return whether a constant has values that fp16 lacks, all of them far below zero."""
    array = np.asarray(value)
    if array.dtype.kind != "f" or np.isnan(array).any() or (array > HALF_MAX).any():
        return False
    return bool((array < -HALF_MAX).any())


def _only_masks(mask: Any) -> bool:
    """Return whether all that reads a constant takes it as a mask of a softmax."""
    if not mask.child_ops or mask in mask.op.enclosing_block.outputs:
        return False
    return all(_takes_mask(op, mask) for op in mask.child_ops)


def _takes_mask(op: Any, mask: Any) -> bool:
    if op.op_type == "scaled_dot_product_attention":
        return op.attn_mask is mask and mask not in (op.query, op.key, op.value)
    return _joins(op, mask) and _reaches_softmax(op.outputs[0])


def _joins(op: Any, value: Any) -> bool:
    """Return whether an operator puts a value onto another one: a sum, or a choice between the two."""
    parameters = _JOINING.get(op.op_type, ())
    return [op.inputs[name] is value for name in parameters].count(True) == 1


def _reaches_softmax(value: Any) -> bool:
    """Return whether nothing but softmaxes reads a value, maybe after further masks and changes of shape.

    A softmax whose NaN, of a row that is masked throughout, is asked for keeps its infinite mask.
    """
    if not value.child_ops or value in value.op.enclosing_block.outputs:
        return False
    for op in value.child_ops:
        if op.op_type == "softmax" and not _tells_nan(op.outputs[0]):
            continue
        onwards = (op.op_type in VIEWS and op.inputs["x"] is value) or _joins(op, value)
        if not onwards or not _reaches_softmax(op.outputs[0]):
            return False
    return True


def _tells_nan(value: Any) -> bool:
    """Return whether a value is compared with itself, maybe after changes of shape or type."""
    for op in value.child_ops:
        if op.op_type in ("equal", "not_equal") and op.x is value and op.y is value:
            return True
        if op.op_type in (*VIEWS, "cast") and _tells_nan(op.outputs[0]):
            return True
    return False
