"""Forms of a computation as ONNX files: what experiments write before they time it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from edgesmith.bench.experiments.interleave import onnx_call
from edgesmith.exporters import targets
from edgesmith.exporters.graph.capture import Program, capture
from edgesmith.exporters.precision import table as precisions
from edgesmith.exporters.targets.target import Request
from edgesmith.models import registry
from edgesmith.models.checkpoint import load

ONNX = targets.get("onnx")
COSTS = ONNX.costs


def program_of(model: nn.Module, *inputs: Tensor) -> Program:
    """Return a module captured, with inputs `x0`, `x1` and so on."""
    return capture(model.eval(), inputs, tuple(f"x{i}" for i in range(len(inputs))))


def write(program: Program, path: Path) -> Path:
    """Lower a program to an ONNX file as it is. Returns the path."""
    ONNX.lower(program, path, Request(path.stem, precisions.FP32))
    return path


def call_of(program: Program, path: Path) -> Callable[[], object]:
    """Write a program, and return a call of it with its own inputs."""
    feeds = {name: x.numpy() for name, x in zip(program.input_names, program.inputs, strict=True)}
    return onnx_call(write(program, path), feeds)


def write_plain(model: nn.Module, x: Tensor, path: Path, name: str = "x") -> Path:
    """Write what torch's exporter alone makes of a model. Returns the path."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            torch.onnx.export(
                model, (x,), str(path), input_names=[name], dynamo=True, verbose=False, external_data=False
            )
        finally:
            logging.disable(logging.NOTSET)
    return path


def model_of(name: str) -> nn.Module:
    """Return a model of the zoo with random weights."""
    return load(registry.get(name), None)[0]


def input_of(name: str, size: Sequence[int] | None = None) -> Tensor:
    """Return normal numbers for a model of the zoo, [1, *size] or of its own shape."""
    shape = registry.get(name).input.shape if size is None else size
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
