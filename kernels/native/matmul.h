// Products of two matrices that are both made while a model runs, many of them at once.
//
//     y[b, m, n] = sum_k x[b, m, k] w[b, k, n]
//
// It is product.h's, for each b. That reads rows of w in whole vectors, so w is copied to such rows first where N is
// none. Arguments: x [B, M, K], w [B, K, N], y [B, M, N], scratch where w is copied. Letters: B
// products, M rows, K inputs, N columns.
#pragma once

#include "product.h"

namespace es {

// S has the constants that kernels/native/matmul.py writes.
template <class S>
struct Matmul : S {
    using S::BATCH, S::K, S::M, S::N;
    static constexpr int ROW = padded(N);

    struct Shape : S {
        static constexpr int X_PITCH = S::K, X_STEP = 1, W_PITCH = padded(S::N), Y_PITCH = S::N;
    };
    using One = Product<Shape>;

    static int run(void* const* arguments) {
        const auto x = static_cast<const float*>(arguments[0]);
        auto w = static_cast<const float*>(arguments[1]);
        const auto y = static_cast<float*>(arguments[2]);
        if constexpr (ROW != N) {
            const auto wide = static_cast<float*>(arguments[3]);
            parallel(BATCH, [&](int b) {
                for (long k = long(b) * K; k < long(b + 1) * K; ++k)
                    for (int n = 0; n < ROW; ++n) wide[k * ROW + n] = n < N ? w[k * N + n] : 0;
            });
            w = wide;
        }
        parallel(BATCH * One::TASKS, [&](int task) {
            const long b = task / One::TASKS;
            One::run_task(task % One::TASKS, x + b * M * K, w + b * K * ROW, y + b * M * N);
        }, BATCH * One::CYCLES);
        return 0;
    }
};

}  // namespace es
