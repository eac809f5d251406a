// Vectors of floats, on the vector extensions that g++ and clang share. No intrinsic of any processor is used.
//
//     Vector<W>      W floats in a register; + - * / and comparisons act lane by lane
//     load, store    W floats, or only the first COUNT of them, at any address
//     cover<C>       visits the channels 0 ... C-1 of one position in vectors, as few as there can be
//
// LANES is the width of the instruction set's registers: 16 with AVX-512, 8 with AVX2, 4 with NEON. The compiler makes
// one fused multiply-add of a product and a sum in one expression. Letters: C channels, W lanes.
#pragma once

#define ES_INLINE inline __attribute__((always_inline))
#define ES_NOINLINE __attribute__((noinline))  // keeps a loop's registers from being shared with what calls it
#if defined(__clang__)
#define ES_UNROLL _Pragma("clang loop unroll(full)")
#else
#define ES_UNROLL _Pragma("GCC unroll 64")
#endif

namespace es {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

template <int W>
struct VectorOf {
    typedef float Float __attribute__((vector_size(4 * W)));
    typedef int Int __attribute__((vector_size(4 * W)));
};
template <int W>
using Vector = typename VectorOf<W>::Float;

template <class V>
constexpr int lanes_of = int(sizeof(V) / sizeof(float));
template <class V>
using IntOf = typename VectorOf<lanes_of<V>>::Int;

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
constexpr int smaller(int a, int b) { return a < b ? a : b; }
constexpr int larger(int a, int b) { return a > b ? a : b; }

template <class V>
ES_INLINE V splat(float x) {
    return x - V{};  // and not x + V{}, which loses the sign of -0
}

template <class V>
ES_INLINE V load(const float* from) {
    V v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
}

// The first COUNT lanes from memory, and zeros: nothing behind them is read.
template <class V, int COUNT>
ES_INLINE V load_part(const float* from) {
    if constexpr (COUNT == lanes_of<V>) return load<V>(from);
    V v = {};
    __builtin_memcpy(&v, from, COUNT * sizeof(float));
    return v;
}

template <class V, int COUNT = lanes_of<V>>
ES_INLINE void store(float* to, V v) {
    __builtin_memcpy(to, &v, COUNT * sizeof(float));
}

// The sum of a vector's lanes: halves are added to halves, so that the order does not depend on the compiler.
template <class V>
ES_INLINE float sum_lanes(V v) {
    if constexpr (lanes_of<V> == 1) {
        return v[0];
    } else {
        Vector<lanes_of<V> / 2> low, high;
        __builtin_memcpy(&low, &v, sizeof low);
        __builtin_memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof low, sizeof high);
        return sum_lanes(low + high);
    }
}

// The larger and the smaller of two; a NaN in `a` stays. Compilers make two instructions of either where registers have
// masks.
template <class V>
ES_INLINE V larger_of(V a, V b) {
#if defined(__x86_64__)
    if constexpr (sizeof(V) >= 16) {
        asm("vmaxps %0, %1, %0" : "+v"(a) : "v"(b));
        return a;
    }
#endif
    return a < b ? b : a;
}

template <class V>
ES_INLINE V smaller_of(V a, V b) {
#if defined(__x86_64__)
    if constexpr (sizeof(V) >= 16) {
        asm("vminps %0, %1, %0" : "+v"(a) : "v"(b));
        return a;
    }
#endif
    return a > b ? b : a;
}

// A product that is rounded before anything is added to it: keeps the compiler from fusing the two.
template <class V>
ES_INLINE V rounded(V v) {
#if defined(__x86_64__)
    asm("" : "+x"(v));
#elif defined(__aarch64__)
    asm("" : "+w"(v));
#else
    volatile V kept = v;
    v = kept;
#endif
    return v;
}

// The narrowest vector that holds `rest` channels, or, where there are fewer channels than that, the widest that fits.
constexpr int width_for(int rest, int channels, int most) {
    constexpr int WIDTHS[] = {1, 4, 8, 16};
    for (int w : WIDTHS)
        if (w >= rest && w <= most && w <= channels) return w;
    int widest = 1;
    for (int w : WIDTHS)
        if (w <= rest && w <= most) widest = w;
    return widest;
}

template <int C, int DONE, int MOST, class Body>
ES_INLINE void cover_rest(const Body& body) {
    constexpr int REST = C - DONE;
    if constexpr (REST > 0) {
        constexpr int W = width_for(REST, C, MOST);
        if constexpr (W >= REST) {
            body.template operator()<W>(C - W);  // overlaps channels that were visited before
        } else {
            body.template operator()<W>(DONE);
            cover_rest<C, DONE + W, MOST>(body);
        }
    }
}

// Calls body<W>(c) for vectors of W <= MOST channels from c on that cover 0 ... C-1. The last one may overlap the one
// before: a body has to compute its outputs from other memory than it writes.
template <int C, int MOST = LANES, class Body>
ES_INLINE void cover(const Body& body) {
    constexpr int WHOLE = C / MOST * MOST;
    for (int c = 0; c < WHOLE; c += MOST) body.template operator()<MOST>(c);
    cover_rest<C, WHOLE, MOST>(body);
}

// Calls body<W>(c) for vectors that cover 0 ... C-1 and do not overlap: for sums, and for bodies that write what
// they read.
template <int C, int MOST = LANES, int DONE = 0, class Body>
ES_INLINE void partition(const Body& body) {
    constexpr int WHOLE = C / MOST * MOST;
    if constexpr (DONE < WHOLE) {
        for (int c = 0; c < WHOLE; c += MOST) body.template operator()<MOST>(c);
        partition<C, MOST, WHOLE>(body);
    } else if constexpr (DONE < C) {
        constexpr int W = C - DONE >= 8 && MOST > 8 ? 8 : C - DONE >= 4 && MOST > 4 ? 4 : 1;
        body.template operator()<W>(DONE);
        partition<C, MOST, DONE + W>(body);
    }
}

}  // namespace es
