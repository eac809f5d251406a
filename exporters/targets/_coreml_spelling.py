"""Operators that coremltools has no translation for, as for another target, or in PyTorch's own decompositions.

What is wrong, or has no decomposition that Core ML takes, is in exporters/decompositions instead, which come first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch.export import ExportedProgram, default_decompositions

from edgesmith.exporters import decompositions
from edgesmith.exporters.targets._refusal import decompose

_ROUNDS = 4
"""What a decomposition makes may have to be spelled out again; this is deeper than any of PyTorch's."""


def spell_out(program: ExportedProgram, target: str) -> ExportedProgram:
    """Return the program without operators that coremltools lacks and PyTorch has others for.

    To be called while our own translations hold, see `own_translations`.

    Args:
        target: the name under which our decompositions hold.
    """
    ours = decompositions.for_target(target)
    others = decompositions.for_others(target, lambda one: not is_lacking(one))
    for _ in range(_ROUNDS):
        met = {node.target for node in program.graph.nodes if node.op == "call_function"}
        lacking = {one: own for one in met if is_lacking(one) and (own := _torchs_own().get(one) or others.get(one))}
        if not lacking:
            break
        program = decompose(program, {**lacking, **ours}, "Core ML")
    return program


def is_lacking(overload: Any) -> bool:
    """Return whether an operator is one of PyTorch's that has no translation."""
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY
    from coremltools.converters.mil.frontend.torch.utils import sanitize_op_kind

    if not isinstance(overload, torch._ops.OpOverload) or overload.namespace != "aten":
        return False
    name = overload.name()  # type: ignore[no-untyped-call]  # torch declares no types
    return sanitize_op_kind(name) not in _TORCH_OPS_REGISTRY.name_to_func_mapping


@cache
def _torchs_own() -> Mapping[Any, Callable[..., Any]]:
    """Return PyTorch's decompositions by operator."""
    return dict(default_decompositions().items())  # type: ignore[no-untyped-call]  # torch declares no types
