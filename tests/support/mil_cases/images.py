"""Cases of operators that sample maps between their pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from support.mil_sites import Draw, Site, Table, maps, one, whole_number

CASES = Table()


def grid(mode: str, size: int, count: int) -> list[float]:
    """Where an axis is sampled: coremltools' documentation, word for word."""
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        spacing = (size - 1) / (count - 1) if count > 1 else 0.0
        points = [i * spacing for i in range(count)]
        if mode == "ALIGN_CORNERS" and count == 1:
            points = [(size - 1) / 2]
    elif mode == "DEFAULT":
        spacing = (size - size / count) / (count - 1) if count > 1 else 0.0
        points = [i * spacing for i in range(count)]
    elif mode == "OFFSET_CORNERS":
        delta = max(1, size - 1) / count
        points = [0.5 * delta + i * delta for i in range(count)]
    else:
        spacing = size / count
        points = [i * spacing + 0.5 * spacing - 0.5 for i in range(count)]
    return [min(size - 1, max(0, point)) for point in points]


def hats(points: Sequence[float], size: int) -> Tensor:
    """Linear interpolation as a matrix (samples, pixels): a hat around each pixel."""
    distance = torch.tensor(points, dtype=torch.float64)[:, None] - torch.arange(size, dtype=torch.float64)
    return (1 - distance.abs()).clamp(min=0)


MODES = ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS", "UNALIGN_CORNERS")


def resized(x: Tensor, height: int, width: int, mode: str) -> Tensor:
    if mode in ("STRICT_ALIGN_CORNERS", "UNALIGN_CORNERS"):  # torch has these
        flat = x.reshape(1, -1, *x.shape[-2:])
        aligned = mode == "STRICT_ALIGN_CORNERS"
        return F.interpolate(flat, (height, width), mode="bilinear", align_corners=aligned).reshape(
            *x.shape[:-2], height, width
        )
    rows, columns = (
        hats(grid(mode, x.shape[-2], height), x.shape[-2]),
        hats(grid(mode, x.shape[-1], width), x.shape[-1]),
    )
    return (rows @ x.double() @ columns.T).to(x.dtype)


@CASES.drawn("resize_bilinear")
def resize_bilinear(draw: Draw) -> Site:
    shape = draw.shape(3, 4)
    height, width, mode = draw.whole(1, 8), draw.whole(1, 8), draw.choose([None, *MODES])
    attributes = {"target_size_height": height, "target_size_width": width}
    attributes |= {} if mode is None else {"sampling_mode": mode}
    return Site({"x": maps(draw, shape)}, attributes, lambda x: resized(x, height, width, mode or "DEFAULT"))


CASES.row(
    "resize_nearest_neighbor",
    one(
        lambda x, target_size_height, target_size_width: F.interpolate(
            x, (target_size_height, target_size_width), mode="nearest-exact"
        ),
        {"target_size_height": whole_number(1, 9), "target_size_width": whole_number(1, 9)},
        rank=(4, 4),
        half=True,
        x=maps,
    ),
)


def scale(draw: Draw, size: int) -> tuple[Any, int]:
    """A factor, and the size that it makes of another."""
    if draw.flag():
        factor = draw.whole(1, 3)
        return np.int32(factor), size * factor
    factor = np.float32(draw.choose([0.5, 1.5, 2.0, 2.6, 3.17]))
    factor = np.float32(1.0) if math.floor(factor * size) == 0 else factor
    return factor, int(np.floor(factor * np.float32(size)))


@CASES.drawn("upsample_nearest_neighbor", "upsample_bilinear")
def upsample(draw: Draw, name: str) -> Site:
    shape = draw.shape(4, 4)
    (height, rows), (width, columns) = scale(draw, shape[2]), scale(draw, shape[3])
    if height.dtype != width.dtype:
        height, width = np.float32(height), np.float32(width)
    attributes: dict[str, Any] = {"scale_factor_height": height, "scale_factor_width": width}
    if name == "upsample_nearest_neighbor":
        x = draw.floats(shape)
        return Site({"x": x}, attributes, lambda x: F.interpolate(x, (rows, columns), mode="nearest"), half=True)
    aligned = draw.flag()
    mode = "STRICT_ALIGN_CORNERS" if aligned else "UNALIGN_CORNERS"
    if not aligned or draw.flag():
        attributes["align_corners"] = aligned
    if draw.opset >= 16 and draw.flag():
        attributes["half_pixel_centers"] = centred = not aligned and draw.flag()
        mode = mode if aligned or centred else "DEFAULT"
    return Site({"x": maps(draw, shape)}, attributes, lambda x: resized(x, rows, columns, mode))


