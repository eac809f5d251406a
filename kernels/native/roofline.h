// The two peaks of a machine that kernels are held against.
//
//     multiply-adds    s_i <- s_i a + b for SUMS vectors s_i in registers: none waits for another one, none for memory
//     bandwidth        the sum of COUNT numbers, read once from front to back
//
// Each of TASKS tasks does the same work, so that any number of threads is kept busy.
#pragma once

#include "pool.h"
#include "vector.h"

namespace es {

// S has the constants that kernels/native/roofline.py writes. Arguments: two factors, y [TASKS].
template <class S>
struct MultiplyAdds : S {
    using S::SUMS;

    static int run(void* const* arguments) {
        const auto given = static_cast<const float*>(arguments[0]);
        const auto y = static_cast<float*>(arguments[1]);
        parallel(S::TASKS, [&](int task) {
            const auto a = splat<Vector<LANES>>(given[0]), b = splat<Vector<LANES>>(given[1]);
            Vector<LANES> sums[SUMS];
            for (int i = 0; i < SUMS; ++i) sums[i] = splat<Vector<LANES>>(given[1] * i);  // equal ones would be merged
            for (int n = 0; n < S::REPEATS; ++n) {
                ES_UNROLL
                for (int i = 0; i < SUMS; ++i) sums[i] = sums[i] * a + b;
            }
            for (int i = 1; i < SUMS; ++i) sums[0] += sums[i];
            y[task] = sum_lanes(sums[0]);
        });
        return 0;
    }
};

// Arguments: x [TASKS, COUNT], y [TASKS].
template <class S>
struct Bandwidth : S {
    using S::COUNT;

    static int run(void* const* arguments) {
        const auto x = static_cast<const float*>(arguments[0]);
        const auto y = static_cast<float*>(arguments[1]);
        parallel(S::TASKS, [&](int task) {
            const float* const from = x + long(task) * COUNT;
            Vector<LANES> sums[8] = {};
            for (int n = 0; n < COUNT; n += 8 * LANES) {
                ES_UNROLL
                for (int i = 0; i < 8; ++i) sums[i] += load<Vector<LANES>>(from + n + i * LANES);
            }
            for (int i = 1; i < 8; ++i) sums[0] += sums[i];
            y[task] = sum_lanes(sums[0]);
        });
        return 0;
    }
};

}  // namespace es
