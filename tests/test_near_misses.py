"""Each detector against graphs that differ from its row's own by one edit: those that it leaves, and those it finds.

Every edit is a condition of a detector: where one is dropped from it, a graph below is found that should be left.
"""

from __future__ import annotations

import pytest

from edgesmith.exporters.departures.book import all_departures
from edgesmith.exporters.departures.lint import find
from edgesmith.exporters.departures.notation import read_graph

ROWS = all_departures()

LEFT: list[tuple[str, str, str]] = [
    # attention
    ("CM12", "a = add(s, m)", "a = mul(s, m)"),
    ("CM12", "z: fp16[10,8,16] = linear(y, w)", "z = relu(y)"),
    ("CM13", "fp16", "fp32"),
    ("CM13", "attention(q, x, x)", "attention(x, q, q)"),
    ("CM13", "[1,2,8,512]", "[1,2,1,512]"),
    ("CM14", "p = softmax(s, axis=2)", "p = relu(s)"),
    ("CM14", "t = transpose(p, perm=[0,2,1])", "t = reshape(p)"),
    ("OR7", "return y, k, v", "return y"),
    ("OR8", "fp16", "fp32"),
    ("OR8", "[1,2,8,512]", "[1,2,5,512]"),
    ("TR1", "strides=[2,2]", "strides=[1,1]"),
    ("TR1", "r: fp32[2,8,4,4] = conv(x, w, strides=[2,2])", "r: fp32[2,8,4,4] = max_pool(x, strides=[2,2])"),
    ("TR1", "q: fp32[2,64,8] = reshape(x)", "q = const fp32[2,64,8]"),
    ("TR2", "fp16", "fp32"),
    ("TR2", "p = softmax(s, axis=2)", "p = relu(s)"),
    ("TR2", "v = matmul(x, w)", "v = relu(x)"),
    ("TR3", "b = matmul(n, w)", "b = relu(n)"),
    ("TR3", "b = matmul(n, w)", "b = matmul(w, n)"),
    ("TR3", "b = matmul(n, w)", "b = matmul(n, x)"),
    ("TR4", "y = matmul(r, w)", "y = matmul(r, x)"),
    ("TR4", "r = relu(a)", "r = reduce_max(a, axes=[0])"),
    ("LR1", "m = input fp32[1,1,8,8]", "m = const fp32[8]"),
    ("LR1", "s: fp32[1,4,8,8] = matmul(x, x, transpose_y=True)", "s: fp32[1,4,8,8] = reshape(x)"),
    ("LR3", "p = softmax(s, axis=2)", "p = relu(s)"),
    ("LR7", "matmul(x, x, transpose_y=True)", "linear(x, x, transpose_y=True)"),
    ("LR7", "y: fp32[1,4,8,8] = matmul(x, x", "w = const fp32[1,4,8,8]; y = matmul(x, w"),
    # control
    ("TR17", "o = or(a, b)", "o = and(a, b)"),
    ("TR17", "o = or(a, b); y: fp32[4] = cast(o)", "y: int32[] = reduce_sum(a)"),
    ("LR2", "z = input fp32[1,1,16,16]; y: fp32[1,20,16,16]", "z = input fp32[16]; y"),
    ("LR2", "x = input fp32[20,16,16]", "x = const fp32[20,16,16]"),
    ("LR2", "add(x, z)", "concat(x, z)"),
    ("CA3", "fp16", "fp32"),
    ("CA3", "a = linear(x, w)", "a = relu(x)"),
    ("CA3", "y = hardswish(a)", "y = hardsigmoid(a)"),
    ("CA3", "y = hardswish(a)", "h = hardsigmoid(a); y = mul(h, x)"),
    ("CA3", "y = hardswish(a)", "h = hardsigmoid(a); y = add(h, a)"),
    ("TR10", "b = cumsum(x, axis=1)", "b = cumsum(x, axis=-2)"),
    # convolutions
    ("CM10", "v = const fp16[8,8,1,1]", "v = const fp16[8,8,3,3]"),
    ("CM10", "groups=16", "groups=8"),
    ("CM10", "c: fp16[1,16,9,1] = concat(a, b, axis=1)", "c: fp16[1,16,9,1] = concat(a, x, axis=1)"),
    ("CM10", "c: fp16[1,16,9,1] = concat(a, b, axis=1)", "c: fp16[1,16,9,1] = add(a, b)"),
    ("CM21", "count_padding=True", "count_padding=False"),
    ("OR6", "count_padding=True", "count_padding=False"),
    ("OR6", "pads=[1,1,1,1]", "pads=[0,0,0,0]"),
    ("QN4", "ceil=True", "ceil=False"),
    ("CM22", "fp16[2,2,3,2]", "fp16[2,2,2,2]"),
    ("CM22", "fp16[2,2,3,2]", "fp16[2,2,3,1]"),
    ("CM22", "strides=[2,2]", "strides=[1,1]"),
    ("CM22", "pads=[1,1,1,1]", "pads=[0,0,0,0]"),
    ("CM24", "dilations=[2]", "dilations=[1]"),
    ("CM24", "strides=[8]", "strides=[1]"),
    ("CM24", "groups=2", "groups=1"),
    ("CM26", "pads=[0,0,1024,0,0,1024]", "pads=[0,0,1000,0,0,1000]"),
    ("LR4", "fp32[1,16,8]", "fp32[1,1,16,8]"),
    ("LR4", "pads=[0,2,0,0,0,0]", "pads=[0,-2,0,0,0,0]"),
    ("TR11", "fp32", "fp16"),
    ("TR11", "fp32[64,3,14,14]", "fp32[64,3,7,7]"),
    ("TR11", "strides=[14,14]", "strides=[7,7]"),
    ("OR9", "fp32[4,3,2,2]", "fp32[4,3,3,3]"),
    ("OR9", "pads=[0,0,1,1]", "pads=[1,1,0,0]"),
    ("OR9", "pads=[0,0,1,1]", "pads=[0,0,1,1], strides=[2,2]"),
    ("TR8", "fp16", "fp32"),
    ("TR8", "r = relu(c)", "r = softmax(c)"),
    ("TR8", "a: fp16[1,4,8,8], b: fp16[1,4,8,8] = split(x, axis=1)", "a = input fp16[1,4,8,8]; b = relu(a)"),
    ("TR9", "t: fp32[4,1,31,19] = transpose(x, perm=[0,1,3,2])", "t: fp32[4,1,31,19] = reshape(x)"),
    ("TR9", "x: fp32[4,1,19,31] = if(c)", "x = input fp32[4,1,19,31]"),
    ("TR5", "y = add(a, b)", "y = add(a, x)"),
    ("TR5", "y = add(a, b)", "r = relu(x); y = add(a, r)"),
    ("TR5", "y = add(a, b)", "y = concat(a, b, axis=1)"),
    ("TR6", "mode='linear'", "mode='cubic'"),
    ("TR6", "opset=20", "opset=19"),
    ("TR7", "fp16", "fp32"),
    # indexing
    ("CM8", "fp16", "fp32"),
    ("CM8", "x = input fp16[1,8,64]", "x = const fp16[1,8,64]"),
    ("CM8", "axes=[2]", "axes=[1]"),
    ("CM9", "i = const int32[3] 5 9 2", "i = input int32[3]"),
    ("CM9", "i = const int32[3] 5 9 2", "i = const int32[] 5"),
    ("CM9", "x = input fp16[1,8,64]", "x = const fp16[1,8,64]"),
    ("CM20", "int16", "int64"),
    ("CM20", "x = input int32[8]", "x = input int64[8]"),
    ("CM20", "x = input int32[8]", "x = const int32[8]"),
    ("CM20", "gather(n, i, axis=0)", "add(n, i)"),
    ("CM20", "gather(n, i, axis=0)", "gather(x, n, axis=0)"),
    ("CA1", "axis=1", "axis=3"),
    ("CA1", "[1,19,64,64]", "[1,1,64,64]"),
    ("CA1", "return i", "m: fp32[1,64,64] = cast(i); y = relu(m); return y"),
    ("CA2", "fp16", "fp32"),
    ("CA2", "v: fp16[1,50], i: int32[1,50] = topk(s, axis=1)", "i: int32[1,50] = relu(s)"),
    ("CM19", "i = input int32[2,1]", "j = const int32[2,1]; i = add(j, j)"),
    # norms
    ("OR2", "y = div(d, r)", "s = reciprocal(r); y = mul(d, s)"),
    ("OR2", "d = sub(x, m)", "d = add(x, m)"),
    ("OR2", "q = mul(d, d)", "q = mul(d, x)"),
    ("OR3", "g = const fp32[1] 2", "g = input fp32[1]"),
    ("OR3", "g = const fp32[1] 2", "g = const fp32[1,4]"),
    ("OR3", "n = div(d, r)", "i = reciprocal(r); n = mul(d, i)"),
    ("OR3", "h = mul(n, g)", "h = sub(n, g)"),
    ("TR14", "y = div(d, r)", "y = div(x, r)"),
    ("TR14", "d = sub(x, m)", "d = sub(m, x)"),
    ("TR14", "q = mul(d, d)", "t = const fp16[] 3; q = pow(d, t)"),
    ("TR14", "r = sqrt(a)", "r = exp(a)"),
    ("CM29", "m: fp16[1,1] = reduce_max(a, axes=[1])", "m: fp16[1,1] = reduce_mean(a, axes=[1])"),
    ("CM29", "u = div(x, m)", "u = mul(x, m)"),
    ("CM29", "w = add(v, e)", "w = mul(v, e)"),
    ("CM29", "e = const fp16[] 0.001", "e = const fp16[] 0"),
    ("OR10", "z = input fp16[1,8,64]", "z = const fp16[1,8,64]"),
    ("OR10", "a = add(x, z)", "a = mul(x, z)"),
    # quantised
    ("OR1", "conv(a, b, d)", "conv(a, b)"),
    ("OR1", "d: fp32[4] = dequantize(c, u, zc)", "d = const fp32[4]"),
    ("OR1", "s = const fp32[] 0.5", "s = input fp32[]"),
    ("OR5", "x = input uint8[1,4]", "x = input int8[1,4]"),
    ("OR5", "w = const int8[4,1] -81 100 3 4", "w = const uint8[4,1] 81 100 3 4"),
    ("OR5", "w = const int8[4,1] -81 100 3 4", "w = input int8[4,1]"),
    ("OR5", "a: fp32[1,4] = dequantize(x, s, z)", "a = input fp32[1,4]"),
    ("TR18", "y = conv(d, w)", "y = conv(x, w)"),
    ("QN1", "hardsigmoid", "relu"),
    ("QN1", "z = const uint8[] 0; y: uint8[1,8] = quantize(a, s, z)", "y = mul(a, s)"),
    ("QN1", "s = const fp32[] 0.01", "s = input fp32[]"),
    ("QN5", "x = input fp32[1,8]", "x = const fp32[1,8]"),
    ("QN2", "w: fp32[4] = dequantize(g, s, z, axis=0)", "w = const fp32[4]"),
    ("CA6", "a: fp16[1,8] = dequantize(x, s, z)", "a = input fp16[1,8]"),
    ("CA6", "t = const fp16[] 0.125", "t = input fp16[]"),
    # ranges
    ("CM1", "y = softplus(x)", "c = clip(x, max=10.0); y = softplus(c)"),
    ("CM1", "fp16", "fp32"),
    ("CM2", "t = tanh(s)", "t = relu(s)"),
    ("CM3", "fp16", "fp32"),
    ("CM4", "fp16", "fp32"),
    ("CM4", "s = softmax(x, axis=1)", "s = sigmoid(x)"),
    ("CM5", "fp16", "fp32"),
    ("CM5", "e = exp(x)", "e = relu(x)"),
    ("CM5", "s = cumsum(e, axis=1)", "s = relu(e)"),
    ("CM6", "fp16[1,1,4] 0 0 -inf -inf", "int32[1,1,4] 0 0 -70000 -70000"),
    ("CM6", "a = add(x, m)", "a = mul(x, m)"),
    ("CM7", "c = const fp16[] 0.125", "c = const fp16[] 2"),
    ("CM7", "c = const fp16[] 0.125", "c = input fp16[]"),
    ("CM7", "y = mul(s, c)", "y = add(s, c)"),
    ("CM7", "k = input fp16[1,8,64]", "k = const fp16[1,8,64]"),
    ("CM7", "q = input fp16[1,8,64]; k = input", "q = const fp16[1,8,64]; k = const"),
    ("CM11", "fp16", "fp32"),
    ("LR5", "axes=[2,3]", "axes=[1]"),
    ("LR5", "reduce_mean", "reduce_max"),
    ("LR9", "q = mul(x, x)", "q = relu(x)"),
    ("LR9", "q = mul(x, x)", "z = input fp32[1,8,2048]; q = mul(x, z)"),
    ("LR9", "q = mul(x, x)", "t = const fp32[] 3; q = pow(x, t)"),
    # states
    ("CM18", "270", "288"),
    ("CM28", "return n", "r = relu(n); return r"),
    ("CA7", "p = input int32[3]", "j = const int32[3]; p = add(j, j)"),
    ("CM17", "fp16[1,1,16,1]", "fp16[1,1,256,1]"),
    ("LR6", "y = relu(a)", "y = relu(x)"),
    ("LR6", "a = add(x, z)", "a = mul(x, z)"),
    ("TR20", "y = add(b, z)", "y = add(x, z)"),
    ("TR20", "y = add(b, z)", "y = softmax(b)"),
    ("TR20", "b = add(a, x)", "b = softmax(a)"),
    ("TR20", "a = mul(x, z)", "a = softmax(x)"),
    # weights
    ("CM15", "w: fp16[64,64] = lut_weights(i, t)", "w = const fp16[64,64]"),
    ("CM15", "fp16[1,1,16,1]", "fp16[8,1,16,1]"),
    ("CM16", "l: fp16[64,64] = lut_weights(i, t)", "l = const fp16[64,64]"),
    ("CA5", "l: fp16[64,64,1,1] = lut_weights(i, t)", "l = const int8[64,64,1,1]"),
    ("CA4", "int8", "int4"),
    (
        "CA4",
        "d = const int8[64,64]",
        "i = const uint4[64,64]; t = const fp16[1,1,16,1]; d: int8[64,64] = lut_weights(i, t)",
    ),
    ("LR8", "w = const int8[8,8]", "w = const int4[8,8]"),
    ("LR8", "d: fp32[8,8] = dequantize(w, s, z)", "d: fp32[8,8] = cast(w)"),
]
"""Row, and what of its own graph becomes what: no longer the construct."""

