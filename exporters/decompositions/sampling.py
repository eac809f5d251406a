"""Maps read at coordinates, and windows put back into a map.

    u = ((g + 1) size - 1) / 2, or by corners (g + 1) (size - 1) / 2          the pixel of a coordinate g in [-1, 1]
    outside: zeros, the edge, or the map's reflection at its edge's outer side (by corners: at its centre)

(ATen's GridSampler.h)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgesmith.exporters.decompositions import LEAVE, decomposes

aten = torch.ops.aten

_BILINEAR, _NEAREST, _BICUBIC = range(3)
_ZEROS, _BORDER, _REFLECTION = range(3)


@decomposes(
    aten.affine_grid_generator.default,
    targets=("coreml", "tvm"),
    why="coremltools 9.0 takes it before a bilinear sampling with zeros alone; TVM orders a grid's axes differently",
)
def affine_grid(theta: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Return the coordinates (x, y) that 2 x 3 matrices send a map's pixels to: [N, 2, 3] to [N, H, W, 2]."""
    if len(size) != 4:
        return LEAVE
    height, width = size[-2:]
    x = _axis(theta, width, align_corners).expand([height, width])
    y = _axis(theta, height, align_corners).unsqueeze(1).expand([height, width])
    grid = torch.stack([x, y, torch.ones_like(x)], -1).reshape([1, height * width, 3])
    return torch.matmul(grid, theta.transpose(1, 2)).reshape([theta.shape[0], height, width, 2])


def _axis(like: Tensor, count: int, by_corners: bool) -> Tensor:
    """Return the coordinates of an axis: from -1 to 1 at the outermost centres, or at their outer sides."""
    i = torch.arange(count, dtype=torch.float32, device=like.device)
    if by_corners:
        return i * (2 / (count - 1)) - 1.0 if count > 1 else i
    return (i * 2.0 + 1.0) * (1 / count) - 1.0


@decomposes(
    aten.grid_sampler.default,
    aten.grid_sampler_2d.default,
    targets=("coreai", "tvm"),
    why="Core AI's converter has none; TVM orders a grid's axes differently",
)
def grid_sampler(x: Tensor, grid: Tensor, mode: int, padding: int, align_corners: bool) -> Tensor:
    """Return maps [N, C, H, W] read at coordinates (x, y), [N, h, w, 2] to [N, C, h, w], by gathers."""
    if x.dim() != 4:
        return LEAVE
    columns = _pixels(grid[..., 0], x.shape[3], align_corners)
    rows = _pixels(grid[..., 1], x.shape[2], align_corners)
    if mode == _BICUBIC:
        return _bicubic(x, rows, columns, padding, align_corners)
    rows = _inside(rows, x.shape[2], padding, align_corners)
    columns = _inside(columns, x.shape[3], padding, align_corners)
    if mode == _NEAREST:
        return _read(x, torch.round(rows), torch.round(columns), padding)
    top, left = torch.floor(rows), torch.floor(columns)
    down, right = (rows - top).unsqueeze(1), (columns - left).unsqueeze(1)
    above = _read(x, top, left, padding) * (1.0 - right) + _read(x, top, left + 1.0, padding) * right
    below = _read(x, top + 1.0, left, padding) * (1.0 - right) + _read(x, top + 1.0, left + 1.0, padding) * right
    return above * (1.0 - down) + below * down


@decomposes(
    *(aten.grid_sampler.default, aten.grid_sampler_2d.default),
    targets=("coreml",),
    why="coremltools 9.0 has no bicubic one",
)
def grid_sampler_bicubic(x: Tensor, grid: Tensor, mode: int, padding: int, align_corners: bool) -> Tensor:
    """Return maps read at coordinates by a bicubic kernel."""
    return grid_sampler(x, grid, mode, padding, align_corners) if mode == _BICUBIC else LEAVE


def _pixels(coordinates: Tensor, size: int, by_corners: bool) -> Tensor:
    if by_corners:
        return (coordinates + 1.0) * ((size - 1) / 2)
    return ((coordinates + 1.0) * float(size) - 1.0) * 0.5


