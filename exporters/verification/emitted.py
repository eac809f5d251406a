"""Overloads that rewrites and fused ops may emit: each is a case of its own, by the overload's name.

A rewrite writes ATen, in overloads that no caller spells (`where.ScalarOther`), and the form of a fused op that a
target inlines is captured like a model. `named_overloads` finds those that the sources name; tests/test_conformance.py
also runs rewrites and collects what is new. What is complex is left out: no complex number leaves the rewrites.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from edgesmith.exporters.verification.boundaries import drawn, image, of, row
from edgesmith.exporters.verification.cases import Case

aten = torch.ops.aten

_KINDS = ("Tensor", "Scalar")

REMOVED = frozenset(
    f"aten.{name}.default"
    for name in ("complex", "real", "imag", "view_as_real", "fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "dropout")
) | {
    *("aten.stft.center", "aten.stft.default", "aten.istft.default", "aten.lift_fresh_copy.default"),
    *("aten.to.device", "aten.to.dtype", "aten.to.dtype_layout", "aten.to.other", "aten.type_as.default"),
    *("aten.cdist.default", "aten._cdist_forward.default", "aten._euclidean_dist.default", "aten.topk.default"),
    *("aten.addcmul.default", "aten.lerp.Scalar", "aten.lerp.Tensor", "aten.clamp_min.Tensor", "aten.max.dim"),
    *("aten.min.dim", "aten.tensor_split.sections", "aten.copy.default", "aten.slice_scatter.default"),
    *("aten.reshape_as.default", "aten.view_as.default", "aten.im2col.default", "aten.inner.default"),
    *("aten.absolute.default", "aten.negative.default", "aten.concat.default", "aten.concatenate.default"),
    *("aten.clip.default", "aten.clip.Tensor", "aten.subtract.Tensor", "aten.linalg_matmul.default"),
    *(f"aten.{name}.{kind}" for name in ("multiply", "divide", "true_divide") for kind in _KINDS),
    *(f"aten.{name}{equal}.{kind}" for name in ("greater", "less") for equal in ("", "_equal") for kind in _KINDS),
    *(f"aten.special_{name}.default" for name in ("erf", "expit", "expm1", "log1p", "softmax")),
    *("aten.mT.default", "aten.numpy_T.default", "aten.swapdims.default", "aten.moveaxis.int", "aten.moveaxis.intlist"),
    *("aten.std_mean.correction", "aten.std_mean.dim", "aten.var_mean.correction", "aten.var_mean.dim"),
    "aten.tensordot.default",
}
"""Overloads that rewrites name to remove them; where one stays, it is the caller's own."""

_X, _Y, _MASK = drawn(2, 3, 4), drawn(2, 3, 4, seed=1), torch.tensor([True, False, True, False])
_POSITIVE = _X.abs() + 0.5
_PLANES, _KERNEL = drawn(1, 4, 6, 6), drawn(8, 4, 3, 3)
_STATISTICS = (drawn(4, seed=2), drawn(4, seed=3), drawn(4, seed=4), drawn(4, seed=5).abs() + 0.5)


def _unary() -> Iterator[tuple[Any, Callable[..., Any], tuple[Any, ...]]]:
    names: tuple[str, ...] = (
        "abs",
        "alias",
        "clone",
        "contiguous",
        "cos",
        "detach",
        "erf",
        "exp",
        "expm1",
        "gelu",
        "hardsigmoid",
        "hardswish",
        "hardtanh",
    )
    names += ("leaky_relu", "neg", "reciprocal", "relu", "relu6", "sigmoid", "silu", "sin", "square", "tanh")
    for name in names:
        overload = getattr(aten, name).default
        yield overload, overload, (_X,)
    for name in ("log", "log1p", "rsqrt", "sqrt"):
        overload = getattr(aten, name).default
        yield overload, overload, (_POSITIVE,)


