"""MIL operators that sample maps between their pixels.

Grids follow coremltools' documentation of `resize_bilinear`. With a map (or box) of size S = last - first + 1 and N
samples, sample i lies at first + p(i), kept between first and last:

    STRICT_ALIGN_CORNERS   i (S - 1) / (N - 1), and 0 for N = 1
    ALIGN_CORNERS          the same, and the middle for N = 1
    DEFAULT                i S / N
    OFFSET_CORNERS         (i + 1/2) max(1, S - 1) / N
    UNALIGN_CORNERS        (i + 1/2) S / N - 1/2

Which pixel is the nearest one the documentation leaves open. What coremltools' TensorFlow front end relies on, and its
tests compare with TensorFlow, decides: `upsample_nearest_neighbor` takes pixel floor(i S / N), as torch's "nearest";
`resize_nearest_neighbor`, and `resize` with its default grid, take floor((i + 1/2) S / N), as torch's "nearest-exact".
`resize` with another grid takes the pixel next to the grid's point, the later one of two: an assumption.

Sizes of upsampled maps are floor(size x scale), and the grid follows from the sizes alone: a factor such as 2.0001,
which converters write to survive the rounding down, does not shift it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgesmith.errors import Unsupported
from edgesmith.exporters.mil.ops import ints, number, op, wide


def _grid(first: Tensor, last: Tensor, count: int, mode: str) -> Tensor:
    """Positions (boxes, count) of samples between first and last (boxes), by one of the sampling modes above.

    Raises:
        Unsupported: a sampling mode that MIL does not have.
    """
    i = torch.arange(count, dtype=torch.float64)
    span = (last - first)[:, None]  # S - 1; negative for a box that is mirrored
    size = torch.where(span < 0, span - 1, span + 1)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        middle = span / 2 if mode == "ALIGN_CORNERS" else torch.zeros_like(span)
        offset = i * span / (count - 1) if count > 1 else middle
    elif mode == "DEFAULT":
        offset = i * size / count
    elif mode == "OFFSET_CORNERS":
        offset = (i + 0.5) * span.clamp(min=1) / count
    elif mode == "UNALIGN_CORNERS":
        offset = (i + 0.5) * size / count - 0.5 * size.sign()
    else:
        raise Unsupported(f"resizing has no sampling mode {mode!r}")
    low, high = torch.minimum(first, last)[:, None], torch.maximum(first, last)[:, None]
    return (first[:, None] + offset).clamp(low, high)


def _line(size: int, count: int, mode: str) -> Tensor:
    """Positions (count) of samples of a whole axis."""
    ends = torch.tensor([0.0, size - 1.0], dtype=torch.float64)
    return _grid(ends[:1], ends[1:], count, mode)[0]


def _interpolate(x: Tensor, axis: int, positions: Tensor) -> Tensor:
    """Linear interpolation along one axis at positions within it."""
    low = positions.floor()
    shape = [-1 if other == axis % x.dim() else 1 for other in range(x.dim())]
    weight = (positions - low).to(x.dtype).reshape(shape)
    before = x.index_select(axis, low.long())
    after = x.index_select(axis, (low.long() + 1).clamp(max=x.shape[axis] - 1))
    return before + weight * (after - before)


def _linear(x: Tensor, sizes: list[int], mode: str) -> Tensor:
    """The last axes resized to `sizes` by linear interpolation."""
    values = wide(x) if x.is_floating_point() else x.double()
    for axis, count in enumerate(sizes, -len(sizes)):
        if count != x.shape[axis] or mode == "OFFSET_CORNERS":  # the other grids keep an axis of the same size
            values = _interpolate(values, axis, _line(x.shape[axis], count, mode))
    return values if x.is_floating_point() else values.to(x.dtype)


def _nearest(x: Tensor, sizes: list[int], centred: bool) -> Tensor:
    """The last axes resized: pixel floor((i + 1/2) S / N) if centred, else floor(i S / N), in integer arithmetic."""
    for axis, count in enumerate(sizes, -len(sizes)):
        i, size = torch.arange(count), x.shape[axis]
        at = (2 * i + 1) * size // (2 * count) if centred else i * size // count
        x = x.index_select(axis, at)
    return x


def _scaled(x: Tensor, height: Tensor | float, width: Tensor | float) -> list[int]:
    """The last two axes' lengths times their factors, rounded down.

    The multiply is in fp32 even where the evaluation is in fp64: coremltools declares sizes so, and 5 times the
    fp32 number 2.6 is 13 there, but less than 13 in exact arithmetic.
    """
    factors = (height, x.shape[-2]), (width, x.shape[-1])
    return [int(torch.floor(torch.as_tensor(factor).float() * size)) for factor, size in factors]


@op("upsample_nearest_neighbor")
def upsample_nearest_neighbor(
    *, x: Tensor, scale_factor_height: Tensor | float = 1, scale_factor_width: Tensor | float = 1
) -> Tensor:
    """The last two axes enlarged by factors; pixel floor(i S / N)."""
    return _nearest(x, _scaled(x, scale_factor_height, scale_factor_width), centred=False)


@op("resize_nearest_neighbor")
def resize_nearest_neighbor(*, x: Tensor, target_size_height: Tensor, target_size_width: Tensor) -> Tensor:
    """The last two axes with these lengths; pixel floor((i + 1/2) S / N)."""
    return _nearest(x, [int(number(target_size_height)), int(number(target_size_width))], centred=True)


@op("upsample_bilinear")
def upsample_bilinear(
    *,
    x: Tensor,
    scale_factor_height: Tensor | float = 1,
    scale_factor_width: Tensor | float = 1,
    align_corners: Tensor | bool = True,
    half_pixel_centers: Tensor | bool | None = None,
) -> Tensor:
    """The last two axes enlarged by factors, with a grid that the two flags choose.

    `half_pixel_centers` (iOS16) is the opposite of `align_corners` where it is not given.

    Raises:
        Unsupported: both flags are set.
    """
    aligned = bool(number(align_corners))
    centred = not aligned if half_pixel_centers is None else bool(number(half_pixel_centers))
    if aligned and centred:
        raise Unsupported("upsample_bilinear wants align_corners or half_pixel_centers, and got both")
    mode = "STRICT_ALIGN_CORNERS" if aligned else "UNALIGN_CORNERS" if centred else "DEFAULT"
    return _linear(x, _scaled(x, scale_factor_height, scale_factor_width), mode)


@op("resize_bilinear")
def resize_bilinear(
    *,
    x: Tensor,
    target_size_height: Tensor | int = 1,
    target_size_width: Tensor | int = 1,
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """The last two axes with these lengths, interpolated at the mode's grid."""
    return _linear(x, [int(number(target_size_height)), int(number(target_size_width))], sampling_mode)


