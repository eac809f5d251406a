"""Every operator that we spell ourselves, on boundary values, on each target that it is spelled for, against PyTorch.

The operators of a group are lowered as one model, so that a target is asked a few times only.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.lowering import lower
from torch import Tensor, nn

from edgesmith.exporters import decompositions
from edgesmith.exporters.graph.capture import capture
from edgesmith.exporters.rewrites.order import rewrite
from edgesmith.exporters.targets import get

aten = torch.ops.aten
APPLES = ("coreml", "coreai")
ALL = ("coreml", "coreai", "onnx")

Functions = Mapping[str, Callable[..., Any]]


@dataclass(frozen=True)
class Group:
    """Functions of the same inputs, and the targets that they are for."""

    functions: Functions
    inputs: tuple[Tensor, ...]
    targets: tuple[str, ...] = ("coreml",)


def _drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


WHOLE = torch.tensor([[0, 1, -1, 7, -7, 2**24 + 1, -(2**24) - 1, 100000001, -100000003, 2**30 + 3, 3, -5]])
"""Whole numbers, some of which fp32 does not have."""
BITS = torch.tensor([[0, 1, -1, 7, -7, 2**24 - 1, 1 - 2**24, 0b101010101, -0b110011, 1000003, 3, -5]])
"""Whole numbers that fp32 has, as inputs and outputs of Core ML and Core AI are that."""

EDGES = torch.tensor(
    [[0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.5, -2.5, 1e-6, -1e-6, 1e-20, -1e-20, 90.0, -90.0, 1e4, -1e4, 0.999, -3.7]]
)
OTHERS = EDGES.flip(1) + 0.1
ROWS = torch.cat(
    [_drawn(2, 32), torch.zeros(1, 32), torch.full((1, 32), 1.5), _drawn(1, 32) * 1e-3, _drawn(1, 32) * 1e3]
)
"""As drawn, zeros, constant, quiet, loud."""

Y = torch.tensor([[0.0, 0.0, 1.0, -0.0, 0.0, 1.0, -1.0, 2.0, -3.0, 3e-20, -0.0]])
X = torch.tensor([[-1.0, 2.0, 0.0, -1.0, 0.0, -1e-9, -1e-9, -2.0, 4.0, -1e-25, 2.0]])
"""All quadrants, both axes, zeros with both signs, and beside an axis."""

EVERYWHERE = ("coreml", "coreai", "onnx", "tvm")
TOKENS = torch.tensor([[0, 1, 3], [2, 0, 4]])

GROUPS = {
    "angles": Group({"atan2": torch.atan2, "atan2_of_zeros": lambda y, x: torch.atan2(y * 0, x)}, (Y, X), ALL),
    "saturating": Group(
        {
            "logsigmoid": F.logsigmoid,
            "unfold": lambda x: x.unfold(-1, 6, 4),
            "unfold_few": lambda x: x.unfold(-1, 13, 4),
        },
        (EDGES,),
        ALL,
    ),
    "pairs": Group(
        {
            "add_alpha": lambda x, y: torch.add(x, y, alpha=2),
            "sub_alpha": lambda x, y: torch.sub(x, y, alpha=2.5),
            "where_tensors": lambda x, y: torch.where(x > 0, x.long(), y),
            "where_number": lambda x, y: torch.where(x > 0, x, 0.0),
            "where_number_first": lambda x, y: torch.where(x > 0, 1.0, y),
            "where_numbers": lambda x, y: torch.where(x > 0, 1, 2.5),
            "where_promoted": lambda x, y: torch.where(x > 0, x.long(), 0.5),
            "fmax": torch.fmax,
            "fmin": torch.fmin,
            "xlogy": lambda x, y: torch.xlogy(x, y.abs()),
            "logaddexp": torch.logaddexp,
            "heaviside": torch.heaviside,
            "floor": lambda x, y: torch.div(x, y, rounding_mode="floor"),
            "remainder": lambda x, y: x.long() % 3,
        },
        (EDGES, OTHERS),
        APPLES,
    ),
    "not_a_number": Group(
        {
            "not_itself": lambda x, y: torch.where(x != x, 2.0, x),
            "itself": lambda x, y: torch.where(x == x, x, -y),
            "not_below_itself": lambda x, y: (x >= x) & (x <= x),
            "isnan_masked": lambda x, y: x.masked_fill(x.isnan(), -1.0),
            "fmax_of_nan": torch.fmax,
            "fmin_of_nan": torch.fmin,
        },
        (torch.where(EDGES == 0.5, torch.nan, EDGES), torch.where(OTHERS < -1, torch.nan, OTHERS)),
        EVERYWHERE,
    ),
    "one_type": Group(
        {
            "sum_with_alpha": lambda x, i: torch.add(x, x.flip(1), alpha=2),
            "difference_with_alpha": lambda x, i: torch.sub(i, i.flip(1), alpha=3),
            "sum_of_whole_and_fraction": lambda x, i: i + 0.5,
            "product_of_two_types": lambda x, i: i * x,
            "product_of_whole_and_fraction": lambda x, i: i * 0.3,
            "quotient_of_whole": lambda x, i: i / 2,
            "quotient_without_rounding": lambda x, i: torch.div(i, 2, rounding_mode=None),
            "whole_by_float": lambda x, i: i / (x + 100.0),
            "number_by_whole": lambda x, i: 2.5 / (i.abs() + 1),
            "equal_to_fraction": lambda x, i: i == 0.5,
            "above_fraction": lambda x, i: (i > 0.5) & (i >= 0.5) & (x > i),
            "below_fraction": lambda x, i: (i < 0.5) | (i <= 0.5) | (x != i),
            "clamped_whole": lambda x, i: i.clamp(0.5, 2.5),
            "clamped_crossing": lambda x, i: x.clamp(1.0, -1.0),
            "clamped_by_tensor": lambda x, i: torch.clamp(x, min=x.flip(1)),
            "sum_of_truth": lambda x, i: (x > 0) + (i < 3),
            "finite": lambda x, i: torch.isfinite(x / (i - 3)),
            "any_of_numbers": lambda x, i: i.any(1, keepdim=True),
            "joined_types": lambda x, i: torch.cat([x, i], 1),
            "chosen_types": lambda x, i: torch.where(x > 0, 1, 0) * x,
        },
        (EDGES, torch.arange(-5, 13).reshape(1, 18)),
        EVERYWHERE,
    ),
    "precise_near_zero": Group(
        {
            "log1p": lambda x: torch.log1p(x.abs()),
            "expm1": torch.expm1,
            "sinh": torch.sinh,
            "cosh": lambda x: torch.cosh(x.clamp(-80, 80)),
            "exp2": torch.exp2,
            "atanh": lambda x: torch.atanh(x.clamp(-0.999, 0.999)),
            "selu": F.selu,
            "celu": lambda x: F.celu(x, 0.3),
            "ldexp": lambda x: torch.ldexp(x, torch.tensor([-20, 3])),
        },
        (EDGES.clamp(-80, 80).reshape(18, 1),),
        EVERYWHERE,
    ),
    "divided_pools": Group(
        {
            "pool_by_divisor": lambda x: F.avg_pool2d(x, 3, 2, 1, divisor_override=2),
            "pool_of_volume_by_divisor": lambda x: F.avg_pool3d(x[None], 2, divisor_override=3),
        },
        (_drawn(1, 3, 8, 6),),
        EVERYWHERE,
    ),
    "arranged": Group(
        {
            "permuted_from_the_end": lambda x: x.permute(-1, 0, 1),
            "places_in_order": lambda x: x.argsort(),
            "taken_in_order": lambda x: x.take_along_dim(x.argsort(-1), -1),
            "one_part": lambda x: torch.split(x, [8], 1)[0],
            "narrow_copy": lambda x: torch.narrow_copy(x, 1, 2, 2),
            "masked_scatter": lambda x: x.masked_scatter(x > 0, x * 2),
            "joined_to_nothing": lambda x: torch.cat([x[:, :0], x], 1),
            "places_of_windows": lambda x: F.max_pool1d(x, 3, 2, dilation=2, return_indices=True)[1],
            "resized_by_factor": lambda x: F.interpolate(x, scale_factor=1.6, mode="linear"),
            "angle": torch.angle,
            "mean_of_one": lambda x: x.sum().mean(0),
            "conv_without_batch": lambda x: F.conv1d(x[0], torch.ones(3, 8, 3)),
            "pool_without_batch": lambda x: F.adaptive_avg_pool1d(x[0], 5),
        },
        (_drawn(2, 8, 6),),
        EVERYWHERE,
    ),
    "norms_of_what_is_far_from_zero": Group(
        {
            "group_norm": lambda x: F.group_norm(x, 3),
            "group_norm_of_each": lambda x: F.group_norm(x, 6),
            "instance_norm": F.instance_norm,
            "layer_norm_of_two_axes": lambda x: F.layer_norm(x, (5, 7)),
            "batch_norm_of_the_batch": lambda x: F.batch_norm(x, None, None, training=True),
            "statistics": lambda x: torch.native_layer_norm(x, [7], None, None, 1e-5)[1:],
        },
        (_drawn(2, 6, 5, 7) + 30.0,),
        ("onnx", "tvm"),
    ),
    "norms_of_constants": Group(
        {"group_norm_of_constants": lambda x: F.group_norm(x * 0 + 2.7, 2)}, (_drawn(2, 6, 5, 7),), ("tvm",)
    ),
    "of_whole_numbers": Group(
        {
            **{name: getattr(torch, name) for name in ("reciprocal", "sqrt", "rsqrt", "exp", "log", "sin", "sigmoid")},
            "whole_power": lambda i: i**0.5,
            "power_of_two": lambda i: 2**i,
            "power_of_half": lambda i: 0.5**i,
            "mean_in_float": lambda i: i.mean(1, dtype=torch.float32),
            "softmax_in_float": lambda i: i.softmax(1, dtype=torch.float32),
            "sum_in_float": lambda i: (i > 3).sum(1, dtype=torch.float32),
            "rounded_whole": lambda i: i.floor() + i.ceil() + i.round() + i.trunc(),
            "floor_by_fraction": lambda i: i // 2.5,
            "rest_of_fraction": lambda i: i % 2.5,
            "angle_of_two": lambda i: torch.atan2(i, i.flip(1)),
            "truth_times_fraction": lambda i: (i > 3) * 0.25,
            "truth_squared": lambda i: (i > 3) ** 2,
            "rest_of_truth": lambda i: (i > 3) % 3,
            "truth_by_number": lambda i: (i > 3) // 2,
            "truth_equal_to_one": lambda i: (i > 3) == 1,
            "padded_truth": lambda i: F.pad(i > 3, (1, 2), value=3),
        },
        (torch.arange(1, 13).reshape(2, 6),),
        EVERYWHERE,
    ),
    "bits": Group(
        {
            "and_tensors": torch.bitwise_and,
            "or_tensors": torch.bitwise_or,
            "xor_tensors": torch.bitwise_xor,
            "and_mask": lambda x, y: x & 0xFF,
            "and_bits": lambda x, y: x & 0b101000100,
            "and_below_zero": lambda x, y: x & -16,
            "or_number": lambda x, y: y | 4,
            "xor_number": lambda x, y: x ^ -5,
            "or_rows": lambda x, y: x[:, :4, None] | y[:, None, :3],
            "bytes": lambda x, y: x.to(torch.uint8) & (y.to(torch.uint8) | 3),
            "not": lambda x, y: ~x,
            "truth": lambda x, y: ((x > 0) & (y > 0)) | ((x < 0) ^ (y < 3)),
            "product_of_truth": lambda x, y: (x > 0) * (y > 0),
        },
        (BITS, BITS.roll(5, 1)),
        ("coreml", "coreai"),
    ),
    "fractions_beside_whole_numbers": Group(
        {
            "sum": lambda i, b: i + 0.1234567,
            "difference_from": lambda i, b: 0.1234567 - i,
            "product": lambda i, b: i * 0.1234567,
            "product_with_truth": lambda i, b: b * 0.1234567,
            "quotient": lambda i, b: i / 0.1234567,
            "power": lambda i, b: 1.2345678**i,
            "root": lambda i, b: (i * i) ** 0.3456789,
            "above": lambda i, b: i > 2.0001,
            "up_to": lambda i, b: i <= 2.0001,
            "chosen": lambda i, b: torch.where(b, i, 0.1234567),
            "exponential": lambda i, b: torch.exp(i) + torch.sin(b),
            "mean": lambda i, b: i.mean(1, dtype=torch.float32),
        },
        (TOKENS, TOKENS > 1),
        ("coreai",),
    ),
    "powers_of_whole_numbers": Group(
        {
            "by_tensor": lambda b, e: torch.pow(b, e) % 1000,
            "of_number": lambda b, e: torch.pow(2, e) % 1000,
            "of_minus_one": lambda b, e: torch.pow(-1, e),
            "by_number": lambda b, e: b**19 % 1000,
            "by_zero": lambda b, e: b**0,
        },
        (
            torch.tensor([[0, -1, 3, 2, -2, 1, 1, -1, 0, 2, -1, -1]]),
            torch.tensor([[0, 1, 19, 20, 30, 1, 300, 301, 64, -1, -2, -3]]),
        ),
        EVERYWHERE,
    ),
    "doubles": Group(
        {"sigmoid_of_doubles": lambda x: 1 / torch.sigmoid(x)},
        (EDGES.clamp(-40, 40).double().reshape(18, 1),),
        ("onnx",),
    ),
    "vector_by_batch": Group({"vector_by_batch": torch.matmul}, (_drawn(3), _drawn(2, 3, 4)), EVERYWHERE),
    "counted": Group(
        {
            "mode": lambda x: torch.mode(x[:2], 1).values,
            "place_of_mode": lambda x: torch.mode(x[:2], 1).indices,
            "mode_of_first_axis": lambda x: torch.mode(x[:2], 0, keepdim=True).values,
            "nanmedian": lambda x: torch.nanmedian(x, 1).values,
            "nanmedian_of_all": torch.nanmedian,
            "histc": lambda x: torch.histc(x, 4, -1, 3),
            "histc_of_data": lambda x: torch.histc(x[:2], 8),
            "histc_of_one": lambda x: torch.histc(x[:1, :1], 4),
            "median_of_one": lambda x: torch.median(x[0, 0], 0).values,
        },
        (torch.tensor([[1.0, 3, 3, 2, 2], [0, -1, -1, 0, -1], [torch.nan, torch.nan, 5, 4, 7], [torch.nan] * 5]),),
        EVERYWHERE,
    ),
    "sent_in_part": Group(
        {
            "scatter": lambda x, i, v: x.scatter(1, torch.tensor([[0, 1], [2, 3], [4, 0]]), v),
            "scatter_number": lambda x, i, v: x.scatter(1, i, 3.0),
            "scatter_add": lambda x, i, v: x.scatter_add(1, i, v),
            "scatter_add_whole": lambda x, i, v: x.long().scatter_add(1, i, i),
            "scatter_add_to_one": lambda x, i, v: x[0, 0].scatter_add(0, i[0, 0], v[0, 0]),
            "scatter_reduce": lambda x, i, v: x.scatter_reduce(1, i, v, "amax", include_self=False),
            "scatter_by_sum": lambda x, i, v: x.scatter(1, i, v, reduce="add"),
            "scatter_by_product": lambda x, i, v: x.scatter(1, i, v, reduce="multiply"),
            "scatter_number_by_sum": lambda x, i, v: x.scatter(1, i, 0.3, reduce="add"),
            "scatter_number_by_product": lambda x, i, v: x.scatter(1, i, 0.3, reduce="multiply"),
            "index_reduce": lambda x, i, v: x.index_reduce(0, i[:, 1] % 2, v[:, [0, 1, 2, 0, 1]], "prod"),
            "index_mean": lambda x, i, v: x.index_reduce(0, i[:, 1], v[:, [0, 1, 2, 0, 1]], "mean", include_self=False),
            "put": lambda x, i, v: torch.ops.aten.put(x, i[:, 1] + 1, v[:, 0], True),
        },
        (_drawn(4, 5), torch.tensor([[0, 1], [2, 2], [4, 0]]), _drawn(3, 3)),
        EVERYWHERE,
    ),
    "pairs_of_rows": Group(
        {
            "pdist": F.pdist,
            "pdist_of_1": lambda x: F.pdist(x, 1.0),
            "pdist_of_0": lambda x: F.pdist(x.round(), 0.0),
            "pdist_of_infinity": lambda x: F.pdist(x, torch.inf),
            "dist_of_0": lambda x: torch.dist(x.round(), x.round().flip(0), 0),
        },
        (_drawn(5, 3),),
        EVERYWHERE,
    ),
    "volumes": Group(
        {
            "adaptive_pool": lambda x, w: F.adaptive_avg_pool3d(x, (3, 2, 4)),
            "adaptive_pool_of_one": lambda x, w: F.adaptive_avg_pool3d(x[0], (None, 1, 3)),
        },
        (_drawn(2, 4, 5, 4, 6), _drawn(4, 3, 2, 3, 2)),
        EVERYWHERE,
    ),
    "transposed_volumes": Group(
        {
            "transposed": lambda x, w: F.conv_transpose3d(x, w, None, (2, 1, 3), (1, 0, 1), (1, 0, 2), 2, (1, 2, 1)),
            "transposed_of_one": lambda x, w: F.conv_transpose3d(x[0], w, None, 2),
        },
        (_drawn(2, 4, 5, 4, 6), _drawn(4, 3, 2, 3, 2)),
        ("coreai", "onnx", "tvm"),
    ),
    "fractions_between_whole_numbers": Group(
        {
            "clamped": lambda i: i.clamp(0.5, 2.25),
            "reciprocal": lambda i: 0.1234567 / (i + 1),
            "remainder": lambda i: i % 1.3,
        },
        (TOKENS,),
        ("coreai",),
    ),
    "no_numbers": Group(
        {
            "at_least": lambda x: x >= 0.5,
            "at_most": lambda x: x <= 0.5,
            "at_least_another": lambda x: x >= x.flip(1),
            "at_most_another": lambda x: x <= x.flip(1),
            "threshold_of": lambda x: F.threshold(x, 0.5, 2.0),
            "floor": torch.floor,
            "ceil": torch.ceil,
            "trunc": torch.trunc,
        },
        (torch.tensor([[torch.nan, torch.inf, -torch.inf, 0.0, 0.5, -0.5, 2.5, -3.7, 1e20, 2.0**23 + 1, -1e-20]]),),
        ("coreai",),
    ),
    "large_quotients": Group(
        {
            "remainder": lambda x, y: (x * 1e4) % 0.3,
            "remainder_below_zero": lambda x, y: (x * 1e4) % -0.7,
            "remainder_by_tensor": lambda x, y: torch.remainder(x * 1e4, y),
        },
        (_drawn(3, 5), _drawn(3, 5)),
        ("coreai",),
    ),
    "in_order": Group(
        {
            "sorted_long": lambda x: torch.sort(x.flatten().round(), stable=True),
            "sorted_long_from_above": lambda x: torch.sort(x.flatten().round(), descending=True, stable=True),
            "whole_maxima": lambda x: torch.cummax((x[:3, :7] * 3).long(), 1),
            "whole_minima": lambda x: torch.cummin((x[:3, :7] * 3).long(), 0),
            "gathered_from_less": lambda x: x.gather(1, (x[:2, :3] > 0).long() * 2),
            "ends_of_all": lambda x: torch.aminmax(x),
            "angle": lambda x: torch.angle(x[:4]),
            "put_flat": lambda x: torch.put(x[:3, :4] * 2, torch.tensor([0, -1, 5]), x[0, :3]),
            "repeated": lambda x: x[:3, :4].repeat_interleave(torch.tensor([2, 0, 1]), 0, output_size=3),
            "copies": lambda x: (torch.permute_copy(x[:2, :3], (1, 0)), torch.view_copy(x, (50, 46))),
        },
        (_drawn(46, 50),),
        ("coreai",),
    ),
    "of_any_order": Group(
        {
            "norm": lambda x: torch.linalg.vector_norm(x, 3, dim=1),
            "norm_of_all": lambda x: x.norm(p=2.5),
            "normalized": lambda x: F.normalize(x, p=4, dim=0),
            "distance": lambda x: torch.dist(x, x.flip(0), 3),
            "distance_of_rows": lambda x: F.pairwise_distance(x, x.flip(0), p=1.5),
        },
        (_drawn(4, 5),),
        APPLES,
    ),
    "products_with_flattened": Group(
        {
            "of_rows": lambda a, x: a[0, :2, :3] @ torch.sin(x[0, :3, :3]).flatten(1),
            "of_one_image": lambda a, x: a @ torch.sin(x).flatten(2),
            "of_what_is_rectified": lambda a, x: a @ torch.sin(x).flatten(2).relu(),
            "with_a_bias": lambda a, x: torch.addmm(a[0, :, :1], a[0], torch.sin(x[0]).flatten(1), beta=0.5, alpha=2),
            "turned_twice": lambda a, x: F.linear(a[0], torch.sin(x[0]).flatten(1).T),
            "of_rows_turned": lambda a, x: a[0] @ torch.sin(x[0]).transpose(0, 1).reshape(4, -1),
            "summed": lambda a, x: torch.einsum("mk,kn->mn", a[0], torch.sin(x[0]).reshape(4, 12)),
            "in_two": lambda a, x: a @ torch.sin(x[0, :, :, :2]).reshape(4, 8)[None].reshape(2, 4, 4),
            "attended": lambda a, x: torch.softmax(x.flatten(2).mT @ x.flatten(2), -1) @ x.flatten(2).mT,
        },
        (_drawn(1, 5, 4), _drawn(1, 4, 4, 3)),
        APPLES,
    ),
    "orders_of_one": Group(
        {
            "softmax_of_one": lambda x: torch.softmax(x[0, 0], 0) + torch.log_softmax(x[0, 1], 0),
            "product_of_one": lambda x: x[0, 0].prod() + torch.prod(x[0, 1], 0),
            "running_sum_of_one": lambda x: torch.cumsum(x[0, 0], 0),
            "flipped": lambda x: torch.flip(x[0, 0], (0,)),
            "first_of_one": lambda x: torch.topk(x[0, 0], 1, 0),
            "squeezed_one": lambda x: torch.squeeze(x[0, 0], 0) * 2,
            "means_of_one_map": lambda x: F.avg_pool2d(x[None], 2),
        },
        (_drawn(4, 5),),
        ("coreai",),
    ),
    "put_by_spreading": Group(
        {
            "a_row": lambda x: x.index_put((torch.tensor([0, 2, 1, 3, 4]),), x[0, :, 0] * 2),
            "one": lambda x: x.index_put((torch.tensor([0, 2]),), torch.tensor(7.5)),
            "along_the_first": lambda x: x.index_put((torch.tensor([4, 1]),), x[:1] * 2),
            "at_pairs": lambda x: x.index_put((torch.tensor([0, 2, 3]), torch.tensor([1, 2, 0])), x[0, 0, :1]),
            "added_behind": lambda x: x.index_add(1, torch.tensor([0, 0, 3]), x[:, :3], alpha=0.25),
        },
        (_drawn(5, 5, 5),),
        ("coreai", "onnx"),
    ),
    "order_with_nan": Group(
        {
            "sorted_with_nan": lambda x: torch.sort(x, 1)[0],
            "largest_first_with_nan": lambda x: torch.sort(x, 1, descending=True)[0],
            "best_with_nan": lambda x: torch.topk(x, 3, 1)[1],
        },
        (torch.where(EDGES == 0.5, torch.nan, EDGES)[:, :9],),
        ("tvm",),
    ),
    "pairs_of_core_ml": Group(
        {
            "rsub_alpha": lambda x, y: torch.rsub(x, y, alpha=2),
            "copysign": torch.copysign,
            "copysign_of_number": lambda x, y: torch.copysign(x, -1.0),
            "fmod": torch.fmod,
            "hypot": torch.hypot,
            "lerp": lambda x, y: torch.lerp(x, y, 0.3),
            "lerp_by_tensor": lambda x, y: torch.lerp(x, y, y * 0.01),
            "addcdiv": lambda x, y: torch.addcdiv(x, x, y, value=0.5),
            "and": lambda x, y: (x > 0) & (y > 0),
            "or": lambda x, y: (x > 0) | (y > 0),
            "xor": lambda x, y: (x > 0) ^ (y > 0),
            "clamp_by_tensors": lambda x, y: torch.clamp(x, y, x * 0),
            "clamp_crossed": lambda x, y: x.clamp(1.0, -1.0),
        },
        (EDGES, OTHERS),
    ),
    "whole_quotients": Group(
        {
            "whole_part": lambda x: torch.div(x, -4, rounding_mode="trunc") % 1000,
            "whole_part_by_tensor": lambda x: torch.div(x, x * 0 + 7, rounding_mode="trunc") % 1000,
            "floor_of_whole": lambda x: (x // -3) % 1000,
            "floor_of_a_number": lambda x: 100 // (x % 7 + 1),
            "quotient": lambda x: x / 3,
            "quotient_by_tensor": lambda x: x / (x * 0 + 7),
        },
        (WHOLE,),
        (*ALL, "tvm"),
    ),
    "truth_values": Group(
        {
            "sum": lambda x: (x > 0) + (x < -1),
            "product": lambda x: (x > 0) * (x > 1),
            "maximum": lambda x: torch.maximum(x > 0, x < -1),
            "minimum": lambda x: torch.minimum(x > 0, x > 1),
            "count": lambda x: (x > 0).sum(-1, keepdim=True),
        },
        (EDGES,),
        ALL,
    ),
    "functions": Group(
        {
            "signbit": torch.signbit,
            "isfinite": lambda x: torch.isfinite(1 / x),
            "isinf": lambda x: torch.isinf(1 / x),
            "isnan": lambda x: torch.isnan(torch.sqrt(x)),
            "nan_to_num": lambda x: torch.nan_to_num(torch.log(x)),
            "erfc": torch.erfc,
            "erfinv": lambda x: torch.erfinv(x.clamp(-1.0, 1.0)),
            "lgamma": lambda x: torch.lgamma(x.abs() + 2.5),
            "digamma": lambda x: torch.digamma(x.abs() + 2.5),
            "i0": lambda x: torch.i0(x.clamp(-20, 20)),
            "elu": lambda x: F.elu(x, 0.5),
            "selu": F.selu,
            "softplus": lambda x: F.softplus(x, 2.0, 3.0),
            "rrelu": F.rrelu,
            "to_integers": lambda x: x.long().float(),
        },
        (EDGES,),
        APPLES,
    ),
    "functions_of_core_ml": Group(
        {
            "trunc": torch.trunc,
            "frac": torch.frac,
            "sgn": torch.sgn,
            "deg2rad": torch.deg2rad,
            "rad2deg": torch.rad2deg,
            "celu": lambda x: F.celu(x, 0.5),
            "hardshrink": F.hardshrink,
            "gelu": F.gelu,
            "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
            "remainder": lambda x: torch.remainder(x, 0.1),
            "log1p": lambda x: torch.log1p(x.clamp(min=-0.99)),
            "expm1": torch.expm1,
            "asinh": torch.asinh,
            "acosh": lambda x: torch.acosh(x.abs() + 1),
            "logit": lambda x: torch.logit(torch.sigmoid(x), 1e-6),
            "sinc": torch.sinc,
            "log": lambda x: torch.log(x.abs()),
            "log2": lambda x: torch.log2(x.abs()),
            "log10": lambda x: torch.log10(x.abs()),
            "rsqrt": lambda x: torch.rsqrt(x.abs()),
            "reciprocal": torch.reciprocal,
            "lerp_to_0": lambda x: torch.lerp(x, x * 0, 0.25),
        },
        (EDGES,),
    ),
    "norms": Group(
        {
            "cosine_similarity": lambda x: F.cosine_similarity(x, x.flip(1) + 0.1 * x),
            "cosine_similarity_eps": lambda x: F.cosine_similarity(x, x.roll(1, 1), dim=-1, eps=1e-6),
            "cdist": lambda x: torch.cdist(x[:2], x[2:]),
            "std": lambda x: x.std(-1),
            "std_of_all": lambda x: x.std(),
            "var": lambda x: torch.var(x, -1, correction=2, keepdim=True),
            "var_mean": lambda x: torch.var_mean(x, -1),
            "std_mean": lambda x: torch.std_mean(x, -1, unbiased=False),
            "batch_norm": lambda x: F.batch_norm(x, x[0], x[1].abs()),
            "instance_norm": lambda x: F.instance_norm(x[None], x[:, 0], x[:, 1].abs(), use_input_stats=False),
            "argmin": lambda x: x.argmin(-1),
            "cummax": lambda x: torch.cummax(x, 1),
            "cummin": lambda x: torch.cummin(x.round(), 0),
            "logcumsumexp": lambda x: torch.logcumsumexp(x, 1),
            "searchsorted": lambda x: torch.searchsorted(torch.arange(32.0).expand(6, 32) / 8, x),
            "bucketize": lambda x: torch.bucketize(x, torch.arange(4.0)),
        },
        (ROWS,),
        APPLES,
    ),
    "norms_of_core_ml": Group(
        {
            "rms_norm": lambda x: F.rms_norm(x, (32,), x[0], 1e-6),
            "rms_norm_of_types_eps": lambda x: F.rms_norm(x, (32,)),
            "layer_norm_computed": lambda x: F.layer_norm(x, (32,), x[0], x[1]),
            "layer_norm_quiet": lambda x: F.layer_norm(x, (32,), eps=1e-12),
            "normalize": lambda x: F.normalize(x, dim=-1),
            "pairwise_distance": lambda x: F.pairwise_distance(x, x.flip(0)),
            "log_softmax": lambda x: F.log_softmax(x, -1),
            "logsumexp": lambda x: torch.logsumexp(x, -1),
            "softmax": lambda x: torch.softmax(x, -1),
            "all": lambda x: torch.all(x, -1),
            "any": lambda x: torch.any(x, -1),
            "any_of_all": lambda x: torch.any(x * 0),
            "count_nonzero": lambda x: torch.count_nonzero(x, 1),
            "argmax_of_all": lambda x: x.argmax(),
            "argmin_of_all": lambda x: x.argmin(),
            "aminmax": lambda x: torch.aminmax(x, dim=1),
            "kthvalue": lambda x: x[:2].kthvalue(3, -1),
            "median": lambda x: x[:2].median(-1),
            "prod": lambda x: x.clamp(-2, 2).prod(-1),
            "prelu": lambda x: F.prelu(x, x[0]),
        },
        (ROWS,),
    ),
    "maps": Group(
        {
            "bicubic": lambda x: F.interpolate(x, size=(7, 13), mode="bicubic"),
            "smoothed": lambda x: F.interpolate(x, size=(5, 5), mode="bilinear", antialias=True),
            "smoothed_bicubic": lambda x: F.interpolate(x, size=(5, 5), mode="bicubic", antialias=True),
            "nearest": lambda x: F.interpolate(x, size=(7, 13)),
            "grown_area": lambda x: F.interpolate(x, size=(11, 13), mode="area"),
            "trilinear": lambda x: F.interpolate(x[:, :, :3].unsqueeze(1), scale_factor=2, mode="trilinear"),
            "circular": lambda x: F.pad(x, (2, 3, 1, 0), mode="circular"),
            "cut": lambda x: F.pad(x, (-1, 2)),
            "diagonal": lambda x: x.diagonal(1, 2, 3),
            "squeeze": lambda x: x[:, :1].squeeze(),
            "squeeze_one_that_is_longer": lambda x: x.squeeze(1) * 2,
            "squeeze_several": lambda x: x[:, :1].squeeze((0, 1)),
            "single": lambda x: (x[:1, :1, :1, :1] * 2).reshape([]),
        },
        (_drawn(2, 2, 9, 10),),
        APPLES,
    ),
    "maps_of_core_ml": Group(
        {
            "nearest_exact": lambda x: F.interpolate(x, size=(7, 13), mode="nearest-exact"),
            "channel_shuffle": lambda x: F.channel_shuffle(x, 2),
            "roll": lambda x: x.roll((1, -2), (2, 3)),
            "roll_flat": lambda x: x.roll(5),
            "rot90": lambda x: torch.rot90(x, 1, (2, 3)),
            "diag_embed": lambda x: torch.diag_embed(x[0, 0], -1),
            "diag": lambda x: torch.diag(x[0, 0, 0], 1),
            "trace": lambda x: torch.trace(x[0, 0]),
            "to_single": lambda x: (x[:1, :1, :1, :1] * 2).reshape([]),
        },
        (_drawn(2, 2, 9, 10),),
    ),
    "average_pools": Group(
        {
            "uncounted": lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
            "ceil": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
            "ceil_uncounted": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
            "divisor": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
            "sequence": lambda x: F.avg_pool1d(x[0], 3, 1, 1, count_include_pad=False),
            "volume": lambda x: F.avg_pool3d(x.unsqueeze(0), 2, 2, 1, count_include_pad=False),
            "volume_alone": lambda x: F.avg_pool3d(x, 2, 1),
            "volume_alone_uncounted": lambda x: F.avg_pool3d(x, 2, 2, 1, count_include_pad=False),
        },
        (_drawn(2, 2, 9, 10),),
        ("coreai",),
    ),
    "max_pools": Group(
        {
            "indices": lambda x: F.max_pool2d(x.round(), 3, 2, 1, return_indices=True),
            "dilated": lambda x: F.max_pool2d(x, (3, 2), 2, 1, (2, 1), True),
            "one_map": lambda x: F.max_pool2d(x[0], 2),
            "volumes": lambda x: F.max_pool3d(x[None], 2, return_indices=True),
            "unpooled": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
            "unpooled_sequence": lambda x: F.max_unpool1d(*F.max_pool1d(x[0], 2, return_indices=True), 2),
            "adaptive": lambda x: F.adaptive_max_pool2d(x, (2, 4), return_indices=True),
            "adaptive_sequence": lambda x: F.adaptive_max_pool1d(x[0], 8),
            "taken": lambda x: torch.take(x, torch.tensor([[0, -1], [3, -5]])),
            "taken_without_axes": lambda x: torch.take(x[0, 0, 0, 0] * 2, (x[0, 0, 0, 0] * 0).long()),
        },
        (_drawn(2, 2, 5, 6),),
        APPLES,
    ),
    "linear_to_one": Group(
        {
            "map": lambda x: F.interpolate(x, size=(1, 1), mode="bilinear", align_corners=True),
            "axis": lambda x: F.interpolate(x, size=(6, 1), mode="bilinear"),
            "of_one": lambda x: F.interpolate(x[:, :, :1], size=(6, 3), mode="bilinear"),
            "sequence": lambda x: F.interpolate(x[0], size=1, mode="linear", align_corners=True),
        },
        (_drawn(2, 2, 5, 6),),
        ("coreai", "tvm"),
    ),
    "of_either": Group(
        {
            "all_of_one": lambda x: torch.all(x[0, 0]),
            "any_of_one": lambda x: torch.any(x[0, 0] * 0),
            "sum_of_one": lambda x: x[0, 0].sum() + torch.sum(x[0, 0], 0),
            "count_of_one": lambda x: torch.count_nonzero(x[0, 0]),
            "expanded_to_no_axes": lambda x: torch.broadcast_to(x[0, 0] * 2, ()),
            "mean_of_one": lambda x: x[0, 0].mean() + torch.mean(x[0, 0], 0) + torch.linalg.vector_norm(x[0, 0]),
            "ends_of_one": lambda x: x[0, 0].max() - (x[0, 0] * 3).min(),
            "small_logarithm": lambda x: torch.log1p(x * 1e-5),
            "logit_between": lambda x: torch.logit(torch.sigmoid(x), 0.2),
            "threshold": lambda x: torch.nn.functional.threshold(x, 0.1003, -4.3228),
            "sum_of_nothing": lambda x: x[:, :0].sum(1) + x[:0].sum(),
            "small_exponential": lambda x: torch.expm1(x * 1e-5),
            "floor_by_a_number": lambda x: (x * 100) // 7.0,
            "index_filled": lambda x: x.index_fill(1, torch.tensor([0, -1]), 8.4783),
            "put_by_mask": lambda x: torch.index_put(x * 2, (x[:, 0] > 0,), x[0]),
            "put_behind": lambda x: aten.index_put(x * 2, (None, torch.tensor([0, -1])), torch.tensor(9.0)),
            "put_apart": lambda x: aten.index_put(
                x[None] * 2, (None, torch.tensor([0, -1]), torch.tensor([3, 1])), x[:1, :2]
            ),
            "squeezed_nowhere": lambda x: torch.squeeze(x[:1, :1] * 2, ()),
            "largest_of_one": lambda x: torch.amax(x[0, 0] * 2),
            "all_along": lambda x: torch.all(x > 0.1, -1),
            "any_along": lambda x: torch.any(x > 2.0, 0, keepdim=True),
            "addbmm": lambda x: torch.addbmm(x[0], x.expand(3, 5, 5), x.expand(3, 5, 5), alpha=0.5),
            "remainder_of_a_number": lambda x: 7.0 % x,
        },
        (_drawn(5, 5),),
        APPLES,
    ),
    "inner_products": Group(
        {
            "of_vectors": lambda x: torch.inner(x[0], x[1]),
            "of_matrices": lambda x: torch.inner(x, x),
            "by_a_number": lambda x: torch.inner(x, x[0, 0]),
        },
        (_drawn(2, 5),),
    ),
    "products": Group(
        {
            "matrix_vector": lambda x, y: x @ y[:, 0],
            "vector_matrix": lambda x, y: x[0] @ y,
            "vector_vector": lambda x, y: x[0] @ y[:, 0],
            "vector_batch": lambda x, y: x[0] @ y.expand(2, 4, 5),
            "mv": lambda x, y: torch.mv(x, y[:, 0]),
            "dot": lambda x, y: torch.dot(x[0], y[:, 0]),
            "addmm": lambda x, y: torch.addmm(y[:3] / 0, x, y, beta=0, alpha=2),
            "baddbmm": lambda x, y: torch.baddbmm(y[None, :3], x[None], y[None], beta=0.5, alpha=2),
            "addmv": lambda x, y: torch.addmv(x[:, 1], x, y[:, 0], alpha=0.5),
            "addr": lambda x, y: torch.addr(x, x[:, 0], x[0], beta=0.5),
            "multi_dot": lambda x, y: torch.linalg.multi_dot([x, y, y.T]),
            "cross": lambda x, y: torch.linalg.cross(x[:, :3], x[:, 1:]),
            "power": lambda x, y: torch.matrix_power(x[:, 1:], 3),
            "tensordot": lambda x, y: torch.tensordot(x, y, 1),
            "bilinear": lambda x, y: F.bilinear(x, x, y[:, None, :4].expand(4, 4, 4)),
            "kron": lambda x, y: torch.kron(x, y),
        },
        (_drawn(3, 4), _drawn(4, 5)),
        ("coreml",),
    ),
    "bags": Group(
        {
            "bag_mean": lambda w, i: F.embedding_bag(i, w, mode="mean", padding_idx=0),
            "bag_sum": lambda w, i: F.embedding_bag(i, w, mode="sum", per_sample_weights=torch.full((2, 3), 0.5)),
            "bag_max": lambda w, i: F.embedding_bag(i, w, mode="max"),
            "bag_empty": lambda w, i: F.embedding_bag(i.flatten(), w, torch.tensor([0, 2, 2, 5])),
            "embedding_renorm": lambda w, i: F.embedding(i, w.clone(), max_norm=1.0),
        },
        (_drawn(9, 4), TOKENS),
        EVERYWHERE,
    ),
    "pretended": Group(
        {
            "fake_quantise": lambda x: torch.fake_quantize_per_tensor_affine(x, 0.05, 3, -8, 7),
            "fake_quantise_channels": lambda x: torch.fake_quantize_per_channel_affine(
                x, torch.tensor([0.1, 0.2]), torch.tensor([0, 1], dtype=torch.int32), 0, 0, 15
            ),
            "rrelu": F.rrelu,
            "searchsorted_rows": lambda x: torch.searchsorted(torch.arange(-2.0, 3).expand(2, 5), x, right=True),
        },
        (_drawn(2, 5),),
        EVERYWHERE,
    ),
    "attentions": Group(
        {
            "shared_keys": lambda q, k: F.scaled_dot_product_attention(
                q, k, k, is_causal=True, scale=0.3, enable_gqa=True
            ),
            "rank_3": lambda q, k: F.scaled_dot_product_attention(q[0], q[0], q[0], torch.ones(6, 6).tril()),
            "loud_causal": lambda q, k: F.scaled_dot_product_attention(q * 300, q * 300, q, is_causal=True),
        },
        (_drawn(1, 4, 6, 8), _drawn(1, 2, 6, 8)),
        EVERYWHERE,
    ),
    "maps_of_either": Group(
        {
            "fold": lambda x, g: F.fold(
                F.unfold(x, (2, 3), padding=(1, 0), stride=(3, 2), dilation=(2, 1)),
                (8, 8),
                (2, 3),
                padding=(1, 0),
                stride=(3, 2),
                dilation=(2, 1),
            ),
            "grid_bicubic": lambda x, g: F.grid_sample(x, g, "bicubic", "border", align_corners=False),
            "affine_grid": lambda x, g: F.grid_sample(
                x, F.affine_grid(g[:, 0, :3, :].mT, [1, 3, 8, 8], align_corners=False), align_corners=False
            ),
        },
        (_drawn(1, 3, 8, 8), _drawn(1, 3, 4, 2)),
        ("coreml", "tvm"),
    ),
    "maps_of_tvm": Group(
        {
            "grid_reflected": lambda x: F.grid_sample(x, x[:, :2].movedim(1, -1), "bilinear", "reflection", True),
            "nearest": lambda x: F.interpolate(x, scale_factor=1.7),
            "smoothed": lambda x: F.interpolate(x, size=5, mode="bilinear", antialias=True),
            "index_several": lambda x: x[:, [0, 2], :, [1, 1]],
        },
        (_drawn(1, 3, 8, 8),),
        ("tvm",),
    ),
    "orders": Group(
        {
            "topk": lambda x, i: x.topk(3),
            "sort": lambda x, i: x.sort(1, descending=True),
            "kthvalue": lambda x, i: x.kthvalue(2, 1),
            "max_along": lambda x, i: x.max(-1),
            "min_along": lambda x, i: x.min(0),
            "logsumexp": lambda x, i: x.logsumexp(-1),
            "cummax": lambda x, i: x.cummax(1),
            "one_hot": lambda x, i: F.one_hot(i, 12),
            "clamp_max": lambda x, i: torch.clamp_max(x, 0.3),
            "clamp_whole": lambda x, i: i.clamp(min=1),
            "truly": lambda x, i: i / 2,
            "floor_whole": lambda x, i: i // 3,
            "shift": lambda x, i: i << 2,
            "full_infinite": lambda x, i: torch.where(x > 0, x, torch.full_like(x, float("-inf"))),
        },
        (_drawn(2, 5), TOKENS),
        ("tvm",),
    ),
    "places": Group(
        {
            "scatter": lambda x, i: x.scatter(1, i, x[:, :3] * 2),
            "scatter_number": lambda x, i: x.scatter(1, i, 2.0),
            "scatter_add": lambda x, i: x.scatter_add(1, i, x[:, 1:4]),
            "scatter_most": lambda x, i: x.scatter_reduce(1, i, x[:, 1:4], "amax", include_self=False),
            "put": lambda x, i: x.index_put((torch.tensor([0, 1]), torch.tensor([-1, 2])), x[:, 0]),
            "put_added": lambda x, i: x.index_put((torch.tensor([0, 0]), torch.tensor([1, 1])), x[:, 0], True),
            "index_add": lambda x, i: x.index_add(0, torch.tensor([1, 1]), x, alpha=2),
        },
        (_drawn(2, 5), TOKENS),
        ("tvm",),
    ),
    "added_up": Group(
        {
            "index_add_twice": lambda x, i: x.index_add(0, torch.tensor([1, 0, 1]), x[:1].expand(3, 5) * 2),
            "put_added_twice": lambda x, i: x.index_put(
                (torch.tensor([1, 1, 0]),), x[:1].expand(3, 5), accumulate=True
            ),
            "put_added_in_columns": lambda x, i: x.index_put((i, i), i.float(), accumulate=True),
            "scatter_added": lambda x, i: x.scatter_add(1, i, x[:, :3]),
        },
        (_drawn(5, 5)[:2].contiguous(), TOKENS % 2),
        ("coreml", "coreai", "onnx", "tvm"),
    ),
    "running": Group(
        {
            "cumsum": lambda x, i: x.cumsum(0),
            "cumsum_of_whole": lambda x, i: i.cumsum(-1),
            "cumsum_infinite": lambda x, i: (x / (x > -0.5)).cumsum(-1).nan_to_num(0.0, 3.0, -3.0),
            "cumprod": lambda x, i: x.cumprod(1),
        },
        (_drawn(2, 5), TOKENS),
        ("onnx", "tvm"),
    ),
    "powers": Group(
        {
            "down": lambda x, i: torch.vander(x[0]),
            "up": lambda x, i: torch.vander(x[0], 4, increasing=True),
            "of_whole": lambda x, i: torch.vander(i[0], 3),
            "the_first": lambda x, i: torch.vander(x[1], 1),
        },
        (_drawn(2, 5), TOKENS),
        EVERYWHERE,
    ),
    "written_into_another_type": Group(
        {
            "whole_into_floats": lambda x, i: _written(x, i[:, 0]),
            "numbers_into_whole": lambda x, i: _written(i, torch.tensor(7)),
            "truth_into_floats": lambda x, i: _written(x, x[:, 1] > 0),
            "floats_into_whole": lambda x, i: _written(i, x[:, 0] * 5),
            "floats_into_truth": lambda x, i: _written(x > 0, x[:, 0].round()),
            "truth_into_a_range": lambda x, i: (x > 0).slice_scatter(i > 1, 1, 1, 4),
            "one_into_all": lambda x, i: x.clone().copy_(i[:, :1]),
        },
        (_drawn(2, 5), TOKENS),
        EVERYWHERE,
    ),
    "transposed": Group(
        {
            "twice": lambda x, w: F.conv_transpose2d(x, w[..., :2, :2], torch.ones(3), 2),
            "overlapping": lambda x, w: F.conv_transpose2d(x, w, None, 2, 1, 1),
            "of_groups": lambda x, w: F.conv_transpose2d(x, w, None, (3, 1), (1, 0), 0, 2),
            "dilated": lambda x, w: F.conv_transpose2d(x, w, None, 2, 2, 1, 1, (2, 3)),
            "behind_the_last": lambda x, w: F.conv_transpose2d(x, w[..., :1, :1], torch.ones(3), 3, 0, 2),
            "of_rows": lambda x, w: F.conv_transpose1d(x[:, :, 0], w[:, :, 0], torch.ones(3), 2, 1, 1),
        },
        (_drawn(1, 4, 5, 6), _drawn(4, 3, 3, 3)),
        EVERYWHERE,
    ),
    "from_the_end": Group(
        {
            "last": lambda x: x[:, -1],
            "last_but_one_of_the_first": lambda x: x[-2],
            "last_of_all": lambda x: x[-1, -1, -2],
            "narrowed": lambda x: x.narrow(1, -3, 2),
            "last_ones": lambda x: x[:, -3:-1, -2:],
            "every_other_from_the_end": lambda x: x[:, -4::2],
            "picked_from_the_end": lambda x: x[:, torch.tensor([-1, 0, -4])],
            "put_at_the_end": lambda x: x.select_scatter(x[:, 0] * 2, 1, -1),
            "put_in_the_last_ones": lambda x: x.slice_scatter(x[:, :2] * 2, 1, -3, -1),
            "rolled_back": lambda x: x.roll((-1, 2), (1, -1)),
            "taken": lambda x: x.take(torch.tensor([-1, 0, -7])),
            "below_the_diagonal": lambda x: x[0].diagonal(-1),
            "unbound": lambda x: x.unbind(-1)[-1],
            "split": lambda x: x.split([1, 2, 1], -2)[-1],
            "last_of_a_scan": lambda x: nn.functional.pad(x, (-1, 1, 2, -2)),
        },
        (_drawn(3, 4, 5),),
        EVERYWHERE,
    ),
    "adapted": Group(
        {
            "largest_of_a_third": lambda x: F.adaptive_max_pool2d(x, (2, 4)),
            "largest_of_all": lambda x: F.adaptive_max_pool2d(x, 1),
            "largest_of_rows": lambda x: F.adaptive_max_pool1d(x[0], 3),
            "largest_with_a_nan": lambda x: F.adaptive_max_pool2d(torch.where(x > 1, torch.nan, x), (2, 4)),
        },
        (_drawn(1, 3, 7, 9),),
        EVERYWHERE,
    ),
    "filled": Group(
        {
            "zeros_of_another_type": lambda x, i: torch.zeros_like(i > 1, dtype=torch.float32).masked_fill(i > 1, -2.5),
            "ones_of_another_type": lambda x, i: torch.ones_like(i > 1, dtype=torch.float32) * 0.75,
            "fraction_of_another_type": lambda x, i: torch.full_like(i > 1, 0.75, dtype=torch.float32) + i,
            "whole_of_a_fraction": lambda x, i: torch.full_like(x, -3.7, dtype=torch.int32) * x,
            "truth_of_a_number": lambda x, i: torch.full_like(x, 0.5, dtype=torch.bool) & (x > 0),
            "new": lambda x, i: i.new_zeros(i.shape, dtype=torch.float32).masked_fill(i > 1, float("-inf")),
            "written_over": lambda x, i: torch.empty_like(i > 1, dtype=torch.float32).fill_(0.25),
        },
        (_drawn(2, 5), TOKENS),
        ("coreml", "coreai", "onnx", "tvm"),
    ),
    "projected": Group(
        {"lstm_projected": nn.LSTM(4, 6, 1, batch_first=True, proj_size=3, bidirectional=True).eval()},
        (_drawn(2, 3, 4),),
        ("coreml", "onnx"),
    ),
}


def _written(x: Tensor, column: Tensor) -> Tensor:
    """Return x with another first column."""
    x = x.clone()
    x[:, 0] = column
    return x


class Together(nn.Module):
    """All functions of a group, as one model."""

    def __init__(self, functions: Functions) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, *given: Tensor) -> list[list[Tensor]]:
        return [torch.utils._pytree.tree_leaves(function(*given)) for function in self.functions.values()]


@functools.cache
def run_group(name: str, target: str) -> dict[str, tuple[list[np.ndarray], list[Tensor]]]:
    """Return what each function of a group makes in a file, and in PyTorch."""
    assert (name, target) not in asked, "it was refused"
    asked.add((name, target))
    group = GROUPS[name]
    functions = {key: f for key, f in group.functions.items() if (key, target) not in LEFT_OUT}
    model = Together(functions)
    got = run_file(model, group.inputs, target)
    found = {}
    for key, wanted in zip(functions, model(*group.inputs), strict=True):
        found[key], got = (got[: len(wanted)], wanted), got[len(wanted) :]
    return found


asked: set[tuple[str, str]] = set()
"""What was lowered, so that a refusal is one failure's time."""

