// A product of two matrices that are both made while a model runs, for the ops that are made of several kernels.
//
//     y[m, n] = sum_k x[m, k] w[k, n]
//
// w is read as it lies in memory, its rows W_PITCH numbers apart: there is no time to pack it. Its rows are read in
// whole vectors, so that N is made whole by `padded`, and memory behind N has to be there, whatever it holds. x may be
// transposed: its rows are X_PITCH numbers apart, the numbers of a row X_STEP. Letters: M rows, K inputs, N columns.
#pragma once

#include "gemm.h"
#include "pool.h"

namespace es {

// Numbers in a row of `n` that ends with a whole vector.
constexpr int padded(int n) { return ceil_div(n, LANES) * LANES; }

// S has M, K, N, the tile's P and V, X_PITCH, X_STEP, W_PITCH, Y_PITCH and LEAST_TASKS.
template <class S>
struct Product : S {
    using S::M, S::N;
    using Rows = Tiles<M, S::P>;
    using Columns = Panels<N, S::V>;
    static constexpr int ROW_GROUPS = smaller(Rows::COUNT, S::LEAST_TASKS);
    static constexpr bool BY_ROWS = M > N;  // a thread's tasks are neighbours: those of some rows, or of some columns
    static constexpr int TASKS = ROW_GROUPS * Columns::COUNT;
    static constexpr long CYCLES = long(M) * S::K * N / (2 * LANES);

    template <class Finish = Epilogue<>>
    static void run_task(int task, const float* x, const float* w, float* y, const Finish& epilogue = {}) {
        const int group = BY_ROWS ? task / Columns::COUNT : task % ROW_GROUPS;
        const int begin = part_begin(group, ROW_GROUPS, Rows::COUNT), end = part_begin(group + 1, ROW_GROUPS, Rows::COUNT);
        Columns::visit(BY_ROWS ? task % Columns::COUNT : task / ROW_GROUPS, [&]<int COLUMNS>(int channel) {
            Rows::visit(begin, end, [&]<int PIXELS>(int row) {
                const float* rows[PIXELS];
                ES_UNROLL
                for (int p = 0; p < PIXELS; ++p) rows[p] = x + long(row + p) * S::X_PITCH;
                Sums<PIXELS, COLUMNS> sums;
                sums.clear();
                sums.template add<S::X_STEP, S::W_PITCH>(rows, w + channel, S::K);
                sums.finish(y, row, channel, N, S::Y_PITCH, epilogue);
            });
        });
    }

    template <class Finish = Epilogue<>>
    static void run(const float* x, const float* w, float* y, const Finish& epilogue = {}) {
        parallel(TASKS, [&](int task) { run_task(task, x, w, y, epilogue); }, CYCLES);
    }
};

}  // namespace es
