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
