"""Max pools with the indices of what they take, and windows that a converter lacks.

A window of an axis reads positions max(i s - p, ...) + k d that lie on it. Where one lies beyond an edge, the nearest
one of the same window that does not is read again, which changes neither the largest number nor where it is first. So

    y = max over k of x[at[k]]        at [K, to]: for each place k of a window what it reads, for each new position

with a few slices for each k and axis. The index is that of the flat map, as PyTorch's. (ATen's
DilatedMaxPool2d.cpp: of equal numbers the first; of NaNs the last)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgesmith.exporters.decompositions import LEAVE, decomposes

aten = torch.ops.aten

Places = list[list[int]]
"""[K, to]: what place k of a window reads, for each new position of an axis."""

_is_inside: ContextVar[bool] = ContextVar("edgesmith_max_pool", default=False)


@contextmanager
def _left_to_the_target() -> Iterator[None]:
    """Leave max pools as they are: those that we emit ourselves."""
    token = _is_inside.set(True)
    try:
        yield
    finally:
        _is_inside.reset(token)


def _slid(before: int, kernel: int, step: int, pad: int, dilation: int, ceil_mode: bool) -> Places:
    """Return what the windows of a pool read of an axis."""
    reach = dilation * (kernel - 1) + 1
    gap = before + 2 * pad - reach
    count = (-(-gap // step) if ceil_mode else gap // step) + 1
    if ceil_mode and (count - 1) * step >= before + pad:  # a window that begins in the padding is left out
        count -= 1
    places: Places = []
    for k in range(kernel):
        row = []
        for i in range(count):
            at = [i * step - pad + j * dilation for j in range(kernel)]
            valid = [one for one in at if 0 <= one < before]
            row.append(min(valid, key=lambda one, wanted=at[k]: abs(one - wanted)))  # type: ignore[misc]
        places.append(row)
    return places


def _adapted(before: int, after: int) -> Places:
    """Return what windows from floor(i from / to) to ceil((i + 1) from / to) read of an axis."""
    first = [i * before // after for i in range(after)]
    end = [-(-(i + 1) * before // after) for i in range(after)]
    longest = max(b - a for a, b in zip(first, end, strict=True))
    return [[min(a + k, b - 1) for a, b in zip(first, end, strict=True)] for k in range(longest)]


def _runs(at: Sequence[int]) -> list[slice]:
    """Return slices that read these positions of an axis, one after another."""
    found: list[slice] = []
    k = 0
    while k < len(at):
        step = max(at[k + 1] - at[k], 1) if k + 1 < len(at) else 1
        end = k + 1
        while end < len(at) and at[end] - at[end - 1] == step:
            end += 1
        found.append(slice(at[k], at[end - 1] + 1, step))
        k = end
    return found


def _read(x: Tensor, axis: int, at: Sequence[int]) -> Tensor:
    """Return x at positions of an axis."""
    before = [slice(None)] * axis
    parts = [x[(*before, run)] for run in _runs(at)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


def _largest(x: Tensor, places: Sequence[Places]) -> tuple[Tensor, Tensor]:
    """Return the largest number of each window, and its index in the flat map; the last axes are those of `places`."""
    sizes = x.shape[-len(places) :]
    indices = torch.arange(math.prod(sizes), device=x.device).reshape(sizes)
    windows = [(x, indices)]
    for axis, rows in enumerate(places):
        here = x.dim() - len(places) + axis
        windows = [(_read(of, here, at), _read(index, axis, at)) for of, index in windows for at in rows]
    (best, at), *others = windows
    at = at.expand(best.shape)
    for value, index in others:
        is_better = value > best
        if x.is_floating_point():
            is_better = is_better | (value != value)
        best, at = torch.where(is_better, value, best), torch.where(is_better, index, at)
    return best, at


def _each(value: Sequence[int], axes: int) -> list[int]:
    """Return a number for each axis of one for all."""
    return list(value) * axes if len(value) == 1 else list(value)


@dataclass(frozen=True)
class _Pools:
    """Max pools over some axes, for a target.

    Attributes:
        takes: whether the target's own pool is right for (axes before those of windows, dilations, ceil_mode).
    """

    axes: int
    native: Any
    takes: Callable[[int, Sequence[int], bool], bool]

    def with_indices(
        self,
        x: Tensor,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0,),
        dilation: Sequence[int] = (1,),
        ceil_mode: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return a max pool and its indices, the numbers by the target's own pool where it is right."""
        if _is_inside.get():
            return LEAVE
        windows = (kernel_size, stride or kernel_size, padding, dilation)
        kernel, steps, pads, dilations = (_each(value, self.axes) for value in windows)
        sizes = x.shape[-self.axes :]
        places = [_slid(*of, ceil_mode) for of in zip(sizes, kernel, steps, pads, dilations, strict=True)]
        largest, at = _largest(x, places)
        if not x.is_floating_point() or not self.takes(x.dim() - self.axes, dilations, ceil_mode):
            return largest, at
        with _left_to_the_target():
            return self.native(x, kernel, steps, pads, dilations, ceil_mode), at

    def alone(
        self,
        x: Tensor,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0,),
        dilation: Sequence[int] = (1,),
        ceil_mode: bool = False,
    ) -> Tensor:
        """Return a max pool, by the target's own where it is right, with the stride that is the window's size."""
        if _is_inside.get():
            return LEAVE
        windows = (kernel_size, stride or kernel_size, padding, dilation)
        kernel, steps, pads, dilations = (_each(value, self.axes) for value in windows)
        if not x.is_floating_point() or not self.takes(x.dim() - self.axes, dilations, ceil_mode):
            return self.with_indices(x, kernel, steps, pads, dilations, ceil_mode)[0]
        with _left_to_the_target():
            pooled: Tensor = self.native(x, kernel, steps, pads, dilations, ceil_mode)
        return pooled


