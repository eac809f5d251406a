"""Padding: what lies beyond an edge."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from edgesmith.exporters.decompositions import LEAVE, decomposes
from edgesmith.exporters.decompositions.products import are_integers

aten = torch.ops.aten


def _cut(x: Tensor, widths: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Return x without what negative widths take away, and the widths that are left."""
    for i, width in enumerate(widths):
        if width < 0:
            axis, last = x.dim() - 1 - i // 2, i % 2
            x = x.narrow(axis, 0 if last else -width, x.shape[axis] + width)
    return x, [max(width, 0) for width in widths]


@decomposes(
    aten.constant_pad_nd.default,
    targets=("coreml", "coreai"),
    why="their pads have no negative widths, and integers, or what is put beside them, are float32",
)
def constant_pad(x: Tensor, widths: Sequence[int], value: float = 0.0) -> Tensor:
    """Return x with a number around it; negative widths take away. Widths come in pairs, the last axis first."""
    if x.dtype == torch.bool:
        return pad_truth(x, widths, value)
    if are_integers(x):
        return _beside_integers(x, widths, int(value))
    if all(width >= 0 for width in widths):
        return LEAVE
    x, widths = _cut(x, widths)
    return torch.constant_pad_nd(x, widths, value) if any(widths) else x.clone()


def _beside_integers(x: Tensor, widths: Sequence[int], value: int) -> Tensor:
    """Return integers with one around them, axis by axis, as concatenations."""
    x, widths = _cut(x, widths)
    for i in range(0, len(widths), 2):
        axis = x.dim() - 1 - i // 2
        before, after = (
            [x.new_full([*x.shape[:axis], width, *x.shape[axis + 1 :]], value)] if width else []
            for width in widths[i : i + 2]
        )
        x = torch.cat([*before, x, *after], axis) if before or after else x
    return x.clone()


def _of_rows(x: Tensor, widths: Sequence[int], mode: str) -> Tensor:
    """Return integers padded by `reflect` or `replicate`, axis by axis, as rows of themselves."""
    for i in range(0, len(widths), 2):
        axis, (before, after) = x.dim() - 1 - i // 2, widths[i : i + 2]
        last = x.shape[axis] - 1
        place = torch.arange(-before, last + 1 + after)
        place = place.clamp(0, last) if mode == "replicate" else last - (last - place.abs()).abs()
        x = x.index_select(axis, place) if before or after else x
    return x.clone()


def _is_cut_off(x: Tensor, value: float) -> bool:
    """Return whether whole numbers are padded with a fraction, of which PyTorch takes the whole part."""
    return not x.is_floating_point() and not x.is_complex() and value != int(value)


@decomposes(
    aten.constant_pad_nd.default, targets=("tvm",), why="TVM pads no truth values, and whole numbers with fractions"
)
def pad_truth(x: Tensor, widths: Sequence[int], value: float = 0.0) -> Tensor:
    """Return truth values with others around them: whether the number is not 0."""
    if x.dtype != torch.bool:
        return torch.constant_pad_nd(x, widths, int(value)) if _is_cut_off(x, value) else LEAVE
    return torch.constant_pad_nd(x.to(torch.float32), widths, float(value != 0)) > 0


@decomposes(aten.pad.default, targets=("coreml", "coreai"), why="their pads have no negative widths and do not wrap")
def pad(x: Tensor, widths: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """Return x padded: wrapped around with mode `circular`; negative widths take away."""
    if mode == "circular":
        return _circular(x, widths)
    if mode == "constant" and (not x.is_floating_point() or any(k < 0 for k in widths)):
        return constant_pad(x, widths, value or 0.0)
    return _beyond_edges(x, widths, mode)


def _beyond_edges(x: Tensor, widths: Sequence[int], mode: str) -> Tensor:
    """Return x padded by `reflect` or `replicate` where a width is negative, or none is more than zero.

    PyTorch reflects at the edges of the whole x, and takes away afterwards.
    """
    if are_integers(x):
        kept = [max(width, 0) for width in widths]
        return _cut(_of_rows(x, kept, mode), [min(width, 0) for width in widths])[0]
    if all(width >= 0 for width in widths) and any(widths):
        return LEAVE
    kept = [max(width, 0) for width in widths]
    x = F.pad(x, kept, mode) if any(kept) else x.clone()
    return _cut(x, [min(width, 0) for width in widths])[0]


_REFLECTIONS = (aten.reflection_pad1d.default, aten.reflection_pad2d.default, aten.reflection_pad3d.default)
_REPLICATIONS = (aten.replication_pad1d.default, aten.replication_pad2d.default, aten.replication_pad3d.default)


@decomposes(*_REFLECTIONS, targets=("coreml", "coreai"), why="their pads have no negative widths")
def reflection_pad(x: Tensor, widths: Sequence[int]) -> Tensor:
    """Return x padded with its mirror image; negative widths take away."""
    return _beyond_edges(x, widths, "reflect")


@decomposes(*_REPLICATIONS, targets=("coreml", "coreai"), why="their pads have no negative widths")
def replication_pad(x: Tensor, widths: Sequence[int]) -> Tensor:
    """Return x padded with its edges; negative widths take away."""
    return _beyond_edges(x, widths, "replicate")


@decomposes(aten._pad_circular.default, targets=("coreml", "coreai"), why="their pads do not wrap")
def pad_circular(x: Tensor, widths: Sequence[int]) -> Tensor:
    """Return x padded with what lies at the other end of each axis."""
    return _circular(x, widths)


def _circular(x: Tensor, widths: Sequence[int]) -> Tensor:
    """Return x wrapped around, axis by axis, as concatenations."""
    x, widths = _cut(x, widths)
    for i in range(0, len(widths), 2):
        axis, (before, after) = x.dim() - 1 - i // 2, widths[i : i + 2]
        length = x.shape[axis]
        parts = [x.narrow(axis, length - before, before)] if before else []
        parts += [x, *([x.narrow(axis, 0, after)] if after else [])]
        x = torch.cat(parts, axis) if len(parts) > 1 else x
    return x
