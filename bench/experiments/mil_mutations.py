"""Errors for a lowered Core ML package, as onnx_mutations.py has them; the program is changed as it was read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from edgesmith.bench.experiments.onnx_mutations import TEXTS, of_array
from edgesmith.exporters.mil.program import Block, Constant, MlProgram, Operation, Ref, TensorType
from edgesmith.exporters.targets.target import TargetFile

SWAPPED = {
    **dict.fromkeys(
        ["sub", "real_div", "floor_div", "mod", "pow", "less", "less_equal", "greater", "greater_equal", "matmul"],
        ("x", "y"),
    ),
    "select": ("a", "b"),
}

NEIGHBOURS = {
    "less": ("less_equal",),
    "less_equal": ("less",),
    "greater": ("greater_equal",),
    "greater_equal": ("greater",),
    "maximum": ("minimum",),
    "minimum": ("maximum",),
    "floor": ("round", "ceil"),
    "ceil": ("floor",),
    "round": ("floor", "ceil"),
    "relu": ("abs",),
    "reduce_sum": ("reduce_mean",),
    "reduce_mean": ("reduce_sum",),
    "reduce_max": ("reduce_min",),
    "reduce_min": ("reduce_max",),
    "reduce_argmax": ("reduce_argmin",),
    "reduce_argmin": ("reduce_argmax",),
    "logical_and": ("logical_or", "logical_xor"),
    "logical_or": ("logical_and",),
    "logical_xor": ("logical_or",),
    "sin": ("cos",),
    "cos": ("sin",),
    "tanh": ("sigmoid",),
    "add": ("sub",),
    "sub": ("add",),
    "mul": ("real_div",),
    "real_div": ("floor_div",),
    "floor_div": ("real_div",),
    "avg_pool": ("max_pool",),
    "erf": ("tanh",),
}

MODES = {
    "mode": (*TEXTS["mode"], "EXACT", "TANH_APPROXIMATION", "replicate"),
    "padding_mode": ("constant", "border", "reflection"),
    "sampling_mode": ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS"),
    "direction": ("forward", "reverse"),
}

Change = tuple[str, str, int, Callable[[Operation], Operation]]


def mutants(
    file: TargetFile, open_file: Callable[[Path], TargetFile]
) -> list[tuple[str, str, Callable[[], TargetFile]]]:
    """Return the kind, the place and the maker of each mutant."""
    program: MlProgram = file.program  # type: ignore[attr-defined]  # a Core ML package's
    name = program.default
    function = program.functions[name]

    def make(at: int, change: Callable[[Operation], Operation]) -> TargetFile:
        operations = list(function.block.operations)
        operations[at] = change(operations[at])
        block: Block = replace(function.block, operations=tuple(operations))
        changed = replace(program, functions={**program.functions, name: replace(function, block=block)})
        mutant = open_file(file.path)
        mutant.__dict__["program"] = changed
        return mutant

    return [
        (kind, where, lambda at=at, change=change: make(at, change))  # type: ignore[misc]  # bound at once
        for kind, where, at, change in _changes(function.block, {one.name: one.type for one in function.inputs})
    ]


def constants(file: TargetFile) -> list[float]:
    """Return the small constants of a package."""
    found: list[float] = []
    for operation in file.program.functions[file.program.default].block.operations:  # type: ignore[attr-defined]  # as above
        for operand in operation.inputs.values():
            x = _array(operand)
            if x is not None and x.dtype.kind in "if" and x.size <= 8:
                found += [float(v) for v in x.flat if np.isfinite(v)]
    return found


def _array(operand: Any) -> np.ndarray | None:
    if not isinstance(operand, Constant) or not isinstance(operand.type, TensorType):
        return None
    value = operand.read()
    if isinstance(value, Tensor):
        return value.numpy()
    return None if isinstance(value, str | bytes) else np.asarray(value)


def _changes(block: Block, types: dict[str, Any]) -> Iterator[Change]:
    types = dict(types)
    users: dict[str, str] = {}
    for operation in block.operations:
        for name, operand in operation.inputs.items():
            if isinstance(operand, Ref):
                users[operand.name] = f"{operation.type} {name}"
    for at, operation in enumerate(block.operations):
        where = f"{operation.type} {operation.name}"
        for name, operand in operation.inputs.items():
            used = users.get(operation.outputs[0].name, "") if operation.type == "const" else f"{operation.type} {name}"
            for kind, words, value in _of_constant(operand, used.rpartition(" ")[2]):
                yield kind, f"{used or where} {words}", at, _put(name, operand, value)
        yield from _of_operation(at, operation, where, types)
        types |= {one.name: one.type for one in operation.outputs}


def _of_constant(operand: Any, name: str) -> Iterator[tuple[str, str, Any]]:
    if not isinstance(operand, Constant):
        return
    value = operand.read()
    if isinstance(value, str):
        for other in MODES.get(name, ()):
            if other != value:
                yield "mode", other, other
        return
    x = _array(operand)
    if x is None or (isinstance(operand.type, TensorType) and operand.type.dtype == "string"):
        return
    for kind, words, change in of_array(x):
        made = change(x.copy())
        yield kind, words, made


def _put(name: str, operand: Any, value: Any) -> Callable[[Operation], Operation]:
    import torch

    was = operand.read()
    if isinstance(was, Tensor):
        new: Any = torch.from_numpy(np.ascontiguousarray(value)).to(was.dtype).reshape(was.shape)
    elif isinstance(was, str):
        new = value
    elif np.ndim(was):
        new = type(was)(value) if not isinstance(was, list | tuple) else type(was)(value.tolist())
    else:
        new = type(was)(value.item())
    return lambda operation: replace(
        operation, inputs={**operation.inputs, name: replace(operand, read=lambda: new, stored=None)}
    )


def _of_operation(at: int, operation: Operation, where: str, types: dict[str, Any]) -> Iterator[Change]:
    pair = SWAPPED.get(operation.type)
    if pair is not None and set(pair) <= set(operation.inputs):
        a, b = pair
        swapped = {**operation.inputs, a: operation.inputs[b], b: operation.inputs[a]}
        yield "inputs swapped", where, at, lambda o: replace(o, inputs=swapped)
    for other in NEIGHBOURS.get(operation.type, ()):
        yield "neighbour", f"{where} -> {other}", at, lambda o, other=other: replace(o, type=other)  # type: ignore[misc]  # bound at once
    if operation.type == "const":
        return
    for operand in operation.inputs.values():
        if not isinstance(operand, Ref) or len(operation.outputs) > 1:
            continue
        if types.get(operand.name) == operation.outputs[0].type:
            yield "bypassed", f"{where} by {operand.name}", at, _identity(operand)


def _identity(operand: Ref) -> Callable[[Operation], Operation]:
    return lambda operation: replace(operation, type="identity", inputs={"x": operand}, attributes={})
