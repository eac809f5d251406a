// Elementary functions of vectors, each lane by itself, with errors of a few units in the last place.
//
//     exp(x)      = 2^n e^r,  n = round(x / ln 2),  r = x - n ln 2 in [-0.35, 0.35],  e^r by its Taylor series to r^7
//     sigmoid(x)  = 1 / (1 + e^-x)
//     silu(x)     = x / (1 + e^-x)
//     gelu(x)     = x / 2 + x E(x),  E(x) = erf(x / sqrt 2) / 2 = x P(x^2) / Q(x^2) for |x| < 5.75, where it is 1/2
//
// n is found by adding 1.5 * 2^23: the sum has no fraction bits, so it is rounded, and its low bits are n. ln 2 is in
// two parts, the first with few enough bits for n ln 2 to be exact. P and Q are a fit of our own
// (bench/experiments/gelu.py).
#pragma once

#include "vector.h"

namespace es {

constexpr float GELU_P[] = {2.1064505e-08f,  6.71911456e-06f, 0.000202455406f,
                            0.00487984388f, 0.0370074068f,   0.398941742f};
constexpr float GELU_Q[] = {1.17587301e-06f, 8.51990109e-05f, 0.00207231042f, 0.030477054f, 0.259424988f, 1.0f};

enum class Function { none, relu, relu6, silu, gelu, sigmoid, hardswish, hardsigmoid, exp };

template <class V>
ES_INLINE V clamp(V x, float low, float high) {
    x = x < low ? splat<V>(low) : x;  // a NaN stays
    return x > high ? splat<V>(high) : x;
}

template <class V>
ES_INLINE V exp(V x) {
    using I = IntOf<V>;
    constexpr float SHIFT = 12582912.0f;
    x = clamp(x, -86.6f, 89.0f);  // e^-86.6 is as good as 0, and e^89 is infinite
    V shifted = x * 1.44269504f + SHIFT;
    V n = shifted - SHIFT;
    V r = x - n * 0.693145752f;
    r = r - n * 1.42860677e-6f;
    V series = r * (1.0f / 5040) + 1.0f / 720;
    series = series * r + 1.0f / 120;
    series = series * r + 1.0f / 24;
    series = series * r + 1.0f / 6;
    series = series * r + 0.5f;
    series = series * r + 1.0f;
    series = series * r + 1.0f;
    I half_power = (__builtin_bit_cast(I, shifted) << 23) + 0x3f000000;  // 2^(n-1): 2^128 itself would be infinite
    return series * __builtin_bit_cast(V, half_power) * 2.0f;
}

template <class V>
ES_INLINE V sigmoid(V x) {
    return 1.0f / (1.0f + exp(-x));
}

template <class V>
ES_INLINE V silu(V x) {
    return x / (1.0f + exp(-x));
}

template <class V>
ES_INLINE V gelu(V x) {
    V t = clamp(x, -5.75f, 5.75f);
    V u = t * t;
    V p = u * GELU_P[0] + GELU_P[1], q = u * GELU_Q[0] + GELU_Q[1];
    ES_UNROLL
    for (int i = 2; i < 6; ++i) {
        p = p * u + GELU_P[i];
        q = q * u + GELU_Q[i];
    }
    return x * (t * p / q + 0.5f);
}

template <Function F, class V>
ES_INLINE V apply(V x) {
    if constexpr (F == Function::relu) return x < 0.0f ? V{} : x;
    if constexpr (F == Function::relu6) return clamp(x, 0.0f, 6.0f);
    if constexpr (F == Function::silu) return silu(x);
    if constexpr (F == Function::gelu) return gelu(x);
    if constexpr (F == Function::sigmoid) return sigmoid(x);
    if constexpr (F == Function::hardsigmoid) return clamp(x / 6.0f + 0.5f, 0.0f, 1.0f);
    if constexpr (F == Function::hardswish) return x * clamp(x / 6.0f + 0.5f, 0.0f, 1.0f);
    if constexpr (F == Function::exp) return exp(x);
    return x;
}

}  // namespace es
