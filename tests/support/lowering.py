"""Lowering a program without an export around it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from edgesmith.exporters import targets
from edgesmith.exporters.graph.capture import Program
from edgesmith.exporters.precision import table as precisions
from edgesmith.exporters.precision.half import half
from edgesmith.exporters.targets.target import Request, Target, TargetFile


def lower(
    target: str | Target,
    program: Program,
    path: Path,
    precision: str = "fp32",
    keep_fp32: Mapping[str, str] | None = None,
    **request: Any,
) -> TargetFile:
    """Type a program, write it and open the file.

    Args:
        keep_fp32: of a half-precision program, what stays fp32; nothing is looked for.
        request: more of the `Request`.
    """
    to = targets.get(target) if isinstance(target, str) else target
    row, kept = precisions.get(precision), keep_fp32 or {}
    if row.is_half and to.types_programs:
        program = half(program, kept, getattr(torch, row.dtype))
    to.lower(program, path, Request(request.pop("name", path.stem), row, keep_fp32=kept, **request))
    return to.open(path)


def assert_nothing_constant(path: Path) -> None:
    """Assert that folding the constants of an ONNX file finds nothing: every node reads an input, or what follows one.

    Nodes in the bodies of loops count too, for they would be computed at every step.
    """
    import onnx

    def constant_in(graph: Any, outer: frozenset[str]) -> list[str]:
        known, found = {*outer, *(one.name for one in graph.initializer)}, []
        for node in graph.node:
            bodies = [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]
            for body in bodies:
                found += constant_in(body, frozenset(known))
            if node.op_type == "Constant":
                known.update(node.output)
            elif not bodies and all(name in known or not name for name in node.input):
                found.append(f"{node.op_type} {node.output[0]}")
                known.update(node.output)
        return found

    left = constant_in(onnx.load(str(path), load_external_data=False).graph, frozenset())
    assert not left, f"computed from constants alone in {path.name}: {', '.join(left)}"