@op("resize")
def resize(
    *,
    x: Tensor,
    shape: Tensor,
    resized_dims: Tensor,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """The last `resized_dims` axes with the last lengths of `shape`, where 0 keeps an axis.

    Raises:
        Unsupported: an interpolation other than LINEAR and NEAREST_NEIGHBOR.
    """
    count = int(number(resized_dims))
    wanted = ints(shape)[len(ints(shape)) - count :]
    sizes = [size or x.shape[axis] for axis, size in enumerate(wanted, -count)]
    if interpolation_mode == "LINEAR":
        return _linear(x, sizes, sampling_mode)
    if interpolation_mode != "NEAREST_NEIGHBOR":
        raise Unsupported(f"resize interpolates LINEAR or NEAREST_NEIGHBOR, not {interpolation_mode!r}")
    if sampling_mode in ("DEFAULT", "UNALIGN_CORNERS"):
        return _nearest(x, sizes, centred=True)
    for axis, size in enumerate(sizes, -count):
        at = (_line(x.shape[axis], size, sampling_mode) + 0.5).floor().long()
        x = x.index_select(axis, at.clamp(max=x.shape[axis] - 1))
    return x


def _taps(x: Tensor, rows: Tensor, columns: Tensor, outside: float | None) -> Tensor:
    """Pixels (B, C, h, w) of maps (B, C, H, W) at integer positions (B, h, w).

    Positions outside the map give `outside`, or the nearest pixel where that is None.
    """
    height, width = x.shape[-2:]
    at = (rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)).long()
    flat = at.flatten(1)[:, None].expand(-1, x.shape[1], -1)
    values = x.flatten(2).gather(2, flat).reshape(*x.shape[:2], *at.shape[1:])
    if outside is None:
        return values
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return torch.where(inside[:, None], values, torch.full_like(values, outside))


