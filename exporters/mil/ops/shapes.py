"""MIL operators that move, cut, join or make values without computing with them, and the selection of boxes.

Meanings from coremltools' operator documentation and from its value inference. What a reader might not expect:

    reshape            0 stands for the axis of x as far from the end (iOS17's rule; iOS15's where that applies)
    slice_by_index     as Python slices: a masked begin or end is the far one for a negative stride
    squeeze            named axes that are longer than 1 stay
    pad                (before, after) of the last len(pad) / 2 axes, the first of these first: not torch's order
    depth_to_space     the block is the outer part of the channels (TensorFlow's order); pixel_shuffle has it inside
    range_1d           ceil((end - start) / step) values, start + i step
    band_part          negative `lower` or `upper` keeps that whole triangle; what is cut is 0 even where x is inf
    reverse_sequence   entries beyond a sequence's length stay where they are
    non_maximum_suppression   see there
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgesmith.errors import BadInput, Unsupported
from edgesmith.exporters.mil.ops import ints, number, op, wide


@op("reshape")
def reshape(*, x: Tensor, shape: Tensor) -> Tensor:
    """The same values with another shape; 0 takes an axis of x over, -1 is what remains."""
    wanted = ints(shape)
    filled = [
        (x.shape[-back] if back <= x.dim() else 1) if size == 0 else size
        for size, back in zip(wanted, range(len(wanted), 0, -1), strict=True)
    ]
    return x.reshape(filled)


@op("reshape_like")
def reshape_like(
    *,
    x: Tensor,
    ref_tensors: Sequence[Tensor],
    begins: Sequence[Tensor],
    ends: Sequence[Tensor],
    end_masks: Sequence[Tensor],
) -> Tensor:
    """The same values with a shape put together from ranges of other tensors' shapes."""
    shape: list[int] = []
    for tensor, begin, end, to_the_end in zip(ref_tensors, begins, ends, end_masks, strict=True):
        shape += tensor.shape[number(begin) : None if number(to_the_end) else number(end)]
    return x.reshape(shape)


@op("transpose")
def transpose(*, x: Tensor, perm: Tensor) -> Tensor:
    """The axes in the order of `perm`."""
    return x.permute(ints(perm))


