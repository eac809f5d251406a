"""Additions to TVM's importer: operators that stay whole, and translations of ours where its own are wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.fx import Node

    from edgesmith.kernels.op import FusedOp

KEPT = (
    *("conv1d.default", "conv2d.default", "conv3d.default", "linear.default", "matmul.default", "softmax.int"),
    *("silu.default", "hardswish.default", "hardsigmoid.default", "group_norm.default", "layer_norm.default"),
    *("leaky_relu.default", "softplus.default", "flatten.using_ints", "adaptive_avg_pool2d.default"),
)
"""Operators that the importer takes whole, though PyTorch would decompose them."""


def decompositions(lowerings: str) -> dict[Any, Callable[..., Any]]:
    """Return the spellings of operators in others that come before the importer: PyTorch's, and ours first.

    What neither knows, nor the importer, is spelled as for another target.
    """
    import torch
    from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

    from edgesmith.exporters import decompositions as ours

    table: dict[Any, Callable[..., Any]] = dict(torch.export.default_decompositions())
    for name in KEPT:
        packet, overload = name.split(".")
        table.pop(getattr(getattr(torch.ops.aten, packet), overload), None)
    known = {*ExportedProgramImporter().convert_map, *translations(lowerings)}
    others = ours.for_others(lowerings, lambda one: one in table or one.__name__ in known)
    own = {
        overload: _first(function, table[overload]) if overload in table else function
        for overload, function in ours.for_target(lowerings).items()
    }
    return {**others, **table, **own}


def _first(ours: Callable[..., Any], general: Callable[..., Any]) -> Callable[..., Any]:
    """Return our spelling of an operator, and PyTorch's for the arguments that ours leaves."""

    def spell(*args: Any, **kwargs: Any) -> Any:
        made = ours(*args, **kwargs)
        return general(*args, **kwargs) if made is NotImplemented else made

    return spell


def translations(lowerings: str) -> Mapping[str, Callable[..., Any]]:
    """Return our translations, by the importer's names of operators: those of fused ops too."""
    from edgesmith.kernels.op import all_ops

    fused = {
        f"{op.name}.default": partial(_lowered, op, lowerings) for op in all_ops().values() if lowerings in op.lowerings
    }
    return OURS | fused


def _lowered(op: FusedOp, lowerings: str, node: Node, importer: Any) -> Any:
    """Return what a fused op's own lowering makes of a node; it is called with TVM's builder, then the arguments."""
    return op.lowerings[lowerings](importer.block_builder, *_given(node, importer))


def _given(node: Node, importer: Any) -> list[Any]:
    """Return an operator's arguments, defaults filled in, tensors as Relax."""
    import torch

    from edgesmith.exporters.graph.edit import arguments

    return [importer.env[one] if isinstance(one, torch.fx.Node) else one for one in arguments(node)]


def _matmul(node: Node, importer: Any) -> Any:
    """The importer's own returns float32, whatever it multiplies."""
    from tvm import relax

    x, y = _given(node, importer)
    return importer.block_builder.emit(relax.op.matmul(x, y, out_dtype=str(x.ty.dtype)))


def _group_norm(node: Node, importer: Any) -> Any:
    """The importer's own asks for weight and bias."""
    from tvm import relax

    x, groups, weight, bias, epsilon, _ = _given(node, importer)
    channels, axes = int(x.ty.shape[1]), list(range(2, len(x.ty.shape)))
    weight, bias = _affine([channels], weight, bias)
    return importer.block_builder.emit(relax.op.nn.group_norm(x, weight, bias, groups, 1, axes, epsilon))


def _layer_norm(node: Node, importer: Any) -> Any:
    """The importer's own loses the epsilon where weights are left out."""
    from tvm import relax

    x, shape, weight, bias, epsilon, _ = _given(node, importer)
    weight, bias = _affine(list(shape), weight, bias)
    return importer.block_builder.emit(relax.op.nn.layer_norm(x, weight, bias, list(range(-len(shape), 0)), epsilon))


def _affine(shape: list[int], weight: Any, bias: Any) -> tuple[Any, Any]:
    """Return a norm's weight and bias: ones and zeros where there are none."""
    import numpy as np
    from tvm import relax

    ones, zeros = np.ones(shape, np.float32), np.zeros(shape, np.float32)
    return (relax.const(ones) if weight is None else weight), (relax.const(zeros) if bias is None else bias)


def _conv1d(node: Node, importer: Any) -> Any:
    """A conv2d of maps that are one pixel high: kernels compute these, and layouts pass through them."""
    from tvm import relax

    x, weight, bias, stride, padding, dilation, groups = _given(node, importer)
    emit, op = importer.block_builder.emit, relax.op
    x, weight = emit(op.expand_dims(x, 2)), emit(op.expand_dims(weight, 2))
    made = emit(
        op.nn.conv2d(x, weight, [1, *stride], [0, padding[0], 0, padding[0]], [1, *dilation], groups, "NCHW", "OIHW")
    )
    if bias is not None:
        made = emit(op.add(made, op.reshape(bias, [1, -1, 1, 1])))
    return emit(op.squeeze(made, 2))


def _reduced(name: str) -> Callable[..., Any]:
    """Return a reduction along axes; the importer has none of that name for axes."""

    def translate(node: Node, importer: Any) -> Any:
        from tvm import relax

        x, axes, keeps = _given(node, importer)[:3]
        return importer.block_builder.emit(getattr(relax.op, name)(x, axes if axes != [] else None, bool(keeps)))

    return translate


def _full(node: Node, importer: Any) -> Any:
    """A tensor of one number, which may be infinite: TVM's own fails where it asks for the type of such."""
    import numpy as np
    from tvm import relax

    made = node.meta["val"]
    number = np.asarray(node.args[1], str(made.dtype).removeprefix("torch."))
    return importer.block_builder.emit(
        relax.op.broadcast_to(relax.const(number, str(number.dtype)), [int(size) for size in made.shape])
    )


def _round(node: Node, importer: Any) -> Any:
    """A value as int8 holds it, in float: what layouts pass through, and _tvm_integers.py finds again."""
    from edgesmith.exporters.targets import _tvm_integers

    x, scale, zero, least, most, _ = _given(node, importer)
    return importer.block_builder.emit(_tvm_integers.rounded(x, float(scale), int(zero), int(least), int(most)))


def _unround(node: Node, importer: Any) -> Any:
    """The inverse, of numbers in float."""
    from edgesmith.exporters.targets import _tvm_integers

    x, scale, zero, _, _, _, _ = _given(node, importer)
    return importer.block_builder.emit(_tvm_integers.scaled(x, float(scale), int(zero)))


OURS: dict[str, Callable[..., Any]] = {
    "full.default": _full,
    "full_like.default": _full,
    "amax.default": _reduced("max"),
    "amin.default": _reduced("min"),
    "prod.dim_int": _reduced("prod"),
    "conv1d.default": _conv1d,
    "matmul.default": _matmul,
    "mm.default": _matmul,
    "bmm.default": _matmul,
    "group_norm.default": _group_norm,
    "layer_norm.default": _layer_norm,
    "quantize_per_tensor.default": _round,
    "dequantize_per_tensor.default": _unround,
}
"""Translations of PyTorch's operators in place of the importer's."""
