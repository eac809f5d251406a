// Dense convolution of three numbers in a row, two outputs at once: four products in the place of six.
//
//     v = (x0 - x2, x1 + x2, x2 - x1, x1 - x3)        of four neighbouring inputs, for each channel
//     u = (w0, (w0 + w1 + w2) / 2, (w0 - w1 + w2) / 2, w2)                     of each kernel row, made at export
//     m_k = sum_{a, c} v_k u_k                        a matrix product each, k = 0 ... 3; m_1 starts as the bias
//     y0 = m0 + m1 + m2,   y1 = m1 - m2 - m3
//
// It is F(2, 3) of Winograd, "Arithmetic Complexity of Computations" (1980), along the rows of a map; kernel rows are
// added up before y is made, so a KH x 3 kernel is KH of them. Larger forms save more and round more. First v is made
// of the whole map, [4, B, H, pairs, C]; then a tile of pairs and a panel of channels go through the four products, whose
// sums lie on the stack until y is made of them. Arguments: x [B, H, W, C], gate and residual where the epilogue has
// them, packed panels of u [4 KH C, N], y [B, OH, OW, N], scratch (v). Letters: B batch, H W, C inputs, N outputs.
#pragma once

#include "gemm.h"
#include "pool.h"

namespace es {

// S has the constants that kernels/native/winograd.py writes.
template <class S>
struct Winograd : S {
    using S::C, S::H, S::KH, S::LEFT, S::N, S::OW, S::PANEL_GROUPS, S::PAIRS_A_TASK, S::ROWS_A_TASK, S::W;
    using Columns = Panels<N, S::V>;
    static constexpr int PAIRS = ceil_div(OW, 2);
    using Tall = Tiles<PAIRS, S::P>;
    static constexpr int INPUT_ROWS = S::BATCH * H, ROWS = S::BATCH * S::OH;
    static constexpr int CHUNKS = ceil_div(PAIRS, PAIRS_A_TASK);
    static constexpr int K = 4 * KH * C;
    static constexpr long PLANE = long(INPUT_ROWS) * PAIRS * C;  // of one k
    static constexpr int TASKS = ceil_div(ROWS, ROWS_A_TASK) * PANEL_GROUPS;

    // v of one pair in one row of x.
    static ES_INLINE void transform(const float* line, int pair, const float* zeros, float* v) {
        const float* x[4];
        ES_UNROLL
        for (int i = 0; i < 4; ++i) {
            const int column = 2 * pair - LEFT + i;
            x[i] = column >= 0 && column < W ? line + long(column) * C : zeros;
        }
        cover<C>([&]<int WIDTH>(int c) {
            using V = Vector<WIDTH>;
            const V x0 = load<V>(x[0] + c), x1 = load<V>(x[1] + c), x2 = load<V>(x[2] + c), x3 = load<V>(x[3] + c);
            store(v + c, x0 - x2);
            store(v + PLANE + c, x1 + x2);
            store(v + 2 * PLANE + c, x2 - x1);
            store(v + 3 * PLANE + c, x1 - x3);
        });
    }

    // m_k of PAIRS_HERE neighbouring pairs of output row `row`.
    template <int PAIRS_HERE, int COLUMNS>
    static ES_NOINLINE void multiply(int k, int row, int pair, const float* v, const float* panel, float* m) {
        constexpr int PITCH = Panel<COLUMNS>::PITCH;
        Sums<PAIRS_HERE, COLUMNS> sums;
        if (k == 1)
            sums.start(panel);
        else
            sums.clear();
        const int top = row % S::OH - S::TOP;
        for (int a = larger(0, -top); a < smaller(KH, H - top); ++a) {
            const float* const line = v + k * PLANE + (long(row / S::OH * H + top + a) * PAIRS + pair) * C;
            const float* rows[PAIRS_HERE];
            ES_UNROLL
            for (int p = 0; p < PAIRS_HERE; ++p) rows[p] = line + p * C;
            sums.add(rows, panel + (1 + long(k * KH + a) * C) * PITCH, C);
        }
        sums.keep(m);
    }

    // y of one pair, of its m, which are `step` apart.
    template <int COLUMNS, class Epilogue>
    static ES_INLINE void combine(const float* m, int step, int row, int pair, int channel, float* y,
                                  const Epilogue& epilogue) {
        Sums<1, COLUMNS> m0, m1, m2, m3;
        m0.start(m), m1.start(m + step), m2.start(m + 2 * step), m3.start(m + 3 * step);
        Sums<2, COLUMNS> both;
        ES_UNROLL
        for (int i = 0; i < Panel<COLUMNS>::WHOLE; ++i) {
            both.whole[0][i] = m0.whole[0][i] + m1.whole[0][i] + m2.whole[0][i];
            both.whole[1][i] = m1.whole[0][i] - m2.whole[0][i] - m3.whole[0][i];
        }
        if constexpr (Panel<COLUMNS>::HAS_HALF) {
            both.half[0] = m0.half[0] + m1.half[0] + m2.half[0];
            both.half[1] = m1.half[0] - m2.half[0] - m3.half[0];
        }
        const long pixel = long(row) * OW + 2 * pair;
        both.finish_row(y + pixel * N + channel, 0, pixel, channel, N, epilogue);
        if (2 * pair + 1 < OW) both.finish_row(y + (pixel + 1) * N + channel, 1, pixel + 1, channel, N, epilogue);
    }

    template <int COLUMNS, class Epilogue>
    static void run_row(int row, int channel, const float* v, const float* panel, float* y, const Epilogue& epilogue) {
        constexpr int PITCH = Panel<COLUMNS>::PITCH;
        Tall::visit(0, Tall::COUNT, [&]<int PAIRS_HERE>(int pair) {
            alignas(64) float m[4][PAIRS_HERE * PITCH];
            for (int k = 0; k < 4; ++k) multiply<PAIRS_HERE, COLUMNS>(k, row, pair, v, panel, m[k]);
            for (int p = 0; p < PAIRS_HERE; ++p)
                combine<COLUMNS>(m[0] + p * PITCH, PAIRS_HERE * PITCH, row, pair + p, channel, y, epilogue);
        });
    }

    static int run(void* const* arguments) {
        const auto x = static_cast<const float*>(*arguments++);
        const typename S::Epilogue epilogue(arguments);
        const auto packed = static_cast<const float*>(*arguments++);
        const auto y = static_cast<float*>(*arguments++);
        const auto v = static_cast<float*>(*arguments);
        parallel(INPUT_ROWS * CHUNKS, [&](int task) {
            alignas(64) static const float zeros[C] = {};
            const int row = task / CHUNKS, begin = task % CHUNKS * PAIRS_A_TASK;
            for (int pair = begin; pair < smaller(begin + PAIRS_A_TASK, PAIRS); ++pair)
                transform(x + long(row) * W * C, pair, zeros, v + (long(row) * PAIRS + pair) * C);
        });
        parallel(TASKS, [&](int task) {
            const int begin = task / PANEL_GROUPS * ROWS_A_TASK, end = smaller(begin + ROWS_A_TASK, ROWS);
            Columns::template visit_group<PANEL_GROUPS>(task % PANEL_GROUPS, [&]<int COLUMNS>(int channel) {
                for (int row = begin; row < end; ++row)
                    run_row<COLUMNS>(row, channel, v, packed + long(channel) * (K + 1), y, epilogue);
            });
        });
        return 0;
    }
};

}  // namespace es