def _binary() -> Iterator[tuple[Any, Callable[..., Any], tuple[Any, ...]]]:
    for name in ("add", "sub", "mul", "div", "rsub"):
        yield getattr(aten, name).Tensor, getattr(aten, name).Tensor, (_X, _POSITIVE)
        scalar = getattr(aten, name).Scalar
        yield scalar, lambda x, f=scalar: f(x, 2.5), (_X,)
    yield aten.add.Tensor, lambda x: aten.add.Tensor(x, 1.5), (_X,)
    yield aten.mul.Tensor, lambda x: aten.mul.Tensor(x, 1.5), (_X,)
    yield aten.div.Tensor, lambda x: aten.div.Tensor(x, 1.5), (_X,)
    for name in ("maximum", "minimum", "atan2"):
        overload = getattr(aten, name).default
        yield overload, overload, (_X, _Y)
    yield aten.pow.Tensor_Scalar, lambda x: aten.pow.Tensor_Scalar(x, 2), (_X,)
    yield aten.pow.Tensor_Tensor, aten.pow.Tensor_Tensor, (_POSITIVE, _Y)
    yield aten.clamp.default, lambda x: aten.clamp.default(x, -0.5, 0.5), (_X,)
    yield aten.clamp_min.default, lambda x: aten.clamp_min.default(x, 0.5), (_X,)
    yield aten.clamp.Tensor, aten.clamp.Tensor, (_X, -_POSITIVE, _POSITIVE)
    for name in ("gt", "ge", "lt", "le"):
        scalar, two = getattr(aten, name).Scalar, getattr(aten, name).Tensor
        yield scalar, lambda x, f=scalar: f(x, 0), (row(-1, -0.0, 0, 2),)
        yield two, two, (row(-1, -0.0, 0, 2), row(-2, 0.0, 1, 2))
    yield aten.eq.Scalar, lambda x: aten.eq.Scalar(x, 0), (row(-1, -0.0, 0, 2),)
    yield aten.ne.Scalar, lambda x: aten.ne.Scalar(x, -math.inf), (row(-1, -math.inf, 0, math.inf),)
    yield aten.logical_not.default, aten.logical_not.default, (_MASK,)
    for name in ("logical_and", "logical_or"):
        overload = getattr(aten, name).default
        yield overload, overload, (_MASK, torch.tensor([True, True, False, False]))
    yield aten.any.dim, lambda m: aten.any.dim(m, -1, True), (torch.stack([_MASK, ~_MASK, _MASK & ~_MASK]),)
    yield aten.where.self, aten.where.self, (_MASK, _X, _Y)
    yield aten.where.ScalarOther, lambda m, x: aten.where.ScalarOther(m, x, 0.5), (_MASK, _X)
    yield aten.masked_fill.Scalar, lambda x, m: aten.masked_fill.Scalar(x, m, 0.5), (_X, _MASK)


_ARRANGED: dict[Any, tuple[Any, ...]] = {
    aten._unsafe_view.default: ([6, 4],),
    aten.cat.default: (),
    aten.argmax.default: (-1,),
    aten.argmin.default: (-1,),
    aten.chunk.default: (2, -1),
    aten.constant_pad_nd.default: ([1, 2, 0, 1],),
    aten.expand.default: ([5, 2, 3, 4],),
    aten.flatten.using_ints: (1, -1),
    aten.flip.default: ([1],),
    aten.full_like.default: (2.0,),
    aten.movedim.int: (0, -1),
    aten.movedim.intlist: ([0, 1], [-1, 0]),
    aten.narrow.default: (1, 1, 2),
    aten.new_full.default: ([2, 3], 1.5),
    aten.new_ones.default: ([2, 3],),
    aten.new_zeros.default: ([2, 3],),
    aten.ones_like.default: (),
    aten.pad.default: ([1, 2], "constant", 0.0),
    aten.permute.default: ([2, 0, 1],),
    aten.repeat_interleave.self_int: (2, -1),
    aten.reshape.default: ([4, -1],),
    aten.select.int: (1, -1),
    aten.slice.Tensor: (1, -2, 9223372036854775807),
    aten.split.Tensor: (2, -1),
    aten.split_with_sizes.default: ([1, 3], -1),
    aten.stack.default: (),
    aten.swapaxes.default: (0, -1),
    aten.transpose.int: (0, -1),
    aten.unbind.int: (1,),
    aten.unflatten.int: (-1, [2, 2]),
    aten.unfold.default: (-1, 2, 1),
    aten.unsqueeze.default: (-1,),
    aten.view.default: ([6, 4],),
    aten.zeros_like.default: (),
}
"""What arranges one tensor, with its other arguments."""


