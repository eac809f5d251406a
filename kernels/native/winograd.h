// Dense convolution of three numbers in a row, two or four outputs at once: four products in the place of six, or six
// in the place of twelve.
//
//     v = (x0 - x2, x1 + x2, x2 - x1, x1 - x3)        of four neighbouring inputs, for each channel
//     u = (w0, (w0 + w1 + w2) / 2, (w0 - w1 + w2) / 2, w2)                     of each kernel row, made at export
//     m_k = sum_{a, c} v_k u_k                        a matrix product each, k = 0 ... 3
//     y0 = m0 + m1 + m2,   y1 = m1 - m2 - m3              and the bias
//
// It is F(2, 3) of Winograd, "Arithmetic Complexity of Computations" (1980), along the rows of a map. F(4, 3) does the
// same at the points 0, 1, -1, 1/2, -2 and infinity:
//
//     v0 = x0 + x4 - 2 x2 + 3/2 (x3 - x1),   v5 = x1 + x5 - 2 x3 + 3/2 (x4 - x2)
//     v1 = 5 x3 + x2 + 2 (x4 - x1),   v2 = 5 x2 - x3 - 2 (x1 + x4)
//     v3 = 2 (x1 - x3) + x2 - x4,   v4 = x1 - x3 - 2 (x2 - x4)
//     u  = (w0, (w0 + w1 + w2) / 6, (w0 - w1 + w2) / 6, (16 w0 + 8 w1 + 4 w2) / 15, (w0 - 2 w1 + 4 w2) / 30, w2)
//     y0 = m0 + m1 + m2 + m3 + m4,           y1 = m1 - m2 + m3 / 2 - 2 m4
//     y2 = m1 + m2 + m3 / 4 + 4 m4,          y3 = m1 - m2 + m3 / 8 - 8 m4 + m5
//
// Its transforms round about twice as much, and sums of STAGE inputs that are added make up for that. Kernel rows are
// added up before y is made, so a KH x 3 kernel is KH of them. First v is made of the whole map, [OUT + 2, B, H, groups,
// C]; then a tile of groups and a panel of channels go through the products, whose sums lie on the stack until y is made
// of them. Arguments: x [B, H, W, C], gate and residual where the epilogue has them, packed panels of u [(OUT + 2) KH C,
// N], y [B, OH, OW, N], scratch (v). Letters: B batch, H W, C inputs, N outputs, a group has OUT neighbouring outputs.
#pragma once

#include "gemm.h"

namespace es {

// S has the constants that kernels/native/winograd.py writes.
template <class S>
struct Winograd : S {
    using S::C, S::CHUNKS, S::H, S::KH, S::LEFT, S::N, S::OUT, S::OW, S::PANEL_GROUPS, S::W;
    using Columns = Panels<N, S::V>;
    static constexpr int GROUPS_A_ROW = ceil_div(OW, OUT), PRODUCTS = OUT + 2;
    static_assert(OUT == 2 || OUT == 4);
    using Tall = Tiles<GROUPS_A_ROW, S::P>;
    static constexpr int INPUT_ROWS = S::BATCH * H, ROWS = S::BATCH * S::OH;
    static constexpr int K = PRODUCTS * KH * C;
    static constexpr long PLANE = long(INPUT_ROWS) * GROUPS_A_ROW * C;  // of one k
    using Tasks = Grid<ROWS, S::ALONE, S::SHARED, PANEL_GROUPS>;

    // v of one group in one row of x.
    static ES_INLINE void transform(const float* line, int group, const float* zeros, float* v) {
        const float* from[PRODUCTS];
        ES_UNROLL
        for (int i = 0; i < PRODUCTS; ++i) {
            const int column = OUT * group - LEFT + i;
            from[i] = column >= 0 && column < W ? line + long(column) * C : zeros;
        }
        cover<C>([&]<int WIDTH>(int c) {
            using V = Vector<WIDTH>;
            V x[PRODUCTS];
            ES_UNROLL
            for (int i = 0; i < PRODUCTS; ++i) x[i] = load<V>(from[i] + c);
            if constexpr (OUT == 2) {
                store(v + c, x[0] - x[2]);
                store(v + PLANE + c, x[1] + x[2]);
                store(v + 2 * PLANE + c, x[2] - x[1]);
                store(v + 3 * PLANE + c, x[1] - x[3]);
            } else {
                const V odd = x[1] - x[3], even = x[2] - x[4];
                store(v + c, x[0] + x[4] - x[2] * 2.0f - odd * 1.5f);
                store(v + PLANE + c, x[3] * 5.0f + x[2] + (x[4] - x[1]) * 2.0f);
                store(v + 2 * PLANE + c, x[2] * 5.0f - x[3] - (x[1] + x[4]) * 2.0f);
                store(v + 3 * PLANE + c, odd * 2.0f + even);
                store(v + 4 * PLANE + c, odd - even * 2.0f);
                store(v + 5 * PLANE + c, x[1] + x[5] - x[3] * 2.0f - even * 1.5f);
            }
        });
    }