@op("squeeze")
def squeeze(*, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Without the axes of length 1 that are named, or without all of them."""
    return x.squeeze() if axes is None else x.squeeze(tuple(ints(axes)))


@op("expand_dims")
def expand_dims(*, x: Tensor, axes: Tensor) -> Tensor:
    """With axes of length 1 that lie at `axes` of the result."""
    rank = x.dim() + len(ints(axes))
    for axis in sorted(axis % rank for axis in ints(axes)):
        x = x.unsqueeze(axis)
    return x


@op("flatten2d")
def flatten2d(*, x: Tensor, axis: Tensor | int = 1) -> Tensor:
    """A matrix: the axes before `axis`, and those from it on."""
    return x.reshape(math.prod(x.shape[: number(axis)]), math.prod(x.shape[number(axis) :]))


@op("concat")
def concat(*, values: Sequence[Tensor], axis: Tensor, interleave: Tensor | bool = False) -> Tensor:
    """The tensors one after the other along the axis, or slices in turn if `interleave`. Scalars are stacked."""
    if values[0].dim() == 0:
        return torch.stack(list(values))
    if not number(interleave):
        return torch.cat(list(values), number(axis))
    dim = int(number(axis)) % values[0].dim()
    return torch.stack(list(values), dim + 1).flatten(dim, dim + 1)


@op("stack")
def stack(*, values: Sequence[Tensor], axis: Tensor) -> Tensor:
    """The tensors along a new axis."""
    return torch.stack(list(values), number(axis))


@op("split")
def split(
    *, x: Tensor, axis: Tensor, num_splits: Tensor | None = None, split_sizes: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Parts along the axis, of the given sizes or of equal ones."""
    dim = number(axis)
    if split_sizes is not None:
        return torch.split(x, ints(split_sizes), dim)
    return torch.chunk(x, number(num_splits), dim)


def slices(
    shape: Sequence[int],
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None,
    begin_mask: Tensor | None,
    end_mask: Tensor | None,
    squeeze_mask: Tensor | None,
) -> tuple[list[range], list[int]]:
    """For each axis the indices that a MIL slice takes, and the axes that it then drops.

    Raises:
        BadInput: a squeezed index lies outside its axis.
    """
    rank = len(shape)
    steps = ints(stride) if stride is not None else [1] * rank
    open_begin, open_end, dropped = (
        [False] * rank if mask is None else [bool(value) for value in ints(mask)]
        for mask in (begin_mask, end_mask, squeeze_mask)
    )
    taken = []
    for axis, (size, first, last) in enumerate(zip(shape, ints(begin), ints(end), strict=True)):
        start = None if open_begin[axis] else first
        if dropped[axis]:
            index = 0 if start is None else start
            if not -size <= index < size:
                raise BadInput(f"a slice wants index {index} of axis {axis}, which has length {size}")
            taken.append(range(index % size, index % size + 1))
        else:
            taken.append(range(size)[slice(start, None if open_end[axis] else last, steps[axis])])
    return taken, [axis for axis in range(rank) if dropped[axis]]


@op("slice_by_index")
def slice_by_index(
    *,
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    """A slice as in Python: x[begin : end : stride] on every axis.

    A masked begin or end is left out, and an axis of the squeeze mask is indexed at begin and dropped.
    """
    taken, dropped = slices(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    for axis, indices in enumerate(taken):
        x = _along(x, axis, indices)
    return x.squeeze(tuple(dropped)) if dropped else x


def _along(x: Tensor, axis: int, indices: range) -> Tensor:
    """The entries of one axis that a range names."""
    if not indices:
        return x.narrow(axis, 0, 0)
    if indices.step > 0:
        return x[(slice(None),) * axis + (slice(indices[0], indices[-1] + 1, indices.step),)]
    return x.index_select(axis, torch.tensor(indices))


@op("slice_by_size")
def slice_by_size(*, x: Tensor, begin: Tensor, size: Tensor) -> Tensor:
    """From `begin` on (counted from the end if negative) `size` entries of every axis, or all that follow for -1."""
    for axis, (first, count) in enumerate(zip(ints(begin), ints(size), strict=True)):
        start = first + x.shape[axis] if first < 0 else first
        x = x.narrow(axis, start, x.shape[axis] - start if count == -1 else count)
    return x


@op("slice_update")
def slice_update(
    *,
    x: Tensor,
    update: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    """A copy of x whose slice (see `slice_by_index`) is `update`."""
    taken, _ = slices(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    values = update.reshape([len(indices) for indices in taken])
    result = x.clone()
    if 0 in values.shape:
        return result
    place: list[slice] = []
    for axis, indices in enumerate(taken):  # torch has no negative steps: turn both round
        low, high = min(indices[0], indices[-1]), max(indices[0], indices[-1])
        place.append(slice(low, high + 1, abs(indices.step)))
        values = values.flip(axis) if indices.step < 0 else values
    result[tuple(place)] = values
    return result


@op("crop")
def crop(*, x: Tensor, crop_height: Tensor, crop_width: Tensor) -> Tensor:
    """Without (top, bottom) rows and (left, right) columns of the last two axes."""
    (top, bottom), (left, right) = ints(crop_height), ints(crop_width)
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


@op("tile")
def tile(*, x: Tensor, reps: Tensor) -> Tensor:
    """Each axis repeated as often as `reps` says."""
    return x.repeat(ints(reps))


@op("reverse")
def reverse(*, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """In reverse order along the axes, or along all of them."""
    return x.flip(list(range(x.dim())) if axes is None else ints(axes))


@op("reverse_sequence")
def reverse_sequence(*, x: Tensor, lengths: Tensor, seq_axis: Tensor | int = 0, batch_axis: Tensor | int = 0) -> Tensor:
    """The first lengths[b] entries along `seq_axis` in reverse order, for each b of `batch_axis`."""
    sequence, batch = int(number(seq_axis)) % x.dim(), int(number(batch_axis)) % x.dim()
    at = torch.arange(x.shape[sequence]).reshape([-1 if axis == sequence else 1 for axis in range(x.dim())])
    length = lengths.long().reshape([-1 if axis == batch else 1 for axis in range(x.dim())])
    return x.gather(sequence, torch.where(at < length, length - 1 - at, at).expand(x.shape))


@op("pad")
def pad(*, x: Tensor, pad: Tensor, mode: str = "constant", constant_val: Tensor | float = 0.0) -> Tensor:
    """The tensor with entries before and after its last axes: a constant, the edge's, or mirrored without the edge.

    Raises:
        Unsupported: a mode other than constant, replicate and reflect.
    """
    amounts = ints(pad)
    pairs = list(zip(amounts[::2], amounts[1::2], strict=True))
    if mode == "constant":
        return F.pad(x, [amount for pair in reversed(pairs) for amount in pair], value=number(constant_val))
    if mode not in ("replicate", "reflect"):
        raise Unsupported(f"pad has the modes constant, replicate and reflect, not {mode!r}")
    for axis, (before, after) in enumerate(pairs, x.dim() - len(pairs)):
        last = x.shape[axis] - 1
        at = torch.arange(-before, last + 1 + after)
        x = x.index_select(axis, at.clamp(0, last) if mode == "replicate" else last - (last - at.abs()).abs())
    return x


def _blocks_to_space(x: Tensor, height: int, width: int) -> Tensor:
    """A tensor (height, width, B, C, H, W) of blocks as the map (B, C, H height, W width)."""
    batch, channels, rows, columns = x.shape[2:]
    return x.permute(2, 3, 4, 0, 5, 1).reshape(batch, channels, rows * height, columns * width)


def _space_to_blocks(x: Tensor, height: int, width: int) -> Tensor:
    """A map (B, C, H height, W width) as the tensor (height, width, B, C, H, W) of its blocks."""
    batch, channels, rows, columns = x.shape
    blocks = x.reshape(batch, channels, rows // height, height, columns // width, width)
    return blocks.permute(3, 5, 0, 1, 2, 4)


@op("depth_to_space")
def depth_to_space(*, x: Tensor, block_size: Tensor) -> Tensor:
    """(B, b b C, H, W) to (B, C, H b, W b), where the channels count the block first: TensorFlow's order."""
    size = int(number(block_size))
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, size, size, channels // size**2, height, width).permute(1, 2, 0, 3, 4, 5)
    return _blocks_to_space(blocks, size, size)


@op("space_to_depth")
def space_to_depth(*, x: Tensor, block_size: Tensor) -> Tensor:
    """(B, C, H b, W b) to (B, b b C, H, W), where the channels count the block first: TensorFlow's order."""
    size = int(number(block_size))
    return _space_to_blocks(x, size, size).permute(2, 0, 1, 3, 4, 5).flatten(1, 3)


@op("pixel_shuffle")
def pixel_shuffle(*, x: Tensor, upscale_factor: Tensor) -> Tensor:
    """(B, C f f, H, W) to (B, C, H f, W f), where the channels count the block last: torch's order."""
    return F.pixel_shuffle(x, int(number(upscale_factor)))


@op("pixel_unshuffle")
def pixel_unshuffle(*, x: Tensor, downscale_factor: Tensor) -> Tensor:
    """(B, C, H f, W f) to (B, C f f, H, W), where the channels count the block last: torch's order."""
    return F.pixel_unshuffle(x, int(number(downscale_factor)))


@op("space_to_batch")
def space_to_batch(*, x: Tensor, block_shape: Tensor, paddings: Tensor) -> Tensor:
    """The map, padded with zeros, as a batch of its subsampled maps, the block's position counted before the batch."""
    (height, width), (top, bottom, left, right) = ints(block_shape), ints(paddings)
    return _space_to_blocks(F.pad(x, [left, right, top, bottom]), height, width).flatten(0, 2)


@op("batch_to_space")
def batch_to_space(*, x: Tensor, block_shape: Tensor, crops: Tensor) -> Tensor:
    """The inverse of `space_to_batch`: subsampled maps put together again, and then cropped."""
    (height, width), (top, bottom, left, right) = ints(block_shape), ints(crops)
    whole = _blocks_to_space(x.reshape(height, width, -1, *x.shape[1:]), height, width)
    return whole[..., top : whole.shape[-2] - bottom, left : whole.shape[-1] - right]


@op("sliding_windows")
def sliding_windows(*, x: Tensor, axis: Tensor, size: Tensor, stride: Tensor | int = 1) -> Tensor:
    """All windows of `size` entries along the axis, as a new axis behind it."""
    dim = int(number(axis)) % x.dim()
    return x.unfold(dim, number(size), number(stride)).movedim(-1, dim + 1)


@op("band_part")
def band_part(*, x: Tensor, lower: Tensor | int = -1, upper: Tensor | int = -1) -> Tensor:
    """The last two axes' matrices with zeros outside `lower` diagonals below the main one and `upper` above it."""
    below, above = int(number(lower)), int(number(upper))
    distance = torch.arange(x.shape[-1]) - torch.arange(x.shape[-2])[:, None]
    kept = ((distance <= above) | (above < 0)) & ((-distance <= below) | (below < 0))
    return torch.where(kept, x, torch.zeros_like(x))


@op("fill")
def fill(*, shape: Tensor, value: Tensor | float = 0.0) -> Tensor:
    """A tensor of this shape that holds one value."""
    return torch.as_tensor(value).reshape([1] * len(ints(shape))).repeat(ints(shape))


@op("fill_like")
def fill_like(*, ref_tensor: Tensor, value: Tensor | float = 0.0) -> Tensor:
    """A tensor of the other's shape that holds one value and has the value's type."""
    return torch.as_tensor(value).expand(ref_tensor.shape).clone()


@op("one_hot")
def one_hot(
    *,
    indices: Tensor,
    one_hot_vector_size: Tensor,
    axis: Tensor | int = -1,
    on_value: Tensor | int = 1,
    off_value: Tensor | int = 0,
) -> Tensor:
    """A new axis with `on_value` at each index and `off_value` elsewhere: everywhere for an index outside it."""
    dim = int(number(axis)) % (indices.dim() + 1)
    places = torch.arange(int(number(one_hot_vector_size)))
    hot = indices.unsqueeze(dim) == places.reshape([-1] + [1] * (indices.dim() - dim))
    return torch.where(hot, torch.as_tensor(on_value), torch.as_tensor(off_value))


@op("range_1d")
def range_1d(*, start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    """The values start, start + step and so on, as long as they lie before `end`."""
    count = math.ceil((number(end) - number(start)) / number(step))
    kind = torch.float64 if start.is_floating_point() else torch.int64
    values: Tensor = number(start) + torch.arange(max(count, 0), dtype=kind) * number(step)
    return values


@op("shape")
def shape(*, x: Tensor) -> Tensor:
    """The lengths of the axes."""
    return torch.tensor(x.shape, dtype=torch.int32)


@op("non_zero")
def non_zero(*, x: Tensor) -> Tensor:
    """The indices of the entries that are not 0, one row each, in the order in which they lie."""
    return x.nonzero()


@op("non_maximum_suppression")
def non_maximum_suppression(
    *,
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: Tensor,
    max_boxes: Tensor,
    score_threshold: Tensor | None = None,
    per_class_suppression: Tensor | bool = False,
) -> tuple[Tensor, ...]:
    """The boxes of highest score that overlap no better one by more than `iou_threshold`.

    Boxes are (B, N, 4) of centre x, centre y, width, height, with scores (B, N, K); iOS17's are (B, 4, N) and
    (B, K, N), and it has no score threshold. A box's score is that of its best class, which is also the class that
    counts for `per_class_suppression`. Results are filled up to `max_boxes` with zeros, and with -1 for the indices.
    Where no score reaches the threshold the best box is returned all the same. These last three rules are those of the
    reference in coremltools' tests; the documentation does not tell.

    Returns:
        The boxes, their scores, their indices, and before iOS17 how many there are.
    """
    last = score_threshold is None  # iOS17
    places, values = (boxes.mT, scores.mT) if last else (boxes, scores)
    least = -math.inf if score_threshold is None else number(score_threshold)
    count = int(number(max_boxes))
    chosen = [
        _suppress(wide(box), wide(score), number(iou_threshold), least, count, bool(number(per_class_suppression)))
        for box, score in zip(places, values, strict=True)
    ]
    filled = torch.full((len(chosen), count), -1)
    for row, picked in zip(filled, chosen, strict=True):
        row[: len(picked)] = torch.tensor(picked, dtype=torch.long)
    found = (filled >= 0)[..., None]
    at = filled.clamp(min=0)[..., None]
    results: list[Any] = []
    for tensor in (places, values):
        taken = tensor.gather(1, at.expand(-1, -1, tensor.shape[-1])).masked_fill(~found, 0)
        results.append(taken.mT if last else taken)
    number_of = [] if last else [found.sum((1, 2))]
    return (*results, filled, *number_of)


def _suppress(boxes: Tensor, scores: Tensor, limit: float, least: float, count: int, per_class: bool) -> list[int]:
    """The indices that one image keeps: greedily the best box that no kept box overlaps by more than the limit."""
    best, classes = scores.max(dim=-1)
    overlap = _intersection_over_union(boxes)
    kept: list[int] = []
    for index in torch.argsort(best, descending=True, stable=True).tolist():
        rivals = [other for other in kept if not per_class or classes[other] == classes[index]]
        if best[index] >= least and not any(overlap[index, other] > limit for other in rivals):
            kept.append(index)
        if len(kept) == count:
            break
    return kept or [int(best.argmax())]


def _intersection_over_union(boxes: Tensor) -> Tensor:
    """(N, N) overlaps of boxes (N, 4) of centres and sizes."""
    centre, size = boxes[:, None, :2], boxes[:, None, 2:]
    low, high = centre - size / 2, centre + size / 2
    shared = torch.minimum(high, high.movedim(0, 1)) - torch.maximum(low, low.movedim(0, 1))
    both = shared.clamp(min=0).prod(-1)
    area = size.prod(-1)
    return both / (area + area.mT - both)