def _plain(before: int, dilations: Sequence[int], ceil_mode: bool) -> bool:
    return before == 2 and set(dilations) == {1} and not ceil_mode


def _with_a_batch(before: int, dilations: Sequence[int], ceil_mode: bool) -> bool:
    return before == 2


def _never(before: int, dilations: Sequence[int], ceil_mode: bool) -> bool:
    return False


_APART = (
    (1, aten.max_pool1d, aten.max_pool1d_with_indices),
    (2, aten.max_pool2d, aten.max_pool2d_with_indices),
    (3, aten.max_pool3d, aten.max_pool3d_with_indices),
)

for _axes, _alone, _indexed in _APART:
    _of_core_ml = _Pools(_axes, _alone.default, _plain)
    _why = "coremltools 9.0 has no indices, no dilation, no ceil_mode and no whole numbers, and asks for a stride"
    decomposes(_alone.default, targets=("coreml",), why=_why)(_of_core_ml.alone)
    decomposes(_indexed.default, targets=("coreml",), why=_why)(_of_core_ml.with_indices)
    _of_core_ai = _Pools(_axes, _alone.default, _never if _axes == 3 else _with_a_batch)
    _why = "Core AI returns an index of 0 everywhere, and has no pool of volumes or of one map"
    decomposes(_alone.default, targets=("coreai",), why=_why)(_of_core_ai.alone)
    decomposes(_indexed.default, targets=("coreai",), why=_why)(_of_core_ai.with_indices)
    _of_tvm = _Pools(_axes, _alone.default, _with_a_batch)
    decomposes(_indexed.default, targets=("tvm",), why="TVM returns an index of 0 everywhere")(_of_tvm.with_indices)


_ADAPTIVE = (aten.adaptive_max_pool1d.default, aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default)


@decomposes(
    *_ADAPTIVE,
    targets=("tvm",),
    why="no converter has it, and TVM writes what is read twice into both places: 2^n of a chain of n comparisons",
)
def adaptive_max_pool_of_maxima(x: Tensor, output_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return what `adaptive_max_pool` does; each number is read once on the way to the largest."""
    sizes = x.shape[-len(output_size) :]
    places = [_adapted(before, after) for before, after in zip(sizes, output_size, strict=True)]
    windows = [x]
    for axis, rows in enumerate(places):
        windows = [_read(of, x.dim() - len(places) + axis, at) for of in windows for at in rows]
    best = functools.reduce(torch.maximum, windows)
    if x.is_floating_point():  # TVM's larger one of a number and NaN is the number, and x != x is never
        known = functools.reduce(torch.minimum, [(value <= math.inf).to(x.dtype) for value in windows])
        best = torch.where(known > 0, best, torch.full_like(best, math.nan))
    return best, _largest(x, places)[1]


@decomposes(*_ADAPTIVE, targets=("onnx", "coreml", "coreai"), why="no converter has it")
def adaptive_max_pool(x: Tensor, output_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the largest numbers of windows from floor(i from / to) to ceil((i + 1) from / to), and their indices."""
    sizes = x.shape[-len(output_size) :]
    return _largest(x, [_adapted(before, after) for before, after in zip(sizes, output_size, strict=True)])
