"""Compressed weights as Core ML keeps them, and quantisation at run time.

The `constexpr` operators of iOS 16 and of iOS 18 have the same names and other parameters; a function takes both.
Arithmetic is in fp32 and rounded to the weight's type once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgesmith.exporters.mil.carriers import carrier
from edgesmith.exporters.mil.ops import ints, number, op, wide

_RANGES = {"int8": (-128, 127), "uint8": (0, 255), "int4": (-8, 7), "uint4": (0, 15)}


def _along(value: Tensor, x: Tensor, axis: Tensor | int | None) -> Tensor:
    """A scale or zero point, scalar or of one value for each index of `axis`, so that it broadcasts with x."""
    if value.dim() == 0 or axis is None or value.dim() == x.dim():
        return value
    shape = [1] * x.dim()
    shape[int(number(axis))] = -1
    return value.reshape(shape)


def _repeated(value: Tensor, shape: torch.Size) -> Tensor:
    """A tensor of blocks, each element repeated until the leading axes have the sizes of `shape`."""
    for axis, size in enumerate(shape):
        if size % value.shape[axis]:
            raise ValueError(f"axis {axis} has {size} elements, which {value.shape[axis]} blocks do not divide")
        value = value.repeat_interleave(size // value.shape[axis], axis)
    return value


def _real(x: Tensor, like: Tensor) -> Tensor:
    """Integers or floats in the type in which `like`, a scale, is computed with."""
    return x.to(wide(like).dtype)


@op("constexpr_affine_dequantize")
def constexpr_affine_dequantize(
    *, quantized_data: Tensor, scale: Tensor, zero_point: Tensor, axis: Tensor | int = 0
) -> Tensor:
    """Expand to scale (q - zero_point), both scalars or along `axis`. iOS 16."""
    return dequantize(input=quantized_data, scale=scale, zero_point=zero_point, axis=axis)


@op("constexpr_blockwise_shift_scale")
def constexpr_blockwise_shift_scale(*, data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """Expand to scale (data - offset), one of each for a block, whose sizes are data's over scale's. iOS 18."""
    x = _real(data, scale)
    if offset is not None:
        x = x - _repeated(_real(offset, scale), data.shape)
    return x * _repeated(wide(scale), data.shape)


@op("constexpr_cast")
def constexpr_cast(*, source_val: Tensor, output_dtype: str) -> Tensor:
    """The weight in another float type."""
    return source_val.to(carrier(output_dtype))


@op("constexpr_lut_to_dense")
def constexpr_lut_to_dense(
    *, indices: Tensor, lut: Tensor, shape: Tensor | None = None, vector_axis: Tensor | int | None = None
) -> Tensor:
    """Weights looked up in a table.

    iOS 16: `indices` are packed bytes, least significant bits first, of log2(len(lut)) bits each, for a weight of
    `shape`. iOS 18: `indices` has the weight's shape, `lut` is [*blocks, entries, V], a table for each block; V values
    of an entry follow each other along `vector_axis`.
    """
    if shape is not None:
        sizes = ints(shape)
        unpacked = _bits(indices, math.prod(sizes), (lut.numel() - 1).bit_length())
        return lut[unpacked.long()].reshape(sizes)
    return _looked_up(indices, lut, vector_axis)


def _looked_up(indices: Tensor, lut: Tensor, vector_axis: Tensor | int | None) -> Tensor:
    entries, width = lut.shape[-2:]
    if entries <= int(indices.max()):
        raise ValueError(f"a table of {entries} entries is read at {int(indices.max())}")
    tables = _repeated(lut, indices.shape)  # [*indices.shape, entries, V]
    chosen = indices.long()[..., None, None].expand(*indices.shape, 1, width)
    values = tables.gather(-2, chosen).squeeze(-2)
    if width == 1:
        return values.squeeze(-1)
    if vector_axis is None:
        raise ValueError("a table of vectors needs a vector_axis")
    axis = int(number(vector_axis)) % indices.dim()
    return values.movedim(-1, axis + 1).flatten(axis, axis + 1)


def _bits(packed: Tensor, count: int, width: int) -> Tensor:
    """`count` numbers of `width` bits each from bytes, the least significant bits first."""
    single = (packed[:, None].int() >> torch.arange(8)) & 1
    if single.numel() < count * width:
        raise ValueError(f"{packed.numel()} bytes do not hold {count} indices of {width} bits")
    digits = single.flatten()[: count * width].reshape(count, width)
    return (digits << torch.arange(width)).sum(1)


@op("constexpr_sparse_to_dense")
def constexpr_sparse_to_dense(*, nonzero_data: Tensor, mask: Tensor, shape: Tensor | None = None) -> Tensor:
    """The values where the mask has a one, in order, and zeros elsewhere.

    iOS 16: the mask is packed bytes, least significant bit first, for a weight of `shape`; iOS 18: it has that shape.
    """
    if shape is not None:
        sizes = ints(shape)
        mask = _bits(mask, math.prod(sizes), 1).reshape(sizes)
    return _dense(nonzero_data, mask)


def _dense(values: Tensor, mask: Tensor) -> Tensor:
    set_ = int((mask != 0).sum())
    if set_ != values.numel():
        raise ValueError(f"the mask has {set_} ones for {values.numel()} values")
    result = torch.zeros(mask.shape, dtype=values.dtype)
    result[mask != 0] = values
    return result


@op("constexpr_lut_to_sparse")
def constexpr_lut_to_sparse(
    *, indices_mask: Tensor, indices_nonzero_data: Tensor, lut: Tensor, vector_axis: Tensor | int | None = None
) -> tuple[Tensor, Tensor]:
    """The mask and the values of a sparse weight whose values are in a table; each entry's V values extend both."""
    dense = _looked_up(_dense(indices_nonzero_data, indices_mask), lut, vector_axis)
    mask = indices_mask
    if lut.shape[-1] > 1:
        assert vector_axis is not None  # _looked_up refuses
        mask = mask.repeat_interleave(lut.shape[-1], int(number(vector_axis)))
    return mask, dense[mask != 0]


@op("constexpr_sparse_blockwise_shift_scale")
def constexpr_sparse_blockwise_shift_scale(
    *, data_mask: Tensor, nonzero_data: Tensor, scale: Tensor, offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The mask and the values of a sparse weight whose values are quantised by blocks of the dense weight."""
    dense = constexpr_blockwise_shift_scale(data=_dense(nonzero_data, data_mask), scale=scale, offset=offset)
    return data_mask, dense[data_mask != 0]


@op("quantize")
def quantize(
    *,
    input: Tensor,  # noqa: A002 - MIL's name
    scale: Tensor,
    output_dtype: str,
    zero_point: Tensor | None = None,
    axis: Tensor | int | None = None,
) -> Tensor:
    """clip(round(input / scale) + zero_point), rounding halves to even."""
    x = torch.round(wide(input) / wide(_along(scale, input, axis)))
    if zero_point is not None:
        x = x + _real(_along(zero_point, input, axis), x)
    return x.clamp(*_RANGES[output_dtype]).to(carrier(output_dtype))


@op("dequantize")
def dequantize(
    *,
    input: Tensor,  # noqa: A002 - MIL's name
    scale: Tensor,
    zero_point: Tensor | None = None,
    axis: Tensor | int | None = None,
) -> Tensor:
    """Compute scale (input - zero_point)."""
    x = _real(input, scale)
    if zero_point is not None:
        x = x - _real(_along(zero_point, input, axis), scale)
    return x * wide(_along(scale, input, axis))