@CASES.drawn("resize", since=17)
def resize(draw: Draw) -> Site:
    shape = draw.shape(4, 4)
    sizes, mode = [draw.whole(0, 8), draw.whole(0, 8)], draw.choose(MODES)
    wanted = [size or shape[axis] for axis, size in zip((2, 3), sizes, strict=True)]
    nearest = draw.flag()
    attributes = {
        "shape": np.array([1, *sizes], np.int32), "resized_dims": np.uint32(2), "sampling_mode": mode,
        "interpolation_mode": "NEAREST_NEIGHBOR" if nearest else "LINEAR",
    }  # fmt: skip

    def reference(x: Tensor) -> Tensor:
        if not nearest:
            return resized(x, *wanted, mode)
        if mode in ("DEFAULT", "UNALIGN_CORNERS"):
            return F.interpolate(x, tuple(wanted), mode="nearest-exact")
        at = [[min(math.floor(p + 0.5), size - 1) for p in grid(mode, size, count)]
              for size, count in zip(shape[2:], wanted, strict=True)]  # fmt: skip
        return x[:, :, at[0]][..., at[1]]

    return Site({"x": maps(draw, shape)}, attributes, reference)


@CASES.drawn("crop_resize")
def crop_resize(draw: Draw) -> Site:
    shape = [draw.whole(1, 2), draw.whole(1, 3), draw.whole(2, 6), draw.whole(2, 6)]
    boxes, height, width = draw.whole(1, 3), draw.whole(1, 4), draw.whole(1, 4)
    mode, normalised = draw.choose(MODES), draw.flag()
    order = draw.choose(
        ["CORNERS_HEIGHT_FIRST", "CORNERS_WIDTH_FIRST", "CENTER_SIZE_HEIGHT_FIRST", "CENTER_SIZE_WIDTH_FIRST"]
    )
    factor = draw.choose([1.0, 0.5])
    attributes: dict[str, Any] = {
        "target_height": height, "target_width": width, "normalized_coordinates": normalised,
        "spatial_scale": np.float32(factor), "box_coordinate_mode": order, "sampling_mode": mode,
    }  # fmt: skip
    outside = 0.0
    if draw.opset >= 16 and draw.flag():
        value = draw.scalar(-1, 1)
        attributes["pad_value"], outside = value, float(value)
    extent = [1.0, 1.0] if normalised else [shape[2] - 1.0, shape[3] - 1.0]
    low = torch.stack([draw.floats([boxes], -0.2 * e, 0.6 * e).float() for e in extent], 1)
    high = low + torch.stack([draw.floats([boxes], 0.1 * e, 0.7 * e).float() for e in extent], 1)
    given = torch.cat([(low + high) / 2, high - low] if order.startswith("CENTER") else [low, high], 1) / factor
    given = given[:, [1, 0, 3, 2]] if order.endswith("WIDTH_FIRST") else given
    given = given.to(draw.float_type)
    late, every = draw.opset >= 17, shape[0] > 1 or draw.flag()  # coremltools declares B results for either kind of roi
    images = draw.wholes([boxes], 0, shape[0] - 1)
    tensors: dict[str, Tensor] = {"x": maps(draw, shape)}
    if late:
        tensors |= {"boxes": given, "box_indices": images}
    else:
        images = torch.zeros_like(images) if not every else images
        tensors["roi"] = (given if every else torch.cat([images[:, None].to(given), given], 1)).reshape(
            boxes, 1, -1, 1, 1
        )

    def line(first: float, last: float, size: int, count: int) -> list[float]:
        """A box's grid is that of an axis as long as the box."""
        unit = grid_of_span(mode, last - first, count)
        points = [first + p for p in unit]
        return [p if -1e-9 <= p <= size - 1 + 1e-9 else math.nan for p in points]

    def reference(x: Tensor, *others: Tensor) -> Tensor:
        box = given.double() * factor
        box = box[:, [1, 0, 3, 2]] if order.endswith("WIDTH_FIRST") else box
        if order.startswith("CENTER"):
            box = torch.cat([box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2], 1)
        scales = [shape[2] - 1, shape[3] - 1] * 2 if normalised else [1] * 4
        results = []
        for row, image in zip((box * torch.tensor(scales)).tolist(), images.tolist(), strict=True):
            rows, columns = line(row[0], row[2], shape[2], height), line(row[1], row[3], shape[3], width)
            maps = x if not late and every else x[[image]]
            sampled = hats(rows, shape[2]) @ maps.double() @ hats(columns, shape[3]).T
            results.append(torch.where(sampled.isnan(), outside, sampled))
        return torch.cat(results) if late else torch.stack(results)

    return Site(tensors, attributes, reference)