def _arranging() -> Iterator[tuple[Any, Callable[..., Any], tuple[Any, ...]]]:
    for overload, more in _ARRANGED.items():
        if overload in (aten.cat.default, aten.stack.default):
            yield overload, lambda x, y, f=overload: f([x, y], -1), (_X, _Y)
        elif overload in (
            aten.full_like.default,
            aten.new_full.default,
            aten.new_ones.default,
            aten.new_zeros.default,
            aten.ones_like.default,
            aten.zeros_like.default,
        ):
            yield overload, lambda x, f=overload, a=more: f(x, *a) + x.sum(), (_X,)
        else:
            yield overload, lambda x, f=overload, a=more: f(x, *a), (_X,)
    yield aten._to_copy.default, lambda x: aten._to_copy.default(x, dtype=torch.float32), (torch.arange(4),)
    yield aten.t.default, aten.t.default, (drawn(3, 4),)
    yield aten.expand_as.default, aten.expand_as.default, (drawn(3, 1), drawn(3, 4))
    single = drawn(1, 3, 1, 2)
    yield aten.squeeze.default, aten.squeeze.default, (single,)
    yield aten.squeeze.dim, lambda x: aten.squeeze.dim(x, 2), (single,)
    yield aten.squeeze.dims, lambda x: aten.squeeze.dims(x, [0, 2]), (single,)
    yield aten.full.default, lambda x: x + aten.full.default([4], 2.0), (_X,)
    yield aten.ones.default, lambda x: x + aten.ones.default([4]), (_X,)
    yield aten.zeros.default, lambda x: x + aten.zeros.default([4]), (_X,)


