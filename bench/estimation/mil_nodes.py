"""The operators of a Core ML package, whoever wrote it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from edgesmith.bench.estimation.nodes import Node, Value, fixed, kinds_of
from edgesmith.exporters.mil.program import Constant, Function, Operation, Ref, TensorType, Type, load

OPERATORS = kinds_of(
    {
        "conv": "conv",
        "transposed": "conv_transpose",
        "matmul": "matmul linear einsum scaled_dot_product_attention",
        "softmax": "softmax",
        "norm": "layer_norm instance_norm batch_norm l2_norm local_response_norm",
        "pool": "avg_pool max_pool l2_pool",
        "reduce": "reduce_mean reduce_sum reduce_max reduce_min reduce_prod reduce_l1_norm reduce_l2_norm"
        " reduce_sum_square reduce_log_sum reduce_log_sum_exp reduce_argmax reduce_argmin cumsum",
        "unary": "relu relu6 clip gelu silu sigmoid sigmoid_hard tanh scaled_tanh exp exp2 log erf sqrt rsqrt inverse"
        " abs square softplus softplus_parametric softsign elu leaky_relu prelu thresholded_relu clamped_relu"
        " linear_activation cast floor ceil round sign sin cos threshold logical_not quantize dequantize",
        "binary": "add sub mul real_div floor_div mod pow maximum minimum equal not_equal greater greater_equal less"
        " less_equal logical_and logical_or logical_xor select",
        "move": "transpose concat split stack slice_by_index slice_by_size gather gather_along_axis gather_nd"
        " scatter scatter_along_axis scatter_nd slice_update pad tile upsample_nearest_neighbor upsample_bilinear"
        " resize_bilinear resize_nearest_neighbor resize crop_resize crop pixel_shuffle pixel_unshuffle"
        " space_to_depth depth_to_space batch_to_space space_to_batch reverse band_part topk argsort one_hot"
        " sliding_windows read_state write_state coreml_update_state",
        "view": "reshape reshape_like expand_dims squeeze flatten2d identity shape fill fill_like range_1d classify",
    }
)
"""Operators that decompress weights (`constexpr_*`) are no work of their own: they are the weights."""


BITS = {
    "bool": 8,
    "fp16": 16,
    "bf16": 16,
    "fp32": 32,
    "fp64": 64,
    **{f"{sign}int{bits}": bits for sign in ("", "u") for bits in (1, 2, 3, 4, 6, 8, 16, 32, 64)},
}


def read_nodes(file: Path) -> list[Node]:
    """Return the operators of a package's function in order, without those that hold or decompress constants.

    Raises:
        BadInput: the package cannot be read.
        Unsupported: a size that only a run decides.
    """
    function = load(file).function()
    tensors = _Tensors(function, file)
    nodes = []
    for operation in function.block.operations:
        if operation.blocks:  # its type is refused, and what it reads is not asked for
            nodes.append(Node(operation.type, operation.name, operation.source, (), ()))
            continue
        outputs = tensors.results(operation)
        if not _is_stored(operation):
            inputs, settings = tuple(tensors.operands(operation)), _settings(operation, function)
            nodes.append(Node(operation.type, operation.name, operation.source, inputs, outputs, settings))
    return nodes


def _is_stored(operation: Operation) -> bool:
    return operation.type == "const" or _is_compressed(operation)


def _is_compressed(operation: Operation) -> bool:
    return operation.type.startswith("constexpr_")


class _Tensors:
    """The values of a function by name, as far as its operators have made them."""

    def __init__(self, function: Function, file: Path) -> None:
        self.file = file
        self._known = {given.name: self._value(given.name, given.type, given.name) for given in function.inputs}

    def results(self, operation: Operation) -> tuple[Value, ...]:
        """Return what an operator makes, and know it. Compressed constants take the bytes that they are stored in."""
        made = [self._value(v.name, v.type, operation.site, _is_stored(operation)) for v in operation.outputs]
        if _is_compressed(operation):
            references = [one.name for one in operation.inputs.values() if isinstance(one, Ref)]
            held = 8 * sum(self._known[name].bytes for name in references if name in self._known)
            made = [replace(v, bits=held // max(v.size, 1) if held >= v.size else v.bits) for v in made]
        self._known.update((value.name, value) for value in made)
        return tuple(made)

    def operands(self, operation: Operation) -> Iterator[Value]:
        """Yield what an operator reads, in the order that accounts take."""
        for parameter in _in_order(operation.type, operation.inputs):
            operand = operation.inputs[parameter]
            for one in operand if isinstance(operand, tuple) else (operand,):
                if isinstance(one, Ref):
                    yield self._known[one.name]
                elif isinstance(one, Constant):
                    yield self._value(f"{operation.name}.{parameter}", one.type, operation.site, is_constant=True)

    def _value(self, name: str, kind: Type, site: str, is_constant: bool = False) -> Value:
        if not isinstance(kind, TensorType):  # what a state, a list or a dictionary holds is moved by no operator here
            return Value(name, (0,), 0, is_constant)
        shape = None if kind.shape is None else list(kind.shape)
        return Value(name, fixed(shape, site, self.file), BITS.get(kind.dtype, 0), is_constant)


def _in_order(kind: str, inputs: Mapping[str, Any]) -> list[str]:
    """The parameters of an operator that are tensors, in the order that accounts take; settings are not among them."""
    first = {
        "matmul": ("x", "y"),
        "linear": ("x", "weight", "bias"),
        "scaled_dot_product_attention": ("query", "key", "value", "attn_mask"),
        "select": ("cond", "a", "b"),
        "layer_norm": ("x", "gamma", "beta"),
        "instance_norm": ("x", "gamma", "beta"),
        "batch_norm": ("x", "mean", "variance", "gamma", "beta"),
        "einsum": ("values",),
        "concat": ("values",),
        "stack": ("values",),
    }.get(kind)
    if first:
        return [name for name in first if name in inputs]
    operands = ("x", "y", "weight", "bias", "alpha", "data", "input", "updates", "indices", "update", "cond", "a", "b")
    return [name for name in operands if name in inputs]


def _settings(operation: Operation, function: Function) -> dict[str, Any]:
    """The settings that accounts ask for."""
    wanted = {"groups": ("groups", 1), "transpose_a": ("transpose_x", False), "equation": ("equation", "")}
    return {
        name: _read(operation.inputs.get(parameter), function, default) for name, (parameter, default) in wanted.items()
    }


def _read(operand: Any, function: Function, default: Any) -> Any:
    """A setting's value: in the operator, or in the `const` that it names."""
    if isinstance(operand, Ref):
        for operation in function.block.operations:
            if operation.type == "const" and operation.outputs[0].name == operand.name:
                operand = operation.inputs.get("val", operation.attributes.get("val"))
                break
    if not isinstance(operand, Constant):
        return default
    value = operand.read()
    return value.item() if isinstance(value, Tensor) else value
