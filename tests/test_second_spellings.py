"""Each construct of the book in a second spelling, and another near miss: a detector knows a construct, and no text.

The book has one of each, made for its page. These are as other converters, opsets and authors write them: operands
exchanged, axes counted from behind, views and casts between, functions in primitives, more or fewer axes.
"""

from __future__ import annotations

import re

import pytest

from edgesmith.exporters.departures import book
from edgesmith.exporters.departures.detectors import all_detectors
from edgesmith.exporters.departures.notation import read_graph

SPELLINGS = {
    "CM1": (
        "x = input fp16[1,8]; e = exp(x); o = const fp16[] 1; a = add(e, o); y = log(a); return y",
        "x = input fp16[1,8]; s = sigmoid(x); y = softplus(s); return y",
    ),
    "CM1b": (
        "x = input fp16[1,8]; c = const fp16[] 20; m = min(x, c); y = softplus(m); return y",
        (
            "x = input fp16[1,8]; c = const fp16[] 10; m = min(x, c); f = const fp16[] -10; z = max(m, f); "
            "y = softplus(z); return y"
        ),
    ),
    "CM2": (
        (
            "x = input fp16[1,8]; e = exp(x); o = const fp16[] 1; a = add(o, e); s = log(a); r = reshape(s); "
            "t = tanh(r); y = mul(t, x); return y"
        ),
        (
            "x = input fp16[1,8]; c = const fp16[] 10; m = min(c, x); s = softplus(m); t = tanh(s); "
            "y = mul(x, t); return y"
        ),
    ),
    "CM3": (
        "x = input fp16[1,32]; e = exp(x); s: fp16[1,1] = reduce_sum(e, axes=[-1]); y = log(s); return y",
        (
            "x = input fp16[1,32]; m: fp16[1,1] = reduce_max(x, axes=[1]); n = neg(m); d = add(x, n); "
            "e = exp(d); s: fp16[1,1] = reduce_sum(e, axes=[1]); y = log(s); return y"
        ),
    ),
    "CM4": (
        (
            "x = input fp16[1,10]; m: fp16[1,1] = reduce_max(x, axes=[1]); d = sub(x, m); e = exp(d); "
            "s: fp16[1,1] = reduce_sum(e, axes=[1]); p = div(e, s); r: fp16[10] = reshape(p); y = log(r); "
            "return y"
        ),
        (
            "x = input fp16[1,10]; m: fp16[1,1] = reduce_max(x, axes=[1]); d = sub(x, m); e = exp(d); "
            "s: fp16[1,1] = reduce_sum(e, axes=[1]); l = log(s); y = sub(d, l); return y"
        ),
    ),
    "CM4b": (
        (
            "x = input fp16[1,10]; p = softmax(x, axis=1); "
            "g: fp16[1,2] = slice(p, axes=[1], begin=[0], end=[2]); y = log(g); return y"
        ),
        "x = input fp32[1,10]; p = softmax(x, axis=1); y = log(p); return y",
    ),
    "CM5": (
        (
            "x = input fp16[64,1]; e = exp(x); r: fp16[1,64] = reshape(e); s = cumsum(r, axis=1); "
            "t: fp16[64,1] = transpose(s, perm=[1,0]); y = log(t); return y"
        ),
        (
            "x = input fp16[1,64]; m: fp16[1,1] = reduce_max(x, axes=[1]); n = neg(m); d = add(n, x); "
            "e = exp(d); s = cumsum(e, axis=1); y = log(s); return y"
        ),
    ),
    "CM6": (
        (
            "x = input fp16[1,4,4]; c = input bool[1,1,4]; n = const fp16[] -inf; a = select(c, x, n); "
            "b = const fp16[1,4,4]; d = add(a, b); y = softmax(d, axis=2); return y"
        ),
        (
            "x = input fp16[1,4,4]; c = input bool[1,1,4]; n = const fp16[] -10000; a = select(c, x, n); "
            "b = const fp16[1,4,4]; d = add(a, b); y = softmax(d, axis=2); return y"
        ),
    ),
    "CM6b": (
        (
            "x = input fp16[1,4,4]; m = input fp16[1,1,4]; o = const fp16[] 1; k = sub(o, m); "
            "n = const fp32[] -1e9; l = mul(k, n); d = add(x, l); y = softmax(d, axis=2); return y"
        ),
        (
            "x = input fp16[1,4,4]; m = input fp16[1,1,4]; o = const fp16[] 1; k = sub(o, m); "
            "n = const fp32[] -10000; l = mul(k, n); d = add(x, l); y = softmax(d, axis=2); return y"
        ),
    ),
    "CM7": (
        (
            "q = input fp16[1,8,64]; k = input fp16[1,64,8]; s: fp16[1,8,8] = matmul(q, k); n = const fp16[] 64; "
            "r = sqrt(n); y = div(s, r); return y"
        ),
        (
            "q = input fp16[1,8,64]; k = input fp16[1,64,8]; n = const fp16[] 64; r = sqrt(n); u = div(q, r); "
            "y: fp16[1,8,8] = matmul(u, k); return y"
        ),
    ),
    "CM7b": (
        (
            "x = input fp16[1,64]; w = const fp16[64,64]; v = const fp16[64,64]; a = matmul(x, w); "
            "b = matmul(x, v); p = mul(a, a); q = mul(b, b); s = add(p, q); c = const fp16[] 0.01; "
            "y = mul(s, c); return y"
        ),
        (
            "x = input fp16[1,64]; w = const fp16[64,64]; a = matmul(x, w); c = const fp16[] 0.01; "
            "y = mul(a, c); return y"
        ),
    ),
    "CM8": (
        "x = input fp16[1,8,64]; y: fp16[1,8,32] = slice(x, axes=[-1], begin=[-32], end=[64]); return y",
        "x = input fp16[1,8,64]; y: fp16[1,4,64] = slice(x, axes=[1], begin=[4], end=[8]); return y",
    ),
    "CM9": (
        (
            "x = input fp16[1,8,64]; a: fp16[1,8,1] = slice(x, axes=[2], begin=[5], end=[6]); "
            "p: fp16[1,8] = squeeze(a); b: fp16[1,8,1] = slice(x, axes=[2], begin=[2], end=[3]); "
            "q: fp16[1,8] = squeeze(b); y: fp16[1,8,2] = stack(p, q, axis=2); return y"
        ),
        (
            "x = input fp16[1,8,64]; a: fp16[1,1,64] = slice(x, axes=[1], begin=[5], end=[6]); "
            "b: fp16[1,1,64] = slice(x, axes=[1], begin=[2], end=[3]); y: fp16[1,2,64] = concat(a, b, axis=1); "
            "return y"
        ),
    ),
    "CM10": (
        (
            "x = input fp16[1,8,9]; z = input fp16[1,4,9]; v = const fp16[8,8,1]; w = const fp16[8,4,1]; "
            "a: fp16[1,8,9] = conv(x, v); b: fp16[1,8,9] = conv(z, w); c: fp16[1,16,9] = concat(a, b, axis=1); "
            "e: fp16[1,16,9,1] = expand_dims(c); d = const fp16[16,1,5,1]; "
            "y: fp16[1,16,5,1] = conv(e, d, groups=16); return y"
        ),
        (
            "x = input fp16[1,8,9,1]; z = input fp16[1,4,9,1]; v = const fp16[8,8,3,1]; w = const fp16[8,4,3,1]; "
            "a: fp16[1,8,9,1] = conv(x, v, pads=[1,0,1,0]); b: fp16[1,8,9,1] = conv(z, w, pads=[1,0,1,0]); "
            "c: fp16[1,16,9,1] = concat(a, b, axis=1); d = const fp16[16,1,5,1]; "
            "y: fp16[1,16,5,1] = conv(c, d, groups=16); return y"
        ),
    ),
    "CM11": (
        (
            "x = input fp16[1,8]; w = const fp16[8,8]; a = linear(x, w); b = linear(a, w); "
            "c = softmax(b, axis=1); y: fp32[1,8] = cast(c); z: fp32[1,8] = cast(b); return y, z"
        ),
        "x = input fp32[1,8]; a = relu(x); b = relu(a); c = relu(b); return c",
    ),
    "CM12": (
        (
            "q = input fp16[12,2,8,16]; k = input fp16[12,2,16,8]; v = input fp16[12,2,8,16]; "
            "s: fp16[12,2,8,8] = matmul(q, k); c = const fp16[] 0.25; t = mul(s, c); m = input fp16[12,1,8,8]; "
            "a = add(m, t); p = softmax(a, axis=-1); y: fp16[12,2,8,16] = matmul(p, v); "
            "r: fp16[12,8,2,16] = transpose(y, perm=[0,2,1,3]); f: fp16[12,8,32] = reshape(r); "
            "w = const fp16[32,32]; z: fp16[12,8,32] = matmul(f, w); return z"
        ),
        (
            "q = input fp16[12,2,8,16]; k = input fp16[12,2,16,8]; v = input fp16[12,2,8,16]; "
            "s: fp16[12,2,8,8] = matmul(q, k); p = softmax(s, axis=-1); y: fp16[12,2,8,16] = matmul(p, v); "
            "r: fp16[12,8,2,16] = transpose(y, perm=[0,2,1,3]); f: fp16[12,8,32] = reshape(r); "
            "w = const fp16[32,32]; z: fp16[12,8,32] = matmul(f, w); return z"
        ),
    ),
    "CM13": (
        (
            "x = input fp16[2,8,4]; w = const fp16[512,4]; q: fp16[2,8,512] = linear(x, w); "
            "k = input fp16[2,8,512]; y = attention(q, k, k); return y"
        ),
        "x = input fp16[1,2,1,512]; q = relu(x); y = attention(q, x, x); return y",
    ),
    "CM14": (
        (
            "v = input fp16[1,16,8]; s = input fp16[1,8,8]; p = softmax(s, axis=2); "
            "y: fp16[1,16,8] = matmul(v, p, transpose_y=True); return y"
        ),
        (
            "v = input fp16[1,16,8]; s = input fp16[1,8,8]; p = softmax(s, axis=1); "
            "y: fp16[1,16,8] = matmul(v, p); return y"
        ),
    ),
    "CM15": (
        (
            "x = input fp16[1,64]; i = const uint4[64,64]; t = const fp16[16]; "
            "l: fp16[64,64] = lut_weights(i, t); w: fp16[64,64] = transpose(l, perm=[1,0]); y = matmul(x, w); "
            "return y"
        ),
        (
            "x = input fp16[1,64]; i = const uint4[64,64]; t = const fp16[8,1,16,1]; "
            "w: fp16[64,64] = lut_weights(i, t); y = linear(x, w); return y"
        ),
    ),
    "CM16": (
        (
            "x = input fp16[1,64,8,8]; i = const uint8[64,64,1,1]; t = const fp16[1,1,1,1,256,1]; "
            "l: fp16[64,64,1,1] = lut_weights(i, t); s = const fp16[64,1,1,1]; "
            "w: fp16[64,64,1,1] = blockwise_weights(l, s); y = conv(x, w); return y"
        ),
        (
            "x = input fp16[1,64]; i = const uint4[64,64]; t = const fp16[1,1,16,1]; "
            "w: fp16[64,64] = lut_weights(i, t); y = linear(x, w); return y"
        ),
    ),
    "CM17": (
        (
            "x = input fp16[1,64,8,8]; s = state fp16[1,64,8,8]; i = const uint4[64,64,1,1]; "
            "t = const fp16[1,1,1,1,16,1]; w: fp16[64,64,1,1] = lut_weights(i, t); a = conv(x, w); "
            "b = read_state(s); y = add(a, b); u = update_state(s, y); return a"
        ),
        (
            "x = input fp16[1,64]; s = state fp16[1,64]; i = const uint8[64,64]; t = const fp16[1,1,256,1]; "
            "w: fp16[64,64] = lut_weights(i, t); a = linear(x, w); b = read_state(s); y = add(a, b); return y"
        ),
    ),
    "CM18": (
        (
            "x = input fp16[1,4,33]; s = state fp16[1,4,33]; t = state fp16[1,64]; b = read_state(s); "
            "y = add(x, b); return y"
        ),
        "x = input fp16[1,33,32]; s = state fp16[1,33,32]; b = read_state(s); y = add(x, b); return y",
    ),
    "CM19": (
        (
            "x = input fp16[4,8]; i = input int32[2,1]; o = const int32[] 1; j = add(i, o); k = cast(j); "
            "y: fp16[2,8] = gather_nd(x, k); return y"
        ),
        (
            "x = input fp16[4,8]; i = const int32[2,1] 0 1; o = const int32[] 1; j = add(i, o); "
            "y: fp16[2,8] = gather_nd(x, j); return y"
        ),
    ),
    "CM20": (
        (
            "x = input int32[8]; n: int16[8] = cast(x); r: int16[2,4] = reshape(n); "
            "v: int16[2,2], i: int16[2,2] = topk(r, axis=1); return v"
        ),
        (
            "x = input int32[8]; n: fp16[8] = cast(x); i = const int32[2] 1 2; "
            "y: fp16[2] = gather(n, i, axis=0); return y"
        ),
    ),
    "CM21": (
        (
            "x = input fp32[1,8,32]; "
            "y: fp32[1,8,8] = avg_pool(x, kernel=[8], strides=[4], pads=[2,2], count_padding=True); return y"
        ),
        (
            "x = input fp16[1,8,28,28]; "
            "y: fp16[1,8,7,7] = avg_pool(x, kernel=[7,7], strides=[4,4], pads=[3,3,3,3], count_padding=False); "
            "return y"
        ),
    ),
    "CM22": (
        (
            "x = input fp16[1,2,6,6]; w = const fp16[2,2,2,5]; "
            "y: fp16[1,2,3,3] = conv(x, w, strides=[2,3], pads=[0,2,1,2]); return y"
        ),
        (
            "x = input fp16[1,2,5,5]; w = const fp16[2,2,3,2]; "
            "y: fp16[1,2,2,2] = conv(x, w, strides=[2,2], pads=[0,0,0,0]); return y"
        ),
    ),
    "CM23": (
        (
            "x = input fp32[1,8,16,16]; w = const fp32[8,8,4,4]; "
            "y: fp32[1,8,33,33] = conv_transpose(x, w, strides=[2,2], pads=[1,1,1,1], "
            "output_shape=[33,33], given_shape=True); "
            "return y"
        ),
        (
            "x = input fp32[1,8,16,16]; w = const fp32[8,8,4,4]; "
            "y: fp32[1,8,32,32] = conv_transpose(x, w, strides=[2,2], pads=[1,1,1,1]); return y"
        ),
    ),
    "CM24": (
        (
            "x = input fp16[1,4,1,11]; w = const fp16[4,2,1,6]; "
            "y: fp16[1,4,1,1] = conv(x, w, strides=[1,8], dilations=[1,2], groups=2, pads=[0,0,0,0]); return y"
        ),
        (
            "x = input fp16[1,4,11]; w = const fp16[4,4,6]; "
            "y: fp16[1,4,1] = conv(x, w, strides=[8], dilations=[2], groups=1, pads=[0,0]); return y"
        ),
    ),
    "CM26": (
        "x = input fp16[1,8000]; y: fp16[1,12000] = pad(x, pads=[0,2000,0,2000], mode='reflect'); return y",
        ("x = input fp32[1,1,8000]; y: fp32[1,1,8400] = pad(x, pads=[0,0,200,0,0,200], mode='reflect'); return y"),
    ),
    "CM28": (
        (
            "x = input fp16[1,32]; s = state fp16[1,32]; b = read_state(s); n = add(x, b); "
            "r: fp16[32] = reshape(n); c: fp32[32] = cast(r); u = update_state(s, n); return c"
        ),
        (
            "x = input fp16[1,32]; s = state fp16[1,32]; b = read_state(s); n = add(x, b); "
            "u = update_state(s, n); y = relu(x); return y"
        ),
    ),
    "CM29": (
        (
            "x = input fp16[1,64]; a = abs(x); m: fp16[1,1] = reduce_max(a, axes=[1]); i = reciprocal(m); "
            "u = mul(x, i); q = square(u); v: fp16[1,1] = reduce_mean(q, axes=[1]); e = const fp16[] 0.001; "
            "w = add(e, v); r = rsqrt(w); y = mul(u, r); return y"
        ),
        (
            "x = input fp16[1,64]; a = abs(x); m: fp16[1,1] = reduce_mean(a, axes=[1]); u = div(x, m); "
            "q = square(u); v: fp16[1,1] = reduce_mean(q, axes=[1]); e = const fp16[] 0.001; w = add(e, v); "
            "r = rsqrt(w); y = mul(u, r); return y"
        ),
    ),
    "CA1": (
        ("x = input fp16[1,64,64,19]; i: int32[1,64,64] = argmax(x, axis=-1); j: uint8[1,64,64] = cast(i); return j"),
        "x = input fp16[1,1,64,64]; i: int32[1,64,64] = argmax(x, axis=1); return i",
    ),
    "CA2": (
        (
            "x = input fp16[300,57]; s = input fp16[300]; v: fp16[50], i: int32[50] = topk(s, axis=0); "
            "e: int32[50,1] = expand_dims(i); y: fp16[50,57] = gather_nd(x, e); return y"
        ),
        (
            "x = input fp32[1,300,57]; s = input fp32[1,300]; v: fp32[1,50], i: int32[1,50] = topk(s, axis=1); "
            "y: fp32[1,50,57] = gather(x, i, axis=1); return y"
        ),
    ),
    "CA3": (
        (
            "x = input fp16[1,64]; w = const fp16[64,64]; a = matmul(x, w); b = const fp16[64]; c = add(a, b); "
            "k = const fp16[] 3; d = add(c, k); f = clip(d, min=0.0, max=6.0); g = const fp16[] 6; "
            "h = div(f, g); y = mul(c, h); return y"
        ),
        "x = input fp16[1,64]; w = const fp16[64,64]; a = linear(x, w); y = relu(a); return y",
    ),
    "CA4": (
        (
            "x = input fp16[1,64,8,8]; d = const uint8[64,64,1,1]; s = const fp16[64,4,1,1]; "
            "w: fp16[64,64,1,1] = blockwise_weights(d, s); y = conv(x, w); return y"
        ),
        (
            "x = input fp16[1,64]; d = const int4[64,64]; s = const fp16[64,2]; "
            "w: fp16[64,64] = blockwise_weights(d, s); y = linear(x, w); return y"
        ),
    ),
    "CA5": (
        (
            "x = input fp16[1,64]; i = const uint4[64,64]; t = const fp16[1,1,16,1]; "
            "l: fp16[64,64] = lut_weights(i, t); s = const fp16[64,4]; w: fp16[64,64] = blockwise_weights(l, s); "
            "y = linear(x, w); return y"
        ),
        (
            "x = input fp16[1,64]; i = const uint4[64,64]; t = const fp16[1,1,16,1]; "
            "l: fp16[64,64] = lut_weights(i, t); s = const fp16[64,1]; w: fp16[64,64] = blockwise_weights(l, s); "
            "y = linear(x, w); return y"
        ),
    ),
    "CA6": (
        (
            "x = input int8[1,8]; s = const fp16[] 0.0625; z = const int8[] 0; "
            "a: fp16[1,8] = dequantize(x, s, z); e: fp16[8] = reshape(a); b = input fp16[8]; "
            "m: fp16[8] = mul(b, e); n: fp16[1,8] = reshape(m); t = const fp16[] 0.5; "
            "y: int8[1,8] = quantize(n, t, z); return y"
        ),
        (
            "x = input int8[1,8]; s = const fp16[] 0.0625; z = const int8[] 0; "
            "a: fp16[1,8] = dequantize(x, s, z); b = input fp16[1,8]; m: fp16[1,8] = add(a, b); "
            "t = const fp16[] 0.5; y: int8[1,8] = quantize(m, t, z); return y"
        ),
    ),
    "CA7": (
        (
            "s = state fp16[1,64,8]; x = input fp16[1,1,8]; p = input int32[1]; z = const int32[1] 0; "
            "q: int32[3] = concat(z, p, z, axis=0); b = read_state(s); n = slice_update(b, x, q); "
            "u = update_state(s, n); y = mul(b, x); return y"
        ),
        (
            "s = state fp16[1,64,8]; x = input fp16[1,1,8]; z = const int32[1] 0; "
            "q: int32[3] = concat(z, z, z, axis=0); b = read_state(s); n = slice_update(b, x, q); "
            "u = update_state(s, n); y = mul(b, x); return y"
        ),
    ),
    "CA8": (
        "s = state fp16[1,4096,8,64]; x = input fp16[1,1,8,64]; b = read_state(s); y = mul(b, x); return y",
        "s = state fp16[1,8,64,2048]; x = input fp16[1,8,1,2048]; b = read_state(s); y = mul(b, x); return y",
    ),
    "CA9": (
        (
            "q = input fp16[1,2,8,64]; k = input fp16[1,2,64,8]; s: fp16[1,2,8,8] = matmul(q, k); "
            "r: fp16[2,8,8] = reshape(s); c = const fp16[] 0.125; y = mul(c, r); return y"
        ),
        (
            "q = input fp16[1,2,8,64]; k = input fp16[1,2,64,8]; s: fp16[1,2,8,8] = matmul(q, k); "
            "c = const fp16[] 2; y = mul(c, s); return y"
        ),
    ),
    "CA11": (
        (
            "x = input fp32[1,4,1,8]; w = const fp32[4,4,1,2]; "
            "y: fp32[1,4,1,72] = conv_transpose(x, w, strides=[1,10], pads=[0,0,0,0]); return y"
        ),
        (
            "x = input fp32[1,4,8,8]; w = const fp32[4,4,8,8]; "
            "y: fp32[1,4,64,64] = conv_transpose(x, w, strides=[8,8], pads=[0,0,0,0]); return y"
        ),
    ),
    "TR1": (
        (
            "x = input fp16[4,64,8]; t: fp16[4,8,64] = transpose(x, perm=[0,2,1]); "
            "m: fp16[4,8,8,8] = reshape(t); w = const fp16[8,8,4,4]; "
            "r: fp16[4,8,2,2] = conv(m, w, strides=[4,4]); f: fp16[4,8,4] = reshape(r); "
            "k: fp16[4,4,8] = transpose(f, perm=[0,2,1]); g = const fp16[8]; n = layer_norm(k, g, axes=[2]); "
            "l = const fp16[8,8]; kk = matmul(n, l); h: fp16[4,8,4] = transpose(kk, perm=[0,2,1]); "
            "s: fp16[4,64,4] = matmul(x, h); c = const fp16[] 0.3; d = mul(s, c); p = softmax(d, axis=2); "
            "y: fp16[4,64,8] = matmul(p, kk); return y"
        ),
        (
            "x = input fp32[2,8,8,8]; w = const fp32[8,8,1,1]; r: fp32[2,8,8,8] = conv(x, w, strides=[1,1]); "
            "k: fp32[2,8,64] = reshape(r); q: fp32[2,64,8] = reshape(x); s: fp32[2,64,64] = matmul(q, k); "
            "p = softmax(s, axis=2); v: fp32[2,64,8] = transpose(k, perm=[0,2,1]); "
            "y: fp32[2,64,8] = matmul(p, v); return y"
        ),
    ),
    "TR2": (
        (
            "x = input fp16[2,128,64]; w = const fp16[64,64]; r = reshape(x); q = linear(r, w); "
            "k = linear(r, w); v = linear(r, w); y = attention(q, k, v); return y"
        ),
        (
            "x = input fp16[2,128,64]; w = const fp16[192,64]; p: fp16[2,128,192] = linear(x, w); "
            "q: fp16[2,128,64], k: fp16[2,128,64], v: fp16[2,128,64] = split(p, axis=2); y = attention(q, k, v); "
            "return y"
        ),
    ),
    "TR3": (
        (
            "x = input fp16[1,16,64]; m: fp16[1,16,1] = reduce_mean(x, axes=[2], keep_dims=True); d = sub(x, m); "
            "q = mul(d, d); v: fp16[1,16,1] = reduce_mean(q, axes=[2], keep_dims=True); e = const fp16[] 0.001; "
            "a = add(v, e); r = sqrt(a); n = div(d, r); g = const fp16[64]; h = mul(n, g); b = const fp16[64]; "
            "o = add(h, b); w = const fp16[64,64]; k = matmul(o, w); l = matmul(o, w); y = mul(k, l); return y"
        ),
        (
            "x = input fp16[1,16,64]; n = relu(x); w = const fp16[64,64]; a = matmul(n, w); b = matmul(n, w); "
            "y = mul(a, b); return y"
        ),
    ),
    "TR4": (
        (
            "x = input fp16[1,1,64]; w = const fp16[64,64]; b = const fp16[64]; a = linear(x, w, b); "
            "s = sigmoid(a); m = mul(a, s); f: fp16[1,64] = reshape(m); y = matmul(f, w); return y"
        ),
        ("x = input fp32[1,64]; k = input fp32[64,64]; a = matmul(x, k); r = relu(a); y = matmul(r, k); return y"),
    ),
    "TR5": (
        (
            "x = input fp32[1,4,8,8]; g = input fp32[1,8,8,2]; h = input fp32[1,8,8,2]; a = grid_sample(x, g); "
            "b = grid_sample(x, h); c: fp32[1,4,8,16] = concat(a, b, axis=3); w = input fp32[1,1,8,16]; "
            "d = mul(c, w); y: fp32[1,4,8] = reduce_sum(d, axes=[3]); return y"
        ),
        "x = input fp32[1,4,8,8]; g = input fp32[1,8,8,2]; a = grid_sample(x, g); y = add(a, x); return y",
    ),
    "TR5b": (
        (
            "x = input fp32[1,4,8,8]; g = input fp32[1,8,8,2]; h = input fp32[1,8,8,2]; a = grid_sample(x, g); "
            "b = grid_sample(x, h); c = relu(a); d = add(c, x); y = add(d, b); return y"
        ),
        (
            "x = input fp32[1,4,8,8]; g = input fp32[1,8,8,2]; h = input fp32[1,8,8,2]; a = grid_sample(x, g); "
            "b = grid_sample(x, h); c: fp32[1,8,8,8] = concat(a, b, axis=1); w = const fp32[4,8,1,1]; return c"
        ),
    ),
    "TR6": (
        "model(opset=22); x = input fp32[1,4,8,8]; g = input fp32[1,8,8,2]; y = grid_sample(x, g); return y",
        (
            "model(opset=22); x = input fp32[1,4,8,8]; g = input fp32[1,8,8,2]; "
            "y = grid_sample(x, g, mode='nearest'); return y"
        ),
    ),
    "TR7": (
        (
            "x = input fp16[1,4,8,8]; w = const fp16[4,4,1,1]; r = conv(x, w); s = conv(r, w); t = conv(s, w); "
            "g = input fp32[1,8,8,2]; c: fp32[1,4,8,8] = cast(t); a = grid_sample(c, g); "
            "b: fp16[1,4,8,8] = cast(a); y = relu(b); return y"
        ),
        (
            "x = input fp32[1,4,8,8]; w = const fp32[4,4,1,1]; r = conv(x, w); g = input fp32[1,8,8,2]; "
            "a = grid_sample(r, g); return a"
        ),
    ),
    "TR8": (
        (
            "x = input fp16[1,8,8,8]; a: fp16[1,4,8,8] = slice(x, axes=[1], begin=[0], end=[4]); "
            "b: fp16[1,4,8,8] = slice(x, axes=[1], begin=[4], end=[8]); w = const fp16[4,4,3,3]; "
            "c = conv(b, w, pads=[1,1,1,1]); g = sigmoid(c); r = mul(c, g); s = add(r, b); "
            "y: fp16[1,12,8,8] = concat(a, b, s, axis=1); return y"
        ),
        (
            "x = input fp16[1,4,8,8]; w = const fp16[4,4,3,3]; c = conv(x, w, pads=[1,1,1,1]); r = relu(c); "
            "s = add(r, x); y: fp16[1,8,8,8] = concat(x, s, axis=1); return y"
        ),
    ),
    "TR8b": (
        (
            "x = input fp16[1,8,8,8]; a: fp16[1,4,8,8], b: fp16[1,4,8,8] = split(x, axis=1); "
            "w = const fp16[4,4,3,3]; u = conv(b, w, pads=[1,1,1,1]); v = relu(u); "
            "c = conv(v, w, pads=[1,1,1,1]); r = relu(c); s = add(b, r); i = identity(b); "
            "y: fp16[1,12,8,8] = concat(a, i, s, axis=1); return y"
        ),
        (
            "x = input fp32[1,8,8,8]; a: fp32[1,4,8,8], b: fp32[1,4,8,8] = split(x, axis=1); "
            "w = const fp32[4,4,3,3]; c = conv(b, w, pads=[1,1,1,1]); r = relu(c); s = add(b, r); "
            "y: fp32[1,12,8,8] = concat(a, b, s, axis=1); return y"
        ),
    ),
    "TR9": (
        (
            "c = input bool[]; x: fp32[4,1,19,31] = if(c); i = identity(x); "
            "t: fp32[4,1,31,19] = transpose(i, perm=[0,1,3,2]); k = cast(t); "
            "y: fp32[4,1,62,38] = resize(k, mode='cubic'); return y"
        ),
        "c = input bool[]; x: fp32[4,1,19,31] = if(c); y: fp32[4,1,38,62] = resize(x, mode='cubic'); return y",
    ),
    "TR10": (
        "x = input fp32[4,8]; a = cumsum(x, axis=1); b = cumsum(a, axis=1, reverse=True); return b",
        ("x = input fp32[4,8]; y = input fp32[4,8,2]; a = cumsum(x, axis=1); b = cumsum(y, axis=-2); return a, b"),
    ),
    "TR11": (
        (
            "x = input fp32[1,3,1024,1024]; w = const fp32[64,3,16,16]; b = const fp32[64]; "
            "y: fp32[1,64,64,64] = conv(x, w, b, strides=[16,16], pads=[0,0,0,0]); return y"
        ),
        (
            "x = input fp16[1,3,1008,1008]; w = const fp16[64,3,14,14]; "
            "y: fp16[1,64,72,72] = conv(x, w, strides=[14,14]); return y"
        ),
    ),
    "TR14": (
        (
            "x = input fp16[1,8,64]; m: fp16[1,8,1] = reduce_mean(x, axes=[-1], keep_dims=True); d = sub(x, m); "
            "t = const fp16[] 2; q = pow(d, t); v: fp16[1,8,1] = reduce_mean(q, axes=[-1], keep_dims=True); "
            "e = const fp16[] 0.001; a = add(e, v); r = rsqrt(a); y = mul(r, d); return y"
        ),
        "x = input fp16[1,8,64]; g = const fp16[64]; y = layer_norm(x, g, axes=[2]); return y",
    ),
    "TR14b": (
        (
            "x = input fp16[1,8,64]; m: fp16[1,8,1] = reduce_mean(x, axes=[2], keep_dims=True); d = sub(x, m); "
            "q = mul(d, d); v: fp16[1,8,1] = reduce_mean(q, axes=[2], keep_dims=True); e = const fp16[] 0.001; "
            "a = add(v, e); h = const fp16[] 0.5; r = pow(a, h); y = div(d, r); return y"
        ),
        (
            "x = input fp16[1,8,64]; c: fp32[1,8,64] = cast(x); "
            "m: fp32[1,8,1] = reduce_mean(c, axes=[2], keep_dims=True); d = sub(c, m); q = mul(d, d); "
            "v: fp32[1,8,1] = reduce_mean(q, axes=[2], keep_dims=True); e = const fp32[] 0.001; a = add(v, e); "
            "r = sqrt(a); z = div(d, r); y: fp16[1,8,64] = cast(z); return y"
        ),
    ),
    "TR14c": (
        (
            "x = input fp16[1,8,64]; m: fp16[1,8,1] = reduce_mean(x, axes=[2], keep_dims=True); q = mul(x, x); "
            "s: fp16[1,8,1] = reduce_mean(q, axes=[2], keep_dims=True); n = mul(m, m); v = sub(s, n); "
            "e = const fp16[] 0.001; a = add(v, e); r = sqrt(a); d = sub(x, m); y = div(d, r); return y"
        ),
        (
            "x = input fp32[1,8,64]; m: fp32[1,8,1] = reduce_mean(x, axes=[2], keep_dims=True); q = mul(x, x); "
            "s: fp32[1,8,1] = reduce_mean(q, axes=[2], keep_dims=True); n = mul(m, m); v = sub(s, n); "
            "e = const fp32[] 0.001; a = add(v, e); r = sqrt(a); d = sub(x, m); y = div(d, r); return y"
        ),
    ),
    "TR17": (
        "a = input fp32[4]; b = input fp32[4]; y = mean(a, b); return y",
        "a = input bool[4]; b = input bool[4]; o = and(a, b); y: fp32[4] = cast(o); return y",
    ),
    "TR17b": (
        "x = input fp32[4]; y: fp32[] = reduce_sum(x); return y",
        "x = input fp32[4]; y: fp32[1] = reduce_sum(x, axes=[0], keep_dims=True); return y",
    ),
    "TR18": (
        (
            "x = input int8[1,4,8,8]; s = const fp16[] 0.1; z = const int8[] 0; "
            "d: fp16[1,4,8,8] = dequantize(x, s, z); k = const int8[4,4,1,1]; "
            "w: fp16[4,4,1,1] = dequantize(k, s, z); y = conv(d, w); return y"
        ),
        (
            "x = input fp16[1,4,8,8]; k = const int8[4,4,1,1]; s = const fp16[] 0.1; z = const int8[] 0; "
            "w: fp16[4,4,1,1] = dequantize(k, s, z); y = conv(x, w); return y"
        ),
    ),
    "TR20": (
        (
            "x = input fp32[8]; z = input fp32[8]; a = sub(x, z); b = div(z, a); c = mul(b, x); y = add(z, c); "
            "return c, y"
        ),
        "x = input fp32[8]; a = relu(x); b = add(a, x); y = add(b, x); return y",
    ),
    "OR2": (
        (
            "x = input fp32[4,4]; m: fp32[4,1] = reduce_mean(x, axes=[1], keep_dims=True); d = sub(x, m); "
            "t = const fp32[] 2; q = pow(d, t); v: fp32[4] = reduce_mean(q, axes=[1], keep_dims=False); "
            "e = const fp32[] 0.001; a = add(e, v); r = sqrt(a); y = div(d, r); return y"
        ),
        (
            "x = input fp32[4,4]; m: fp32[4] = reduce_mean(x, axes=[1], keep_dims=False); d = sub(x, m); "
            "q = mul(d, d); v: fp32[4,1] = reduce_mean(q, axes=[1], keep_dims=True); e = const fp32[] 0.001; "
            "a = add(v, e); r = sqrt(a); i = reciprocal(r); y = mul(d, i); return y"
        ),
    ),
    "OR3": (
        (
            "x = input fp32[4,4]; m: fp32[4,1] = reduce_mean(x, axes=[-1], keep_dims=True); d = sub(x, m); "
            "t = const fp32[] 2; q = pow(d, t); v: fp32[4,1] = reduce_mean(q, axes=[-1], keep_dims=True); "
            "e = const fp32[] 0.001; a = add(v, e); r = sqrt(a); n = div(d, r); g = const fp32[4]; "
            "h = mul(g, n); b = const fp32[] 2; y = add(b, h); return y"
        ),
        (
            "x = input fp32[2,4,4]; m: fp32[2,4,1] = reduce_mean(x, axes=[-1], keep_dims=True); d = sub(x, m); "
            "t = const fp32[] 2; q = pow(d, t); v: fp32[2,4,1] = reduce_mean(q, axes=[-1], keep_dims=True); "
            "e = const fp32[] 0.001; a = add(v, e); r = sqrt(a); n = div(d, r); g = const fp32[1,1,4]; "
            "h = mul(g, n); b = const fp32[4]; y = add(b, h); return y"
        ),
    ),
    "OR1": (
        (
            "x = input fp32[1,4,8,8]; s = const fp32[] 0.5; z = const uint8[] 0; "
            "q: uint8[1,4,8,8] = quantize(x, s, z); a: fp32[1,4,8,8] = dequantize(q, s, z); "
            "w = const int8[2,4,1,1]; t = const fp32[2] 0.25 0.5; zw = const int8[2] 0 0; "
            "b: fp32[2,4,1,1] = dequantize(w, t, zw, axis=0); c = const int32[2]; u = const fp32[2] 0.125 0.125; "
            "d: fp32[2] = dequantize(c, u, axis=0); y: fp32[1,2,8,8] = conv(a, b, d); return y"
        ),
        (
            "x = input fp32[1,4,8,8]; s = const fp32[] 0.5; z = const uint8[] 0; "
            "q: uint8[1,4,8,8] = quantize(x, s, z); a: fp32[1,4,8,8] = dequantize(q, s, z); "
            "w = const int8[2,4,1,1]; t = const fp32[2] 0.25 0.5; zw = const int8[2] 0 0; "
            "b: fp32[2,4,1,1] = dequantize(w, t, zw, axis=0); c = const int32[2]; u = const fp32[2] 0.125 0.25; "
            "d: fp32[2] = dequantize(c, u, axis=0); y: fp32[1,2,8,8] = conv(a, b, d); return y"
        ),
    ),
    "QN3": (
        (
            "x = input uint8[1,4]; s = const fp32[] 0.5; z = const uint8[] 0; "
            "a: fp32[1,4] = dequantize(x, s, z); w = const int8[2,4]; t = const fp32[] 0.25; "
            "zw = const int8[] 0; b: fp32[2,4] = dequantize(w, t, zw); c = const int32[2]; "
            "u = const fp32[] 0.25; d: fp32[2] = dequantize(c, u); y: fp32[1,2] = linear(a, b, d); return y"
        ),
        (
            "x = input uint8[1,4]; s = const fp32[] 0.5; z = const uint8[] 0; "
            "a: fp32[1,4] = dequantize(x, s, z); w = const int8[2,4]; t = const fp32[] 0.25; "
            "zw = const int8[] 0; b: fp32[2,4] = dequantize(w, t, zw); d = const fp32[2]; "
            "y: fp32[1,2] = linear(a, b, d); return y"
        ),
    ),
    "TR19": (
        (
            "n = const int64[] 9; c = const bool[] 1; x = input fp32[4]; a = relu(x); "
            "y: fp32[4] = loop(n, c, a, computed_condition=True); z = mul(y, y); return z"
        ),
        "n = const int64[] 9; c = const bool[] 1; x = input fp32[4]; y: fp32[4] = loop(n, c, x); return y",
    ),
    "OR4": (
        (
            "x = input uint8[1,3,8,8]; s = const fp32[] 0.1; z = const uint8[] 128; "
            "a: fp32[1,3,8,8] = dequantize(x, s, z); w = const fp32[4,3,3,3]; y: fp32[1,4,6,6] = conv(a, w); "
            "return y"
        ),
        "x = input fp32[1,3,8,8]; w = const fp32[4,3,3,3]; y: fp32[1,4,6,6] = conv(x, w); return y",
    ),
    "OR4b": (
        (
            "x = input fp32[1,8,8,3]; t: fp32[1,3,8,8] = transpose(x, perm=[0,3,1,2]); s = const fp32[] 0.1; "
            "z = const uint8[] 128; q: uint8[1,3,8,8] = quantize(t, s, z); "
            "a: fp32[1,3,8,8] = dequantize(q, s, z); k = const int8[4,3,3,3]; zk = const int8[] 0; "
            "w: fp32[4,3,3,3] = dequantize(k, s, zk); y: fp32[1,4,6,6] = conv(a, w); return y"
        ),
        (
            "x = input fp32[1,3,8,8]; v = const fp32[3,3,1,1]; p = conv(x, v); s = const fp32[] 0.1; "
            "z = const uint8[] 128; q: uint8[1,3,8,8] = quantize(p, s, z); "
            "a: fp32[1,3,8,8] = dequantize(q, s, z); w = const fp32[4,3,3,3]; y: fp32[1,4,6,6] = conv(a, w); "
            "return y"
        ),
    ),
    "OR5": (
        (
            "x = input fp32[1,4,8,8]; s = const fp32[] 0.1; z = const uint8[] 3; "
            "q: uint8[1,4,8,8] = quantize(x, s, z); r: uint8[1,4,8,8] = reshape(q); "
            "a: fp32[1,4,8,8] = dequantize(r, s, z); w = const int8[1,4,1,1] -100 10 3 4; zw = const int8[] 0; "
            "b: fp32[1,4,1,1] = dequantize(w, s, zw); y: fp32[1,1,8,8] = conv(a, b); return y"
        ),
        (
            "x = input int8[1,4]; s = const fp32[] 0.1; z = const int8[] 0; a: fp32[1,4] = dequantize(x, s, z); "
            "w = const int8[4,1] -81 100 3 4; zw = const int8[] 0; b: fp32[4,1] = dequantize(w, s, zw); "
            "y: fp32[1,1] = matmul(a, b); return y"
        ),
    ),
    "OR6": (
        (
            "x = input fp32[1,4,9]; "
            "y: fp32[1,4,5] = avg_pool(x, kernel=[3], strides=[2], pads=[0,1], count_padding=True); return y"
        ),
        (
            "x = input fp32[1,4,8,8]; "
            "y: fp32[1,4,5,5] = avg_pool(x, kernel=[3,3], strides=[2,2], pads=[1,1,1,1], "
            "count_padding=False, ceil=True); "
            "return y"
        ),
    ),
    "OR7": (
        (
            "q = input fp16[1,4,8,16]; "
            "y: fp16[1,4,8,16], k: fp16[1,4,8,16], v: fp16[1,4,8,16] = attention(q, q, q); a = mul(v, q); "
            "b = add(y, a); return b"
        ),
        (
            "q = input fp16[1,4,8,16]; "
            "y: fp16[1,4,8,16], k: fp16[1,4,8,16], v: fp16[1,4,8,16] = attention(q, q, q); return y"
        ),
    ),
    "OR8": (
        "q = input fp16[2,8,512]; k = input fp16[2,16,512]; r = relu(q); y = attention(r, k, k); return y",
        "q = input fp32[1,2,8,512]; y = attention(q, q, q); return y",
    ),
    "OR9": (
        (
            "x = input fp32[1,3,8,8]; w = const fp32[4,3,2,2]; b = const fp32[4]; "
            "y: fp32[1,4,8,8] = conv(x, w, b, strides=[1,1], pads=[0,0,1,1], dilations=[1,1]); return y"
        ),
        ("x = input fp32[1,3,8,8]; w = const fp32[4,3,2,2]; y: fp32[1,4,8,8] = conv(x, w, pads=[1,1,0,0]); return y"),
    ),
    "OR10": (
        (
            "x = input fp16[1,8,64]; z = input fp16[1,8,64]; w = const fp16[64,64]; b = const fp16[64]; "
            "m = linear(z, w, b); a = add(m, x); g = const fp16[64]; y = layer_norm(a, g, axes=[-1]); return y"
        ),
        (
            "x = input fp16[1,8,64]; b = const fp16[64]; a = add(x, b); g = const fp16[64]; "
            "y = layer_norm(a, g, axes=[2]); return y"
        ),
    ),
    "OR14": (
        (
            "x = input fp32[1,3,8]; c: fp16[1,3,8] = cast(x); w = const fp16[4,3,3]; "
            "y: fp16[1,4,6] = conv(c, w); z: fp32[1,4,6] = cast(y); return z"
        ),
        "x = input fp16[1,3]; w = const fp16[4,3]; y: fp16[1,4] = linear(x, w); return y",
    ),
    "QN1": (
        (
            "x = input fp32[1,8]; a = softmax(x, axis=1); r: fp32[8] = reshape(a); s = const fp32[] 0.01; "
            "z = const int8[] 0; y: int8[8] = quantize(r, s, z); return y"
        ),
        (
            "x = input fp32[1,8]; a = sigmoid(x); s = const fp32[] 0.0000152587890625; z = const uint16[] 0; "
            "y: uint16[1,8] = quantize(a, s, z); return y"
        ),
    ),
    "QN2": (
        (
            "x = input fp32[1,4,8,8]; m = const fp32[4]; g = const int8[4]; s = const fp32[4]; "
            "z = const int8[4]; b: fp32[4] = dequantize(g, s, z, axis=0); y = batch_norm(x, m, m, m, b); return y"
        ),
        "x = input fp32[1,4,8,8]; m = const fp32[4]; y = batch_norm(x, m, m, m, m); return y",
    ),
    "QN4": (
        (
            "x = input fp32[1,4,9,9]; s = const fp32[] 0.1; z = const uint8[] 0; "
            "q: uint8[1,4,9,9] = quantize(x, s, z); "
            "y: uint8[1,4,5,5] = max_pool(q, kernel=[2,2], strides=[2,2], ceil=True); return y"
        ),
        ("x = input fp32[1,4,9,9]; y: fp32[1,4,5,5] = max_pool(x, kernel=[2,2], strides=[2,2], ceil=True); return y"),
    ),
    "QN5": (
        (
            "x = input fp16[1,8]; w = const int8[8,8]; s = const fp16[] 0.1; z = const int8[] 0; "
            "d: fp16[8,8] = dequantize(w, s, z); y = matmul(x, d); return y"
        ),
        (
            "w = const fp32[8,8]; s = const fp32[] 0.1; z = const int8[] 0; q: int8[8,8] = quantize(w, s, z); "
            "d: fp32[8,8] = dequantize(q, s, z); x = input fp32[1,8]; y = matmul(x, d); return y"
        ),
    ),
    "QN8": (
        (
            "x = input fp32[1,4,8]; w = const fp32[4,4,3]; "
            "y: fp32[1,4,14] = conv_transpose(x, w, dilations=[3], strides=[1]); return y"
        ),
        ("x = input fp16[1,4,8,8]; w = const fp16[4,4,3,3]; y: fp16[1,4,4,4] = conv(x, w, dilations=[2,2]); return y"),
    ),
    "LR1": (
        (
            "x = input fp32[1,4,8,16]; k = input fp32[1,4,16,8]; s: fp32[1,4,8,8] = matmul(x, k); "
            "m = input fp32[1,1,1,8]; y = add(m, s); return y"
        ),
        (
            "x = input fp32[1,8,16]; k = const fp32[16,8]; s: fp32[1,8,8] = matmul(x, k); b = const fp32[8]; "
            "y = add(s, b); return y"
        ),
    ),
    "LR2": (
        "x = input fp32[16,16]; z = input fp32[1,20,16,16]; y: fp32[1,20,16,16] = mul(z, x); return y",
        "x = input fp32[1,20,16,16]; b = const fp32[20,1,1]; y = mul(x, b); return y",
    ),
    "LR2b": (
        "x = const int32[4,4]; z = input int32[1,4,4]; y: int32[1,4,4] = add(z, x); return y",
        "x = input fp32[1,20,16,16]; b = const fp32[]; y = mul(x, b); return y",
    ),
    "LR3": (
        (
            "q = input fp32[4,8,16]; k = input fp32[4,16,8]; v = input fp32[4,8,16]; "
            "s: fp32[4,8,8] = matmul(q, k); c = const fp32[] 0.25; t = mul(s, c); m = input fp32[1,8,8]; "
            "a = add(t, m); p = softmax(a, axis=-1); y: fp32[4,8,16] = matmul(p, v); return y"
        ),
        (
            "q = input fp32[8,16]; k = input fp32[16,8]; s: fp32[8,8] = matmul(q, k); p = softmax(s, axis=1); "
            "y: fp32[8,16] = matmul(p, q); return y"
        ),
    ),
    "LR4": (
        "x = input fp16[2,16,8]; y: fp16[2,20,8] = pad(x, pads=[0,0,0,0,4,0], mode='constant'); return y",
        ("x = input fp32[1,16,8,1]; y: fp32[1,18,8,1] = pad(x, pads=[0,2,0,0,0,0,0,0], mode='constant'); return y"),
    ),
    "LR5": (
        "x = input fp16[1,8,128,128]; y: fp16[1,8,1,1] = global_avg_pool(x); return y",
        ("x = input fp16[1,64,128,128]; y: fp16[1,1,128,128] = reduce_sum(x, axes=[1], keep_dims=True); return y"),
    ),
    "LR6": (
        (
            "x = input fp32[1,8]; z = input fp32[1,8]; a = add(x, z); b = relu(a); c = add(b, a); d = relu(c); "
            "return d, c"
        ),
        "x = input fp32[8]; z = input fp32[8]; a = add(x, z); i = identity(a); y = relu(a); return i, y",
    ),
    "LR7": (
        "x = input fp32[1,4,8,8]; y: fp32[1,4,8,8] = matmul(x, x, transpose_x=True); return y",
        "x = input fp32[1,8]; w = const fp32[8,8]; y: fp32[1,8] = matmul(x, w, transpose_y=True); return y",
    ),
    "LR8": (
        (
            "x = input fp32[1,8]; w = const int8[8,8]; s = const fp32[8]; z = const int8[8]; "
            "d: fp32[8,8] = dequantize(w, s, z, axis=0); t: fp32[8,8] = transpose(d, perm=[1,0]); "
            "y = linear(x, t); return y"
        ),
        (
            "x = input fp32[1,8,4,4]; w = const int8[8,8,1,1]; s = const fp32[] 0.1; z = const int8[] 0; "
            "d: fp32[8,8,1,1] = dequantize(w, s, z); y = conv(x, d); return y"
        ),
    ),
    "LR9": (
        (
            "x = input fp16[1,8,2048]; t = const fp16[] 2; q = pow(x, t); "
            "y: fp16[1,8,1] = reduce_sum(q, axes=[-1], keep_dims=True); return y"
        ),
        "x = input fp32[1,8,2048]; y: fp32[1,8,1] = reduce_mean(x, axes=[2], keep_dims=True); return y",
    ),
    "LR9b": (
        (
            "x = input fp16[1,8,2048]; q = square(x); i = identity(q); "
            "y: fp16[1,8,1] = reduce_mean(i, axes=[-1], keep_dims=True); return y"
        ),
        (
            "x = input fp16[1,8,2048]; z = input fp16[1,8,2048]; q = mul(x, z); "
            "y: fp16[1,8,1] = reduce_mean(q, axes=[2], keep_dims=True); return y"
        ),
    ),
    "XN2": (
        "x = input fp32[8]; c: fp16[8] = cast(x); y = gelu(c, mode='tanh'); z: fp32[8] = cast(y); return z",
        "x = input fp16[8]; y = silu(x); return y",
    ),
    "TV3": (
        (
            "x = input fp32[1,4,8]; w = const fp32[4,4,3]; "
            "y: fp32[1,4,18] = conv_transpose(x, w, strides=[2], output_padding=[1]); return y"
        ),
        ("x = input fp32[1,4,8]; w = const fp32[4,4,3]; y: fp32[1,4,17] = conv_transpose(x, w, strides=[2]); return y"),
    ),
}
"""By the row's id, with a letter where a row has several: what is found, and what is left."""


def test_every_row_with_a_detector_has_a_second_spelling() -> None:
    rows = {name for name, row in book.all_departures().items() if row.detector}
    assert {re.sub("[a-z]$", "", name) for name in SPELLINGS} == rows


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_detector_finds_a_second_spelling_and_leaves_a_second_near_miss(name: str) -> None:
    found, left = SPELLINGS[name]
    wanted = book.get(re.sub("[a-z]$", "", name)).detector
    assert wanted is not None
    detector = all_detectors()[wanted]
    assert all(fact for _, fact in detector(read_graph(found)))
    assert list(detector(read_graph(found))), f"{name} does not find: {found}"
    assert list(detector(read_graph(left))) == [], f"{name} finds: {left}"
