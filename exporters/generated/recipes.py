"""A generated model as data: its inputs, constants and steps, and the module that they make.

    {"name": "nnsmith-2", "inputs": [["v0", "float16", [1, 1]]], "constants": [],
     "steps": [["v1", "softmax", ["v0"], {"dim": 0}], ["v2", "amin", ["v1"], {"dim": 1}]], "outputs": ["v2"]}

A step is the name of its value, a function of `FUNCTIONS` or a layer of `LAYERS`, the values that it takes, and what it
fixes. Weights, constants and inputs follow from the name, so that a recipe is the same model everywhere.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgesmith.errors import BadInput
from edgesmith.readers.documents import read_lines

MODELS = Path(__file__).with_name("models.jsonl")
"""The recipes that `make conformance` goes through, one a line."""

Typed = tuple[str, str, tuple[int, ...]]
"""The name, the type and the shape of a value that no step makes."""

Step = tuple[str, str, tuple[str, ...], Mapping[str, Any]]
"""The name of a value, what makes it, of which values, and what is fixed."""


def _slice(x: Tensor, axis: int, start: int | None, stop: int | None, step: int | None) -> Tensor:
    return x[(slice(None),) * axis + (slice(start, stop, step),)]


def _divide_whole(x: Tensor, y: Tensor) -> Tensor:
    return torch.div(x, y, rounding_mode="floor")


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        name: getattr(torch, name)
        for name in (
            *("relu", "sigmoid", "sin", "cos", "tan", "asin", "acos", "atan", "abs", "neg", "floor", "ceil", "round"),
            *("sqrt", "log2", "where", "add", "sub", "mul", "div", "pow", "maximum", "minimum", "eq", "gt", "lt"),
            *("logical_and", "logical_or", "logical_xor", "clip", "flatten", "transpose", "squeeze", "sum", "mean"),
            *("argmin", "argmax", "tril", "triu", "matmul"),
        )
    },
    "gelu": F.gelu,
    "leaky_relu": F.leaky_relu,
    "floor_div": _divide_whole,
    "max": torch.max,
    "min": torch.min,
    "max_along": lambda x, dim: x.max(dim).values,
    "min_along": lambda x, dim: x.min(dim).values,
    "softmax": torch.softmax,
    "slice": _slice,
    "pad": F.pad,
    "expand": lambda x, shape: x.expand(*shape),
    "reshape": lambda x, shape: x.reshape(*shape),
    "interpolate": F.interpolate,
    "cat": lambda *xs, dim: torch.cat(xs, dim=dim),
    "to": lambda x, dtype: x.to(dtype=getattr(torch, dtype)),
}
"""What a step may call: a function of tensors, and of what is fixed by name."""

LAYERS: dict[str, Callable[..., nn.Module]] = {
    name: getattr(nn, name) for name in ("PReLU", "MaxPool2d", "AvgPool2d", "BatchNorm2d", "Conv1d", "Conv2d", "Linear")
}
"""What a step may be: a layer with weights, or one that models commonly keep as a module."""


@dataclass(frozen=True)
class Recipe:
    """A generated model.

    Attributes:
        name: of the generator, and the seed; what is drawn follows from it.
        constants: values that are weights of the model.
        steps: in the order of their execution.
        outputs: values that the model returns.
    """

    name: str
    inputs: tuple[Typed, ...]
    constants: tuple[Typed, ...]
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]

    @property
    def seed(self) -> int:
        """The seed of whatever is drawn for this model."""
        return zlib.crc32(self.name.encode())

    def dump(self) -> str:
        """Return the recipe as a line of JSON."""
        return json.dumps(self.__dict__)


def read(path: Path = MODELS) -> dict[str, Recipe]:
    """Return the recipes of a file by name.

    Raises:
        BadInput: there is no such file, or a line of it calls what is neither a function nor a layer here.
    """
    if not path.is_file():
        raise BadInput(f"there is no {path}; make recipes: python -m edgesmith.exporters.generated.draw")
    found = {}
    for line in read_lines(path, "recipes", advice="make them anew: python -m edgesmith.exporters.generated.draw"):
        recipe = parse(line)
        found[recipe.name] = recipe
    return found


def parse(content: Mapping[str, Any]) -> Recipe:
    """Return the recipe that a line holds. Raises BadInput for what is neither a function nor a layer here."""
    steps = tuple((out, name, tuple(taken), fixed) for out, name, taken, fixed in content["steps"])
    for _, name, _, _ in steps:
        if name not in FUNCTIONS and name not in LAYERS:
            raise BadInput(f"{content['name']} calls {name!r}, which recipes.py does not have")
    inputs, constants = (
        tuple((name, dtype, tuple(shape)) for name, dtype, shape in content[key]) for key in ("inputs", "constants")
    )
    return Recipe(content["name"], inputs, constants, steps, tuple(content["outputs"]))


class Generated(nn.Module):
    """The model of a recipe, with weights of its own.

    Attributes:
        recipe: what it is made of.
        functions: what steps call, by name.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.functions = FUNCTIONS
        generator = torch.Generator().manual_seed(recipe.seed)
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            for out, name, _, fixed in recipe.steps:
                if name in LAYERS:
                    self.add_module(f"layer_{out}", _settled(LAYERS[name](**fixed), generator))
        for name, dtype, shape in recipe.constants:
            value = _draw(dtype, shape, generator, "normal")
            self.register_parameter(f"constant_{name}", nn.Parameter(value, requires_grad=False))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        recipe = self.recipe
        values = {name: x for (name, _, _), x in zip(recipe.inputs, inputs, strict=True)}
        values |= {name: self.get_parameter(f"constant_{name}") for name, _, _ in recipe.constants}
        for out, name, taken, fixed in recipe.steps:
            given = [values[one] for one in taken]
            if name in LAYERS:
                values[out] = self.get_submodule(f"layer_{out}")(*given)
            else:
                values[out] = self.functions[name](*given, **fixed)
        return tuple(values[out] for out in recipe.outputs)