def _bilinear(x: Tensor, rows: Tensor, columns: Tensor, outside: float | None) -> Tensor:
    """Maps (B, C, H, W) interpolated at positions (B, h, w); `outside` as for `_taps`."""
    top, left = rows.floor(), columns.floor()
    down, right = ((fine - whole).to(x.dtype)[:, None] for fine, whole in ((rows, top), (columns, left)))
    upper = _taps(x, top, left, outside) * (1 - right) + _taps(x, top, left + 1, outside) * right
    lower = _taps(x, top + 1, left, outside) * (1 - right) + _taps(x, top + 1, left + 1, outside) * right
    return upper * (1 - down) + lower * down


@dataclass(frozen=True, kw_only=True)
class CropResize:
    """The inputs of `crop_resize`, by MIL's names."""

    x: Tensor
    roi: Tensor | None = None
    boxes: Tensor | None = None
    box_indices: Tensor | None = None
    target_height: Tensor | int = 1
    target_width: Tensor | int = 1
    normalized_coordinates: Tensor | bool = False
    spatial_scale: Tensor | float = 1.0
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST"
    sampling_mode: str = "DEFAULT"
    pad_value: Tensor | float = 0.0

    def select_boxes(self) -> tuple[Tensor, Tensor]:
        """Return boxes (N, 4) as they are given, and the index of each one's map (N)."""
        if self.roi is None:
            assert self.boxes is not None
            maps = torch.arange(len(self.boxes)) if self.box_indices is None else self.box_indices.long()
            return self.boxes.double(), maps
        given = self.roi.flatten(1).double()
        if given.shape[1] == 4:
            return given.repeat_interleave(len(self.x), 0), torch.arange(len(self.x)).repeat(len(given))
        return given[:, 1:], given[:, 0].long()


@op("crop_resize", inputs=CropResize)
def crop_resize(given: CropResize) -> Tensor:
    """Boxes of maps (B, C, H, W), each resized to one size; a sample outside the map is `pad_value`.

    Before iOS17 `roi` is (N, 1, 4, 1, 1), for boxes of every map, or (N, 1, 5, 1, 1), whose first value is the map's
    index; the result is (N, B or 1, C, h, w). From iOS17 on `boxes` is (N, 4) with `box_indices` (N), and the result
    (N, C, h, w). Normalised coordinates count from 0 to 1 between the centres of the first and the last pixel.
    """
    x, mode = given.x, given.sampling_mode
    height, width = int(number(given.target_height)), int(number(given.target_width))
    boxes, maps = given.select_boxes()
    low_y, low_x, high_y, high_x = _corners(boxes * number(given.spatial_scale), given.box_coordinate_mode).unbind(1)
    scale_y, scale_x = (x.shape[-2] - 1, x.shape[-1] - 1) if number(given.normalized_coordinates) else (1, 1)
    rows = _grid(low_y * scale_y, high_y * scale_y, height, mode)[:, :, None].expand(-1, -1, width)
    columns = _grid(low_x * scale_x, high_x * scale_x, width, mode)[:, None].expand(-1, height, -1)
    inside = (rows >= 0) & (rows <= x.shape[-2] - 1) & (columns >= 0) & (columns <= x.shape[-1] - 1)
    sampled = _bilinear(wide(x)[maps], rows, columns, None)
    result = torch.where(inside[:, None], sampled, torch.full_like(sampled, number(given.pad_value)))
    return result if given.roi is None else result.reshape(len(given.roi), -1, *result.shape[1:])


def _corners(boxes: Tensor, mode: str) -> Tensor:
    """Boxes (N, 4) in one of MIL's conventions as (y, x) of the first corner and of the last.

    Raises:
        Unsupported: a convention that MIL does not have.
    """
    conventions = ("CORNERS_HEIGHT_FIRST", "CORNERS_WIDTH_FIRST", "CENTER_SIZE_HEIGHT_FIRST", "CENTER_SIZE_WIDTH_FIRST")
    if mode not in conventions:
        raise Unsupported(f"crop_resize has no box_coordinate_mode {mode!r}")
    if mode.endswith("WIDTH_FIRST"):
        boxes = boxes[:, [1, 0, 3, 2]]
    if mode.startswith("CORNERS"):
        return boxes
    centre, size = boxes[:, :2], boxes[:, 2:]
    return torch.cat([centre - size / 2, centre + size / 2], 1)


def _pixels(coordinates: Tensor, size: int, mode: str, aligned: bool) -> Tensor:
    """Coordinates along one axis in pixels, from one of MIL's conventions. Raises Unsupported for others."""
    if mode == "unnormalized":
        return coordinates
    if mode == "normalized_minus_one_to_one":
        coordinates = (coordinates + 1) / 2
    elif mode != "normalized_zero_to_one":
        raise Unsupported(f"resample has no coordinates_mode {mode!r}")
    return coordinates * (size - 1) if aligned else coordinates * size - 0.5


