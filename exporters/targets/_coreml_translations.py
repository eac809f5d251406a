"""Operators that coremltools lacks or translates worse: fused ops by their own lowerings, and a few of PyTorch's."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from edgesmith.errors import Unsupported
from edgesmith.exporters.targets._coreml_recurrent import translations as recurrent_translations
from edgesmith.kernels.op import FusedOp, all_ops

OWN_TRANSLATIONS = frozenset(
    f"aten.{name}"
    for name in (
        *("addcmul", "alias", "div", "floor_divide", "gelu", "group_norm", "gru", "layer_norm"),
        *("log", "log10", "log2", "lstm", "nan_to_num", "prelu"),
        *("prod", "reciprocal", "remainder", "rnn_relu", "rnn_tanh", "rsqrt"),
    )
)
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
    table["layer_norm"] = _layer_norm(table["layer_norm"])
    table["prelu"] = _prelu(table["prelu"])
    table["gelu"] = _gelu
    table["reciprocal"] = _reciprocal
    table["rsqrt"] = _rsqrt
    table["remainder"] = _remainder
    table["nan_to_num"] = _nan_to_num(half)
    table |= {name: _quotient(table[name]) for name in ("div", "floor_divide")}
    table |= {name: _log(base) for name, base in (("log", math.e), ("log2", 2.0), ("log10", 10.0))}
    table |= {"prod": _prod, "prod.dim_int": _prod} | recurrent_translations()
    passed_on = table["noop"]
    table |= {name: _passed_on(passed_on) for name, function in table.items() if function is passed_on}
    table["clone"] = table["alias"] = _alias
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
    is_word = [str(one.type) in ("str", "Optional[str]") for one in op.overload._schema.arguments]

    def translate(context: Any, node: Any) -> None:
        values = [  # coremltools takes a word for the value that is called so, where there is one
            given if word else value
            for given, value, word in zip(node.inputs, _get_inputs(context, node), is_word, strict=False)
        ]
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


def _passed_on(general: Any) -> Any:
    """Return a translation of what passes a value on: of an input to a value of its own, as an output may be."""
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs

    def translate(context: Any, node: Any) -> None:
        is_input = len(node.inputs) > 0 and getattr(_get_inputs(context, node)[0], "op", node) is None
        (_alias if is_input else general)(context, node)

    return translate


def _addcmul(context: Any, node: Any) -> None:
    """Translate x + value a b. `value` comes by name, and is 1 if it is not given."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs, _get_kwinputs

    x, a, b = _get_inputs(context, node)[:3]
    value = _get_kwinputs(context, node, "value", default=[1.0])[0]
    factor = float(getattr(value, "val", value))
    term = mb.mul(x=a, y=b)
    term = term if factor == 1 else mb.mul(x=term, y=_number(term, factor))
    context.add(mb.add(x=x, y=term, name=node.name))


def _quotient(general: Any) -> Any:
    """Return a translation of the floor of a quotient of whole numbers to one of int32, and of others to `general`.

    coremltools' own divides them as fp32, which has 24 bits, and numbers of half precision without rounding them.
    """
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs, _get_kwinputs
    from coremltools.converters.mil.mil import types

    def translate(context: Any, node: Any) -> None:
        x, y = _get_inputs(context, node, min_expected=2)[:2]
        mode = _get_kwinputs(context, node, "rounding_mode", default=[None])[0]
        is_floor = node.kind == "floor_divide" or getattr(mode, "val", mode) == "floor"
        if is_floor and types.is_int(x.dtype) and types.is_int(y.dtype):
            context.add(mb.floor_div(x=_int32(x), y=_int32(y), name=node.name))
        elif mode is None and x.dtype == y.dtype == types.fp16:
            context.add(mb.real_div(x=x, y=y, name=node.name))
        else:
            general(context, node)

    def _int32(x: Any) -> Any:
        return x if x.dtype == types.int32 else mb.cast(x=x, dtype="int32")

    return translate


def _group_norm(general: Any) -> Any:
    """Return a translation of group norms to Core ML's layer norm, of each group as a row.

    coremltools' own (`general`) spells it in eight operators of rank 5, whose squares leave half precision beyond 256.
    """
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs
    from coremltools.converters.mil.mil.types.symbolic import any_symbolic

    def translate(context: Any, node: Any) -> None:
        given = _get_inputs(context, node, min_expected=2)
        x, groups, weight, bias, eps = (*given[:5], *[None] * (5 - len(given)))[:5]
        if node.kwinputs or (groups.val != 1 and any_symbolic(x.shape)):
            general(context, node)
            return
        epsilon = 1e-5 if eps is None else float(eps.val)
        if groups.val == 1:
            y = mb.layer_norm(x=x, axes=list(range(1, x.rank)), epsilon=epsilon)
        else:
            rows = mb.reshape(x=x, shape=[x.shape[0], int(groups.val), -1])
            y = mb.reshape(x=mb.layer_norm(x=rows, axes=[2], epsilon=epsilon), shape=list(x.shape))
        planes = [1, -1, *[1] * (x.rank - 2)]
        if weight is not None:
            y = mb.mul(x=y, y=mb.reshape(x=weight, shape=planes))
        if bias is not None:
            y = mb.add(x=y, y=mb.reshape(x=bias, shape=planes))
        context.add(y, torch_name=node.name)

    return translate


