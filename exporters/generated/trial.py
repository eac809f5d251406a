"""A generated model on a target: exported as a user does, then its file run and compared with PyTorch once more.

An export is verified by itself, within a threshold relative to an output's peak. Here each value is judged by itself,
on inputs that the export has not seen either. A walk is a run in PyTorch in which the inputs, the weights and every
result that is rounded are moved by up to a unit in the last place, of their own type or of the precision, whichever is
coarser. A value y may be off by

    ULPS x roundoff x |y|  +  SWINGS x the largest distance of a walk from y        ULPS as of operators, tolerance.py

so that a floor, a comparison or an argmax that rounding decides in PyTorch already says nothing, and any other value
counts. A whole number or a truth value that no walk moves is equal or wrong.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgesmith.errors import Unsupported
from edgesmith.exporters import targets
from edgesmith.exporters.artifact import Artifact
from edgesmith.exporters.export import export
from edgesmith.exporters.generated.recipes import DRAWS, Generated, Recipe, draw_inputs
from edgesmith.exporters.graph.capture import run_eager
from edgesmith.exporters.precision import table as precisions
from edgesmith.exporters.targets.target import NotHere
from edgesmith.exporters.verification.conformance import RIGHT, WRONG, Column, Verdict, failure
from edgesmith.exporters.verification.noise import Storing, move
from edgesmith.exporters.verification.tolerance import SMALLEST, Expected

WALKS = 16
"""Runs of a model in which rounding is played."""

SWINGS = 4.0
"""Times that what rounding was seen to do is allowed: few walks do not meet its worst."""

ULPS = 16.0
"""Units of roundoff of the value itself."""


def judge(recipe: Recipe, column: Column) -> Verdict:
    """Return the verdict on a model's export to a target, and on its file."""
    model = Generated(recipe).eval()
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # outputs that no check can fail on, and PyTorch's own
            artifact = _export(model, recipe, column, folder)
            difference = compare(model, recipe, artifact)
    except Exception as error:  # a crash is a verdict here
        return failure(error)
    return Verdict(RIGHT) if difference is None else Verdict(WRONG, difference)


def _export(model: Generated, recipe: Recipe, column: Column, folder: str) -> Artifact:
    """Export a model as a user does, with the first draw as the example."""
    profile = column.profile
    return export(
        model,
        column.target.name,
        inputs=draw_inputs(recipe, DRAWS[0]),
        name=recipe.name,
        precision=column.precision,
        device=None if profile is None else profile.name,
        out=folder,
    )


def compare(model: Generated, recipe: Recipe, artifact: Artifact) -> str | None:
    """Return how an artifact's numbers differ from PyTorch's beyond rounding, in words, or None."""
    calls = [draw_inputs(recipe, one) for one in DRAWS]
    found = targets.get(artifact.target).open(artifact.file).run([[x.numpy() for x in given] for given in calls])
    if isinstance(found, NotHere):
        raise Unsupported(f"{artifact.target} files cannot be run here: {found.reason}")
    dtype = precisions.get(artifact.precision).dtype
    for name, given, outputs in zip(DRAWS, calls, found, strict=True):
        for k, (said, value) in enumerate(zip(expect(model, given, dtype), outputs, strict=True)):
            if (difference := said.differs(value)) is not None:
                return f"output {k} of {name} inputs: {difference}"
    return None


def expect(model: Generated, given: Sequence[Tensor], dtype: str) -> list[Expected]:
    """Return what a model's outputs must be for one call's inputs, in a precision that computes in `dtype`."""
    coarsest = torch.finfo(getattr(torch, dtype)).eps
    wanted = run_eager(model, given)
    generator = torch.Generator().manual_seed(model.recipe.seed)
    walks = [_walk(model, given, coarsest, generator) for _ in range(WALKS)]
    expected = []
    for k, y in enumerate(wanted):
        value = y.double().numpy()
        with np.errstate(invalid="ignore"):
            moved = np.max([np.abs(walk[k].double().numpy() - value) for walk in walks], axis=0)
        allowed = SWINGS * np.where(np.isnan(moved), 0.0 if not value.size else np.inf, moved)
        if y.is_floating_point():
            unit = max(torch.finfo(y.dtype).eps, coarsest) / 2
            finite = np.nan_to_num(np.abs(value), nan=0.0, posinf=0.0)
            smallest = SMALLEST["float16" if y.dtype == torch.float16 else dtype]
            allowed = allowed + ULPS * (unit * finite + smallest)
        expected.append(Expected(y.numpy(), value, allowed, dtype))
    return expected


def _walk(model: Generated, given: Sequence[Tensor], coarsest: float, generator: torch.Generator) -> list[Tensor]:
    """Return the outputs of a run in which rounding moves what is given and what is computed."""
    moved = copy.deepcopy(model)
    moved.functions = {**moved.functions, **_spelled(coarsest, generator, _reads_digits(model.recipe))}
    for weight in (*moved.parameters(), *moved.buffers()):
        weight.data = move(weight.data, coarsest, generator)
    with Storing(coarsest, generator, EXACT):
        return run_eager(moved, [move(x, coarsest, generator) for x in given])


def _spelled(step: float, generator: torch.Generator, reads_digits: bool) -> dict[str, Callable[..., Tensor]]:
    """Return functions that round inside, so that it is seen: 1 + erf(x) cancels, and so do weights of a resize.

    A position in an image is computed in fp32, up to 16 times as large as a weight, see tolerance.py. As there, a
    sigmoid is rounded as a number of order one, but where the model reads its digits.
    """

    def gelu(x: Tensor) -> Tensor:
        return x * (0.5 * (1 + torch.erf(x * 0.5**0.5)))

    def interpolate(x: Tensor, **how: Any) -> Tensor:
        y = F.interpolate(x, **how)
        if how["mode"] == "nearest" or not y.numel():
            return y
        return y + 16 * (move(torch.ones_like(y), step, generator) - 1) * y.abs().max()

    def sigmoid(x: Tensor) -> Tensor:
        return 0.5 + 0.5 * torch.tanh(0.5 * x)

    return {"gelu": gelu, "interpolate": interpolate} | ({} if reads_digits else {"sigmoid": sigmoid})


_READ_DIGITS = {"div": 1, "log2": 0, "pow": 0, "sqrt": 0}
"""Functions whose result hangs on how large a small number is, with the position of that number."""


def _reads_digits(recipe: Recipe) -> bool:
    """Return whether a step reads how small a sigmoid is."""
    small = {out for out, name, _, _ in recipe.steps if name == "sigmoid"}
    return any(name in _READ_DIGITS and taken[_READ_DIGITS[name]] in small for _, name, taken, _ in recipe.steps)


EXACT = frozenset(
    f"aten::{name}"
    for name in (
        *("relu", "abs", "neg", "floor", "ceil", "round", "clamp", "clip", "maximum", "minimum", "max", "min", "amax"),
        *("amin", "where", "cat", "pad", "constant_pad_nd", "tril", "triu", "clone", "_to_copy", "copy_", "max_pool2d"),
        *(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)),
        *(f"upsample_nearest{n}d" for n in (1, 2, 3)),
        *("max_pool2d_with_indices", "index", "gather", "detach", "to"),
    )
)
"""Operators that hand on values of their inputs, or exact ones: nothing is rounded there."""
