// The one instruction that kernels for integers are made of: products of narrow numbers, summed in 32 bits.
//
//     sum[n] += sum_i x[i] w[n, i]        i < PER,  one word of x for all lanes n
//
//     set              x, w           PER   instruction
//     AVX-512 VNNI     uint8, int8    4     vpdpbusd: x is 128 more, and sums begin at -128 sum_k w[k, n]
//     AVX-512, AVX2    int16          2     vpmaddwd, and an addition
//     NEON dotprod     int8           4     sdot
//     NEON             int16          2     smlal, which the compiler finds
//
// A word is 32 bits: PER numbers. Numbers are of eight bits whatever holds them, so that nothing saturates in any of
// these: all give the sums of `dot_plainly`, which says what they mean. This is the only file with instructions of
// processors: compilers find them in no loop of ours, and have names for them that change, so they are assembly.
#pragma once

#include "vector.h"

namespace es {

#if defined(__AVX512VNNI__)
typedef unsigned char Number;
typedef signed char Weight;
constexpr int OFFSET = 128;
#elif defined(__ARM_FEATURE_DOTPROD)
typedef signed char Number, Weight;
constexpr int OFFSET = 0;
#else
typedef short Number, Weight;
constexpr int OFFSET = 0;
#endif

constexpr int PER = 4 / int(sizeof(Number));

template <int W>
using Words = typename VectorOf<W>::Int;

ES_INLINE int load_word(const Number* from) {
    int word;
    __builtin_memcpy(&word, from, sizeof word);
    return word;
}

// What `dot` is: w has the PER weights of each lane side by side.
template <int W>
ES_INLINE Words<W> dot_plainly(Words<W> sum, int word, Words<W> w) {
    Number x[PER];
    Weight weights[W][PER];
    __builtin_memcpy(x, &word, sizeof x);
    __builtin_memcpy(weights, &w, sizeof weights);
    for (int n = 0; n < W; ++n)
        for (int i = 0; i < PER; ++i) sum[n] += int(x[i]) * int(weights[n][i]);
    return sum;
}

template <int W>
ES_INLINE Words<W> dot(Words<W> sum, int word, Words<W> w) {
#if defined(ES_PLAIN_DOT)
    return dot_plainly<W>(sum, word, w);
#elif defined(__AVX512VNNI__)
    if constexpr (W >= 4) {
        const Words<W> x = word - Words<W>{};
        asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
        return sum;
    }
#elif defined(__AVX2__)
    if constexpr (W >= 4) {
        Words<W> products = word - Words<W>{};
#if defined(__AVX512F__)
        asm("vpmaddwd %1, %0, %0" : "+v"(products) : "v"(w));
#else
        asm("vpmaddwd %1, %0, %0" : "+x"(products) : "x"(w));
#endif
        return sum + products;
    }
#elif defined(__ARM_FEATURE_DOTPROD)
    if constexpr (W == 4) {
        const Words<W> x = word - Words<W>{};
        asm("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(w), "w"(x));
        return sum;
    }
#else
    if constexpr (W == 4) {
        // Lanes n of w[n, 0], and of w[n, 1]: shifted to the ends of their words.
        return sum + (w << 16 >> 16) * (word << 16 >> 16) + (w >> 16) * (word >> 16);
    }
#endif
    return dot_plainly<W>(sum, word, w);
}

}  // namespace es
