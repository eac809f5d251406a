"""Convolutions, products, norms, compressed weights, recurrence and attention on drawn sites, as in test_mil_ops.py."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support.mil_sites import Draw, Placed, Site, Table, build, judge
from torch import Tensor

from edgesmith.exporters.mil.evaluate import Evaluator
from edgesmith.exporters.mil.ops import all_ops

ct = pytest.importorskip("coremltools")

PROGRAMS = 4
SITES = 3
CASES = {family: Table() for family in ("linear", "norms", "weights", "recurrence")}
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def eighths(draw: Draw, shape: Sequence[int]) -> Tensor:
    """Multiples of 1/8, whose products fp32 sums exactly: what is left to judge in half is one rounding."""
    return (draw.wholes(shape, -12, 12) / 8).to(draw.float_type)


def constant(x: Tensor) -> np.ndarray:
    return x.numpy()


# ---------------------------------------------------------------------------------------------- linear


def same_padding(size: int, kernel: int, stride: int, dilation: int, lower: bool) -> tuple[int, int]:
    """Padding with which ceil(size / stride) windows fit exactly, the odd element at the end or the beginning."""
    windows = math.ceil(size / stride)
    missing = max(0, (windows - 1) * stride + (kernel - 1) * dilation + 1 - size)
    return (math.ceil(missing / 2), missing // 2) if lower else (missing // 2, math.ceil(missing / 2))


@CASES["linear"].drawn("conv")
def conv(draw: Draw) -> Site:
    rank, groups = draw.whole(1, 3), draw.whole(1, 2)
    channels, outputs = groups * draw.whole(1, 3), groups * draw.whole(1, 3)
    sizes = [draw.whole(5, 9) for _ in range(rank)]
    kernel = [draw.whole(1, 3) for _ in range(rank)]
    strides = [draw.whole(1, 3) for _ in range(rank)]
    weights_given = draw.flag()
    dilations = [1] * rank if weights_given else [draw.whole(1, 2) for _ in range(rank)]
    kind = draw.choose(["valid", "custom", "same"] + (["same_lower"] if draw.opset >= 16 else []))
    pads = [(0, 0)] * rank
    attributes: dict[str, Any] = {"strides": strides, "dilations": dilations, "groups": groups, "pad_type": kind}
    if kind == "custom":
        pads = [(draw.whole(0, 2), draw.whole(0, 2)) for _ in range(rank)]
        attributes["pad"] = [p for pair in pads for p in pair]
    elif kind != "valid":
        given_ = zip(sizes, kernel, strides, dilations, strict=True)
        pads = [same_padding(n, k, s, d, kind == "same_lower") for n, k, s, d in given_]
    weight = eighths(draw, [outputs, channels // groups, *kernel])
    bias = eighths(draw, [outputs]) if draw.flag() else None
    if bias is not None:
        attributes["bias"] = constant(bias)
    tensors = {"x": eighths(draw, [draw.whole(1, 2), channels, *sizes])}
    if weights_given:
        tensors["weight"] = weight
    else:
        attributes["weight"] = constant(weight)

    def reference(x: Tensor, weight: Tensor = weight) -> Tensor:
        padded = F.pad(x, [p for pair in reversed(pads) for p in pair])
        own = None if bias is None else bias.to(x.dtype)
        return CONV[rank](padded, weight.to(x.dtype), own, strides, 0, dilations, groups)

    return Site(tensors, attributes, reference, half=True)


@CASES["linear"].drawn("conv_transpose")
def conv_transpose(draw: Draw) -> Site:
    rank, groups = draw.whole(1, 3), draw.whole(1, 2)
    channels, outputs = groups * draw.whole(1, 2), draw.whole(1, 2)
    sizes = [draw.whole(2, 5) for _ in range(rank)]
    kernel = [draw.whole(2, 4) for _ in range(rank)]
    strides = [draw.whole(1, 2) for _ in range(rank)]
    dilations = [draw.whole(1, 2) for _ in range(rank)]
    weight = eighths(draw, [channels, outputs, *kernel])
    bias = eighths(draw, [outputs * groups]) if draw.flag() else None
    kind = draw.choose(["valid", "custom", "same", "output_shape"])
    pad = draw.whole(0, 1)
    extra = [draw.whole(0, s - 1) for s in strides]
    attributes: dict[str, Any] = {"weight": constant(weight), "strides": strides, "dilations": dilations}
    attributes |= {"groups": groups, "pad_type": "custom" if kind == "output_shape" else kind}
    if bias is not None:
        attributes["bias"] = constant(bias)
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    if kind in ("custom", "output_shape"):
        attributes["pad"] = [pad] * (2 * rank)
    batch = draw.whole(1, 2)
    if kind == "output_shape":
        full = [(n - 1) * s + e - 2 * pad + o for n, s, e, o in zip(sizes, strides, extents, extra, strict=True)]
        attributes["output_shape"] = [batch, outputs * groups, *full]

    def reference(x: Tensor) -> Tensor:
        own = None if bias is None else bias.to(x.dtype)
        given_ = (x, weight.to(x.dtype), own, strides)
        if kind == "same":
            whole = TRANSPOSED[rank](*given_, 0, 0, groups, dilations)
            for axis, (n, s) in enumerate(zip(sizes, strides, strict=True)):
                whole = whole.narrow(2 + axis, (whole.shape[2 + axis] - n * s) // 2, n * s)
            return whole
        cut = 0 if kind == "valid" else pad
        more = extra if kind == "output_shape" else [0] * rank
        return TRANSPOSED[rank](*given_, cut, more, groups, dilations)

    return Site({"x": eighths(draw, [batch, channels, *sizes])}, attributes, reference, half=True)


@CASES["linear"].drawn("linear")
def linear(draw: Draw) -> Site:
    wide, narrow = draw.whole(1, 6), draw.whole(1, 6)
    weight = eighths(draw, [narrow, wide])
    bias = eighths(draw, [narrow]) if draw.flag() else None
    attributes = {"weight": constant(weight)} | ({} if bias is None else {"bias": constant(bias)})
    x = eighths(draw, [*draw.shape(0, 2, 4), wide])
    return Site(
        {"x": x},
        attributes,
        lambda x: F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype)),
        half=True,
    )


@CASES["linear"].drawn("matmul")
def matmul(draw: Draw) -> Site:
    rows, inner, columns = (draw.whole(1, 5) for _ in range(3))
    batch = draw.shape(0, 2, 3)
    flip_x, flip_y, vector = draw.flag(), draw.flag(), draw.choose([False, False, True])
    batch = [] if vector else batch  # for a vector and a batch coremltools declares a wrong shape
    left = [inner] if vector else [*batch, *((inner, rows) if flip_x else (rows, inner))]
    right = [*batch, *((columns, inner) if flip_y else (inner, columns))]
    if batch and draw.flag():
        right = right[1:] if draw.flag() else [1, *right[1:]]
    attributes = {"transpose_y": flip_y} | ({} if vector else {"transpose_x": flip_x})
    whole = draw.choose([False, False, True])

    def values(shape: list[int]) -> Tensor:
        return draw.wholes(shape) if whole else eighths(draw, shape)

    def reference(x: Tensor, y: Tensor) -> Tensor:
        x = x.mT if flip_x and not vector else x
        return torch.matmul(x, y.mT if flip_y else y)

    return Site({"x": values(left), "y": values(right)}, attributes, reference, half=not whole)


@CASES["linear"].drawn("einsum")
def einsum(draw: Draw) -> Site:
    c, h, w, u, n = (draw.whole(1, 4) for _ in range(5))
    equation = draw.choose(["nchw,nwhu->nchu", "chw,whr->chr", "abcd,adce->abce"])
    short = equation == "chw,whr->chr"
    first, second = [c, h, w], [w, 1 if draw.flag() else h, u]
    if not short:
        first, second = [n, *first], [1 if draw.flag() else n, *second]
    values = (eighths(draw, first), eighths(draw, second))
    return Site({"values": values}, {"equation": equation}, lambda values: torch.einsum(equation, *values))


# ---------------------------------------------------------------------------------------------- norms


def scales(draw: Draw, shape: Sequence[int]) -> tuple[Tensor | None, Tensor | None]:
    """A scale and a shift, or a scale, or neither."""
    kind = draw.whole(0, 2)
    return draw.floats(shape) if kind else None, draw.floats(shape) if kind > 1 else None


def norm_attributes(draw: Draw, gamma: Tensor | None, beta: Tensor | None) -> tuple[dict[str, Any], float]:
    found: dict[str, Any] = {}
    if gamma is not None:
        found["gamma"] = constant(gamma)
    if beta is not None:
        found["beta"] = constant(beta)
    epsilon = draw.scalar(0.001, 0.1)
    return found | {"epsilon": epsilon}, float(epsilon)


def like(value: Tensor | None, x: Tensor) -> Tensor | None:
    return None if value is None else value.to(x.dtype)


@CASES["norms"].drawn("layer_norm")
def layer_norm(draw: Draw) -> Site:
    shape = draw.shape(2, 4)
    count = draw.whole(1, len(shape))
    gamma, beta = scales(draw, shape[-count:])
    attributes, epsilon = norm_attributes(draw, gamma, beta)
    attributes["axes"] = list(range(-count, 0)) if draw.flag() else list(range(len(shape) - count, len(shape)))
    return Site(
        {"x": draw.floats(shape)},
        attributes,
        lambda x: F.layer_norm(x, shape[-count:], like(gamma, x), like(beta, x), epsilon),
    )


@CASES["norms"].drawn("batch_norm")
def batch_norm(draw: Draw) -> Site:
    shape = draw.shape(3, 5, 4)
    mean, variance = draw.floats([shape[1]]), draw.floats([shape[1]], 0.25, 4.0)
    gamma, beta = scales(draw, [shape[1]])
    attributes, epsilon = norm_attributes(draw, gamma, beta)
    attributes |= {"mean": constant(mean), "variance": constant(variance)}

    def reference(x: Tensor) -> Tensor:
        given_ = (mean.to(x.dtype), variance.to(x.dtype), like(gamma, x), like(beta, x))
        return F.batch_norm(x, *given_, False, 0.0, epsilon)

    return Site({"x": draw.floats(shape)}, attributes, reference)


@CASES["norms"].drawn("instance_norm")
def instance_norm(draw: Draw) -> Site:
    shape = [*draw.shape(2, 2, 3), draw.whole(2, 5), *draw.shape(0, 1, 4)]  # torch refuses a single position
    gamma, beta = scales(draw, [shape[1]])
    attributes, epsilon = norm_attributes(draw, gamma, beta)

    def reference(x: Tensor) -> Tensor:
        return F.instance_norm(x, weight=like(gamma, x), bias=like(beta, x), eps=epsilon)

    return Site({"x": draw.floats(shape)}, attributes, reference)


@CASES["norms"].drawn("l2_norm")
def l2_norm(draw: Draw) -> Site:
    shape = draw.shape(3, 5, 4)
    epsilon = draw.scalar(0.001, 0.1)

    def reference(x: Tensor) -> Tensor:
        return x / (x.flatten(-3).square().sum(-1) + float(epsilon)).sqrt()[..., None, None, None]

    return Site({"x": draw.floats(shape)}, {"epsilon": epsilon}, reference)


@CASES["norms"].drawn("local_response_norm")
def local_response_norm(draw: Draw) -> Site:
    shape = draw.shape(3, 4)
    size, alpha, beta, k = draw.whole(1, 5), draw.scalar(0.1, 1), draw.scalar(0.25, 1), draw.scalar(0.5, 2)
    return Site(
        {"x": draw.floats(shape)},
        {"size": size, "alpha": alpha, "beta": beta, "k": k},
        lambda x: F.local_response_norm(x, size, float(alpha), float(beta), float(k)),
    )


# ---------------------------------------------------------------------------------------------- weights


def narrow_type(bits: int, signed: bool = False) -> Any:
    """NumPy's type that coremltools takes for integers of some bits."""
    from coremltools.converters.mil.mil import types

    return types.nptype_from_builtin(types.string_to_builtin(f"{'' if signed else 'u'}int{bits}"))


