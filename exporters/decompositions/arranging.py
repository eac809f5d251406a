"""Operators that move numbers: windows, diagonals, permutations, shifts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from edgesmith.exporters.decompositions import LEAVE, decomposes

aten = torch.ops.aten


@decomposes(aten.select.int, targets=("tvm",), why="TVM reads before the first one where it is counted from the end")
def select(x: Tensor, dim: int, index: int) -> Tensor:
    """Return one position of an axis, counted from the front."""
    if not isinstance(index, int):  # one that the model computes
        return LEAVE
    return torch.select(x, dim, index + x.shape[dim]) if index < 0 else LEAVE


@decomposes(aten.copy.default, why="coremltools and Core AI keep the type and shape of what is written")
def copy(x: Tensor, written: Tensor, non_blocking: bool = False) -> Tensor:
    """Return numbers in the type and shape of those that they take the place of, as in x[:, 0] = numbers."""
    if x.dtype == written.dtype and x.shape == written.shape:
        return LEAVE
    written = written.to(x.dtype)
    return written if written.shape == x.shape else written.expand(x.shape)


@decomposes(aten.slice_scatter.default, targets=("coreml",), why="Core ML writes no booleans into places")
def slice_scatter(
    x: Tensor, written: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Tensor:
    """Return booleans with others in a range of an axis, as whole numbers in between."""
    if x.dtype != torch.bool:
        return LEAVE
    return torch.slice_scatter(x.to(torch.int32), written.to(torch.int32), dim, start, end, step) != 0


@decomposes(aten.select_scatter.default, targets=("coreml",), why="Core ML writes no booleans into places")
def select_scatter(x: Tensor, written: Tensor, dim: int, index: int) -> Tensor:
    """Return booleans with others at one position of an axis, as whole numbers in between."""
    if x.dtype != torch.bool:
        return LEAVE
    return torch.select_scatter(x.to(torch.int32), written.to(torch.int32), dim, index) != 0


@decomposes(aten.unfold.default, why="the converters have none, or make a loop")
def unfold(x: Tensor, dimension: int, size: int, step: int) -> Tensor:
    """Return all windows of an axis: [..., L, ...] to [..., (L - size) // step + 1, ..., size].

    By the fewer slices: one a window; or one for each block of gcd(size, step) numbers that a window consists of.
    """
    if not x.dim():
        return x.reshape([1]).narrow(0, 0, size)
    axis = dimension % x.dim()
    count = (x.shape[axis] - size) // step + 1
    block = math.gcd(size, step)
    if count < size // block:
        windows = [x.narrow(axis, i * step, size) for i in range(count)]
        return torch.stack(windows, axis).movedim(axis + 1, -1)
    x = x.movedim(axis, -1)
    blocks = x.shape[-1] // block
    x = x.narrow(-1, 0, blocks * block).reshape([*x.shape[:-1], blocks, block])
    stride = step // block
    parts = [x[..., i : i + (count - 1) * stride + 1 : stride, :] for i in range(size // block)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, -1)).movedim(-2, axis)


@decomposes(aten.channel_shuffle.default, targets=("coreml",), why="coremltools 9.0 has no translation")
def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Return x with the channels of all groups in turn."""
    batch, channels, *rest = x.shape
    return x.reshape([batch, groups, channels // groups, -1]).transpose(1, 2).reshape([batch, channels, *rest])


@decomposes(aten.roll.default, targets=("coreml",), why="coremltools 9.0 wants an axis")
def roll(x: Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> Tensor:
    """Return x with each axis moved on, what falls off put at the other end; without axes as a flat tensor."""
    if not dims:
        return _rolled(x.reshape([-1]), shifts[0], 0).reshape(x.shape)
    for shift, dim in zip(shifts, dims, strict=True):
        x = _rolled(x, shift, dim % x.dim())
    return x


def _rolled(x: Tensor, shift: int, axis: int) -> Tensor:
    length = x.shape[axis]
    shift = shift % length if length else 0
    if shift == 0:
        return x.clone()
    return torch.cat([x.narrow(axis, length - shift, shift), x.narrow(axis, 0, length - shift)], axis)


@decomposes(aten.rot90.default, targets=("coreml",), why="coremltools 9.0 has no translation")
def rot90(x: Tensor, k: int = 1, dims: Sequence[int] = (0, 1)) -> Tensor:
    """Return x turned by k right angles from the first axis to the second."""
    first, second = dims
    turned = {
        0: lambda: x.clone(),
        1: lambda: x.flip([second]).transpose(first, second),
        2: lambda: x.flip([first, second]),
        3: lambda: x.flip([first]).transpose(first, second),
    }
    return turned[k % 4]()


@decomposes(
    aten.diagonal.default,
    aten.diagonal_copy.default,
    targets=("coreml", "coreai"),
    why="coremltools 9.0 takes the main one of two axes only",
)
def diagonal(x: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """Return a diagonal of two axes as the last one: every (n + 1)-th number of the flat plane."""
    first, second = dim1 % x.dim(), dim2 % x.dim()
    others = [axis for axis in range(x.dim()) if axis not in (first, second)]
    rows, columns = x.shape[first], x.shape[second]
    shape = [x.shape[axis] for axis in others]
    start = offset if offset >= 0 else -offset * columns
    length = max(min(rows + min(offset, 0), columns - max(offset, 0)), 0)
    flat = x.permute([*others, first, second]).reshape([*shape, rows * columns])
    return flat[..., start : start + (length - 1) * (columns + 1) + 1 : columns + 1]


@decomposes(aten.diag_embed.default, targets=("coreml",), why="coremltools 9.0 has no translation")
def diag_embed(x: Tensor, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Tensor:
    """Return planes with a vector on a diagonal, and zeros: each number is followed by as many zeros as a row has."""
    length, size = x.shape[-1], x.shape[-1] + abs(offset)
    first, second = dim1 % (x.dim() + 1), dim2 % (x.dim() + 1)
    spread = torch.constant_pad_nd(x.unsqueeze(-1), [0, size]).reshape([*x.shape[:-1], length * (size + 1)])
    start = offset if offset >= 0 else -offset * size
    flat = torch.constant_pad_nd(spread, [start, max(size * size - start - length * (size + 1), 0)])
    plane = flat[..., : size * size].reshape([*x.shape[:-1], size, size])
    return plane.movedim([-2, -1], [first, second])


@decomposes(aten.diag.default, targets=("coreml",), why="coremltools 9.0 has no translation")
def diag(x: Tensor, diagonal: int = 0) -> Tensor:
    """Return a vector as a diagonal, or the diagonal of a matrix."""
    return diag_embed(x, diagonal) if x.dim() == 1 else torch.diagonal(x, diagonal)


@decomposes(aten.trace.default, targets=("coreml", "coreai"), why="neither converter has every diagonal")
def trace(x: Tensor) -> Tensor:
    """Return the sum of the main diagonal."""
    return torch.diagonal(x).sum()


@decomposes(aten.squeeze.default, targets=("coreai",), why="Core AI's converter fails on axes that are not named")
def squeeze(x: Tensor) -> Tensor:
    """Return x without axes of 1."""
    return x.reshape([size for size in x.shape if size != 1])


@decomposes(
    *(aten.squeeze.dim, aten.squeeze.dims),
    targets=("coreai",),
    why="Core AI's converter fails on axes that are longer than 1, and ends the process for none",
)
def squeeze_named(x: Tensor, dim: int | Sequence[int]) -> Tensor:
    """Return x without those of the axes `dim` that are of 1."""
    if not x.dim():
        return x.clone()
    named = {axis % max(x.dim(), 1) for axis in ([dim] if isinstance(dim, int) else dim)}
    if not named:
        return x.clone()
    if all(size == 1 for axis, size in enumerate(x.shape) if axis in named):
        return LEAVE
    return x.reshape([size for axis, size in enumerate(x.shape) if axis not in named or size != 1])


@decomposes(aten.expand.default, targets=("coreai",), why="Core AI's converter ends the process for no axes")
def expand_to_none(x: Tensor, shape: Sequence[int], *, implicit: bool = False) -> Tensor:
    """Return one number, repeated along no axes."""
    return LEAVE if shape else x.clone()


@decomposes(
    *(aten.index_fill.int_Scalar, aten.index_fill.int_Tensor),
    targets=("coreml", "coreai"),
    why="Core AI's converter rounds the number to 16 bits; coremltools 9.0 takes it for the first axis only",
)
def index_fill(x: Tensor, dim: int, index: Tensor, value: float | Tensor) -> Tensor:
    """Return x with a number at some positions of an axis."""
    if not x.dim():
        return torch.full_like(x, value) if isinstance(value, float | int) else value.to(x.dtype)
    length = x.shape[dim]
    at = torch.arange(length, device=x.device).unsqueeze(1) == (index.reshape(-1) % length).unsqueeze(0)  # [L, K]
    filled = (at.to(torch.float32).sum(1) > 0).reshape([length, *[1] * (x.dim() - 1 - dim % x.dim())])
    return torch.where(filled, value if isinstance(value, Tensor) else torch.full_like(x, value), x)


@decomposes(aten._unsafe_index_put.default, targets=("coreml", "coreai"), why="the converters know it by another name")
def put_unchecked(x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> Tensor:
    """Return x with values at indices."""
    put: Tensor = aten.index_put.default(x, indices, values, accumulate)
    return put


PICKED = (
    "where a mask picks positions, or the first axis is whole, Core AI's runtime ends the process, and Core ML's shapes"
    " are not known"
)


@decomposes(aten.index_put.default, targets=("coreml",), why=PICKED)
def put(x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> Tensor:
    """Return x with values at indices of its leading axes; by a mask of them, where it holds, in order."""
    first = indices[0]
    if first is None:
        return _put_behind(x, indices, values, accumulate)
    if len(indices) != 1 or first is None or first.dtype != torch.bool:
        return LEAVE
    return _put_by_mask(x, first, values, accumulate)


def _put_by_mask(x: Tensor, mask: Tensor, values: Tensor, accumulate: bool) -> Tensor:
    """Return x with values where a mask of its leading axes holds, in order."""
    tail = x.shape[mask.dim() :]
    if values.dim() > len(tail) and values.shape[0] != 1:  # one for each that the mask picks
        order = (torch.cumsum(mask.reshape(-1).to(torch.int64), 0) - 1).clamp(0, values.shape[0] - 1)
        values = values.index_select(0, order).reshape([*mask.shape, *values.shape[1:]])
    holds = mask.reshape([*mask.shape, *[1] * len(tail)])
    return torch.where(holds, x + values if accumulate else values.to(x.dtype), x)


def _put_behind(x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool) -> Tensor:
    """Return x with values at indices of axes behind the first: those axes are brought to the front for it.

    The values' shape is that of x[indices]: the indices' own stands where the first of them is where no axis between
    them is whole, else in front.
    """
    given = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    if any(index.dtype == torch.bool for _, index in given):
        return LEAVE
    axes = [axis for axis, _ in given]
    rest = [size for axis, size in enumerate(x.shape) if axis not in axes]
    common = torch.broadcast_shapes(*(index.shape for _, index in given))  # type: ignore[no-untyped-call]  # of torch
    start = axes[0] if axes[-1] - axes[0] + 1 == len(axes) else 0
    values = values.expand([*rest[:start], *common, *rest[start:]])
    count = len(common)
    values = values.movedim(list(range(start, start + count)), list(range(count)))
    front = list(range(len(axes)))
    filled: Tensor = aten.index_put.default(x.movedim(axes, front), [index for _, index in given], values, accumulate)
    return filled.movedim(front, axes)


@decomposes(aten.take.default, targets=("coreml", "coreai"), why="Core AI's decomposition fails on an index of no axes")
def take(x: Tensor, index: Tensor) -> Tensor:
    """Return numbers of the flat tensor; a negative index counts from its end."""
    places = torch.where(index < 0, index + x.numel(), index).reshape([-1])
    return x.reshape([-1]).index_select(0, places).reshape(index.shape)


@decomposes(aten.gather.default, targets=("coreai",), why="Core AI's converter wants an index as large as the input")
def gather(x: Tensor, dim: int, index: Tensor, *, sparse_grad: bool = False) -> Tensor:
    """Return the numbers at positions of an axis, from as much of the other axes as the index has."""
    if not x.dim():
        return x.expand(index.shape)
    along = dim % x.dim()
    sizes = [n if axis == along else index.shape[axis] for axis, n in enumerate(x.shape)]
    if index.dim() != x.dim() or sizes == [*x.shape]:
        return LEAVE
    for axis, size in enumerate(sizes):
        x = x.narrow(axis, 0, size)
    return torch.gather(x, dim, index)


@decomposes(aten.index_select.default, targets=("coreai",), why="Core AI's converter fails on an input without axes")
def index_select_of_one(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """Return the one position that a single number has."""
    return LEAVE if x.dim() else x.clone()


@decomposes(aten.put.default, targets=("coreml", "coreai", "onnx", "tvm"), why="no converter has a translation")
def put_flat(x: Tensor, index: Tensor, source: Tensor, accumulate: bool = False) -> Tensor:
    """Return x with numbers at positions of the flat tensor, or with numbers added there."""
    flat: Tensor = aten.index_put.default(x.reshape([-1]), [index.reshape([-1])], source.reshape([-1]), accumulate)
    return flat.reshape(x.shape)


@decomposes(aten.repeat_interleave.Tensor, targets=("coreml", "coreai"), why="neither converter has a translation")
def repeated_places(repeats: Tensor, *, output_size: int | None = None) -> Tensor:
    """Return each position as often as it is repeated; without the number of them it is left."""
    if output_size is None:
        return LEAVE
    ends = torch.cumsum(repeats, 0)
    return (ends.unsqueeze(0) <= torch.arange(output_size, device=repeats.device).unsqueeze(1)).to(torch.int64).sum(-1)


_COPY = "Core AI's converter knows the operator by the name under which nothing is copied"


@decomposes(aten.view_copy.default, targets=("coreai",), why=_COPY)
def view_copy(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return x in another shape."""
    return x.reshape(shape)


@decomposes(aten.permute_copy.default, targets=("coreai",), why=_COPY)
def permute_copy(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Return x with its axes in another order."""
    return x.permute(list(dims))


@decomposes(aten.narrow_copy.default, targets=("coreai", "coreml", "tvm"), why=_COPY)
def narrow_copy(x: Tensor, dim: int, start: int, length: int) -> Tensor:
    """Return so many positions of an axis."""
    return x.narrow(dim, start, length)


@decomposes(aten.unbind_copy.int, targets=("coreai",), why=_COPY)
def unbind_copy(x: Tensor, dim: int = 0) -> list[Tensor]:
    """Return the positions of an axis."""
    return [x.select(dim, k) for k in range(x.shape[dim])]


@decomposes(aten.diagonal_scatter.default, why="torch's ONNX exporter ends in an error of its own; no converter has it")
def diagonal_scatter(x: Tensor, source: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """Return x with a diagonal of its axes `dim1` and `dim2` replaced: [..., L] of numbers, L its length."""
    planes = x.movedim((dim1, dim2), (-2, -1))
    rows = torch.arange(planes.shape[-2], device=x.device).unsqueeze(1)
    columns = torch.arange(planes.shape[-1], device=x.device)
    if not source.shape[-1]:
        return x.clone()
    along = (rows if offset >= 0 else columns).flatten().clamp(max=source.shape[-1] - 1)
    values = source.to(x.dtype).index_select(-1, along).unsqueeze(-1 if offset >= 0 else -2)
    return torch.where(columns - rows == offset, values, planes).movedim((-2, -1), (dim1, dim2))


@decomposes(aten.sort.stable, targets=("onnx",), why="torch's exporter has the unstable one; TopK keeps ties in order")
def sort_stable(
    x: Tensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Tensor, ...]:
    """Return x sorted along an axis, and the indices; equal numbers stay in order."""
    return torch.sort(x, dim, descending)


@decomposes(aten.linalg_vander.default, targets=("onnx",), why="its running products come as an operator of prims")
def vander(x: Tensor, *, N: int | None = None) -> Tensor:  # noqa: N803  # PyTorch's name for it
    """Return the powers 0 to N - 1 of each number, [..., n] to [..., n, N]."""
    x = x.reshape([1]) if not x.dim() else x
    return torch.pow(x.unsqueeze(-1), torch.arange(x.shape[-1] if N is None else N, dtype=x.dtype, device=x.device))


@decomposes(
    *(aten.reshape.default, aten.view.default),
    targets=("coreml", "coreai"),
    why="coremltools 9.0 ignores a shape without axes; Core AI's converter fails on it",
)
def to_single(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the one number of x as a tensor without axes."""
    return LEAVE if shape or not x.dim() else x.squeeze(tuple(range(x.dim())))


@decomposes(
    *(aten.split.Tensor, aten.unsafe_split.Tensor, aten.split_with_sizes.default, aten.unsafe_split_with_sizes.default),
    targets=("tvm",),
    why="TVM's parts are no tuple where there is one",
)
def split(x: Tensor, sizes: int | Sequence[int], dim: int = 0) -> list[Tensor]:
    """Return the one part that is all of a tensor."""
    is_whole = sizes >= x.shape[dim] if isinstance(sizes, int) else len(sizes) == 1
    return [x.clone()] if is_whole else LEAVE


@decomposes(aten.permute.default, targets=("tvm",), why="TVM's layouts name no axis that is counted from the end")
def permute(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Return x with its axes in another order, each counted from the front."""
    return torch.permute(x, [axis % x.dim() for axis in dims]) if any(axis < 0 for axis in dims) else LEAVE


@decomposes(aten.masked_scatter.default, targets=("tvm", "coreml"), why="neither has a translation")
def masked_scatter(x: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """Return x with the numbers of a source, one after the other, where the mask is set."""
    mask, x = torch.broadcast_tensors(mask, x)  # type: ignore[no-untyped-call]  # torch declares no types
    place = torch.cumsum(mask.reshape([-1]).to(torch.int64), 0) - 1
    taken = source.reshape([-1])[place.clamp(min=0, max=source.numel() - 1)].reshape(x.shape)
    return torch.where(mask, taken, x)