    // m_k of COUNT neighbouring groups of output row `row`.
    template <int COUNT, int COLUMNS>
    static ES_NOINLINE void multiply(int k, int row, int group, const float* v, const float* panel, float* m, Ahead& ahead) {
        constexpr int PITCH = Panel<COLUMNS>::PITCH;
        Sums<COUNT, COLUMNS> sums;
        sums.clear();
        const int top = row % S::OH - S::TOP;
        for (int a = larger(0, -top); a < smaller(KH, H - top); ++a) {
            const float* const line = v + k * PLANE + (long(row / S::OH * H + top + a) * GROUPS_A_ROW + group) * C;
            const float* rows[COUNT];
            ES_UNROLL
            for (int p = 0; p < COUNT; ++p) rows[p] = line + p * C;
            sums.template add_in_stages<S::STAGE>(rows, panel + (1 + long(k * KH + a) * C) * PITCH, C, ahead);
        }
        sums.keep(m);
    }

    // The outputs of a group, of its m.
    template <class V>
    static ES_INLINE void invert(const V (&m)[PRODUCTS], V (&y)[OUT]) {
        if constexpr (OUT == 2) {
            y[0] = m[0] + m[1] + m[2];
            y[1] = m[1] - m[2] - m[3];
        } else {
            const V sum = m[1] + m[2], difference = m[1] - m[2];
            y[0] = m[0] + sum + m[3] + m[4];
            y[1] = difference + m[3] * 0.5f - m[4] * 2.0f;
            y[2] = sum + m[3] * 0.25f + m[4] * 4.0f;
            y[3] = difference + m[3] * 0.125f - m[4] * 8.0f + m[5];
        }
    }

    template <class V>
    static ES_INLINE void invert_at(const float* from, int step, V* first, int pitch) {
        V m[PRODUCTS], y[OUT];
        ES_UNROLL
        for (int k = 0; k < PRODUCTS; ++k) m[k] = load<V>(from + k * step);
        invert(m, y);
        ES_UNROLL
        for (int j = 0; j < OUT; ++j) first[j * pitch] = y[j];
    }

    // y of one group, of its m, which are `step` apart, and the bias.
    template <int COLUMNS, class Epilogue>
    static ES_INLINE void combine(const float* m, int step, const float* bias, int row, int group, int channel, float* y,
                                  const Epilogue& epilogue) {
        using Made = Sums<OUT, COLUMNS>;
        Made made;
        ES_UNROLL
        for (int i = 0; i < Made::WHOLE; ++i)
            invert_at<Vector<LANES>>(m + i * LANES, step, &made.whole[0][i], larger(Made::WHOLE, 1));
        if constexpr (Panel<COLUMNS>::HAS_HALF)
            invert_at<Vector<HALF>>(m + Made::WHOLE * LANES, step, &made.half[0], 1);
        made.add_row(bias);
        const long pixel = long(row) * OW + OUT * group;
        ES_UNROLL
        for (int j = 0; j < OUT; ++j)
            if (OUT * group + j < OW)
                made.finish_row(y + (pixel + j) * N + channel, j, pixel + j, channel, N, epilogue);
    }

    template <int COLUMNS, class Epilogue>
    static void run_row(int row, int rows, int channel, const float* v, const float* panel, float* y, Ahead& ahead, const Epilogue& epilogue) {
        constexpr int PITCH = Panel<COLUMNS>::PITCH;
        Tall::visit(0, Tall::COUNT, [&]<int COUNT>(int group) {
            ahead.lines = Ahead::share(K + 1, PITCH, rows * Tall::COUNT);
            alignas(64) float m[PRODUCTS][COUNT * PITCH];
            for (int k = 0; k < PRODUCTS; ++k) multiply<COUNT, COLUMNS>(k, row, group, v, panel, m[k], ahead);
            for (int p = 0; p < COUNT; ++p)
                combine<COLUMNS>(m[0] + p * PITCH, COUNT * PITCH, panel, row, group + p, channel, y, epilogue);
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
            const int row = task / CHUNKS, chunk = task % CHUNKS, end = part_begin(chunk + 1, CHUNKS, GROUPS_A_ROW);
            for (int group = part_begin(chunk, CHUNKS, GROUPS_A_ROW); group < end; ++group)
                transform(x + long(row) * W * C, group, zeros, v + (long(row) * GROUPS_A_ROW + group) * C);
        });
        Tasks::share([&](int begin, int end, int panels) {
            Columns::template visit_group<PANEL_GROUPS>(panels, [&]<int COLUMNS>(int channel) {
                const float* const panel = packed + long(channel) * (K + 1);
                Ahead ahead{panel + long(K + 1) * Panel<COLUMNS>::PITCH, 0};
                for (int row = begin; row < end; ++row)
                    run_row<COLUMNS>(row, end - begin, channel, v, panel, y, ahead, epilogue);
            });
        });
        return 0;
    }
};

}  // namespace es