def weight(attributes: dict[str, Any], *expected: Tensor) -> Site:
    """A site without run-time operands. The results are compared with `expected` in double precision."""
    return Site({}, attributes, lambda: expected[0] if len(expected) == 1 else expected)


@CASES["weights"].drawn("constexpr_affine_dequantize", since=16)
def constexpr_affine_dequantize(draw: Draw) -> Site:
    data = draw.wholes(draw.shape(1, 3), 0 if draw.flag() else -128, 127)
    signed = bool(data.min() < 0)
    kind = np.int8 if signed else np.uint8
    axis = draw.axis(data.dim())
    shape = [data.shape[axis]] if draw.flag() else []
    scale, zero = draw.floats(shape, 0.01, 1.0), draw.wholes(shape, 0, 100)
    attributes = {"quantized_data": data.numpy().astype(kind), "axis": axis, "scale": scale.numpy()}
    attributes["zero_point"] = zero.numpy().astype(kind)
    if not shape:
        attributes |= {"scale": scale.numpy()[()], "zero_point": zero.numpy().astype(kind)[()]}
    spread = [1] * data.dim()
    spread[axis] = -1
    s, z = (t.double().reshape(spread) if shape else t.double() for t in (scale, zero))
    return weight(attributes, s * (data.double() - z))


