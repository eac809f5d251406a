// Two pointwise layers, with the numbers between them kept near.
//
//     y[m] = epilogue(W2 f(W1 x[m] + b1) + b2)
//
// A task takes a group of pixels through both layers: the hidden numbers, R x HIDDEN of them, lie on the thread's
// stack and never leave the second cache. Arguments: x [M, K], gate and residual where the epilogue has them, packed
// panels of W1 and then of W2, y [M, N]. Letters: M pixels, K inputs, N outputs, R pixels of a group.
#pragma once

#include "pointwise.h"

namespace es {

// S has the constants that kernels/native/mlp.py writes.
template <class S>
struct Mlp : S {
    using S::HIDDEN, S::K, S::M, S::N, S::R;
    static_assert(long(R) * HIDDEN <= 131072, "the hidden numbers lie on the stack");

    template <int PIXELS>
    struct FirstShape {
        static constexpr int M = PIXELS, K = S::K, N = S::HIDDEN, P = S::P1, V = S::V1;
        static constexpr int STAGE = K, TILES_A_TASK = Tiles<M, P>::COUNT, PANEL_GROUPS = 1;
    };
    template <int PIXELS>
    struct SecondShape {
        static constexpr int M = PIXELS, K = S::HIDDEN, N = S::N, P = S::P2, V = S::V2;
        static constexpr int STAGE = K, TILES_A_TASK = Tiles<M, P>::COUNT, PANEL_GROUPS = 1;
    };
    static constexpr int TASKS = ceil_div(M, R);
    static constexpr int LAST = M - (TASKS - 1) * R;
    static constexpr long FIRST_WEIGHTS = long(Panels<HIDDEN, S::V1>::VECTORS) * LANES * (K + 1);

    template <int PIXELS>
    static void run_group(long pixel, const float* x, const float* packed, float* y, typename S::Epilogue epilogue) {
        alignas(64) float hidden[PIXELS * HIDDEN];
        Pointwise<FirstShape<PIXELS>>::run_task(0, x + pixel * K, packed, hidden, typename S::Between());
        epilogue.move(pixel, N);
        Pointwise<SecondShape<PIXELS>>::run_task(0, hidden, packed + FIRST_WEIGHTS, y + pixel * N, epilogue);
    }

    static int run(void* const* arguments) {
        const auto x = static_cast<const float*>(*arguments++);
        const typename S::Epilogue epilogue(arguments);
        const auto packed = static_cast<const float*>(*arguments++);
        const auto y = static_cast<float*>(*arguments++);
        parallel(TASKS, [&](int task) {
            if (task == TASKS - 1)
                run_group<LAST>(long(task) * R, x, packed, y, epilogue);
            else
                run_group<R>(long(task) * R, x, packed, y, epilogue);
        });
        return 0;
    }
};

}  // namespace es
