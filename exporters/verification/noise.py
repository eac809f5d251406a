"""The distance that rounding alone moves PyTorch's own outputs, for each input by itself.

    distance    |eager in float32 - eager in float64|: what PyTorch's rounding did on this very input
    movement    |f(x (1 + e), w (1 + e)) - f(x, w)| in float64, every e at random within half a unit in the last place
                of the precision: what any rounding of what the model reads may do there; of half precisions every
                operator's result is moved so as well, because each is rounded when it is stored; and of float32 where
                the model itself is in float64, and has rounded nothing so far

The noise is the larger of the two; where PyTorch has not rounded to the precision itself, the second; and the largest
of several of either where a call would fail by one. A norm of a constant row is what needs it: its exact result is
zero, and 1 / sqrt(eps) magnifies whatever rounding leaves of it.

An input of levels lies on steps, from which whatever moves it takes it: there inputs and weights stay where they are,
and the results of operators that round are moved, several times, in every precision. What compares an input as it is
has no noise then.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from edgesmith.errors import BadInput
from edgesmith.exporters.graph.capture import run_eager
from edgesmith.exporters.graph.watching import Watching
from edgesmith.exporters.outputs import Outputs

SEED = 0

LEVEL_DRAWS = 8
"""Movements of an input of levels: of one, every other step would stay where it is."""

LEVEL_STEP = 4.0
"""How much further they go: numbers that the program is written with are rounded too, and stay where they are."""

DRAWS_AGAIN = 8
"""Movements more of an input whose error the noise of one does not excuse."""

Noise = list[list[float]]
"""Of each call and output, absolute."""

ROUND_NOTHING = frozenset(
    f"aten::{name}"
    for name in (
        *("abs", "amax", "amin", "arange", "ceil", "cat", "clamp", "clamp_max", "clamp_min", "clone"),
        *("constant_pad_nd", "copy", "embedding", "fix", "flip", "floor", "full", "full_like", "gather", "hardtanh"),
        *("index", "index_select", "lift_fresh_copy", "masked_fill", "max", "maximum", "min", "minimum", "neg"),
        *("ones_like", "relu", "relu6", "repeat", "roll", "round", "scalar_tensor", "sign", "stack", "trunc"),
        *("where", "zeros_like", "_to_copy"),
    )
)
"""Operators whose results are exact."""


@dataclass
class NoiseMeter:
    """Measures the noise of a model's inputs when it is first asked, once for each type.

    Attributes:
        model, inputs, reference: PyTorch's, and its outputs.
        levels: the positions of calls that lie on steps.
        asked: what was measured, by the type's name; None where that cannot be said.
    """

    model: nn.Module
    inputs: Sequence[Sequence[Tensor]]
    reference: Outputs
    levels: Collection[int] = ()
    asked: dict[str, Noise | None] = field(default_factory=dict)
    _gaps: dict[str, Outputs | None] = field(default_factory=dict)

    def measure(self, dtype: str) -> Noise | None:
        """Return the noise of every call in a precision of this type; None for a model that sets types itself."""
        if dtype not in self.asked:
            gaps = self.of_elements(dtype)
            self.asked[dtype] = None if gaps is None else [[float(d.max(initial=0.0)) for d in one] for one in gaps]
        return self.asked[dtype]

    def state(self, dtype: str) -> Literal["known", "unknown", "not asked"]:
        """Return whether the noise of a precision is known, cannot be, or was asked by nobody."""
        if dtype not in self._gaps:
            return "not asked"
        return "unknown" if self._gaps[dtype] is None else "known"

    def of_elements(self, dtype: str) -> Outputs | None:
        """Return the same of every element of every output."""
        if dtype not in self._gaps:
            try:
                self._gaps[dtype] = self._measure(getattr(torch, dtype))
            except (BadInput, RuntimeError, TypeError):
                self._gaps[dtype] = None
        return self._gaps[dtype]

    @cached_property
    def _double(self) -> nn.Module:
        """The model in float64."""
        return copy.deepcopy(self.model).double()

    @cached_property
    def _exact(self) -> Outputs:
        """The outputs of every call in float64."""
        return [_run(self._double, _doubled(given)) for given in self.inputs]

    def draw_again(self, dtype: str, calls: Collection[int]) -> Noise | None:
        """Return the noise of every call, in which that of some is the largest of DRAWS_AGAIN more movements, too.

        How far rounding goes differs from one movement to another where two values nearly tie: one movement, which is
        enough for most models, says too little there. In float32 PyTorch's own rounding is asked for each as well.
        """
        gaps = self.of_elements(dtype)
        if gaps is None:
            return None
        again = [i for i in calls if i not in self.levels]
        try:
            rows = self._draw(getattr(torch, dtype), {i: gaps[i] for i in again}) if again else {}
        except (BadInput, RuntimeError, TypeError, ValueError):  # a movement may take an index out of its range
            rows = {}
        for i, row in rows.items():
            gaps[i] = row
        self.asked.pop(dtype, None)
        return self.measure(dtype)

    def _draw(self, dtype: torch.dtype, rows: Mapping[int, list[np.ndarray]]) -> dict[int, list[np.ndarray]]:
        """Return the largest noise of some calls, of what is known and of DRAWS_AGAIN movements more."""
        generator, found = torch.Generator().manual_seed(SEED + 1), dict(rows)
        for _ in range(DRAWS_AGAIN):
            moved = self._moved(dtype, generator)
            for i in rows:
                others = [self._move_once(i, moved, dtype, generator)]
                if not self._is_stored(dtype):
                    others.append(_run(self.model, [move(x, 0.0, generator) for x in self.inputs[i]]))
                for other in others:
                    triples = zip(found[i], other, self._exact[i], strict=True)
                    found[i] = [np.maximum(d, _gaps(y, a)) for d, y, a in triples]
        return found

    def _is_stored(self, dtype: torch.dtype) -> bool:
        """Return whether operators' results are rounded when they are stored, which eager has not done."""
        given = (*self.model.parameters(), *self.model.buffers(), *self.inputs[0])
        return dtype != torch.float32 or any(x.dtype == torch.float64 for x in given)

    def _moved(self, dtype: torch.dtype, generator: torch.Generator) -> nn.Module:
        """Return the model in float64 with every weight moved."""
        moved = copy.deepcopy(self.model).double()
        with torch.no_grad():
            for weight in (*moved.parameters(), *moved.buffers()):
                weight.copy_(move(weight, torch.finfo(dtype).eps / 2, generator))
        return moved

    def _move_once(self, i: int, moved: nn.Module, dtype: torch.dtype, generator: torch.Generator) -> list[np.ndarray]:
        """Return the outputs of a call whose inputs are moved, of a model whose weights are."""
        step = torch.finfo(dtype).eps / 2
        with Storing(step, generator) if self._is_stored(dtype) else contextlib.nullcontext():
            return _run(moved, [move(x, step, generator) for x in _doubled(self.inputs[i])])

    def _measure(self, dtype: torch.dtype) -> Outputs:
        generator = torch.Generator().manual_seed(SEED)
        moved = self._moved(dtype, generator)
        found: list[list[np.ndarray]] = []
        for i, (given, ys, wanted) in enumerate(zip(self.inputs, self.reference, self._exact, strict=True)):
            if i in self.levels:  # eager is no measure of them: 0.3 in float64 is beside 0.3 in float32
                step = torch.finfo(dtype).eps / 2
                others = [self._stored(given, step, generator) for _ in range(LEVEL_DRAWS)]
                found.append(
                    [np.max([_gaps(z, a) for z in zs], axis=0) for a, *zs in zip(wanted, *others, strict=True)]
                )
                continue
            other = self._move_once(i, moved, dtype, generator)
            distances = [_gaps(a, b) for a, b in zip(other, wanted, strict=True)]
            if not self._is_stored(dtype):
                distances = [np.maximum(d, _gaps(y, a)) for d, y, a in zip(distances, ys, wanted, strict=True)]
            found.append(distances)
        return found

    def _stored(self, given: Sequence[Tensor], step: float, generator: torch.Generator) -> list[np.ndarray]:
        """Return the outputs for inputs and weights as they are, what rounds moved once."""
        with Storing(LEVEL_STEP * step, generator, ROUND_NOTHING):
            return _run(self._double, _doubled(given))


class Storing(Watching):
    """Moves every result of an operator, as a type that rounds by up to `step` of it does when the result is stored.

    Attributes:
        exact: names of operators that round nothing.
    """

    def __init__(self, step: float, generator: torch.Generator, exact: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self._step, self._generator, self._exact = step, generator, exact

    def watch(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        made = func(*args, **kwargs)
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


def _gaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the differences of values; 0 where one of them is not finite."""
    known = np.isfinite(a) & np.isfinite(b)
    return np.where(
        known, np.abs(np.where(known, a, 0).astype(np.float64) - np.where(known, b, 0).astype(np.float64)), 0
    )