@CASES["weights"].drawn("constexpr_cast", since=16)
def constexpr_cast(draw: Draw) -> Site:
    values = draw.floats(draw.shape()).half()
    return weight({"source_val": values.numpy(), "output_dtype": "fp32"}, values.double())


@CASES["weights"].drawn("constexpr_blockwise_shift_scale", since=18)
def constexpr_blockwise_shift_scale(draw: Draw) -> Site:
    blocks, size = draw.shape(1, 3, 3), draw.whole(1, 3)
    shape = [b * (size if axis == 0 else 1) for axis, b in enumerate(blocks)]
    bits, signed = draw.choose([4, 8]), draw.flag()
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    data, scale = draw.wholes(shape, low, high), draw.floats(blocks, 0.01, 1.0)
    kind = narrow_type(bits, signed)
    attributes = {"data": data.numpy().astype(kind), "scale": scale.numpy()}
    offset = draw.wholes(blocks, low, high)
    if draw.flag():
        attributes["offset"] = offset.numpy().astype(kind)
    else:
        offset = torch.zeros_like(offset)
    s, o = (t.double().repeat_interleave(size, 0) for t in (scale, offset))
    return weight(attributes, s * (data.double() - o))


def lut_to_dense_16(draw: Draw) -> Site:
    bits, shape = draw.choose([1, 2, 4, 6, 8]), draw.shape(1, 3)
    lut = draw.floats([1 << bits])
    indices = draw.wholes(shape, 0, (1 << bits) - 1)
    digits = (indices.flatten().numpy()[:, None] >> np.arange(bits)) & 1
    packed = np.packbits(digits.astype(np.uint8).flatten(), bitorder="little")
    attributes = {"indices": packed, "lut": lut.numpy(), "shape": np.array(shape, np.uint32)}
    return weight(attributes, lut.double()[indices.long()])