LEFT_OUT = frozenset({("searchsorted", "coreml")})
"""What a target has its own translation for, or no decomposition of ours."""


def run_file(model: nn.Module, inputs: Sequence[Tensor], target: str, precision: str = "fp32") -> list[np.ndarray]:
    """Return a model's outputs in a target's file."""
    program = capture(model, inputs)
    with tempfile.TemporaryDirectory() as folder:
        backend = get(target)
        if not program.typed_as:
            program, _ = rewrite(program, backend.costs)
        outputs = lower(target, program, Path(folder) / f"m{backend.suffix}", precision).run(
            [[x.numpy() for x in inputs]]
        )
    assert isinstance(outputs, list), outputs
    return outputs[0]


def assert_equal(got: np.ndarray, wanted: Tensor, tolerance: float = 2e-5, least: float = 1e-6) -> None:
    """Hold numbers to PyTorch's: a share of each row's peak; whole ones, and what is not finite, exactly."""
    want = wanted.detach().double().numpy()
    assert got.shape == want.shape
    if not wanted.is_floating_point():
        np.testing.assert_array_equal(got.astype(np.float64), want)
        return
    got = got.astype(np.float64)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    infinite = np.isinf(want)
    np.testing.assert_array_equal(np.where(infinite, got, 0), np.where(infinite, want, 0))
    finite = np.isfinite(want)
    got, want = np.where(finite, got, 0), np.where(finite, want, 0)
    assert finite.any() or infinite.any(), "nothing to compare"
    rows = np.abs(want).reshape(want.shape[0], -1).max(1) if want.ndim > 1 else np.abs(want)
    peak = rows.reshape(-1, *[1] * (want.ndim - 1)) if want.ndim > 1 else rows
    error = np.abs(got - want) / (peak * tolerance + least)
    assert error.max(initial=0.0) <= 1, f"{got.flat[error.argmax()]} where PyTorch has {want.flat[error.argmax()]}"


ROWS_OF_TABLE = [
    pytest.param(name, key, target, id=f"{key}-{target}")
    for name, group in GROUPS.items()
    for target in group.targets
    for key in group.functions
    if (key, target) not in LEFT_OUT
]


@pytest.mark.parametrize(("group", "function", "target"), ROWS_OF_TABLE)
def test_an_operator_is_pytorchs(group: str, function: str, target: str) -> None:
    got, wanted = run_group(group, target)[function]
    for one, other in zip(got, wanted, strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_windows_of_max_pools_are_pytorchs(ceil_mode: bool) -> None:
    spellings = decompositions.for_target("coreml")
    x = _drawn(2, 9, 8).round()
    x[0, 3, 5] = float("nan")
    for axes, step, dilation, pad in itertools.product((1, 2), (1, 2, 3), (1, 2), (0, 1)):
        overload = (aten.max_pool1d_with_indices if axes == 1 else aten.max_pool2d_with_indices).default
        arguments = (x, [3, 2][:axes], [step], [pad], [dilation], ceil_mode)
        got, wanted = spellings[overload](*arguments), overload(*arguments)
        torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)
