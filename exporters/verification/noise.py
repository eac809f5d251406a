"""The distance that rounding alone moves PyTorch's own outputs, for each input by itself.

    distance    |eager in float32 - eager in float64|: what PyTorch's rounding did on this very input
    movement    |f(x (1 + e), w (1 + e)) - f(x, w)| in float64, every e at random within half a unit in the last place
                of the precision: what any rounding of what the model reads may do there; of half precisions every
                operator's result is moved so as well, because each is rounded when it is stored; and of float32 where
                the model itself is in float64, and has rounded nothing so far

The noise is the larger of the two; where PyTorch has not rounded to the precision itself, the second. A norm of a
constant row is what needs it: its exact result is zero, and 1 / sqrt(eps) magnifies whatever rounding leaves of it.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from edgesmith.errors import BadInput
from edgesmith.exporters.figures import Outputs
from edgesmith.exporters.graph.capture import run_eager

SEED = 0

Noise = list[list[float]]
"""Of each call and output, absolute."""


@dataclass
class NoiseMeter:
    """Measures the noise of a model's inputs when it is first asked, once for each type.

    Attributes:
        model, inputs, reference: PyTorch's, and its outputs.
        asked: what was measured, by the type's name; None where that cannot be said.
    """

    model: nn.Module
    inputs: Sequence[Sequence[Tensor]]
    reference: Outputs
    asked: dict[str, Noise | None] = field(default_factory=dict)

    def measure(self, dtype: str) -> Noise | None:
        """Return the noise of every call in a precision of this type; None for a model that sets types itself."""
        if dtype not in self.asked:
            try:
                self.asked[dtype] = self._measure(getattr(torch, dtype))
            except (BadInput, RuntimeError, TypeError):
                self.asked[dtype] = None
        return self.asked[dtype]

    @cached_property
    def _exact(self) -> Outputs:
        """The outputs of every call in float64."""
        exact = copy.deepcopy(self.model).double()
        return [_run(exact, _doubled(given)) for given in self.inputs]

    def _measure(self, dtype: torch.dtype) -> Noise:
        moved = copy.deepcopy(self.model).double()
        step = torch.finfo(dtype).eps / 2
        generator = torch.Generator().manual_seed(SEED)
        with torch.no_grad():
            for weight in (*moved.parameters(), *moved.buffers()):
                weight.copy_(move(weight, step, generator))
        doubled = (x.dtype == torch.float64 for x in (*self.model.parameters(), *self.model.buffers(), *self.inputs[0]))
        is_stored = dtype != torch.float32 or any(doubled)
        found: Noise = []
        for given, ys, wanted in zip(self.inputs, self.reference, self._exact, strict=True):
            with Storing(step, generator) if is_stored else contextlib.nullcontext():
                other = _run(moved, [move(x, step, generator) for x in _doubled(given)])
            distances = [_gap(a, b) for a, b in zip(other, wanted, strict=True)]
            if not is_stored:
                distances = [max(d, _gap(y, a)) for d, y, a in zip(distances, ys, wanted, strict=True)]
            found.append(distances)
        return found


class Storing(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's class has no annotations
    """Moves every result of an operator, as a type that rounds by up to `step` of it does when the result is stored.

    Attributes:
        exact: names of operators that round nothing.
    """

    def __init__(self, step: float, generator: torch.Generator, exact: frozenset[str] = frozenset()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self._step, self._generator, self._exact = step, generator, exact

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func._schema.name in self._exact or any(one.alias_info is not None for one in func._schema.arguments):
            return made  # a view, or written in place: stored before
        return tree_map_only(Tensor, lambda x: move(x, self._step, self._generator), made)


def move(x: Tensor, step: float, generator: torch.Generator) -> Tensor:
    """Return a tensor with every element moved by up to `step` of itself, or a unit of its own type where that is more.

    Integers are as they are.
    """
    if not x.is_floating_point():
        return x
    step = max(step, torch.finfo(x.dtype).eps)
    return x * (1 + step * (2 * torch.rand(x.shape, generator=generator, dtype=x.dtype) - 1))


def _doubled(inputs: Sequence[Tensor]) -> list[Tensor]:
    return [x.double() if x.is_floating_point() else x for x in inputs]


def _run(model: nn.Module, inputs: Sequence[Tensor]) -> list[np.ndarray]:
    return [y.numpy() for y in run_eager(model, inputs)]


def _gap(a: np.ndarray, b: np.ndarray) -> float:
    """Return the largest difference of values that are finite in both."""
    known = np.isfinite(a) & np.isfinite(b)
    return float(np.abs(a[known].astype(np.float64) - b[known].astype(np.float64)).max(initial=0.0))