FOUND: list[tuple[str, str, str]] = [
    (
        "CM14",
        "t = transpose(p, perm=[0,2,1]); y: fp16[1,16,8] = matmul(v, t)",
        "y: fp16[1,16,8] = matmul(v, p, transpose_y=True)",
    ),
    ("TR2", "p = softmax(s, axis=2); y: fp16[2,128,64] = matmul(p, v)", "y = attention(q, k, v)"),
    ("OR7", "return y, k, v", "r = relu(k); return y, r"),
    ("TR4", "w = const fp32[64,64]", "i = const fp32[64,64]; w = add(i, i)"),
    ("LR1", "m = input fp32[1,1,8,8]", "m = const fp32[1,1,8,8]"),
    ("LR1", "m = input fp32[1,1,8,8]", "m = input fp32[8]"),
    ("LR2", "x = input fp32[20,16,16]", "x = const int32[20,16,16]"),
    ("TR17", "o = or(a, b); y: fp32[4] = cast(o)", "y: fp32[] = reduce_sum(a)"),
    ("TR17", "o = or(a, b); y: fp32[4] = cast(o)", "y: fp32[4] = mean(a, b)"),
    ("CA3", "y = hardswish(a)", "h = hardsigmoid(a); y = mul(h, a)"),
    ("OR6", "pads=[1,1,1,1]", "pads=[0,0,1,1]"),
    ("QN4", "max_pool(a,", "max_pool(x,"),
    ("CM23", "pads=[1,0]", "pads=[1,1], output_shape=[33], given_shape=True"),
    ("TR5", "y = add(a, b)", "c: fp32[1,8,8,8] = concat(a, b, axis=1); y: fp32[1,1,8,8] = reduce_sum(c, axes=[1])"),
    ("CM9", "gather(x, i, axis=2)", "gather(x, i, axis=-1)"),
    ("CA1", "return i", "m: fp32[1,64,64] = cast(i); return m"),
    (
        "OR3",
        "g = const fp32[1] 2; h = mul(n, g); b = const fp32[4]",
        "g = const fp32[4]; h = mul(n, g); b = const fp32[1]",
    ),
    ("TR14", "q = mul(d, d)", "q = square(d)"),
    ("TR14", "q = mul(d, d)", "t = const fp16[] 2; q = pow(d, t)"),
    ("TR14", "r = sqrt(a); y = div(d, r)", "r = rsqrt(a); y = mul(d, r)"),
    ("TR14", "y = div(d, r)", "i = reciprocal(r); y = mul(d, i)"),
    ("QN1", "s = const fp32[] 0.01; z = const uint8[] 0", "s = const fp32[] 0.00390625; z = const uint8[] 128"),
    ("CM1", "y = softplus(x)", "c = const fp16[] 20; m = min(x, c); y = softplus(m)"),
    ("CM7", "y = mul(s, c)", "t: fp16[1,8,8] = reshape(s); y = mul(t, c)"),
    ("LR5", "reduce_mean(x, axes=[2,3], keep_dims=True)", "global_avg_pool(x)"),
    ("LR9", "q = mul(x, x)", "t = const fp32[] 2; q = pow(x, t)"),
    ("LR9", "q = mul(x, x)", "q = square(x)"),
    ("CM28", "return n", "r: fp16[32] = reshape(n); return r"),
]
"""Row, and what of its own graph becomes what: the construct all the same."""