def _layers() -> Iterator[tuple[Any, Callable[..., Any], tuple[Any, ...]]]:
    yield aten.linear.default, aten.linear.default, (_X, drawn(5, 4), drawn(5))
    yield aten.conv1d.default, aten.conv1d.default, (drawn(1, 4, 9), drawn(8, 4, 3), drawn(8))
    yield aten.conv2d.default, lambda x, w: aten.conv2d.default(x, w, None, [2, 1], [1, 0]), (_PLANES, _KERNEL)
    volumes, voxels = drawn(1, 3, 4, 6, 5), drawn(2, 3, 2, 3, 3)
    yield aten.conv3d.default, aten.conv3d.default, (volumes, voxels)
    yield aten.conv_transpose1d.default, aten.conv_transpose1d.default, (drawn(1, 4, 9), drawn(4, 2, 3))
    yield aten.conv_transpose2d.input, aten.conv_transpose2d.input, (drawn(1, 3, 6, 5), drawn(3, 2, 3, 3))
    yield aten.avg_pool1d.default, lambda x: aten.avg_pool1d.default(x, [2]), (_X,)
    yield aten.avg_pool3d.default, lambda x: aten.avg_pool3d.default(x, [2, 2, 2]), (volumes,)
    yield aten.matmul.default, aten.matmul.default, (_X, drawn(2, 4, 5))
    yield aten.mm.default, aten.mm.default, (drawn(3, 4), drawn(4, 5))
    yield aten.addmm.default, aten.addmm.default, (drawn(5), drawn(3, 4), drawn(4, 5))
    yield aten.baddbmm.default, aten.baddbmm.default, (drawn(2, 3, 5), _X, drawn(2, 4, 5))
    positions = torch.tensor([2, 0, 1])
    yield aten.embedding.default, aten.embedding.default, (drawn(5, 4), positions)
    yield aten.index_select.default, lambda x, i: aten.index_select.default(x, 1, i), (_X, positions)
    yield aten.index.Tensor, lambda x, i: aten.index.Tensor(x, [None, i]), (_X, positions)
    yield aten.gather.default, lambda x, i: aten.gather.default(x, 1, i), (drawn(3, 4), positions.reshape(3, 1))
    yield aten.bmm.default, aten.bmm.default, (_X, drawn(2, 4, 5))
    yield aten.einsum.default, lambda x, y: aten.einsum.default("bij,bjk->bik", [x, y]), (_X, drawn(2, 4, 5))
    yield aten.mean.dim, lambda x: aten.mean.dim(x, [1, -1], True), (_X,)
    yield aten.sum.dim_IntList, lambda x: aten.sum.dim_IntList(x, [1, -1], True), (_X,)
    yield aten.cumsum.default, lambda x: aten.cumsum.default(x, -1), (_X,)
    for name in ("var", "std"):
        of_axes = getattr(aten, name).dim
        yield of_axes, lambda x, f=of_axes: f(x, [-1], False, True), (_X,)
        of_correction = getattr(aten, name).correction
        yield of_correction, lambda x, f=of_correction: f(x, [-1], correction=0, keepdim=True), (_X,)
    attend = aten.scaled_dot_product_attention.default
    yield attend, lambda x, y, m: attend(x, y, y, m), (_PLANES, _PLANES + 1, torch.ones(6, 6, dtype=torch.bool).tril())
    yield aten.softmax.int, lambda x: aten.softmax.int(x, -1), (_X,)
    yield aten._softmax.default, lambda x: aten._softmax.default(x, 1, False), (_X,)
    yield aten.layer_norm.default, lambda x: aten.layer_norm.default(x, [4]), (_X,)
    yield aten.group_norm.default, lambda x: aten.group_norm.default(x, 2), (_PLANES,)
    batch = (_PLANES, *_STATISTICS)
    yield aten.batch_norm.default, lambda *xs: aten.batch_norm.default(*xs, False, 0.1, 1e-5, False), batch
    legit = aten._native_batch_norm_legit_no_training.default
    yield legit, lambda *xs: legit(*xs, 0.1, 1e-5)[0], batch
    yield aten.adaptive_avg_pool1d.default, lambda x: aten.adaptive_avg_pool1d.default(x, [1]), (_X,)
    yield aten.adaptive_avg_pool2d.default, lambda x: aten.adaptive_avg_pool2d.default(x, [1, 1]), (_PLANES,)
    yield aten.avg_pool2d.default, lambda x: aten.avg_pool2d.default(x, [2, 2]), (_PLANES,)
    yield aten.max_pool2d.default, lambda x: aten.max_pool2d.default(x, [2, 2]), (_PLANES,)
    nearest, linear, cubic = (getattr(aten, f"upsample_{kind}2d").vec for kind in ("nearest", "bilinear", "bicubic"))
    yield nearest, lambda x: nearest(x, [12, 9], None), (_PLANES,)
    yield linear, lambda x: linear(x, [12, 9], False, None), (_PLANES,)
    yield cubic, lambda x: cubic(x, [12, 9], False, None), (_PLANES,)


def cases() -> list[Case]:
    """Return a case of each overload, called after it."""
    found: list[Case] = []
    for overload, function, given in (*_unary(), *_binary(), *_arranging(), *_layers()):
        make = image if "upsample" in str(overload) else of
        found.append(make(str(overload), f"{len(found)}", function, given))
    return found


def named_overloads(*folders: Path) -> set[str]:
    """Return the overloads that Python sources name, but for those that they remove."""
    sources = (file.read_text(encoding="utf-8") for folder in folders for file in folder.rglob("*.py"))
    found = {name for source in sources for name in re.findall(r"\baten\.\w+\.[A-Za-z]\w*", source)}
    return found - REMOVED
