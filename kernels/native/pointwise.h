// Pointwise convolution, which is a linear layer at every pixel.
//
//     y[m, n] = epilogue(bias[n] + sum_k x[m, k] w[k, n])
//
// A task is a group of pixel tiles times a group of panels. It takes panel by panel, and all its tiles for each, so
// that the group's rows of x stay in the first caches and a panel is read from memory once for the group. A layer of
// few pixels waits for its weights, and sums STAGE inputs at a time, which rounds less and takes no longer. Arguments:
// x [M, K], gate and residual where the epilogue has them, packed panels, y [M, N]. Letters: M pixels, K inputs, N
// outputs.
#pragma once

#include "gemm.h"

namespace es {

// S has the constants that kernels/native/pointwise.py writes.
template <class S>
struct Pointwise : S {
    using S::K, S::N, S::PANEL_GROUPS;
    using Rows = Tiles<S::M, S::P>;
    using Columns = Panels<N, S::V>;
    using Tasks = Grid<Rows::COUNT, S::ALONE, S::SHARED, PANEL_GROUPS>;
    static constexpr long CYCLES = long(K) * N * (S::M + 8) / (2 * LANES);  // two products a cycle; a weight is four away

    // Pixels from tile `begin` on, before tile `end`, times the panel of COLUMNS channels from `channel` on.
    template <int COLUMNS, class Epilogue>
    static ES_NOINLINE void multiply(int channel, int begin, int end, const float* x, const float* panel, float* y,
                         const Epilogue& epilogue) {
        constexpr int PITCH = Panel<COLUMNS>::PITCH;
        Ahead ahead{panel + long(K + 1) * PITCH, 0};
        Rows::visit(begin, end, [&]<int PIXELS>(int pixel) {
            ahead.lines = Ahead::share(K + 1, PITCH, end - begin);
            const float* rows[PIXELS];
            ES_UNROLL
            for (int p = 0; p < PIXELS; ++p) rows[p] = x + long(pixel + p) * K;
            Sums<PIXELS, COLUMNS> sums;
            sums.clear();
            sums.template add_in_stages<S::STAGE>(rows, panel + PITCH, K, ahead);
            sums.add_row(panel);
            sums.finish(y, pixel, channel, N, N, epilogue);
        });
    }

    template <class Epilogue>
    static void run_task(int begin, int end, int panels, const float* x, const float* packed, float* y, const Epilogue& epilogue) {
        Columns::template visit_group<PANEL_GROUPS>(panels, [&]<int COLUMNS>(int channel) {
            multiply<COLUMNS>(channel, begin, end, x, packed + long(channel) * (K + 1), y, epilogue);
        });
    }

    template <class Epilogue>
    static void run_tasks(const float* x, const float* packed, float* y, const Epilogue& epilogue) {
        const auto run = [&](int begin, int end, int panels) { run_task(begin, end, panels, x, packed, y, epilogue); };
        Tasks::share(run, CYCLES);
    }

    static int run(void* const* arguments) {
        const auto x = static_cast<const float*>(*arguments++);
        const typename S::Epilogue epilogue(arguments);
        const auto packed = static_cast<const float*>(*arguments++);
        const auto y = static_cast<float*>(*arguments++);
        run_tasks(x, packed, y, epilogue);
        return 0;
    }
};

}  // namespace es