def _mirrored(positions: Tensor, first: float, last: float) -> Tensor:
    """Positions reflected at both ends, as often as it takes."""
    if last <= first:
        return torch.full_like(positions, first)
    away = (positions - first).abs().remainder(2 * (last - first))
    return first + torch.minimum(away, 2 * (last - first) - away)


def _kept(positions: Tensor, size: int, padding: str) -> Tensor:
    """Positions moved into an axis as the padding mode says; `constant` leaves them. Raises Unsupported for others."""
    if padding == "constant":
        return positions
    if padding == "reflection":
        positions = _mirrored(positions, 0, size - 1)
    elif padding == "symmetric":
        positions = _mirrored(positions, -0.5, size - 0.5)
    elif padding != "border":
        raise Unsupported(f"resample has no padding_mode {padding!r}")
    return positions.clamp(0, size - 1)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The inputs that `resample` and `affine` share, by MIL's names."""

    x: Tensor
    sampling_mode: str
    padding_mode: str
    padding_value: Tensor
    coordinates_mode: str
    align_corners: Tensor


@dataclass(frozen=True, kw_only=True)
class Resample(Sampling):
    """The inputs of `resample`, by MIL's names."""

    coordinates: Tensor


@dataclass(frozen=True, kw_only=True)
class Affine(Sampling):
    """The inputs of `affine`, by MIL's names."""

    transform_matrix: Tensor
    output_height: Tensor
    output_width: Tensor


@op("resample", inputs=Resample)
def resample(given: Resample) -> Tensor:
    """Maps (B, C, H, W) sampled at coordinates (B, h, w, 2) of (x, y).

    Outside the map there is a constant, the edge, or the map's reflection, without its edge (`reflection`) or with it
    (`symmetric`), whatever `align_corners` is; torch's reflection is the former with and the latter without that. The
    nearest pixel of a position half way between two is the even one, as in torch.

    Raises:
        Unsupported: a mode that MIL does not have.
    """
    return _sample(given, given.coordinates)


def _sample(given: Sampling, coordinates: Tensor) -> Tensor:
    """Return maps (B, C, H, W) sampled at coordinates (B, h, w, 2) of (x, y)."""
    aligned = bool(number(given.align_corners))
    height, width = given.x.shape[-2:]
    columns, rows = (
        _kept(_pixels(coordinates[..., axis].double(), size, given.coordinates_mode, aligned), size, given.padding_mode)
        for axis, size in ((0, width), (1, height))
    )
    outside = float(number(given.padding_value)) if given.padding_mode == "constant" else None
    if given.sampling_mode == "bilinear":
        return _bilinear(wide(given.x), rows, columns, outside)
    if given.sampling_mode != "nearest":
        raise Unsupported(f"resample samples bilinear or nearest, not {given.sampling_mode!r}")
    return _taps(given.x, rows.round(), columns.round(), outside)


@op("affine", inputs=Affine)
def affine(given: Affine) -> Tensor:
    """Maps sampled at (a0 x + a1 y + a2, b0 x + b1 y + b2), x and y running over the result from -1 to 1.

    With `align_corners` these are the centres of the outermost pixels, otherwise their edges. An axis of length 1 lies
    at 0. One row of `transform_matrix` (a0, a1, a2, b0, b1, b2) serves all maps, or each has its own.

    Raises:
        Unsupported: coordinates other than from -1 to 1, which coremltools does not allow either.
    """
    if given.coordinates_mode != "normalized_minus_one_to_one":
        raise Unsupported(
            f"affine has only the coordinates_mode normalized_minus_one_to_one, not {given.coordinates_mode!r}"
        )
    aligned = bool(number(given.align_corners))
    lines = []
    for count in (int(number(given.output_height)), int(number(given.output_width))):
        i = torch.arange(count, dtype=torch.float64)
        lines.append((2 * i / max(count - 1, 1) - min(count - 1, 1)) if aligned else (2 * i + 1) / count - 1)
    y, x_line = torch.meshgrid(lines[0], lines[1], indexing="ij")
    grid = torch.stack([x_line, y, torch.ones_like(y)], -1)
    matrix = given.transform_matrix.double().reshape(-1, 1, 2, 3).expand(len(given.x), -1, -1, -1)
    coordinates = (grid[None, :, :, None] * matrix[:, None]).sum(-1)
    return _sample(given, coordinates)
