"""Cases of operators that move, cut and make values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from support.mil_sites import Draw, Site, Table, bools, long_types, one

CASES = Table()


CASES.row(
    "fill_like",
    one(
        lambda ref_tensor, value: torch.full(ref_tensor.shape, value.item()),
        {"value": lambda draw: draw.choose([draw.scalar(-2, 2), np.int32(7), np.bool_(True)])},
        ref_tensor=long_types,
    ),
    since=16,
)
CASES.row("shape", one(lambda x: torch.tensor(tuple(x.shape)), x=long_types))
CASES.row(
    "non_zero",
    one(torch.argwhere, x=lambda draw, shape: draw.bools(shape).int()),
    one(torch.argwhere, x=bools),
    one(torch.argwhere, x=lambda draw, shape: draw.bools(shape).to(draw.float_type)),
)


def factors(draw: Draw, total: int) -> list[int]:
    """A drawn shape with this many elements."""
    shape = []
    while total > 1:
        size = draw.choose([n for n in range(1, total + 1) if total % n == 0])
        shape.append(size)
        total //= size
        if len(shape) == 3:
            break
    return [*shape, total]


@CASES.drawn("reshape")
def reshape(draw: Draw) -> Site:
    shape = draw.shape()
    wanted = factors(draw, math.prod(shape))
    given = list(wanted)
    if draw.flag():
        given[draw.whole(0, len(given) - 1)] = -1
    elif draw.opset >= 17 or len(wanted) == len(shape):  # a 0 stands for the axis as far from the end
        for back in range(1, len(given) + 1):
            if (shape[-back] if back <= len(shape) else 1) == given[-back]:
                given[-back] = 0
    kind = draw.choose([np.int8, np.int16, np.int32]) if draw.opset >= 17 else np.int32
    return Site({"x": draw.data_of(shape)}, {"shape": np.array(given, kind)}, lambda x: torch.reshape(x, wanted))


@CASES.drawn("reshape_like", since=16)
def reshape_like(draw: Draw) -> Site:
    shape = draw.shape(2, 4)
    cut = draw.whole(1, len(shape) - 1)
    first, second = [*shape[:cut], draw.whole(1, 3)], [draw.whole(1, 3), *shape[cut:]]
    to_the_end = draw.flag()
    attributes = {
        "begins": (0, 1), "ends": (cut, 0 if to_the_end else len(second)), "end_masks": (False, to_the_end),
    }  # fmt: skip
    tensors = {
        "x": draw.data_of([math.prod(shape)], small=False),
        "ref_tensors": (draw.floats(first), draw.floats(second)),
    }
    return Site(tensors, attributes, lambda x, ref_tensors: x.view(shape))


@CASES.drawn("transpose")
def transpose(draw: Draw) -> Site:
    shape = draw.shape()
    order = draw.order(len(shape))
    perm = [axis - len(shape) if draw.flag() else axis for axis in order]
    return Site({"x": draw.data_of(shape)}, {"perm": perm}, lambda x: torch.permute(x, order))


@CASES.drawn("squeeze")
def squeeze(draw: Draw) -> Site:
    shape = [2, *(1 if draw.flag() else draw.whole(2, 3) for _ in range(draw.whole(1, 3)))]
    ones = [axis for axis, size in enumerate(shape) if size == 1]
    if not ones or draw.flag():
        wanted, attributes = [size for size in shape if size != 1], {}
    else:
        axis = draw.choose(ones)
        wanted = shape[:axis] + shape[axis + 1 :]
        attributes = {"axes": [axis - len(shape) if draw.flag() else axis]}
    return Site({"x": draw.data_of(shape)}, attributes, lambda x: x.reshape(wanted))


@CASES.drawn("expand_dims")
def expand_dims(draw: Draw) -> Site:
    shape = draw.shape(1, 3)
    count = draw.whole(1, 2)
    rank = len(shape) + count
    places = sorted(draw.order(rank)[:count])
    wanted, rest = [], iter(shape)
    for axis in range(rank):
        wanted.append(1 if axis in places else next(rest))
    axes = [axis - rank if draw.flag() else axis for axis in places]
    return Site({"x": draw.data_of(shape)}, {"axes": axes}, lambda x: x.reshape(wanted))


@CASES.drawn("flatten2d")
def flatten2d(draw: Draw) -> Site:
    shape = draw.shape(2, 4)
    axis = draw.choose([a for a in range(-len(shape), len(shape)) if a % len(shape)])
    attributes = {} if axis == 1 else {"axis": axis}
    return Site(
        {"x": draw.data_of(shape, small=False)},
        attributes,
        lambda x: torch.flatten(torch.flatten(x, axis % len(shape)), 0, axis % len(shape) - 1),
    )


@CASES.drawn("concat")
def concat(draw: Draw) -> Site:
    shape = draw.shape(1, 4)
    axis, interleave = draw.axis(len(shape)), draw.flag()
    shapes = [list(shape) for _ in range(draw.whole(1, 3))]
    first = draw.data_of(shapes[0], small=False)
    if not interleave:
        for one in shapes:
            one[axis] = draw.whole(1, 4)
    values = tuple((draw.floats(one, 0, 99) if first.is_floating_point() else draw.wholes(one, 0, 99)).to(first.dtype)
                   for one in shapes)  # fmt: skip

    def reference(values: Sequence[Tensor]) -> Tensor:
        if not interleave:
            return torch.concatenate(list(values), axis)
        rows = [one.select(axis, row) for row in range(shape[axis]) for one in values]
        return torch.stack(rows, axis)

    return Site({"values": values}, {"axis": axis, "interleave": interleave}, reference)


@CASES.drawn("stack")
def stack(draw: Draw) -> Site:
    shape = draw.shape(1, 3)
    axis = draw.whole(-len(shape) - 1, len(shape))
    values = tuple(draw.floats(shape) for _ in range(draw.whole(1, 3)))
    at = axis % (len(shape) + 1)
    return Site({"values": values}, {"axis": axis}, lambda values: torch.cat([v.unsqueeze(at) for v in values], at))


@CASES.drawn("split")
def split(draw: Draw) -> Site:
    shape = draw.shape()
    axis = draw.axis(len(shape))
    if draw.flag():
        sizes = [draw.whole(1, 3) for _ in range(draw.whole(1, 3))]
        attributes: dict[str, Any] = {"split_sizes": sizes}
        if draw.flag():
            attributes["num_splits"] = len(sizes)
    else:
        sizes = [draw.whole(1, 3)] * draw.whole(1, 3)
        attributes = {"num_splits": len(sizes)}
    shape[axis] = sum(sizes)
    starts = [0, *itertools.accumulate(sizes)]

    def reference(x: Tensor) -> Any:
        parts = [x.narrow(axis, start, size) for start, size in zip(starts, sizes, strict=False)]
        return tuple(parts)

    return Site({"x": draw.data_of(shape, small=False)}, {"axis": axis, **attributes}, reference)


def draw_slice(draw: Draw, shape: list[int]) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """A slice as MIL's attributes and as numpy's index; it takes something and drops no axis but one."""
    begin, end, stride = [], [], []
    masks: dict[str, list[bool]] = {"begin_mask": [], "end_mask": [], "squeeze_mask": []}
    index: list[Any] = []
    for axis, size in enumerate(shape):
        step = draw.choose([1, 1, 2, 3, -1, -2])
        first = draw.whole(0, size - 1)
        squeezed = axis > 0 and not any(masks["squeeze_mask"]) and draw.whole(0, 5) == 0
        open_begin = not squeezed and draw.flag() and draw.flag()
        if open_begin:
            first = 0 if step > 0 else size - 1
        last = draw.whole(first + 1, size) if step > 0 else draw.whole(-1, first - 1)
        open_end = last == -1 or (not squeezed and draw.flag() and draw.flag())
        index.append(first if squeezed else slice(None if open_begin else first, None if open_end else last, step))
        begin.append(first - size if draw.flag() else first)
        end.append(last - size if 0 <= last < size and (step < 0 or draw.flag()) and last - size < 0 else last)
        if step < 0:  # both from the end, so that no shape rule meets one of each
            begin[-1] = first - size
        stride.append(step)
        for name, value in (("begin_mask", open_begin), ("end_mask", open_end), ("squeeze_mask", squeezed)):
            masks[name].append(value)
    attributes: dict[str, Any] = {"begin": np.array(begin, np.int32), "end": np.array(end, np.int32)}
    if any(step != 1 for step in stride) or draw.flag():
        attributes["stride"] = np.array(stride, np.int32)
    for name, mask in masks.items():
        if any(mask) or draw.flag():
            attributes[name] = mask
    return attributes, tuple(index)


@CASES.drawn("slice_by_index")
def slice_by_index(draw: Draw) -> Site:
    shape = draw.shape(1, 4, 6)
    attributes, index = draw_slice(draw, shape)
    x = draw.data_of(shape, small=False)
    return Site({"x": x}, attributes, lambda x: torch.from_numpy(x.numpy()[index].copy()))


@CASES.drawn("slice_update", since=18)
def slice_update(draw: Draw) -> Site:
    shape = draw.shape(1, 4, 6)
    attributes, index = draw_slice(draw, shape)
    x = draw.floats(shape)
    update = draw.floats(x.numpy()[index].shape)

    def reference(x: Tensor, update: Tensor) -> Tensor:
        result = x.numpy().copy()
        result[index] = update.numpy()
        return torch.from_numpy(result)

    return Site({"x": x, "update": update}, attributes, reference)


@CASES.drawn("slice_by_size")
def slice_by_size(draw: Draw) -> Site:
    shape = draw.shape(1, 4, 6)
    first = [draw.whole(0, size - 1) for size in shape]
    count = [draw.whole(1, size - start) for size, start in zip(shape, first, strict=True)]
    rest = [draw.flag() for _ in shape]
    index = tuple(
        slice(start, None if to_the_end else start + size)
        for start, size, to_the_end in zip(first, count, rest, strict=True)
    )
    begin = [
        start - size if draw.flag() and not r else start for start, size, r in zip(first, shape, rest, strict=True)
    ]
    attributes = {"begin": begin, "size": [-1 if r else size for r, size in zip(rest, count, strict=True)]}
    return Site({"x": draw.data_of(shape)}, attributes, lambda x: torch.from_numpy(x.numpy()[index].copy()))


@CASES.drawn("crop")
def crop(draw: Draw) -> Site:
    shape = draw.shape(3, 4)
    sides = [draw.whole(0, 2) for _ in range(4)]
    shape[-2] += sides[0] + sides[1]
    shape[-1] += sides[2] + sides[3]
    top, bottom, left, right = sides
    return Site(
        {"x": draw.floats(shape)},
        {"crop_height": [top, bottom], "crop_width": [left, right]},
        lambda x: F.pad(x, [-left, -right, -top, -bottom]),
    )


@CASES.drawn("tile")
def tile(draw: Draw) -> Site:
    shape = draw.shape()
    reps = [draw.whole(1, 3) for _ in shape]
    return Site({"x": draw.data_of(shape, small=False)}, {"reps": reps}, lambda x: torch.tile(x, reps))


@CASES.drawn("reverse")
def reverse(draw: Draw) -> Site:
    shape = draw.shape()
    axes = draw.axes(len(shape))
    every = draw.flag()
    return Site(
        {"x": draw.data_of(shape)},
        {} if every else {"axes": axes},
        lambda x: torch.from_numpy(np.flip(x.numpy(), None if every else axes).copy()),
    )


@CASES.drawn("reverse_sequence")
def reverse_sequence(draw: Draw) -> Site:
    shape = draw.shape(2, 4)
    sequence, batch = draw.order(len(shape))[:2]
    lengths = draw.wholes([shape[batch]], 0, shape[sequence])

    def reference(x: Tensor, lengths: Tensor) -> Tensor:
        rows = []
        for row, length in zip(x.unbind(batch), lengths.tolist(), strict=True):
            axis = sequence - (batch < sequence)
            rows.append(
                torch.cat(
                    [row.narrow(axis, 0, length).flip(axis), row.narrow(axis, length, row.shape[axis] - length)], axis
                )
            )
        return torch.stack(rows, batch)

    attributes = {"seq_axis": sequence, "batch_axis": batch}
    return Site({"x": draw.data_of(shape, small=False), "lengths": lengths}, attributes, reference)


@CASES.drawn("pad")
def pad(draw: Draw) -> Site:
    shape = draw.shape(1, 4)
    mode = draw.choose([None, "constant", "reflect", "replicate"])
    count = draw.whole(1, len(shape))
    pairs = []
    for size in shape[len(shape) - count :]:
        most = {"reflect": size - 1, "replicate": size}.get(mode, 3)
        pairs.append((draw.whole(0, most), draw.whole(0, most)))
    attributes: dict[str, Any] = {"pad": [amount for pair in pairs for amount in pair]}
    if mode is not None:
        attributes["mode"] = mode
    value = draw.scalar(-2, 2)
    if mode == "constant":
        attributes["constant_val"] = value
    every = [(0, 0)] * (len(shape) - count) + pairs

    def reference(x: Tensor) -> Tensor:
        options = {"constant_values": float(value) if mode == "constant" else 0.0} if mode in (None, "constant") else {}
        names = {None: "constant", "replicate": "edge"}
        return torch.from_numpy(np.pad(x.numpy(), every, names.get(mode, mode), **options))

    return Site({"x": draw.floats(shape)}, attributes, reference)


@CASES.drawn("depth_to_space", "space_to_depth")
def depth(draw: Draw, name: str) -> Site:
    batch, channels, height, width = draw.shape(4, 4, 3)
    size = draw.whole(2, 3)
    if name == "depth_to_space":
        x = draw.floats([batch, channels * size**2, height, width])
    else:
        x = draw.floats([batch, channels, height * size, width * size])

    def reference(x: Tensor) -> Tensor:  # torch's shuffle, once the channels count the block last
        if name == "depth_to_space":
            return F.pixel_shuffle(x.unflatten(1, (size**2, channels)).transpose(1, 2).flatten(1, 2), size)
        return F.pixel_unshuffle(x, size).unflatten(1, (channels, size**2)).transpose(1, 2).flatten(1, 2)

    return Site({"x": x}, {"block_size": size}, reference)


@CASES.drawn("pixel_shuffle")
def pixel_shuffle(draw: Draw) -> Site:
    batch, channels, height, width = draw.shape(4, 4, 3)
    size = draw.whole(1, 3)

    def reference(x: Tensor) -> Tensor:
        result = torch.empty(batch, channels, height * size, width * size, dtype=x.dtype)
        for row, column in itertools.product(range(size), repeat=2):
            result[..., row::size, column::size] = x[:, row * size + column :: size**2]
        return result

    return Site({"x": draw.floats([batch, channels * size**2, height, width])}, {"upscale_factor": size}, reference)


@CASES.drawn("pixel_unshuffle", since=16)
def pixel_unshuffle(draw: Draw) -> Site:
    batch, channels, height, width = draw.shape(4, 4, 3)
    size = draw.whole(1, 3)

    def reference(x: Tensor) -> Tensor:
        result = torch.empty(batch, channels * size**2, height, width, dtype=x.dtype)
        for row, column in itertools.product(range(size), repeat=2):
            result[:, row * size + column :: size**2] = x[..., row::size, column::size]
        return result

    x = draw.floats([batch, channels, height * size, width * size])
    return Site({"x": x}, {"downscale_factor": np.uint32(size)}, reference)


@CASES.drawn("space_to_batch", "batch_to_space")
def batch_space(draw: Draw, name: str) -> Site:
    batch, channels, height, width = draw.shape(4, 4, 3)
    block = [draw.whole(1, 3), draw.whole(1, 3)]
    whole = [height * block[0], width * block[1]]
    edges = [[draw.whole(0, (size - 1) // 2), draw.whole(0, (size - 1) // 2)] for size in whole]
    (top, bottom), (left, right) = edges
    places = list(itertools.product(range(block[0]), range(block[1])))
    if name == "space_to_batch":
        x = draw.floats([batch, channels, whole[0] - top - bottom, whole[1] - left - right])

        def reference(x: Tensor) -> Tensor:
            padded = F.pad(x, [left, right, top, bottom])
            return torch.cat([padded[..., row :: block[0], column :: block[1]] for row, column in places])

        return Site({"x": x}, {"block_shape": block, "paddings": edges}, reference)
    x = draw.floats([batch * block[0] * block[1], channels, height, width])

    def back(x: Tensor) -> Tensor:
        result = torch.empty(batch, channels, *whole, dtype=x.dtype)
        for part, (row, column) in zip(x.split(batch), places, strict=True):
            result[..., row :: block[0], column :: block[1]] = part
        return F.pad(result, [-left, -right, -top, -bottom])

    return Site({"x": x}, {"block_shape": block, "crops": edges}, back)


@CASES.drawn("sliding_windows")
def sliding_windows(draw: Draw) -> Site:
    shape = draw.shape(1, 3)
    axis = draw.axis(len(shape))
    size, stride = draw.whole(1, 3), draw.whole(1, 3)
    shape[axis] = size + draw.whole(0, 5)
    starts = range(0, shape[axis] - size + 1, stride)
    attributes = {"axis": axis, "size": size} | ({} if stride == 1 else {"stride": stride})
    at = axis % len(shape)
    return Site(
        {"x": draw.floats(shape)},
        attributes,
        lambda x: torch.stack([x.narrow(at, start, size) for start in starts], at),
    )


@CASES.drawn("band_part")
def band_part(draw: Draw) -> Site:
    shape = draw.shape(2, 4)
    lower, upper = draw.whole(-1, 4), draw.whole(-1, 4)

    def reference(x: Tensor) -> Tensor:
        x = x if upper < 0 else torch.tril(x, upper)
        return x if lower < 0 else torch.triu(x, -lower)

    return Site({"x": draw.data_of(shape, small=False)}, {"lower": lower, "upper": upper}, reference)


@CASES.drawn("fill")
def fill(draw: Draw) -> Site:
    shape = draw.shape()
    value = draw.choose([draw.scalar(-2, 2), np.int32(7), np.bool_(True), None])
    attributes = {"shape": shape} | ({} if value is None else {"value": value})
    expected = torch.full(shape, 0.0 if value is None else value.item())
    return Site({}, attributes, lambda: expected)


@CASES.drawn("one_hot")
def one_hot(draw: Draw) -> Site:
    shape = draw.shape(1, 3)
    size, axis = draw.whole(1, 5), draw.whole(-len(shape) - 1, len(shape))
    on, off = draw.scalar(-2, 2), draw.scalar(-2, 2)
    plain = axis == -1 and draw.flag()
    attributes = {"one_hot_vector_size": size} | ({} if plain else {"axis": axis, "on_value": on, "off_value": off})

    def reference(indices: Tensor) -> Tensor:
        hot = F.one_hot(indices.long(), size + 1)[..., :size]
        hot = hot if plain else torch.where(hot.bool(), float(on), float(off))
        return hot.movedim(-1, axis % (len(shape) + 1))

    return Site({"indices": draw.wholes(shape, 0, size)}, attributes, reference)  # `size` itself is out of range


@CASES.drawn("range_1d")
def range_1d(draw: Draw) -> Site:
    whole = draw.flag()
    step = draw.choose([1, 2, 3, -1, -2]) if whole else draw.choose([0.25, 0.5, 1.5, -0.75])
    start = draw.whole(-5, 5)
    end = start + step * draw.whole(1, 6) + draw.choose([0, -0.125]) * (not whole) * np.sign(step)
    kind = np.int32 if whole else np.float16 if draw.kind == "fp16" else np.float32
    attributes = {"start": kind(start), "end": kind(end), "step": kind(step)}
    return Site({}, attributes, lambda: torch.arange(start, float(end), step))


@CASES.drawn("non_maximum_suppression")
def non_maximum_suppression(draw: Draw) -> Site:
    batch, count, classes = draw.whole(1, 2), draw.whole(1, 8), draw.whole(1, 3)
    centre = draw.wholes([batch, count, 2], 0, 6).to(draw.float_type)
    boxes = torch.cat([centre, draw.wholes([batch, count, 2], 1, 6).to(draw.float_type)], 2)
    scores = draw.distinct([batch, count, classes])
    limit, most, by_class = draw.choose([0.125, 0.3, 0.6]), draw.whole(1, 6), draw.flag()
    kind = np.float16 if draw.kind == "fp16" else np.float32
    late = draw.opset >= 17
    least = -math.inf if late else draw.choose([-3.0, 0.5, 99.0])
    attributes: dict[str, Any] = {"iou_threshold": kind(limit), "max_boxes": most, "per_class_suppression": by_class}
    if not late:
        attributes["score_threshold"] = kind(least)

    def area(low: Any, high: Any) -> float:
        return max(high[0] - low[0], 0.0) * max(high[1] - low[1], 0.0)

    def reference(boxes: Tensor, scores: Tensor) -> Any:
        boxes, scores = (boxes.mT, scores.mT) if late else (boxes, scores)
        rows = []
        for box, score in zip(boxes.tolist(), scores.tolist(), strict=True):
            left = sorted(
                (n for n in range(count) if max(score[n]) >= least), key=lambda n, score=score: -max(score[n])
            )
            kept: list[int] = []
            while left:
                best = left.pop(0)
                kept.append(best)
                for other in list(left):
                    corners = [([b[i] - b[i + 2] / 2 for i in (0, 1)], [b[i] + b[i + 2] / 2 for i in (0, 1)])
                               for b in (box[best], box[other])]  # fmt: skip
                    shared = area([max(corners[0][0][i], corners[1][0][i]) for i in (0, 1)],
                                  [min(corners[0][1][i], corners[1][1][i]) for i in (0, 1)])  # fmt: skip
                    union = area(*corners[0]) + area(*corners[1]) - shared
                    same = score[best].index(max(score[best])) == score[other].index(max(score[other]))
                    if shared / union > float(attributes["iou_threshold"]) and (same or not by_class):
                        left.remove(other)
            kept = kept or [max(range(count), key=lambda n, score=score: max(score[n]))]
            rows.append(kept[:most])
        out = [torch.zeros(batch, most, 4), torch.zeros(batch, most, classes), torch.full((batch, most), -1)]
        for image, kept in enumerate(rows):
            out[0][image, : len(kept)] = boxes[image, kept].float()
            out[1][image, : len(kept)] = scores[image, kept].float()
            out[2][image, : len(kept)] = torch.tensor(kept)
        if late:
            return out[0].mT, out[1].mT, out[2]
        return (*out, torch.tensor([len(kept) for kept in rows]))

    tensors = {"boxes": boxes, "scores": scores}
    return Site(
        {name: one.mT.contiguous() for name, one in tensors.items()} if late else tensors, attributes, reference
    )