POWER = (
    "x = input fp16[4,64]; w = const fp16[64,64]; v = const fp16[64,64]; a = matmul(x, w); b = matmul(x, v);"
    " p = square(a); q = mul(b, b); s = add(p, q); c = const fp16[] 0.01; y = mul(s, c); return y"
)
ATTENTION = (
    "q = input fp16[10,8,16]; k = input fp16[10,8,16]; s: fp16[10,8,8] = matmul(q, k, transpose_y=True);"
    " m = const fp16[8,8]; a = add(s, m); p = softmax(a, axis=2)"
)
MIXED = (
    "x = input fp16[1,8]; w = const int8[8,8]; s = const fp16[] 0.1; z = const int8[] 0;"
    " d: fp16[8,8] = dequantize(w, s, z); y = matmul(x, d); return y"
)
PARTS = (
    "x = input fp16[1,8,64]; a: fp16[1,8,8] = slice(x, axes=[2], begin=[8]); b: fp16[1,8,8] = slice(x, axes=[2],"
    " begin=[40]); y: fp16[1,8,16] = concat(a, b, axis=2); return y"
)
ROW = "model(); x = input fp16[1,64]; m: fp16[1,1] = reduce_max(x, axes=[1])"

WHOLE: list[tuple[str, str, bool]] = [
    ("CM7", POWER, True),
    ("CM7", POWER.replace("fp16[] 0.01", "fp16[] 2"), False),
    ("CM7", POWER.replace("square(a)", "relu(a)").replace("mul(b, b)", "relu(b)"), False),
    ("CM7", POWER.replace("fp16", "fp32"), False),
    ("CM7", POWER.replace("s = add(p, q)", "s = max(p, q)"), False),
    ("CM12", f"{ATTENTION}; y: fp16[10,8,16] = attention(p, k, k); return y", False),
    ("QN5", MIXED, True),
    ("QN5", MIXED.replace("fp16", "fp32"), False),
    ("QN5", MIXED.replace("const int8[8,8]", "const uint8[8,8]"), False),
    (
        "QN5",
        MIXED.replace(
            "x = input fp16[1,8]",
            "i = input uint8[1,8]; t = const fp16[] 1; o = const uint8[] 1; x: fp16[1,8] = dequantize(i, t, o)",
        ),
        False,
    ),
    ("CM9", PARTS, True),
    ("CM9", PARTS.replace("concat(a, b, axis=2)", "concat(a, b, axis=1)"), False),
    ("CM9", PARTS.replace("begin=[40]", "begin=[0]"), False),
    ("CM9", PARTS.replace("b: fp16[1,8,8] = slice(x", "z = input fp16[1,8,64]; b: fp16[1,8,8] = slice(z"), False),
    ("CM3", f"{ROW}; d = sub(x, m); y: fp16[1] = log_sum_exp(d, axes=[1]); return y", False),
    ("CM3", f"{ROW}; d = add(x, m); y: fp16[1] = log_sum_exp(d, axes=[1]); return y", True),
    ("CM3", f"{ROW}; n = relu(x); d = sub(x, n); y: fp16[1] = log_sum_exp(d, axes=[1]); return y", True),
    (
        "CM23",
        "x = input fp16[1,8,16]; w = const fp16[8,8,4]; y: fp16[1,8,32] = conv_transpose(x, w, strides=[2],"
        " pads=[1,1], output_shape=[32], given_shape=False); return y",
        False,
    ),
    (
        "CA11",
        "x = input fp32[1,4,8,8]; w = const fp32[4,4,2,2]; y: fp32[1,4,128,8] = conv_transpose(x, w,"
        " strides=[16,1], pads=[0,0,0,0]); return y",
        False,
    ),
    (
        "CA11",
        "x = input fp32[1,4,8,1]; w = const fp32[4,4,2,1]; y: fp32[1,4,128,1] = conv_transpose(x, w,"
        " strides=[16,1], pads=[0,0,0,0]); return y",
        True,
    ),
    (
        "CA11",
        "x = input fp32[1,4,8,8]; w = const fp32[4,4,2,2]; y: fp32[1,4,128,128] = conv_transpose(x, w,"
        " strides=[16,16], pads=[0,0,0,0]); return y",
        False,
    ),
    ("QN4", "x = input fp32[1,4,9,9]; y: fp32[1,4,5,5] = max_pool(x, kernel=[2,2], ceil=True); return y", False),
    ("LR5", "x = input fp32[1,8,14,14]; y: fp32[1,8,1,1] = global_avg_pool(x); return y", False),
    ("LR5", "x = input fp32[80,80]; y: fp32[] = reduce_sum(x); return y", True),
    ("LR5", "x = input fp32[?,80]; y: fp32[] = reduce_sum(x); return y", False),
    ("TR17", "x = input int32[4]; y: int32[] = reduce_sum(x); return y", False),
    ("TR17", "x = input fp32[4]; y: fp32[1] = reduce_sum(x); return y", False),
    (
        "CM24",
        "x = input fp16[1,4,11,11]; w = const fp16[4,2,6,6]; y: fp16[1,4,1,1] = conv(x, w, strides=[8,8],"
        " dilations=[2,2], groups=2); return y",
        False,
    ),
    ("OR7", "x = input fp16[1,4,8,16]; y: fp16[1,4,8,16], k: fp16[1,4,8,16] = split(x); return y, k", False),
]
"""Row, a whole graph, and whether its construct is there."""


def edited(row: str, old: str, new: str) -> str:
    graph = ROWS[row].found or ""
    assert old in graph, f"{row} has no {old}"
    return graph.replace(old, new)


@pytest.mark.parametrize(("row", "old", "new"), LEFT, ids=[f"{one[0]}-{i}" for i, one in enumerate(LEFT)])
def test_one_edit_of_a_rows_own_graph_is_left(row: str, old: str, new: str) -> None:
    assert find(ROWS[row], read_graph(edited(row, old, new))) == []


@pytest.mark.parametrize(("row", "old", "new"), FOUND, ids=[f"{one[0]}-{i}" for i, one in enumerate(FOUND)])
def test_another_spelling_of_a_rows_own_graph_is_found(row: str, old: str, new: str) -> None:
    assert find(ROWS[row], read_graph(edited(row, old, new)))


@pytest.mark.parametrize(("row", "graph", "found"), WHOLE, ids=[f"{one[0]}-{i}" for i, one in enumerate(WHOLE)])
def test_whole_graphs(row: str, graph: str, found: bool) -> None:
    assert bool(find(ROWS[row], read_graph(graph))) == found
