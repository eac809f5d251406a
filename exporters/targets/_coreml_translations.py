"""Operators that coremltools lacks or translates worse: fused ops by their own lowerings, and a few of PyTorch's."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

from edgesmith.errors import Unsupported
from edgesmith.kernels.op import FusedOp, all_ops

OWN_TRANSLATIONS = frozenset({"aten.group_norm", "aten.alias", "aten.addcmul"})
"""Operators of PyTorch that are translated here, not by coremltools."""


@contextlib.contextmanager
def own_translations(half: bool) -> Iterator[None]:
    """Have coremltools use the fused ops' lowerings, and ours for a few operators, while it converts.

    Lowerings that have a parameter `half` are told whether the program will be half precision. The operators of the
    others are made so by coremltools itself, later, so that they need not know.
    """
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY

    table = _TORCH_OPS_REGISTRY.name_to_func_mapping
    before = dict(table)
    for op in all_ops().values():
        if "coreml" in op.lowerings:
            table[f"edgesmith::{op.name}"] = _fused(op, half)
    table["group_norm"] = _group_norm(table["group_norm"])
    table.setdefault("alias", _alias)
    table.setdefault("addcmul", _addcmul)
    try:
        yield
    finally:
        table.clear()
        table.update(before)


def _fused(op: FusedOp, half: bool) -> Any:
    """Return the translation of a fused op by its own lowering."""
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs
    from coremltools.converters.mil.mil import Var

    lowering = op.lowerings["coreml"]
    told = {"half": half} if "half" in inspect.signature(lowering).parameters else {}

    def translate(context: Any, node: Any) -> None:
        values = _get_inputs(context, node)
        flags = [
            value.val if isinstance(value, Var) and value.op is not None and value.rank == 0 else value
            for value in values
        ]
        try:
            result = lowering(*flags, **told)
        except TypeError as error:  # what a lowering meets that prepares weights which have no value yet
            raise Unsupported(
                f"edgesmith.{op.name} takes constant weights on Core ML, and they are computed"
            ) from error
        context.add(result, torch_name=node.name)

    return translate


def _alias(context: Any, node: Any) -> None:
    """Translate to the value itself."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs

    context.add(mb.identity(x=_get_inputs(context, node)[0], name=node.name))


def _addcmul(context: Any, node: Any) -> None:
    """Translate x + value a b. `value` comes by name, and is 1 if it is not given."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs, _get_kwinputs

    x, a, b = _get_inputs(context, node)[:3]
    value = _get_kwinputs(context, node, "value", default=[1.0])[0]
    factor = float(getattr(value, "val", value))
    term = mb.mul(x=a, y=b)
    term = term if factor == 1 else mb.mul(x=term, y=factor)
    context.add(mb.add(x=x, y=term, name=node.name))


def _group_norm(general: Any) -> Any:
    """Return a translation of group norms of one group to Core ML's layer norm over all axes but the first.

    coremltools' own (`general`) spells it in eight operators of rank 5, whatever the number of groups.
    """
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs

    def translate(context: Any, node: Any) -> None:
        given = _get_inputs(context, node, min_expected=2)
        x, groups, weight, bias, eps = (*given[:5], *[None] * (5 - len(given)))[:5]
        if groups.val != 1 or node.kwinputs:
            general(context, node)
            return
        epsilon = 1e-5 if eps is None else float(eps.val)
        y = mb.layer_norm(x=x, axes=list(range(1, x.rank)), epsilon=epsilon)
        planes = [1, -1, *[1] * (x.rank - 2)]
        if weight is not None:
            y = mb.mul(x=y, y=mb.reshape(x=weight, shape=planes))
        if bias is not None:
            y = mb.add(x=y, y=mb.reshape(x=bias, shape=planes))
        context.add(y, torch_name=node.name)

    return translate
