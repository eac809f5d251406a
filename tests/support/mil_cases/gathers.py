"""Cases of operators that take or write values by index."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from support.mil_sites import Draw, Site, Table

CASES = Table()


def strictness(draw: Draw) -> dict[str, Any]:
    return {"validate_indices": draw.flag()} if draw.opset >= 17 else {}


def signed(draw: Draw, indices: Tensor, size: int) -> Tensor:
    """Some indices counted from the end, where MIL defines that."""
    return torch.where(draw.bools(indices.shape), indices - size, indices).int() if draw.opset < 17 else indices


@CASES.drawn("gather")
def gather(draw: Draw) -> Site:
    shape = draw.shape(1, 4)
    batches = draw.whole(0, len(shape) - 1) if draw.opset >= 16 else 0
    axis = draw.whole(batches, len(shape) - 1)
    indices = draw.wholes([*shape[:batches], *draw.shape(1, 2, 3)], 0, shape[axis] - 1)
    if len(shape) + indices.dim() - 1 - batches > 5:
        indices = indices.flatten(batches)
    attributes = {"axis": axis - len(shape) if draw.flag() and not batches else axis, **strictness(draw)}
    if batches or (draw.opset >= 16 and draw.flag()):
        attributes["batch_dims"] = batches

    def reference(x: Tensor, indices: Tensor) -> Tensor:
        where = indices.long()
        if not batches:
            return torch.from_numpy(np.take(x.numpy(), where.numpy(), axis))
        rows = [
            np.take(x[place].numpy(), where[place].numpy(), axis - batches)
            for place in itertools.product(*(range(size) for size in shape[:batches]))
        ]
        return torch.from_numpy(np.stack(rows)).reshape(*shape[:batches], *rows[0].shape)

    return Site({"x": draw.floats(shape), "indices": signed(draw, indices, shape[axis])}, attributes, reference)


@CASES.drawn("gather_along_axis")
def gather_along_axis(draw: Draw) -> Site:
    shape = draw.shape()
    axis = draw.axis(len(shape))
    wanted = list(shape)
    wanted[axis] = draw.whole(1, 5)
    indices = draw.wholes(wanted, 0, shape[axis] - 1)
    size = shape[axis]
    return Site(
        {"x": draw.floats(shape), "indices": signed(draw, indices, size)},
        {"axis": axis, **strictness(draw)},
        lambda x, indices: torch.take_along_dim(x, indices.long() % size, axis),
    )


@CASES.drawn("gather_nd")
def gather_nd(draw: Draw) -> Site:
    shape = draw.shape(1, 4)
    batches = draw.whole(0, len(shape) - 1) if draw.opset >= 16 else 0
    depth = draw.whole(1, len(shape) - batches)
    outer = draw.shape(1, 2, 3)
    columns = [draw.wholes([*shape[:batches], *outer], 0, size - 1) for size in shape[batches : batches + depth]]
    if len(shape) - depth - batches + batches + len(outer) > 5:
        columns = [column.flatten(batches) for column in columns]
    attributes: dict[str, Any] = dict(strictness(draw))
    if attributes and len(set(shape)) > 1:  # coremltools compares constant indices with the whole shape
        attributes["validate_indices"] = False
    if batches or (draw.opset >= 16 and draw.flag()):
        attributes["batch_dims"] = batches

    def reference(x: Tensor, indices: Tensor) -> Tensor:
        result = torch.stack(
            [
                x[place][tuple(indices[place].long().unbind(-1))]
                for place in itertools.product(*(range(size) for size in shape[:batches]))
            ]
        )
        return result.reshape(*shape[:batches], *result.shape[1:])

    return Site({"x": draw.floats(shape), "indices": torch.stack(columns, -1)}, attributes, reference)


SCATTER_MODES = ("update", "add", "sub", "mul", "div", "max", "min")


def combined(mode: str, old: Any, new: Any) -> Any:
    return {
        "update": lambda: new, "add": lambda: old + new, "sub": lambda: old - new, "mul": lambda: old * new,
        "div": lambda: np.trunc(old / new) if np.asarray(old).dtype.kind == "i" else old / new,
        "max": lambda: np.maximum(old, new), "min": lambda: np.minimum(old, new),
    }[mode]()  # fmt: skip


def scatter_values(draw: Draw, shape: Sequence[int]) -> Tensor:
    """Values whose products and quotients stay harmless."""
    return draw.floats(shape, 0.5, 2)


@CASES.drawn("scatter")
def scatter(draw: Draw) -> Site:
    shape = draw.shape()
    axis, mode = draw.axis(len(shape)), draw.choose([None, *SCATTER_MODES])
    count = draw.whole(1, 4)
    indices = draw.wholes([count], 0, shape[axis] - 1)
    if mode == "update":
        indices = indices.unique()
        count = len(indices)
    wanted = list(shape)
    wanted[axis] = count
    size = shape[axis]

    def reference(data: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        result, new = np.moveaxis(data.numpy().copy(), axis, 0), np.moveaxis(updates.numpy(), axis, 0)
        for row, index in zip(new, indices.tolist(), strict=True):
            result[index % size] = combined(mode or "add", result[index % size], row)
        return torch.from_numpy(np.moveaxis(result, 0, axis).copy())

    attributes = {"axis": axis, **strictness(draw)} | ({} if mode is None else {"mode": mode})
    tensors = {"data": scatter_values(draw, shape), "indices": indices, "updates": scatter_values(draw, wanted)}
    return Site(tensors, attributes, reference)


@CASES.drawn("scatter_along_axis")
def scatter_along_axis(draw: Draw) -> Site:
    shape = draw.shape()
    axis, mode = draw.axis(len(shape)), draw.choose([None, *SCATTER_MODES])
    wanted = list(shape)
    wanted[axis] = draw.whole(1, shape[axis])
    order = torch.rand(shape, generator=draw.generator).argsort(axis).int().narrow(axis, 0, wanted[axis])
    indices = order if mode == "update" else draw.wholes(wanted, 0, shape[axis] - 1)

    def reference(data: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        result = data.numpy().copy()
        for place in itertools.product(*(range(size) for size in wanted)):
            at = list(place)
            at[axis] = int(indices[place])
            result[tuple(at)] = combined(mode or "add", result[tuple(at)], updates.numpy()[place])
        return torch.from_numpy(result)

    attributes = {"axis": axis, **strictness(draw)} | ({} if mode is None else {"mode": mode})
    data, updates = scatter_values(draw, shape), scatter_values(draw, wanted)
    if draw.flag() and draw.flag():
        data, updates = draw.wholes(shape, -50, 50), draw.wholes(wanted, 1, 3)
    return Site({"data": data, "indices": indices.contiguous(), "updates": updates}, attributes, reference)


@CASES.drawn("scatter_nd")
def scatter_nd(draw: Draw) -> Site:
    shape = draw.shape(1, 3)
    depth, mode = draw.whole(1, len(shape)), draw.choose([None, *SCATTER_MODES])
    rows = list(itertools.product(*(range(size) for size in shape[:depth])))
    count = draw.whole(1, min(4, len(rows)))
    if mode == "update":
        order = torch.randperm(len(rows), generator=draw.generator)[:count].tolist()
    else:
        order = draw.wholes([count], 0, len(rows) - 1).tolist()
    indices = torch.tensor([rows[n] for n in order], dtype=torch.int32)

    def reference(data: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        result = data.numpy().copy()
        for row, at in zip(updates.numpy(), indices.tolist(), strict=True):
            result[tuple(at)] = combined(mode or "add", result[tuple(at)], row)
        return torch.from_numpy(result)

    attributes = {} if mode is None else {"mode": mode}
    tensors = {
        "data": scatter_values(draw, shape),
        "indices": indices,
        "updates": scatter_values(draw, [count, *shape[depth:]]),
    }
    return Site(tensors, attributes, reference)
