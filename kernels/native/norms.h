// Norms, softmax, and the mean over all pixels, of maps with their channels last.
//
//     layer norm    y[m, c] = (x[m, c] - mean_c) / sqrt(var_c + eps) w[c] + b[c]         over the C channels of a pixel
//     group norm    the same over all N pixels and the C / G channels of a group, for each group of each map
//     softmax       y[m, c] = e^(x[m, c] - max_c) / sum_c e^(x[m, c] - max_c)
//     mean          y[c] = sum_n x[n, c] / N
//
// The variance is biased, and the mean of squares of differences from the mean: in two passes, as a difference of two
// large numbers would lose what is left. Sums go lane by lane, and lanes are added at the end; of BLOCK additions each,
// which are added again, since each addition to one long sum rounds more than the last. In NHWC a layer norm is also the channel norm of [B, C, H, W]. Arguments: x, packed (w [C], then b
// [C]; of norms alone), y. Letters: B batch, M or N pixels, C channels, G groups.
#pragma once

#include "functions.h"
#include "pool.h"

namespace es {

// Additions of a sum, which is added to others then.
constexpr int BLOCK = 64;

// The sum over C numbers of term<V>(vector of them), in vectors that are added to each other first.
template <int C, class Term>
ES_INLINE float sum_terms(const float* x, const Term& term) {
    Vector<LANES> whole = {};
    if constexpr (C > 2 * BLOCK * LANES) {
        constexpr int BLOCKS = C / (BLOCK * LANES);
        for (int i = 0; i < BLOCKS; ++i, x += BLOCK * LANES) {
            Vector<LANES> sum = {};
            for (int c = 0; c < BLOCK * LANES; c += LANES) sum += term(load<Vector<LANES>>(x + c));
            whole += sum;
        }
        return sum_lanes(whole) + sum_terms<C - BLOCKS * BLOCK * LANES>(x, term);
    }
    float rest = 0;
    partition<C>([&]<int WIDTH>(int c) {
        if constexpr (WIDTH == LANES)
            whole += term(load<Vector<LANES>>(x + c));
        else
            rest += sum_lanes(term(load<Vector<WIDTH>>(x + c)));
    });
    return sum_lanes(whole) + rest;
}

template <int C>
ES_INLINE float sum_of(const float* x) {
    return sum_terms<C>(x, [](auto v) { return v; });
}

template <int C>
ES_INLINE float squares_around(const float* x, float mean) {
    return sum_terms<C>(x, [&](auto v) { return (v - mean) * (v - mean); });
}

// y = (x - mean) scale w + b of C channels.
template <int C>
ES_INLINE void normalise(const float* x, float mean, float scale, const float* w, const float* b, float* y) {
    cover<C>([&]<int WIDTH>(int c) {
        using V = Vector<WIDTH>;
        store(y + c, (load<V>(x + c) - mean) * scale * load<V>(w + c) + load<V>(b + c));
    });
}

// S has the constants that kernels/native/norms.py writes.
template <class S>
struct LayerNorm : S {
    using S::C, S::M, S::TASKS;

    static int run(void* const* arguments) {
        const auto x = static_cast<const float*>(arguments[0]);
        const auto w = static_cast<const float*>(arguments[1]);
        const auto y = static_cast<float*>(arguments[2]);
        parallel(TASKS, [&](int task) {
            for (long m = part_begin(task, TASKS, M); m < part_begin(task + 1, TASKS, M); ++m) {
                const float mean = sum_of<C>(x + m * C) / C;
                const float variance = squares_around<C>(x + m * C, mean) / C;
                normalise<C>(x + m * C, mean, 1.0f / __builtin_sqrtf(variance + S::EPSILON), w, w + C, y + m * C);
            }
        }, 10L * M * C / LANES);
        return 0;
    }
};

template <class S>
struct Softmax : S {
    using S::C, S::M, S::TASKS;

    static ES_INLINE float largest(const float* x) {
        float most[LANES];
        store(most, splat<Vector<LANES>>(-__builtin_inff()));
        partition<C>([&]<int WIDTH>(int c) {
            using V = Vector<WIDTH>;
            store(most, larger_of(load<V>(most), load<V>(x + c)));
        });
        float found = most[0];
        for (int i = 1; i < smaller(LANES, C); ++i) found = found < most[i] ? most[i] : found;
        return found;
    }