def grid_of_span(mode: str, span: float, count: int) -> list[float]:
    """The documented grid for an axis of span + 1 pixels, which need not be whole."""
    return grid(mode, span + 1, count)  # type: ignore[arg-type]


@CASES.drawn("resample")
def resample(draw: Draw) -> Site:
    batch, channels, height, width = draw.whole(1, 2), draw.whole(1, 3), draw.whole(2, 5), draw.whole(2, 5)
    rows, columns = draw.whole(1, 4), draw.whole(1, 4)
    padding, sampling = (
        draw.choose(["constant", "border", "reflection", "symmetric"]),
        draw.choose(["bilinear", "nearest"]),
    )
    unit, aligned = draw.choose(["unnormalized", "normalized_minus_one_to_one", "normalized_zero_to_one"]), draw.flag()
    value = draw.scalar(-2, 2)
    pixels = torch.stack(  # from beyond one edge to beyond the other, and no halves, which have two nearest pixels
        [draw.wholes([batch, rows, columns], -4 * n, 8 * n).double() / 4 + 0.0625 for n in (width, height)], -1
    )
    sizes = torch.tensor([width, height], dtype=torch.float64)
    share = pixels / (sizes - 1) if aligned else (pixels + 0.5) / sizes
    given = {"unnormalized": pixels, "normalized_zero_to_one": share, "normalized_minus_one_to_one": 2 * share - 1}[
        unit
    ]
    coordinates = given.float()  # iOS15 takes no others
    attributes = {
        "sampling_mode": sampling, "padding_mode": padding, "padding_value": value, "coordinates_mode": unit,
        "align_corners": aligned,
    }  # fmt: skip

    def reference(x: Tensor, coordinates: Tensor) -> Tensor:
        if unit == "unnormalized":
            at = coordinates.double()
        else:
            whole = coordinates.double() if unit == "normalized_zero_to_one" else (coordinates.double() + 1) / 2
            at = whole * (sizes - 1) if aligned else whole * sizes - 0.5
        names = {"constant": "constant", "border": "edge", "reflection": "reflect", "symmetric": "symmetric"}
        options = {"constant_values": float(value)} if padding == "constant" else {}
        edge = 3 * max(height, width)  # a larger map, which nothing lies outside of
        larger = np.pad(x.double().numpy(), [(0, 0), (0, 0), (edge, edge), (edge, edge)], names[padding], **options)
        places = 2 * (at + edge) / (sizes + 2 * edge - 1) - 1
        return F.grid_sample(torch.from_numpy(larger), places, sampling, "zeros", align_corners=True).to(x.dtype)

    return Site({"x": maps(draw, [batch, channels, height, width]), "coordinates": coordinates}, attributes, reference)


@CASES.drawn("affine")
def affine(draw: Draw) -> Site:
    batch = draw.whole(1, 2)
    shape = [batch, draw.whole(1, 3), draw.whole(2, 5), draw.whole(2, 5)]
    height, width, aligned = draw.whole(1, 5), draw.whole(1, 5), draw.flag()
    matrix = draw.floats([draw.choose([1, batch]), 6], -1, 1)
    kind = np.float16 if draw.kind == "fp16" else np.float32
    attributes = {
        "output_height": height, "output_width": width, "sampling_mode": "bilinear", "padding_mode": "constant",
        "padding_value": kind(0), "coordinates_mode": "normalized_minus_one_to_one", "align_corners": aligned,
    }  # fmt: skip

    def reference(x: Tensor, transform_matrix: Tensor) -> Tensor:
        theta = transform_matrix.double().reshape(-1, 2, 3).expand(batch, -1, -1)
        where = F.affine_grid(theta, [batch, shape[1], height, width], align_corners=aligned)
        return F.grid_sample(x.double(), where, align_corners=aligned)

    return Site({"x": maps(draw, shape), "transform_matrix": matrix}, attributes, reference)
