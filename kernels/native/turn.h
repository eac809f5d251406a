// Maps with their channels first, turned so that they come last: what a network does to an image first.
//
//     y[b, n, c] = x[b, c, n]
//
// A pixel has few channels: the compiler reads a vector of pixels from each and shuffles them together. Arguments: x
// [B, C, N], y [B, N, C]. Letters: B batch, C channels, N pixels.
#pragma once

#include "pool.h"
#include "vector.h"

namespace es {

// S has the constants that kernels/native/turn.py writes.
template <class S>
struct Turn : S {
    using S::C, S::CHUNKS, S::N;

    static ES_NOINLINE void run_chunk(const float* __restrict x, float* __restrict y, int pixels) {
        for (int n = 0; n < pixels; ++n) {
            ES_UNROLL
            for (int c = 0; c < C; ++c) y[n * C + c] = x[long(c) * N + n];
        }
    }

    static int run(void* const* arguments) {
        const auto x = static_cast<const float*>(arguments[0]);
        const auto y = static_cast<float*>(arguments[1]);
        parallel(S::BATCH * CHUNKS, [&](int task) {
            const int chunk = task % CHUNKS, begin = part_begin(chunk, CHUNKS, N);
            const long map = long(task / CHUNKS) * N * C;
            run_chunk(x + map + begin, y + map + long(begin) * C, part_begin(chunk + 1, CHUNKS, N) - begin);
        }, long(S::BATCH) * N * C);
        return 0;
    }
};

}  // namespace es