    static int run(void* const* arguments) {
        const auto x = static_cast<const float*>(arguments[0]);
        const auto y = static_cast<float*>(arguments[1]);
        parallel(TASKS, [&](int task) {
            for (long m = part_begin(task, TASKS, M); m < part_begin(task + 1, TASKS, M); ++m) {
                const float most = largest(x + m * C);
                cover<C>([&]<int WIDTH>(int c) {
                    store(y + m * C + c, exp(load<Vector<WIDTH>>(x + m * C + c) - most));
                });
                const float scale = 1.0f / sum_of<C>(y + m * C);
                partition<C>([&]<int WIDTH>(int c) {
                    store(y + m * C + c, load<Vector<WIDTH>>(y + m * C + c) * scale);
                });
            }
        }, 32L * M * C / LANES);
        return 0;
    }
};

// In three phases over chunks of pixels: sums, squares, numbers. Scratch keeps one sum a chunk, map and group.
template <class S>
struct GroupNorm : S {
    using S::C, S::CHUNKS, S::G, S::N;
    static constexpr int WIDTH = C / G;
    static constexpr int TASKS = S::BATCH * CHUNKS;
    static constexpr int SUMS = TASKS * G;
    static constexpr long CYCLES = 8L * S::BATCH * N * C / LANES;  // of one phase

    static constexpr int begin(int chunk) { return part_begin(chunk, CHUNKS, N); }

    // partial[task, g] = the sum of term(pixel's channels of group g, map, g) over a chunk's pixels.
    template <class Term>
    static void reduce(const float* x, float* partial, const Term& term) {
        parallel(TASKS, [&](int task) {
            const int map = task / CHUNKS, chunk = task % CHUNKS;
            for (int g = 0; g < G; ++g) {
                float whole = 0;
                for (int n = begin(chunk); n < begin(chunk + 1);) {
                    float sum = 0;
                    for (const int end = smaller(n + BLOCK, begin(chunk + 1)); n < end; ++n)
                        sum += term(x + (long(map) * N + n) * C + g * WIDTH, map, g);
                    whole += sum;
                }
                partial[task * G + g] = whole;
            }
        }, CYCLES);
    }

    // The mean over all chunks of a map's group.
    static float mean(const float* partial, int map, int g) {
        float sum = 0;
        for (int chunk = 0; chunk < CHUNKS; ++chunk) sum += partial[(map * CHUNKS + chunk) * G + g];
        return sum / (float(N) * WIDTH);
    }

    static int run(void* const* arguments) {
        const auto x = static_cast<const float*>(arguments[0]);
        const auto w = static_cast<const float*>(arguments[1]);
        const auto y = static_cast<float*>(arguments[2]);
        const auto sums = static_cast<float*>(arguments[3]);
        const auto squares = sums + SUMS, means = squares + SUMS;
        reduce(x, sums, [](const float* from, int, int) { return sum_of<WIDTH>(from); });
        for (int i = 0; i < S::BATCH * G; ++i) means[i] = mean(sums, i / G, i % G);
        reduce(x, squares, [&](const float* from, int map, int g) {
            return squares_around<WIDTH>(from, means[map * G + g]);
        });
        parallel(TASKS, [&](int task) {
            const int map = task / CHUNKS, chunk = task % CHUNKS;
            for (int g = 0; g < G; ++g) {
                const float scale = 1.0f / __builtin_sqrtf(mean(squares, map, g) + S::EPSILON);
                for (int n = begin(chunk); n < begin(chunk + 1); ++n) {
                    const long at = (long(map) * N + n) * C + g * WIDTH;
                    normalise<WIDTH>(x + at, means[map * G + g], scale, w + g * WIDTH, w + C + g * WIDTH, y + at);
                }
            }
        }, CYCLES);
        return 0;
    }
};

template <class S>
struct Mean : S {
    using S::C, S::N;

    template <int WIDTH>
    static ES_INLINE void run_channels(const float* x, float* y) {
        Vector<WIDTH> whole = {};
        for (int n = 0; n < N;) {
            const int end = smaller(n + 4 * BLOCK, N);
            Vector<WIDTH> sums[4] = {};  // four sums, so that additions do not wait for each other
            for (; n + 4 <= end; n += 4) {
                ES_UNROLL
                for (int i = 0; i < 4; ++i) sums[i] += load<Vector<WIDTH>>(x + long(n + i) * C);
            }
            for (; n < end; ++n) sums[0] += load<Vector<WIDTH>>(x + long(n) * C);
            whole += (sums[0] + sums[1]) + (sums[2] + sums[3]);
        }
        store(y, whole * (1.0f / N));
    }

    static int run(void* const* arguments) {
        const auto x = static_cast<const float*>(arguments[0]);
        const auto y = static_cast<float*>(arguments[1]);
        parallel(S::BATCH, [&](int map) {
            cover<C>([&]<int WIDTH>(int c) { run_channels<WIDTH>(x + long(map) * N * C + c, y + map * C + c); });
        });
        return 0;
    }
};

}  // namespace es
