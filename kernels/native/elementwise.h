// A function of every number by itself.
//
//     y[i] = f(x[i])
//
// Arguments: x and y, COUNT numbers each.
#pragma once

#include "functions.h"
#include "pool.h"

namespace es {

// S has the constants that kernels/native/elementwise.py writes.
template <class S>
struct Elementwise : S {
    using S::COUNT, S::NUMBERS_A_TASK;
    static constexpr int TASKS = ceil_div(COUNT, NUMBERS_A_TASK);
    static constexpr int LAST = COUNT - (TASKS - 1) * NUMBERS_A_TASK;

    template <int N>
    static void run_chunk(const float* x, float* y) {
        cover<N>([&]<int WIDTH>(int i) { store(y + i, apply<S::FUNCTION>(load<Vector<WIDTH>>(x + i))); });
    }

    static int run(void* const* arguments) {
        const auto x = static_cast<const float*>(arguments[0]);
        const auto y = static_cast<float*>(arguments[1]);
        parallel(TASKS, [&](int task) {
            const long first = long(task) * NUMBERS_A_TASK;
            if (task == TASKS - 1)
                run_chunk<LAST>(x + first, y + first);
            else
                run_chunk<NUMBERS_A_TASK>(x + first, y + first);
        }, 12L * COUNT / LANES);
        return 0;
    }
};

}  // namespace es
