// Elementary functions of vectors, each lane by itself, with errors of a few units in the last place.
//
//     exp(x)      = 2^n e^r,  n = round(x / ln 2),  r = x - n ln 2 in [-0.35, 0.35],  e^r a polynomial
//     sigmoid(x)  = 1 / (1 + e^-x)
//     silu(x)     = x / (1 + e^-x)
//     gelu(x)     = x / 2 + x E(x),  E(x) = erf(x / sqrt 2) / 2, which is odd, and 1/2 from 5.75 on
//                   E(x) = x P(x^2) / Q(x^2), or a polynomial on each of 16 intervals where registers have 16 lanes
//     silu(x)     = x / 2 + |x| G(|x|),  G(x) = sigmoid(x) - 1/2, by polynomials too where registers have 16 lanes
//
// n is found by adding 1.5 * 2^23: the sum has no fraction bits, so it is rounded, and its low bits are n. ln 2 in fp32
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

// G(x) = sum_i SILU_TABLE[i][k] (s - middle)^i for s = 5/6 x + 1 < 16, on the quarters of [1, 2), [2, 4), [4, 8) and [8,
// 16): k is the last two bits of the exponent of s, and the two behind it.
alignas(64) constexpr float SILU_TABLE[6][16] = {
    {0.317574476f, 0.390903182f, 0.437026646f, 0.464428811f, 0.485225963f, 0.49550372f, 0.498641478f, 0.499590432f,
     0.499932267f, 0.499993855f, 0.499999443f, 0.499999949f, 0.0374298453f, 0.110639234f, 0.179178699f,
     0.240774899f},
    {0.178975751f, 0.116633646f, 0.0708092532f, 0.0411670547f, 0.0174669024f, 0.00537127053f, 0.00162801063f,
     0.000491279779f, 8.12688959e-05f, 7.37346032e-06f, 6.68912739e-07f, 6.06824564e-08f, 0.298318808f,
     0.285310752f, 0.261473993f, 0.230432938f},
    {-0.0682056836f, -0.0547119365f, -0.0371352426f, -0.0229431862f, -0.0101700957f, -0.00319330254f,
     -0.000973968877f, -0.000294467411f, -4.85878429e-05f, -4.40881304e-06f, -3.99966919e-07f, -3.628425e-08f,
     -0.0133991443f, -0.0378796642f, -0.0562204613f, -0.0665788159f},
    {0.00451436672f, 0.0116679812f, 0.0109777112f, 0.00784655095f, 0.00382624179f, 0.00125440348f, 0.000387497679f,
     0.000117602197f, 1.94521261e-05f, 1.76549415e-06f, 1.60168907e-07f, 1.45302518e-08f, -0.0351962717f,
     -0.0292080274f, -0.0192886586f, -0.00841539047f},
    {0.00646114543f, 0.00113401236f, -0.00127496145f, -0.00161184346f, -0.00101146222f, -0.000367761578f,
     -0.000116939863f, -3.57943848e-05f, -6.27755023e-06f, -5.70179253e-07f, -5.17311986e-08f, -4.69299465e-09f,
     0.00317376157f, 0.00838733415f, 0.0108558072f, 0.0103961794f},
    {-0.00245668103f, -0.00157640311f, -0.000438588952f, 7.55718546e-05f, 0.000175375546f, 8.12198953e-05f,
     2.73452879e-05f, 8.50666895e-06f, 1.48703657e-06f, 1.35218602e-07f, 1.2269371e-08f, 1.11307398e-09f,
     0.00492055965f, 0.00320033021f, 0.000730269959f, -0.00132601882f},
};

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
    V r = x - (shifted - SHIFT) * 0.693147180f;  // one rounding: the product is fused
    V twice = r * 0.00278826408f + 0.0167385894f;
    twice = twice * r + 0.0833327007f;
    twice = twice * r + 0.333330079f;
    twice = twice * r + 1.0f;
    twice = twice * r + 2.0f;
    twice = twice * r + 2.0f;
    I half_power = (__builtin_bit_cast(I, shifted) << 23) + 0x3f000000;  // 2^(n-1): 2^128 itself would be infinite
    return twice * __builtin_bit_cast(V, half_power);
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
    const V t = size > LARGEST ? splat<V>(LARGEST) : size;
    const V shifted = t * (8.0f / 3) + SHIFT;
    const V rest = t - (shifted - SHIFT) * 0.375f;
    const I k = __builtin_bit_cast(I, shifted);  // only the low four bits count
    V series = __builtin_shuffle(load<V>(GELU_TABLE[4]), k);
    ES_UNROLL
    for (int i = 3; i >= 0; --i) series = series * rest + __builtin_shuffle(load<V>(GELU_TABLE[i]), k);
    return size * series + x * 0.5f;
}

// The SiLU in the same way; its intervals grow, as a float's do.
ES_INLINE Vector<16> silu_by_table(Vector<16> x) {
    using V = Vector<16>;
    using I = IntOf<V>;
    constexpr float LARGEST = 17.95f;  // G is 1/2 from there on
    const V size = __builtin_bit_cast(V, __builtin_bit_cast(I, x) & 0x7fffffff);
    const V place = (size > LARGEST ? splat<V>(LARGEST) : size) * (5.0f / 6) + 1.0f;
    const I bits = __builtin_bit_cast(I, place), k = bits >> 21;
    const V rest = place - __builtin_bit_cast(V, (bits & -(1 << 21)) | (1 << 20));
    V series = __builtin_shuffle(load<V>(SILU_TABLE[5]), k);
    ES_UNROLL
    for (int i = 4; i >= 0; --i) series = series * rest + __builtin_shuffle(load<V>(SILU_TABLE[i]), k);
    return size * series + x * 0.5f;
}
#endif

template <class V>
ES_INLINE V silu(V x) {
#if defined(__AVX512F__) && !defined(__clang__)
    if constexpr (lanes_of<V> == 16) return silu_by_table(x);
#endif
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