def _settled(layer: nn.Module, generator: torch.Generator) -> nn.Module:
    """Return a layer whose running statistics are those of some training, not those of none."""
    if isinstance(layer, nn.BatchNorm2d):
        assert layer.running_mean is not None  # it tracks them
        assert layer.running_var is not None
        layer.running_mean.copy_(torch.randn(layer.running_mean.shape, generator=generator))
        layer.running_var.copy_(torch.rand(layer.running_var.shape, generator=generator) + 0.5)
    return layer


DRAWS = ("normal", "positive", "wide")
"""Distributions of inputs: around zero, as nnsmith's own around five, and over several magnitudes."""


def draw_inputs(recipe: Recipe, distribution: str) -> tuple[Tensor, ...]:
    """Return inputs of a recipe, drawn from one of `DRAWS`."""
    generator = torch.Generator().manual_seed(recipe.seed + DRAWS.index(distribution))
    return tuple(_draw(dtype, shape, generator, distribution) for _, dtype, shape in recipe.inputs)


def _draw(dtype: str, shape: Sequence[int], generator: torch.Generator, distribution: str) -> Tensor:
    of_type: torch.dtype = getattr(torch, dtype)
    if of_type == torch.bool:
        return torch.rand(tuple(shape), generator=generator) < 0.5
    if distribution == "positive":
        values = 3 + 4 * torch.rand(tuple(shape), generator=generator)
    else:
        values = torch.randn(tuple(shape), generator=generator)
        if distribution == "wide":
            values = values * 10.0 ** (2 * torch.rand(tuple(shape), generator=generator) - 1)
    if not of_type.is_floating_point:
        values = (values * 3).round()
        values = values.abs() if of_type == torch.uint8 else values
    return values.to(of_type)
