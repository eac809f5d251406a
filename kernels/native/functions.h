// Elementary functions of vectors, each lane by itself, with errors of a few units in the last place.
//
//     exp(x)      = 2^n e^r,  n = round(x / ln 2),  r = x - n ln 2,  e^r a polynomial of degree 6; n counts eighths or
//                   sixteenths where registers hold a table of their powers, and degree 3 does
//     sigmoid(x)  = 1 / (1 + e^-x)
//     silu(x)     = x / (1 + e^-x)
//     gelu(x)     = x / 2 + x E(x),  E(x) = erf(x / sqrt 2) / 2, which is odd, and 1/2 from 5.75 on
//                   E(x) = x P(x^2) / Q(x^2), or a polynomial on each of 16 intervals where registers have 16 lanes
//
// n is found by adding 1.5 * 2^23: the sum has no fraction bits, so it is rounded, and its low bits are n; a sixteenth
// of it leaves four fraction bits. ln 2 in fp32
// is 2e-9 too large, 2e-7 of e^x where n is 100. Polynomials are fits of our own (bench/experiments/functions.py).
#pragma once

#include "vector.h"

namespace es {

constexpr float GELU_P[] = {2.1064505e-08f,  6.71911456e-06f, 0.000202455406f,
                            0.00487984388f, 0.0370074068f,   0.398941742f};
constexpr float GELU_Q[] = {1.17587301e-06f, 8.51990109e-05f, 0.00207231042f, 0.030477054f, 0.259424988f, 1.0f};

// E(x) = sum_i GELU_TABLE[i][k] (|x| - 3/8 k)^i on the interval around 3/8 k, k = 0 ... 15.
alignas(64) constexpr float GELU_TABLE[5][16] = {
    {0.0f, 0.146169763f, 0.273372644f, 0.369705481f, 0.4331928f, 0.46960364f, 0.487775529f, 0.495667552f,
     0.498650102f, 0.499630921f, 0.499911583f, 0.499981463f, 0.499996602f, 0.499999456f, 0.499999924f,
     0.499999991f},
    {0.398938451f, 0.371852502f, 0.301137482f, 0.21187867f, 0.129519852f, 0.068787545f, 0.0317398352f,
     0.0127238117f, 0.00443142208f, 0.00134084073f, 0.000352463033f, 8.04906758e-05f, 1.59685571e-05f,
     2.75210808e-06f, 4.1203649e-07f, 5.35878026e-08f},
    {0.0f, -0.0697210089f, -0.112924435f, -0.119179706f, -0.0971386474f, -0.0644880987f, -0.0357077964f,
     -0.0167006972f, -0.00664769724f, -0.00226300398f, -0.000661024817f, -0.000166071403f, -3.59478438e-05f,
     -6.71312119e-06f, -1.08266318e-06f, -1.50913956e-07f},
    {-0.0660540085f, -0.0529652399f, -0.021963846f, 0.0091491621f, 0.026725831f, 0.0286956644f, 0.0214696678f,
     0.0125344383f, 0.00595768366f, 0.00235415297f, 0.000782706445f, 0.000220635776f, 5.30035272e-05f,
     1.08912892e-05f, 1.91945627e-06f, 2.90736799e-07f},
    {0.0f, 0.0164752797f, 0.022778521f, 0.0171564893f, 0.00610544401f, -0.00269761349f, -0.00608494407f,
     -0.00539880068f, -0.00332963509f, -0.00159261463f, -0.000616452232f, -0.000197295907f, -5.28765011e-05f,
     -1.19641518e-05f, -2.29838073e-06f, -3.76402581e-07f},
};

// The bits of 2^(k/16 - 1), or 2^(k/8 - 1), less those that k itself has when n is shifted to the exponent.
alignas(64) constexpr int EXP_TABLE_16[16] = {0x3f000000, 0x3efdaac3, 0x3efb95c2, 0x3ef9c3d3, 0x3ef837f0, 0x3ef6f532, 0x3ef5fed7, 0x3ef5583f, 0x3ef504f3, 0x3ef508a4, 0x3ef5672a, 0x3ef6248c, 0x3ef744fd, 0x3ef8ccdf, 0x3efac0c7, 0x3efd257d};
alignas(32) constexpr int EXP_TABLE_8[8] = {0x3f000000, 0x3efb95c2, 0x3ef837f0, 0x3ef5fed7, 0x3ef504f3, 0x3ef5672a, 0x3ef744fd, 0x3efac0c7};

enum class Function { none, relu, relu6, silu, gelu, sigmoid, hardswish, hardsigmoid, exp };

template <class V>
ES_INLINE V clamp(V x, float low, float high) {
    return smaller_of(larger_of(x, splat<V>(low)), splat<V>(high));  // a NaN stays
}

// 2^(n-1) for the n that `shifted` has in its low bits: 2^128 itself would be infinite.
template <class V>
ES_INLINE V half_power(V shifted) {
    using I = IntOf<V>;
    const I n = __builtin_bit_cast(I, shifted);
#if defined(__AVX2__) && !defined(__clang__)
    if constexpr (lanes_of<V> >= 8) {
        constexpr const int* TABLE = lanes_of<V> == 16 ? EXP_TABLE_16 : EXP_TABLE_8;
        I entries;
        __builtin_memcpy(&entries, TABLE, sizeof entries);
        return __builtin_bit_cast(V, (n << (lanes_of<V> == 16 ? 19 : 20)) + __builtin_shuffle(entries, n));
    }
#endif
    return __builtin_bit_cast(V, (n << 23) + 0x3f000000);
}

// Parts of a power of two that n counts.
template <class V>
constexpr int steps_of() {
#if defined(__AVX2__) && !defined(__clang__)
    if (lanes_of<V> >= 8) return lanes_of<V>;
#endif
    return 1;
}

template <class V>
ES_INLINE V exp(V x) {
    constexpr int STEPS = steps_of<V>();
    constexpr float SHIFT = 12582912.0f / STEPS;
    x = clamp(x, -86.6f, 89.0f);  // e^-86.6 is as good as 0, and e^89 is infinite
    const V shifted = x * 1.44269504f + SHIFT;
    const V r = x - (shifted - SHIFT) * 0.693147180f;  // one rounding: the product is fused
    V twice;
    if constexpr (STEPS == 16) {
        twice = r * 0.333339222f + 1.00001963f;
    } else if constexpr (STEPS == 8) {
        twice = r * 0.333356888f + 1.00007852f;
    } else {
        twice = r * 0.00278826408f + 0.0167385894f;
        twice = twice * r + 0.0833327007f;
        twice = twice * r + 0.333330079f;
        twice = twice * r + 1.0f;
    }
    twice = twice * r + 2.0f;
    twice = twice * r + 2.0f;
    return twice * half_power(shifted);
}

template <class V>
ES_INLINE V sigmoid(V x) {
    return 1.0f / (1.0f + exp(-x));
}

#if defined(__AVX512F__) && !defined(__clang__)
// The GELU where a register holds all 16 intervals: an instruction looks up a coefficient in each lane. clang has no
// word for that. k is found as n of exp is.
ES_INLINE Vector<16> gelu_by_table(Vector<16> x) {
    using V = Vector<16>;
    using I = IntOf<V>;
    constexpr float SHIFT = 12582912.0f, LARGEST = 5.8f;
    const V size = __builtin_bit_cast(V, __builtin_bit_cast(I, x) & 0x7fffffff);
    const V t = smaller_of(size, splat<V>(LARGEST));
    const V shifted = t * (8.0f / 3) + SHIFT;
    const V rest = t - (shifted - SHIFT) * 0.375f;
    const I k = __builtin_bit_cast(I, shifted);  // only the low four bits count
    V series = __builtin_shuffle(load<V>(GELU_TABLE[4]), k);
    ES_UNROLL
    for (int i = 3; i >= 0; --i) series = series * rest + __builtin_shuffle(load<V>(GELU_TABLE[i]), k);
    return size * series + x * 0.5f;
}
#endif

template <class V>
ES_INLINE V silu(V x) {
    return x / (1.0f + exp(-x));
}

template <class V>
ES_INLINE V gelu(V x) {
#if defined(__AVX512F__) && !defined(__clang__)
    if constexpr (lanes_of<V> == 16) return gelu_by_table(x);
#endif
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
    if constexpr (F == Function::relu) return larger_of(x, V{});
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