def _layer_norm(general: Any) -> Any:
    """Return a translation of layer norms whose weight is computed: Core ML's own takes constants only."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs, _get_kwinputs

    def translate(context: Any, node: Any) -> None:
        given = _get_inputs(context, node, min_expected=2)
        x, shape, weight, bias, eps = (*given[:5], *[None] * (5 - len(given)))[:5]
        weight = _get_kwinputs(context, node, "weight", default=[weight])[0]
        bias = _get_kwinputs(context, node, "bias", default=[bias])[0]
        if all(one is None or one.val is not None for one in (weight, bias)):
            general(context, node)
            return
        axes = list(range(x.rank - len(shape.val), x.rank))
        y = mb.layer_norm(x=x, axes=axes, epsilon=1e-5 if eps is None else float(eps.val))
        y = y if weight is None else mb.mul(x=y, y=weight)
        context.add(y if bias is None else mb.add(x=y, y=bias), torch_name=node.name)

    return translate


def _prelu(general: Any) -> Any:
    """Return a translation of prelus whose slope is computed, or one for a value without channels."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs

    def translate(context: Any, node: Any) -> None:
        x, slope = _get_inputs(context, node, expected=2)
        if slope.val is not None and x.rank >= 3:
            general(context, node)
            return
        if x.rank > 1:
            slope = mb.reshape(x=slope, shape=[-1, *[1] * (x.rank - 2)])
        elif x.rank == 0:  # of a value without axes the slope, of one number, has one
            slope = mb.squeeze(x=slope)
        below = mb.mul(x=mb.minimum(x=x, y=_number(x, 0.0)), y=slope)
        context.add(mb.add(x=mb.maximum(x=x, y=_number(x, 0.0)), y=below, name=node.name))

    return translate


def _gelu(context: Any, node: Any) -> None:
    """Translate to the form that is asked for; coremltools takes the exact one where it comes by name."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs, _get_kwinputs

    x, *how = _get_inputs(context, node)
    approximate = how[0] if how else _get_kwinputs(context, node, "approximate", default=["none"])[0]
    approximate = getattr(approximate, "val", approximate)
    mode = "TANH_APPROXIMATION" if approximate == "tanh" else "EXACT"
    context.add(mb.gelu(x=x, mode=mode, name=node.name))


def _real(x: Any) -> Any:
    """Return integers and truth values as floats."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    return x if types.is_float(x.dtype) else mb.cast(x=x, dtype="fp32")


def _number(like: Any, value: float) -> Any:
    """Return a number of a value's own type: beside one of half precision Core ML takes no other."""
    from coremltools.converters.mil.mil.types import nptype_from_builtin

    return nptype_from_builtin(like.dtype)(value)


def _reciprocal(context: Any, node: Any) -> None:
    """Translate to 1 / x. Core ML's `inverse` adds an epsilon of 1e-4 to x."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs

    x = _real(_get_inputs(context, node)[0])
    context.add(mb.real_div(x=_number(x, 1.0), y=x, name=node.name))


def _rsqrt(context: Any, node: Any) -> None:
    """Translate to `rsqrt` without its epsilon of 1e-12."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs

    context.add(mb.rsqrt(x=_real(_get_inputs(context, node)[0]), epsilon=0.0, name=node.name))


def _remainder(context: Any, node: Any) -> None:
    """Translate to `mod`. coremltools subtracts the floor of the rounded quotient times the divisor."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs, promote_input_dtypes

    x, divisor = promote_input_dtypes(_get_inputs(context, node, expected=2))
    context.add(mb.mod(x=x, y=divisor, name=node.name))


def _nan_to_num(half: bool) -> Callable[[Any, Any], None]:
    """Return a translation to three choices: an infinity becomes the largest number of the program.

    coremltools' own has that of fp32, which in half precision is an infinity, and shapes that depend on the numbers.
    """

    def translate(context: Any, node: Any) -> None:
        from coremltools.converters.mil import Builder as mb
        from coremltools.converters.mil.frontend.torch.ops import _get_inputs, _get_kwinputs
        from coremltools.converters.mil.mil import types

        x, *given = _get_inputs(context, node)
        if not types.is_float(x.dtype):
            context.add(mb.identity(x=x, name=node.name))
            return
        largest = float(np.finfo(np.float16 if half else np.float32).max)
        given += [None] * (3 - len(given))
        named = [_get_kwinputs(context, node, name, default=[one])[0] for name, one in zip(_WORDS, given, strict=True)]
        instead = [getattr(one, "val", one) for one in named]
        nan, above, below = (
            default if one is None else min(max(float(one), -largest), largest)
            for one, default in zip(instead, (0.0, largest, -largest), strict=True)
        )
        y = mb.select(cond=mb.not_equal(x=x, y=x), a=nan, b=x)
        y = mb.select(cond=mb.equal(x=x, y=math.inf), a=above, b=y)
        context.add(mb.select(cond=mb.equal(x=x, y=-math.inf), a=below, b=y, name=node.name))

    return translate


_WORDS = ("nan", "posinf", "neginf")
"""What `nan_to_num` may be told, by name."""


def _log(base: float) -> Callable[[Any, Any], None]:
    """Return a translation to `log` without its epsilon of 1e-45, with which log 0 is -103."""

    def translate(context: Any, node: Any) -> None:
        from coremltools.converters.mil import Builder as mb
        from coremltools.converters.mil.frontend.torch.ops import _get_inputs

        x = _real(_get_inputs(context, node)[0])
        if base == math.e:
            context.add(mb.log(x=x, epsilon=0.0, name=node.name))
        else:
            found = mb.log(x=x, epsilon=0.0)
            context.add(mb.mul(x=found, y=_number(found, 1 / math.log(base)), name=node.name))

    return translate


def _prod(context: Any, node: Any) -> None:
    """Translate to a product over one axis, or of all numbers."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs

    x, *how = _get_inputs(context, node)
    axes = [int(how[0].val)] if how else None
    keep = bool(how[1].val) if len(how) > 1 and how[1] is not None else False
    context.add(mb.reduce_prod(x=x, axes=axes, keep_dims=keep, name=node.name))