@CASES["weights"].drawn("constexpr_lut_to_dense", since=16)
def constexpr_lut_to_dense(draw: Draw) -> Site:
    if draw.opset < 18:
        return lut_to_dense_16(draw)
    bits, width = draw.choose([1, 2, 3, 4, 6, 8]), draw.whole(1, 3)
    groups, size, columns = draw.whole(1, 2), draw.whole(1, 3), draw.whole(1, 4)
    lut = draw.floats([groups, 1, 1 << bits, width])
    indices = draw.wholes([groups * size, columns], 0, (1 << bits) - 1)
    attributes = {"indices": indices.numpy().astype(narrow_type(bits)), "lut": lut.numpy()}
    axis = draw.axis(2)
    if width > 1 or draw.flag():
        attributes["vector_axis"] = axis
    rows = []
    for i, row in enumerate(indices):
        vectors = lut.double()[i // size, 0][row.long()]  # [columns, width]
        rows.append(vectors.T if axis % 2 == 0 else vectors.reshape(1, -1))
    return weight(attributes, torch.cat(rows))


@CASES["weights"].drawn("constexpr_sparse_to_dense", since=16)
def constexpr_sparse_to_dense(draw: Draw) -> Site:
    shape = draw.shape(1, 3)
    mask = draw.bools(shape)
    mask.view(-1)[0] = True
    dense = torch.where(mask, draw.floats(shape), torch.zeros((), dtype=draw.float_type))
    attributes: dict[str, Any] = {"nonzero_data": dense[mask].numpy()}
    if draw.opset < 18:
        attributes["mask"] = np.packbits(mask.numpy().flatten(), bitorder="little")
        attributes["shape"] = np.array(shape, np.uint32)
    else:
        attributes["mask"] = mask.numpy().astype(narrow_type(1))
    return weight(attributes, dense.double())


def quantisation(draw: Draw, shape: list[int], kind: str) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Attributes, and scale and zero point so that they broadcast."""
    axis = draw.axis(len(shape))
    along = [shape[axis]] if draw.flag() else []
    scale = (2.0 ** draw.wholes(along, -4, 0)).to(draw.float_type)  # exact quotients: halves are really halves
    zero = draw.wholes(along, 0, 20)
    found: dict[str, Any] = {"scale": scale.numpy()[()]}
    if along:
        found["axis"] = axis
    if draw.flag():
        found["zero_point"] = zero.numpy().astype(kind)[()]
    else:
        zero = torch.zeros_like(zero)
    spread = [1] * len(shape)
    spread[axis] = -1
    return found, *(t.double().reshape(spread) if along else t.double() for t in (scale, zero))


@CASES["weights"].drawn("quantize", since=17)
def quantize(draw: Draw) -> Site:
    shape, kind = draw.shape(), draw.choose(["int8", "uint8"])
    attributes, scale, zero = quantisation(draw, shape, kind)
    low, high = (-128, 127) if kind == "int8" else (0, 255)

    def reference(input: Tensor) -> Tensor:  # noqa: A002 - MIL's name
        return (torch.round(input.double() / scale) + zero).clamp(low, high).to(getattr(torch, kind))

    return Site({"input": eighths(draw, shape) * 4}, attributes | {"output_dtype": kind}, reference)


@CASES["weights"].drawn("dequantize", since=17)
def dequantize(draw: Draw) -> Site:
    shape, kind = draw.shape(), draw.choose(["int8", "uint8"])
    attributes, scale, zero = quantisation(draw, shape, kind)
    x = draw.wholes(shape, 0, 120).to(getattr(torch, kind))

    def reference(input: Tensor) -> Tensor:  # noqa: A002 - MIL's name
        return scale * (input.double() - zero)

    return Site({"input": x}, attributes, reference)


# ---------------------------------------------------------------------------------------------- recurrence, attention


def reordered(rows: Tensor, order: Sequence[int]) -> Tensor:
    """The gates' rows of torch's weight in MIL's order."""
    return torch.cat([rows.chunk(len(order))[i] for i in order])


@CASES["recurrence"].drawn("rnn", since=17)
def rnn(draw: Draw) -> Site:
    frames, batch, width, hidden = (draw.whole(1, 4) for _ in range(4))
    activation, whole, back = draw.choose(["tanh", "relu"]), draw.flag(), draw.flag()
    w, u, b = (draw.floats(shape, -1, 1) for shape in ([hidden, width], [hidden, hidden], [hidden]))
    attributes = {"weight_ih": constant(w), "weight_hh": constant(u), "bias": constant(b), "activation": activation}
    attributes |= {"output_sequence": whole, "direction": "reverse" if back else "forward"}

    def reference(x: Tensor, initial_h: Tensor) -> tuple[Tensor, ...]:
        module = torch.nn.RNN(width, hidden, nonlinearity=activation, dtype=x.dtype)
        state = {"weight_ih_l0": w, "weight_hh_l0": u, "bias_ih_l0": b, "bias_hh_l0": torch.zeros_like(b)}
        module.load_state_dict(state)
        with torch.no_grad():
            out, last = module(x.flip(0) if back else x, initial_h[None])
        peaks.append(float(out.abs().max()))
        return out if whole else out[-1:], last[0]

    peaks: list[float] = []
    given = {"x": draw.floats([frames, batch, width]), "initial_h": draw.floats([batch, hidden])}
    reference(*(t.double() for t in given.values()))
    return Site(given, attributes, reference, scale=peaks[0])  # with relu an earlier frame may be larger than the last


@CASES["recurrence"].drawn("gru", since=17)
def gru(draw: Draw) -> Site:
    frames, batch, width, hidden = (draw.whole(1, 4) for _ in range(4))
    whole, back = draw.flag(), draw.flag()
    after = draw.opset >= 18 and draw.flag()
    w, u = draw.floats([3 * hidden, width], -1, 1), draw.floats([3 * hidden, hidden], -1, 1)
    b, c = draw.floats([3 * hidden], -1, 1), draw.floats([3 * hidden], -1, 1)
    attributes: dict[str, Any] = {"weight_ih": constant(w), "weight_hh": constant(u), "bias": constant(b)}
    attributes |= {"output_sequence": whole, "direction": "reverse" if back else "forward"}
    if after:
        attributes |= {"reset_after": True, "input_bias": constant(c)}

    def reference(x: Tensor, initial_h: Tensor) -> tuple[Tensor, ...]:
        x = x.flip(0) if back else x
        if after:  # torch's own; its rows are those of the reset, update and output gates
            module = torch.nn.GRU(width, hidden, dtype=x.dtype)
            of = {"weight_ih_l0": w, "weight_hh_l0": u, "bias_ih_l0": c, "bias_hh_l0": b}
            module.load_state_dict({name: reordered(value, (0, 2, 1)) for name, value in of.items()})
            with torch.no_grad():
                out, last = module(x, initial_h[None])
            return out if whole else out[-1:], last[0]
        h, outs = initial_h, []
        (w_r, w_o, w_z), (u_r, u_o, u_z), (b_r, b_o, b_z) = (t.to(x.dtype).chunk(3) for t in (w, u, b))
        for frame in x:
            r = torch.sigmoid(frame @ w_r.T + h @ u_r.T + b_r)
            z = torch.sigmoid(frame @ w_z.T + h @ u_z.T + b_z)
            o = torch.tanh(frame @ w_o.T + (r * h) @ u_o.T + b_o)
            h = (1 - z) * o + z * h
            outs.append(h)
        return torch.stack(outs if whole else outs[-1:]), h

    return Site(
        {"x": draw.floats([frames, batch, width]), "initial_h": draw.floats([batch, hidden])}, attributes, reference
    )


@CASES["recurrence"].drawn("lstm", since=17)
def lstm(draw: Draw) -> Site:
    frames, batch, width, hidden = (draw.whole(1, 4) for _ in range(4))
    direction, whole = draw.choose(["forward", "reverse", "bidirectional"]), draw.flag()
    both = direction == "bidirectional"
    sets = []
    attributes: dict[str, Any] = {"direction": direction, "output_sequence": whole}
    for suffix in ("", "_back") if both else ("",):
        shapes = {"weight_ih": [4 * hidden, width], "weight_hh": [4 * hidden, hidden], "bias": [4 * hidden]}
        own = {name: draw.floats(shape, -1, 1) for name, shape in shapes.items()}
        attributes |= {f"{name}{suffix}": constant(value) for name, value in own.items()}
        sets.append(own)
    directions = len(sets)

    def reference(x: Tensor, initial_h: Tensor, initial_c: Tensor) -> tuple[Tensor, ...]:
        module = torch.nn.LSTM(width, hidden, bidirectional=both, dtype=x.dtype)
        state = {}
        for own, end in zip(sets, ("", "_reverse"), strict=False):
            rows = {name: reordered(value, (0, 1, 3, 2)) for name, value in own.items()}  # i f o z to i f z o
            state |= {f"weight_ih_l0{end}": rows["weight_ih"], f"weight_hh_l0{end}": rows["weight_hh"]}
            state |= {f"bias_ih_l0{end}": rows["bias"], f"bias_hh_l0{end}": torch.zeros_like(rows["bias"])}
        module.load_state_dict(state)
        given_ = tuple(torch.stack(t.chunk(directions, -1)) for t in (initial_h, initial_c))
        with torch.no_grad():
            out, last = module(x.flip(0) if direction == "reverse" else x, given_)
        if not whole:
            out = torch.cat([out[-1:, :, :hidden], out[:1, :, hidden:]], -1)
        return out, *(torch.cat(list(t), -1) for t in last)

    tensors = {"x": draw.floats([frames, batch, width])}
    tensors |= {name: draw.floats([batch, directions * hidden]) for name in ("initial_h", "initial_c")}
    return Site(tensors, attributes, reference)


@CASES["recurrence"].drawn("scaled_dot_product_attention", since=18)
def attention(draw: Draw) -> Site:
    batch = draw.shape(1, 2, 3)
    queries, keys, width, values = (draw.whole(1, 5) for _ in range(4))
    tensors = {
        "query": draw.floats([*batch, queries, width]),
        "key": draw.floats([*batch, keys, width]),
        "value": draw.floats([*batch, keys, values], 0.25, 3.0),  # a mean of both signs may cancel to nothing
    }
    mask = draw.choose(["none", "bool", "float"])
    if mask == "float":
        tensors["attn_mask"] = draw.floats([queries, keys])
    elif mask == "bool":
        tensors["attn_mask"] = draw.bools([queries, keys])
        tensors["attn_mask"][:, 0] = True

    def reference(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask)

    return Site(tensors, {}, reference)


# ---------------------------------------------------------------------------------------------- sparse to sparse

# A mask of single bits cannot leave a program, so these two are read by constexpr_sparse_to_dense, as in real programs.


def sparse_lut(draw: Draw) -> tuple[dict[str, Any], Tensor]:
    shape, width, bits = draw.shape(2, 2), draw.whole(1, 2), draw.choose([1, 2, 4])
    mask = draw.bools(shape)
    mask.view(-1)[0] = True
    indices = draw.wholes([int(mask.sum())], 0, (1 << bits) - 1)
    lut = draw.floats([1, 1, 1 << bits, width])
    attributes = {"indices_mask": mask.numpy().astype(narrow_type(1)), "lut": lut.numpy()}
    attributes["indices_nonzero_data"] = indices.numpy().astype(narrow_type(bits))
    if width > 1:
        attributes["vector_axis"] = 0
    dense = torch.zeros([shape[0], width, shape[1]], dtype=torch.float64)
    for (row, column), index in zip(mask.nonzero().tolist(), indices.tolist(), strict=True):
        dense[row, :, column] = lut.double()[0, 0, index]
    return attributes, dense.reshape(-1, shape[1])


def sparse_blocks(draw: Draw) -> tuple[dict[str, Any], Tensor]:
    shape = draw.shape(2, 2)
    mask = draw.bools(shape)
    mask.view(-1)[0] = True
    data = draw.wholes([int(mask.sum())], -8, 7)
    scale, offset = draw.floats([shape[0], 1], 0.01, 1.0), draw.wholes([shape[0], 1], -8, 7)
    attributes = {"data_mask": mask.numpy().astype(narrow_type(1)), "scale": scale.numpy()}
    attributes |= {"nonzero_data": data.numpy().astype(narrow_type(4, True))}
    attributes |= {"offset": offset.numpy().astype(narrow_type(4, True))}
    dense = torch.zeros(shape, dtype=torch.float64)
    dense[mask] = data.double()
    return attributes, torch.where(mask, scale.double() * (dense - offset), 0)


@settings(max_examples=6, phases=[Phase.generate])
@given(data=st.data())
def test_sparse_weights_stay_sparse_in_between(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    from coremltools.converters.mil import Builder as mb

    cases = {
        (name, kind): make(Draw(data, kind, 18))
        for name, make in (
            ("constexpr_lut_to_sparse", sparse_lut),
            ("constexpr_sparse_blockwise_shift_scale", sparse_blocks),
        )
        for kind in ("fp32", "fp16")
    }

    @mb.program(input_specs=[mb.TensorSpec((1,))], opset_version=ct.target.iOS18)
    def program(x: Any) -> Any:
        found = []
        for number, ((name, _), (attributes, _)) in enumerate(cases.items()):
            mask, values = getattr(mb, name)(**attributes)
            dense = mb.constexpr_sparse_to_dense(nonzero_data=values, mask=mask)
            found.append(mb.cast(x=dense, dtype="fp32", name=f"o{number}"))
        return tuple(found)

    path = tmp_path_factory.mktemp("sparse") / "sparse.mlpackage"
    ct.convert(
        program,
        pass_pipeline=ct.PassPipeline.EMPTY,
        minimum_deployment_target=ct.target.iOS18,
        skip_model_load=True,
    ).save(str(path))
    outputs = Evaluator(path).run({"x": torch.zeros(1)})
    for number, ((name, kind), (_, wanted)) in enumerate(cases.items()):
        bound = 1e-6 if kind == "fp32" else 2.0**-11
        error = (outputs[f"o{number}"].double() - wanted).abs()
        assert (error <= bound * wanted.abs().max()).all(), name


# ---------------------------------------------------------------------------------------------- running them

OLDEST = {"linear": 15, "norms": 15, "weights": 16, "recurrence": 17}
RUNS = [(family, opset) for family in sorted(OLDEST) for opset in (15, 16, 17, 18) if opset >= OLDEST[family]]


@pytest.mark.parametrize(("family", "opset"), RUNS)
def test_operators_agree_with_torch(family: str, opset: int, tmp_path: Path) -> None:
    numbers = itertools.count()

    @settings(max_examples=PROGRAMS, phases=[Phase.generate])
    @given(st.data())
    def run(data: st.DataObject) -> None:
        placed = [
            Placed(name, row.case(Draw(data, kind, opset)), kind, {}, [])
            for name, row in CASES[family].items()
            if opset >= row.since
            for kind in ("fp32", "fp16")
            for _ in range(SITES)
        ]
        path = tmp_path / f"{next(numbers)}.mlpackage"
        inputs = build(placed, opset, path)
        outputs = Evaluator(path).run(inputs)
        for one in placed:
            judge(one, [outputs[name] for name in one.outputs])

    run()


def operator(name: str) -> Any:
    return all_ops()[name].function


@pytest.mark.parametrize(
    ("name", "operands", "words"),
    [
        (
            "constexpr_sparse_to_dense",
            {"nonzero_data": torch.ones(2), "mask": torch.tensor([1, 0])},
            "1 ones for 2 values",
        ),
        (
            "constexpr_lut_to_dense",
            {"indices": torch.zeros(1, dtype=torch.uint8), "lut": torch.ones(4), "shape": torch.tensor([5])},
            "1 bytes do not hold 5 indices of 2 bits",
        ),
        (
            "constexpr_lut_to_dense",
            {"indices": torch.zeros(2, dtype=torch.uint8), "lut": torch.ones(1, 2, 2)},
            "needs a vector_axis",
        ),
        (
            "constexpr_lut_to_dense",
            {"indices": torch.full((2,), 2, dtype=torch.uint8), "lut": torch.ones(1, 2, 1)},
            "a table of 2 entries is read at 2",
        ),
        (
            "constexpr_blockwise_shift_scale",
            {"data": torch.ones(3, dtype=torch.int8), "scale": torch.ones(2)},
            "3 elements, which 2 blocks do not divide",
        ),
    ],
)
def test_weights_that_do_not_fit_together_are_refused(name: str, operands: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        operator(name)(**operands)


class OfFp32:
    """A context that rounds no sums."""

    accumulate = "fp32"
    accumulate_block = 1

    class operation:  # noqa: N801
        outputs = ()


@pytest.mark.parametrize(
    ("name", "operands", "words"),
    [
        ("conv", {"x": torch.ones(1, 1, 3), "weight": torch.ones(1, 1, 1), "pad_type": "reflect"}, "pad_type reflect"),
        ("einsum", {"values": (torch.ones(2, 2), torch.ones(2, 2)), "equation": "ab,bc->ac"}, "is none that MIL has"),
        (
            "einsum",
            {"values": (torch.ones(2, 2, 2), torch.ones(2, 2, 2)), "equation": "abc,bcd->abd"},
            "is none that MIL has",
        ),
        ("rnn", {"activation": "swish"}, "the activation swish is none of"),
        ("lstm", {"direction": "bidirectional"}, "takes weight_ih_back and weight_hh_back"),
    ],
)
def test_parameters_that_mil_does_not_have_are_refused(name: str, operands: dict[str, Any], words: str) -> None:
    rows = {"rnn": 2, "lstm": 8}.get(name)
    if rows is not None:
        shapes = {"x": (3, 1, 2), "weight_ih": (rows, 2), "weight_hh": (rows, 2)}
        states = {"rnn": ["initial_h"], "lstm": ["initial_h", "initial_c"]}[name]
        operands = {key: torch.ones(shape) for key, shape in shapes.items()} | operands
        operands |= {key: torch.ones(1, 2 if name == "rnn" else 4) for key in states}
    with pytest.raises(ValueError, match=words):
        operator(name)(OfFp32(), **operands)


def test_an_lstms_memory_is_clipped_and_sees_its_peepholes() -> None:
    """One step of one neuron, worked out by hand."""
    one, zeros = torch.ones(1, 1), torch.zeros(4, 1)
    frame = torch.tensor([0.1, 0.2, 0.3, 0.4])
    peephole = torch.tensor([0.5, 0.6, 0.7])
    for clip in (None, 0.5):
        given_ = {"x": one[None], "initial_h": one, "initial_c": one, "weight_ih": frame[:, None], "weight_hh": zeros}
        _, h, c = operator("lstm")(OfFp32(), **given_, peephole=peephole, clip=clip)
        i, f = torch.sigmoid(torch.tensor([0.1 + 0.5, 0.2 + 0.6]))
        wanted = f + i * torch.tanh(torch.tensor(0.4))
        wanted = wanted if clip is None else wanted.clamp(max=clip)
        assert torch.allclose(c, wanted)
        assert torch.allclose(h, torch.sigmoid(0.3 + 0.7 * wanted) * torch.tanh(wanted))


def test_vectors_multiply_from_either_side() -> None:
    """coremltools' own shape rule fails for a vector on the right, so no program has one that it made."""
    x, y = torch.arange(3.0), torch.arange(6.0).reshape(2, 3)
    product = operator("matmul")
    assert torch.equal(product(OfFp32(), x=y, y=x), y @ x)
    assert torch.equal(product(OfFp32(), x=x, y=y, transpose_y=True), y @ x)
    assert torch.equal(product(OfFp32(), x=x, y=x), x @ x)
