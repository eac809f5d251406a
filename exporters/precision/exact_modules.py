"""Modules that stay fp32 in every precision, whatever the inputs of an export show.

front_end   energies reach from 2^-23 to 2e4, eleven decades, and the range of normal fp16 numbers is nine; a scale
of int8 is for two. Their logarithm is a feature that matters at both ends
"""

from __future__ import annotations

from edgesmith.errors import Unsupported
from edgesmith.exporters.graph.capture import Program
from edgesmith.exporters.graph.edit import module_path, operators
from edgesmith.exporters.precision.task import TypingTask

FRONT_END = "front_end"
"""The name of the module that makes frames of sound."""

_REASON = "the front end's energies reach further than half precision and int8 do"


def keep_exact(program: Program, task: TypingTask) -> dict[str, str]:
    """Return the names of a program's nodes in the module that stays fp32, each with the reason."""
    if not task.fp32_module:
        return {}
    return {node.name: _REASON for node in operators(program.module) if _is_in(module_path(node), task.fp32_module)}


def keep_in_file(program: Program, task: TypingTask) -> dict[str, str] | None:
    """Return the names that a target's converter has for them, each with the reason; None where nothing stays fp32.

    Raises:
        Unsupported: the converter has no names for them.
    """
    kept = keep_exact(program, task)
    paths = {module_path(node) for node in operators(program.module) if node.name in kept}
    if not paths:
        return None
    names = task.operators_in(sorted(paths))
    if paths - set(names.values()):
        raise Unsupported(f"{_REASON}, and the target's converter names no operator of it; give --precision fp32")
    return dict.fromkeys(names, _REASON)


def _is_in(path: str, module: str) -> bool:
    return module in path.split(".")
