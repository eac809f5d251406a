"""Inputs as Core ML takes them: float and int32 arrays of 1 to 5 axes.

a number, shape []                   [1]
bool, uint8, int8, int16, int64      int32; truth values are 0 and 1
float64                              float32
more than five axes                  refused
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgesmith.errors import Unsupported
from edgesmith.exporters.graph.capture import Program, with_module
from edgesmith.exporters.graph.edit import Emitter, aten, fork, stand_for, tidy

LARGEST_RANK = 5
_SMALL = frozenset({torch.bool, torch.uint8, torch.int8, torch.int16})
_TAKEN = frozenset({torch.float64, torch.float32, torch.float16, torch.int32, torch.int64, *_SMALL})


def with_core_ml_inputs(program: Program) -> Program:
    """Return the program for inputs that Core ML has, which it makes the model's own of.

    Raises:
        Unsupported: an input that Core ML has nothing for.
    """
    for name, x in zip(program.input_names, program.inputs, strict=True):
        _refuse(name, x)
    if not any(_is_foreign(x) for x in program.inputs):
        return program
    module = fork(program.module)
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    first = placeholders[-1].next  # constants may stand before them
    given = []
    for node, x in zip(placeholders, program.inputs, strict=True):
        given.append(_as_given(x))
        if not _is_foreign(x):
            continue
        value = Emitter(module, node).placeholder(f"{node.name}_given", given[-1])
        emit = Emitter(module, first)
        own = emit(aten._to_copy.default, value, dtype=torch.bool) if x.dtype == torch.bool else value
        own = emit(aten.squeeze.dims, own, [0]) if not x.dim() else own
        stand_for(own, node)
        own.meta["val"] = own.meta["val"].to(given[-1].dtype) if x.dtype != torch.bool else own.meta["val"]
        node.replace_all_uses_with(own)
        module.graph.erase_node(node)
    return with_module(Program(**{**vars(program), "inputs": tuple(given)}), tidy(module))


def _is_foreign(x: Tensor) -> bool:
    return x.dtype in _SMALL or x.dtype == torch.float64 or not x.dim()


def _as_given(x: Tensor) -> Tensor:
    """Return an input as the file takes it."""
    x = x.to(torch.int32) if x.dtype in _SMALL else x
    x = x.float() if x.dtype == torch.float64 else x
    return x if x.dim() else x.reshape(1)


def _refuse(name: str, x: Tensor) -> None:
    if x.dtype not in _TAKEN:
        raise Unsupported(f"Core ML takes float32, float16 and integer inputs, and {name} is {x.dtype}; convert it")
    if x.dim() > LARGEST_RANK:
        raise Unsupported(
            f"Core ML takes inputs of up to {LARGEST_RANK} axes, and {name} has {x.dim()}; join some of them and take"
            " them apart in the model"
        )
