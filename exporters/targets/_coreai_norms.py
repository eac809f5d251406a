"""Norms as Core AI's composites, over bodies that add many numbers in stages.

A device has its own implementation of a composite, the runtime on Linux executes the body. The converter's bodies sum a
whole row at once, one number after the other: 65536 of them cost AFFNet two digits.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgesmith.exporters import stages

Lowering = Callable[[Mapping[str, Any], Any, Any], Any]


def lowerings() -> Mapping[str, Lowering]:
    """Return what lowers norms in place of the converter's own, by the names of PyTorch's operators."""
    return {"native_group_norm": _group_norm, "native_layer_norm": _layer_norm, "instance_norm": _instance_norm}


def _core() -> Any:
    return importlib.import_module("coreai._compiler.dialects.coreai")


def _converter() -> Any:
    return importlib.import_module("coreai_torch._aten_to_core")


def _as_they_come(made: Any) -> Any:
    """Return a value, or the results of a call as the list that a registered lowering returns."""
    return made if hasattr(made, "type") else list(made)


def _group_norm(values: Mapping[str, Any], node: Any, location: Any) -> list[Any]:
    given, weight, bias, _, channels, _, groups, eps = node.args
    x = values[str(given)]
    shape = list(x.type.shape)
    planes = [channels, *[1] * (len(shape) - 2)]
    rows = [channels // groups, *stages.of(math.prod(shape[2:]))]

    def body(input: Any, weight: Any, bias: Any) -> Any:  # noqa: A002 - the names are the composite's
        core, kind = _core(), input.type.element_type
        normed = _standardised(input, [shape[0], groups], rows, eps)
        weight, bias = (core.reshape(core.cast(value, kind), planes) for value in (weight, bias))
        return core.broadcasting_add(core.broadcasting_mul(normed, weight), bias)

    body.__name__ = "group_norm"
    facts = {"num_groups": groups, "num_channels": channels, "eps": eps}
    return _composite(body, facts, x, *_affine(values, [channels], weight, bias))


def _layer_norm(values: Mapping[str, Any], node: Any, location: Any) -> Any:
    """The converter's own, where rows are short."""
    given, normalised, weight, bias, eps = node.args
    x = values[str(given)]
    shape, lead = list(x.type.shape), len(x.type.shape) - len(normalised)
    if math.prod(normalised) < stages.LONG:
        return _as_they_come(_converter().replace_layer_norm(values, node, location))
    rows = [factor for size in normalised for factor in stages.of(size)]

    def body(input: Any, gamma: Any, beta: Any) -> Any:  # noqa: A002 - the names are the composite's
        core, kind = _core(), input.type.element_type
        normed = _standardised(input, shape[:lead], rows, eps)
        return core.broadcasting_add(core.broadcasting_mul(normed, core.cast(gamma, kind)), core.cast(beta, kind))

    body.__name__ = "layer_norm"
    facts = {"eps": eps, "axes": list(range(lead, len(shape))), "version": 1}
    return _composite(body, facts, x, *_affine(values, list(normalised), weight, bias))


def _instance_norm(values: Mapping[str, Any], node: Any, location: Any) -> Any:
    """The converter's own, where maps are small or their statistics are stored."""
    given, weight, bias, _, _, is_own, _, eps, _ = node.args
    x = values[str(given)]
    shape = list(x.type.shape)
    if not is_own or math.prod(shape[2:]) < stages.LONG:
        return _as_they_come(_converter().replace_instance_norm(values, node, location))
    rows = [factor for size in shape[2:] for factor in stages.of(size)]

    def body(input: Any, gamma: Any, beta: Any) -> Any:  # noqa: A002 - the names are the composite's
        core, kind = _core(), input.type.element_type
        normed = _standardised(input, shape[:2], rows, eps)
        return core.broadcasting_add(core.broadcasting_mul(normed, core.cast(gamma, kind)), core.cast(beta, kind))

    body.__name__ = "instance_norm"
    planes = [shape[1], *[1] * (len(shape) - 2)]
    affine = [_core().reshape(value, planes) for value in _affine(values, [shape[1]], weight, bias)]
    return _composite(body, {"eps": eps, "version": 1}, x, *affine)


def _standardised(x: Any, lead: Sequence[int], rows: Sequence[int], eps: float) -> Any:
    """Return (x - mean) / sqrt(variance + eps) of rows, in float32, as x lies and in its type.

    Args:
        rows: factors of a row's length, which are summed one after another from the last on.
    """
    import numpy as np

    core = _core()

    def mean(value: Any) -> Any:
        for axis in reversed(range(len(lead), len(lead) + len(rows))):
            value = core.reduce_mean(value, [axis])
        return value

    wide = core.reshape(core.cast(x, np.float32), [*lead, *rows])
    centred = core.broadcasting_sub(wide, mean(wide))
    variance = mean(core.broadcasting_mul(centred, centred))
    scale = core.rsqrt(core.broadcasting_add(variance, core.constant(np.float32(eps))))
    normed = core.reshape(core.broadcasting_mul(centred, scale), list(x.type.shape))
    return core.cast(normed, x.type.element_type)


def _affine(values: Mapping[str, Any], shape: Sequence[int], weight: Any, bias: Any) -> list[Any]:
    """Return a norm's weight and bias: ones and zeros where there are none."""
    import numpy as np

    return [
        _core().constant(np.full(shape, default, np.float32)) if chosen is None else values[str(chosen)]
        for chosen, default in ((weight, 1), (bias, 0))
    ]


def _composite(body: Callable[..., Any], facts: Mapping[str, Any], *operands: Any) -> list[Any]:
    """Return the call of a function that is declared to be the composite of its name."""
    core = _core()
    declare = importlib.import_module("coreai_torch").generate_composite_decl
    value = importlib.import_module("coreai._compiler.ir").Value
    names = list(body.__code__.co_varnames[: body.__code__.co_argcount])
    body.__annotations__ = dict.fromkeys([*names, "return"], value)
    declaration = declare(operands[0].type.context, body.__name__, names, ["output"], facts)
    return list(core.graph(private=True, no_inline=True, composite_decl=declaration)(body)(*operands))