def _inside(at: Tensor, size: int, padding: int, by_corners: bool) -> Tensor:
    """Return positions moved into an axis, as the padding says; with zeros around it they stay."""
    if padding == _ZEROS:
        return at
    if padding == _REFLECTION:
        first, span = (0.0, size - 1.0) if by_corners else (-0.5, float(size))
        if not span:
            return torch.zeros_like(at)
        away = (at - first).abs()
        away = away - torch.floor(away * (0.5 / span)) * (2.0 * span)  # within two lengths
        at = torch.minimum(away, 2.0 * span - away) + first
    return at.clamp(0.0, size - 1.0)


def _read(x: Tensor, rows: Tensor, columns: Tensor, padding: int) -> Tensor:
    """Return x at whole positions [N, h, w]; zeros where they are outside, with zeros for padding."""
    batch, channels, height, width = x.shape
    at = rows.clamp(0.0, height - 1.0).to(torch.int64) * width + columns.clamp(0.0, width - 1.0).to(torch.int64)
    flat = x.reshape([batch, channels, height * width])
    index = at.reshape([batch, 1, -1]).expand([batch, channels, at.shape[1] * at.shape[2]])
    found = torch.gather(flat, 2, index).reshape([batch, channels, *at.shape[1:]])
    if padding != _ZEROS:
        return found
    holds = (rows >= 0) & (rows <= height - 1.0) & (columns >= 0) & (columns <= width - 1.0)
    return torch.where(holds.unsqueeze(1), found, torch.zeros_like(found))


def _bicubic(x: Tensor, rows: Tensor, columns: Tensor, padding: int, by_corners: bool) -> Tensor:
    """Return x by Keys' kernel with a = -3/4, over 4 x 4 positions, each of which is moved into the map."""
    top, left = torch.floor(rows), torch.floor(columns)
    across, down = _taps(columns - left), _taps(rows - top)
    lines = []
    for i in range(4):
        row = _inside(top + (i - 1.0), x.shape[2], padding, by_corners)
        places = [_inside(left + (j - 1.0), x.shape[3], padding, by_corners) for j in range(4)]
        read = [_read(x, row, place, padding) * weight for place, weight in zip(places, across, strict=True)]
        lines.append((read[0] + read[1] + read[2] + read[3]) * down[i])
    return lines[0] + lines[1] + lines[2] + lines[3]


def _taps(t: Tensor) -> list[Tensor]:
    """Return the weights of the four positions around one that is t behind the second, [N, 1, h, w] each."""
    a = -0.75
    t = t.unsqueeze(1)

    def near(d: Tensor) -> Tensor:
        return ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0

    def far(d: Tensor) -> Tensor:
        return ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a

    return [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)]


@decomposes(aten.col2im.default, targets=("coreml", "coreai", "tvm"), why="the converters have none")
def col2im(
    x: Tensor,
    output_size: Sequence[int],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Tensor:
    """Return windows [N, C kh kw, L] added up where they overlap, [N, C, H, W]: a transposed convolution by ones."""
    batched = x if x.dim() == 3 else x.unsqueeze(0)
    rows, columns = kernel_size
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel_size, strict=True)]
    counts = [(n + 2 * p - r) // s + 1 for n, p, r, s in zip(output_size, padding, reach, stride, strict=True)]
    channels = batched.shape[1] // (rows * columns)
    ends = [(count - 1) * s + r - 2 * p for count, s, r, p in zip(counts, stride, reach, padding, strict=True)]
    k = torch.arange(rows * columns, device=x.device)
    ones = (k.unsqueeze(1) == k.unsqueeze(0)).to(x.dtype).reshape([rows * columns, 1, rows, columns])
    maps = batched.reshape([batched.shape[0], batched.shape[1], *counts])
    rest = [n - end for n, end in zip(output_size, ends, strict=True)]
    made = torch.nn.functional.conv_transpose2d(
        maps, ones.repeat([channels, 1, 1, 1]), None, list(stride), list(padding), rest, channels, list(dilation)
    )
    return made if x.dim() == 3 else made.squeeze(0)
