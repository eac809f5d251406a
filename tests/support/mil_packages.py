"""Core ML packages of a test's own: written by coremltools' builder, and damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

SPECIFICATION = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


def save(body: Callable[..., Any], specs: list[Any], path: Path, opset: int = 18, **options: Any) -> Path:
    """Write a program that coremltools' builder makes."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

    target = getattr(ct.target, f"iOS{opset}")
    program = mb.program(input_specs=specs, opset_version=target)(body)
    options = {"pass_pipeline": ct.PassPipeline.EMPTY} | options
    ct.convert(program, minimum_deployment_target=target, skip_model_load=True, **options).save(str(path))
    return path


def edit(path: Path, change: Callable[[Any], None]) -> Path:
    """Change a package's specification."""
    from coremltools.proto import Model_pb2

    model = Model_pb2.Model()
    model.ParseFromString((path / SPECIFICATION).read_bytes())
    change(model)
    (path / SPECIFICATION).write_bytes(model.SerializeToString())
    return path


def block(model: Any, name: str = "main") -> Any:
    """Return a function's block."""
    function = model.mlProgram.functions[name]
    return function.block_specializations[function.opset]
