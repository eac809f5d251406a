"""MIL operators that take or place values by index.

Meanings from coremltools' operator documentation. Up to iOS16 a negative index counts from the end. From iOS17 on it is
out of bounds, and what an index out of bounds does is undefined, or an error where `validate_indices` says so. Here a
negative index counts from the end wherever it is not validated, as converters rely on, and any other index out of
bounds is an error, since no comparison of undefined values says anything.

The scatter operators combine by `mode`; the default is `add`, although scatter's own text says `update`. Several
updates of one position are all combined; of several with `update` it is not defined which one remains.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgesmith.errors import BadInput, Unsupported
from edgesmith.exporters.mil.ops import number, op, wide


def _within(indices: Tensor, size: int, validate: Tensor | bool) -> Tensor:
    """Indices as int64 from 0 on. Raises BadInput for those that an axis of this size does not have."""
    at = indices.long()
    least = 0 if number(validate) else -size
    if at.numel() and not (least <= int(at.min()) and int(at.max()) < size):
        raise BadInput(f"indices from {int(at.min())} to {int(at.max())} are not all in [{least}, {size})")
    return torch.where(at < 0, at + size, at)


@op("gather")
def gather(
    *,
    x: Tensor,
    indices: Tensor,
    axis: Tensor | int = 0,
    batch_dims: Tensor | int = 0,
    validate_indices: Tensor | bool = False,
) -> Tensor:
    """The slices of an axis that the indices name, in their place: D[:axis] + N[batch_dims:] + D[axis + 1:].

    The first `batch_dims` axes of x and of the indices go together.
    """
    dim, batches = int(number(axis)) % x.dim(), int(number(batch_dims))
    at = _within(indices, x.shape[dim], validate_indices)
    shape = (*x.shape[:dim], *indices.shape[batches:], *x.shape[dim + 1 :])
    if batches == 0:
        return x.index_select(dim, at.flatten()).reshape(shape)
    batch = math.prod(x.shape[:batches])
    flat = x.reshape(batch, math.prod(x.shape[batches:dim]), x.shape[dim], math.prod(x.shape[dim + 1 :]))
    rows = at.reshape(batch, 1, -1, 1).expand(-1, flat.shape[1], -1, flat.shape[3])
    return flat.gather(2, rows).reshape(shape)


@op("gather_along_axis")
def gather_along_axis(
    *, x: Tensor, indices: Tensor, axis: Tensor | int = 0, validate_indices: Tensor | bool = False
) -> Tensor:
    """Each index replaced by the entry that it names along the axis; the other axes go together."""
    dim = int(number(axis))
    return x.gather(dim, _within(indices, x.shape[dim], validate_indices))


def _linear(indices: Tensor, shape: tuple[int, ...], validate: Tensor | bool) -> Tensor:
    """Index vectors in the last axis as positions in a flattened tensor of this shape."""
    at = torch.zeros(indices.shape[:-1], dtype=torch.long)
    for column, size in enumerate(shape):
        at = at * size + _within(indices[..., column], size, validate)
    return at


@op("gather_nd")
def gather_nd(
    *, x: Tensor, indices: Tensor, batch_dims: Tensor | int = 0, validate_indices: Tensor | bool = False
) -> Tensor:
    """Each vector of indices replaced by the slice of x that it names: K[:-1] + D[batch_dims + K[-1]:]."""
    batches, depth = int(number(batch_dims)), indices.shape[-1]
    indexed, rest = x.shape[batches : batches + depth], x.shape[batches + depth :]
    batch = math.prod(x.shape[:batches])
    at = _linear(indices, tuple(indexed), validate_indices).reshape(batch, -1, 1)
    flat = x.reshape(batch, math.prod(indexed), math.prod(rest))
    return flat.gather(1, at.expand(-1, -1, flat.shape[-1])).reshape(*indices.shape[:-1], *rest)


def _combine(data: Tensor, at: Tensor, updates: Tensor, dim: int, mode: str) -> Tensor:
    """Data with updates put at positions along one axis; `at` has the updates' shape.

    Raises:
        Unsupported: a mode that MIL does not have.
    """
    if mode == "update":
        return data.scatter(dim, at, updates)
    old, new = wide(data), wide(updates)
    if mode in ("add", "sub"):
        return old.scatter_add(dim, at, new if mode == "add" else -new)
    if mode == "div":
        divisor = torch.ones_like(old).scatter_reduce(dim, at, new, "prod")
        return old / divisor if old.is_floating_point() else torch.div(old, divisor, rounding_mode="trunc")
    names = {"mul": "prod", "max": "amax", "min": "amin"}
    if mode not in names:
        raise Unsupported(f"scatter has the modes update, add, sub, mul, div, max and min, not {mode!r}")
    return old.scatter_reduce(dim, at, new, names[mode])


@op("scatter")
def scatter(
    *,
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: Tensor | int = 0,
    mode: str = "add",
    validate_indices: Tensor | bool = False,
) -> Tensor:
    """Data whose slices that the indices name along the axis are combined with those of `updates`."""
    dim = int(number(axis)) % data.dim()
    at = _within(indices, data.shape[dim], validate_indices)
    place = at.flatten().reshape([-1 if other == dim else 1 for other in range(data.dim())])
    new = updates.reshape(*data.shape[:dim], -1, *data.shape[dim + 1 :])
    return _combine(data, place.expand(new.shape), new, dim, mode)


@op("scatter_along_axis")
def scatter_along_axis(
    *,
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: Tensor | int = 0,
    mode: str = "add",
    validate_indices: Tensor | bool = False,
) -> Tensor:
    """Data whose entries that the indices name along the axis are combined with `updates`; other axes go together."""
    dim = int(number(axis))
    return _combine(data, _within(indices, data.shape[dim], validate_indices), updates, dim, mode)


@op("scatter_nd")
def scatter_nd(
    *, data: Tensor, indices: Tensor, updates: Tensor, mode: str = "add", validate_indices: Tensor | bool = False
) -> Tensor:
    """Data whose slices that the vectors of indices name are combined with those of `updates`."""
    depth = indices.shape[-1]
    at = _linear(indices, tuple(data.shape[:depth]), validate_indices).reshape(-1, 1)
    flat = data.reshape(math.prod(data.shape[:depth]), math.prod(data.shape[depth:]))
    new = updates.reshape(at.shape[0], flat.shape[1])
    return _combine(flat, at.expand(new.shape), new, 0, mode).reshape(data.shape)
