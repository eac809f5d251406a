"""The one thing of the lint's that the Core ML lowering legalizes by itself: masks of minus infinity in half precision.

The Neural Engine's softmax does not handle infinity (rule `infinite-constant`), a finite mask such as -1e9 becomes
infinite in fp16 (rule `fp16-overflow`), and coremltools leaves an operator with such a constant in fp32 (rule
`fp32-computation`). A constant whose values below -65504 can reach nothing but softmaxes is therefore written with
-40000 instead. The exponential of either is zero beside any score above -39000, so no number changes, but in
rows that are masked throughout: NaN before, finite now; or, of a finite mask, even before and even up to rounding now.

Other findings are left, as what would legalize them has a price of its own; docs/lint.md says which.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgesmith.exporters.mil.program import MlProgram
from edgesmith.exporters.mil.rules import MASK
from edgesmith.exporters.precision.policy import HALF_MAX

LEGALIZED = "edgesmith.mended"
"""User-defined metadata: a JSON list of what the lowering has changed, as `Legalization`. The key is of packages that
exist, so it keeps its old name."""

_PASS = "edgesmith::legalize_masks"  # noqa: S105 - a graph pass, no password
_BEFORE = "common::add_fp16_cast"
_VIEWS = frozenset({"reshape", "transpose", "expand_dims", "squeeze", "slice_by_index", "slice_by_size", "identity"})
_JOINING = {"add": ("x", "y"), "select": ("a", "b")}
"""Operators that put a mask onto scores, and the parameters that the mask may be."""


@dataclass(frozen=True)
class Legalization:
    """One change of the lowering's, so that a rule is kept.

    Attributes:
        rule: a key of `rules.RULES`.
        name: of the operator.
        change: in words.
    """

    rule: str
    name: str
    change: str


def legalizations_of(program: MlProgram) -> tuple[Legalization, ...]:
    """Return what a package says was legalized; nothing where somebody else's entry has that name."""
    try:
        listed = json.loads(program.metadata.get(LEGALIZED, "[]"))
        return tuple(Legalization(one["rule"], one["name"], one["change"]) for one in listed)
    except (ValueError, KeyError, TypeError):
        return ()


@dataclass
class Legalizing:
    """A conversion that legalizes: coremltools' passes with ours among them, and what it has done."""

    pipeline: Any
    done: list[Legalization] = field(default_factory=list)


@contextlib.contextmanager
def legalizing() -> Iterator[Legalizing]:
    """Have masks legalized by a conversion to half precision that is given `pipeline`."""
    import coremltools as ct
    from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

    done: list[Legalization] = []

    class LegalizeMasks(AbstractGraphPass):  # type: ignore[misc]
        """Write -40000 into masks."""

        def apply(self, prog: Any) -> None:
            for function in prog.functions.values():
                done.extend(_legalize_block(function))

    PASS_REGISTRY.passes[_PASS] = LegalizeMasks
    try:
        pipeline = ct.PassPipeline()
        pipeline.insert_pass(pipeline.passes.index(_BEFORE), _PASS)
        yield Legalizing(pipeline, done)
    finally:
        del PASS_REGISTRY.passes[_PASS]


def _legalize_block(block: Any) -> Iterator[Legalization]:
    """Legalize the constants of a block and of those inside it."""
    from coremltools.converters.mil import Builder as mb

    for op in list(block.operations):
        for inner in op.blocks:
            yield from _legalize_block(inner)
        if op.op_type != "const" or not _is_mask(op.val.val) or not _only_masks(op.outputs[0]):
            continue
        mask, value = op.outputs[0], np.asarray(op.val.val)
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
    """Return whether nothing but softmaxes reads a value, maybe after further masks and changes of shape."""
    if not value.child_ops or value in value.op.enclosing_block.outputs:
        return False
    for op in value.child_ops:
        if op.op_type == "softmax":
            continue
        onwards = (op.op_type in _VIEWS and op.inputs["x"] is value) or _joins(op, value)
        if not onwards or not _reaches_softmax(op.outputs[0]):
            return False
    return True
