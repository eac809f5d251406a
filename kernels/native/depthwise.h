// Depthwise convolution: every channel by itself.
//
//     y[i, j, c] = epilogue(bias[c] + sum_{a, b} x[i s - p_top + a d, j s - p_left + b d, c] w[a, b, c])
//
// A strip is T neighbouring output pixels of one row and one vector of channels; its sums stay in registers. For each
// row a of the kernel each input vector is loaded once and multiplied into every sum that it belongs to: with T = 7
// and a 3x3 kernel 9 loads for 21 multiply-adds. Input outside of the map is left out of the sum. Strips that touch
// the left or right edge are compiled for their position, so that this is decided before the kernel runs. Arguments: x
// [B, H, W, C], gate and residual where the epilogue has them, packed weights (bias [C], then w [KH, KW, C]), y [B,
// OH, OW, C]. Letters: B batch, H W, C channels, s stride, d dilation, T pixels of a strip.
#pragma once

#include "epilogue.h"
#include "pool.h"

namespace es {

// S has the constants that kernels/native/depthwise.py writes. Pixels of x are PITCH numbers apart: C, or more where
// x is part of a wider map. A vector has MOST_LANES channels, or fewer.
template <class S>
struct Depthwise : S {
    using S::C, S::DILATION, S::H, S::KH, S::KW, S::LEFT, S::OH, S::OW, S::PITCH, S::STRIDE, S::TASKS, S::T, S::W;
    static constexpr int STRIPS = ceil_div(OW, T);
    static constexpr int ROWS = S::BATCH * OH;
    static constexpr long CYCLES = long(ROWS) * OW * C * KH * KW / LANES;
    static constexpr int UNKNOWN = -1;

    // First output column of a strip: the last one ends at the edge, and may overlap the one before.
    static constexpr int first(int strip) { return smaller(strip * T, OW - T); }

    static constexpr bool touches_edge(int strip) {
        const int left = first(strip) * STRIDE - LEFT;
        return left < 0 || left + (T - 1) * STRIDE + (KW - 1) * DILATION >= W;
    }

    static constexpr int inner_end(int strip) {
        while (strip < STRIPS && !touches_edge(strip)) ++strip;
        return strip;
    }

    // Calls body<AT>(column) for the strips of a row: AT is the column of those at an edge, and UNKNOWN of the others.
    template <int STRIP = 0, class Body>
    static ES_INLINE void visit_strips(const Body& body) {
        if constexpr (STRIP < STRIPS) {
            if constexpr (touches_edge(STRIP)) {
                body.template operator()<first(STRIP)>(first(STRIP));
                visit_strips<STRIP + 1>(body);
            } else {
                constexpr int END = inner_end(STRIP);
                for (int strip = STRIP; strip < END; ++strip) body.template operator()<UNKNOWN>(first(strip));
                visit_strips<END>(body);
            }
        }
    }

    // One row of the kernel: `x` is the input row, `w` the weights of that row.
    template <int AT, class V>
    static ES_INLINE void add_row(V (&sums)[T], const float* x, const float* w, int column) {
        V weights[KW];
        ES_UNROLL
        for (int b = 0; b < KW; ++b) weights[b] = load<V>(w + b * C);
        ES_UNROLL
        for (int i = 0; i <= (T - 1) * STRIDE + (KW - 1) * DILATION; ++i) {
            if (AT != UNKNOWN && (AT * STRIDE - LEFT + i < 0 || AT * STRIDE - LEFT + i >= W)) continue;
            const V value = load<V>(x + (column * STRIDE - LEFT + i) * long(PITCH));
            ES_UNROLL
            for (int b = 0; b < KW; ++b) {
                const int from = i - b * DILATION, t = from / STRIDE;
                if (from >= 0 && from % STRIDE == 0 && t < T) sums[t] += value * weights[b];
            }
        }
    }

    // The sums of one strip, for channels from `c` on. Rows are counted through the batch.
    template <int AT, class V>
    static ES_INLINE void sum(V (&sums)[T], int row, int column, int c, const float* x, const float* packed) {
        const int top = row % OH * STRIDE - S::TOP;
        const float* const map = x + row / OH * (long(H) * W * PITCH) + c;
        ES_UNROLL
        for (int t = 0; t < T; ++t) sums[t] = V{};
        for (int a = 0; a < KH; ++a) {
            const int line = top + a * DILATION;
            if (line < 0 || line >= H) continue;
            add_row<AT>(sums, map + line * (long(W) * PITCH), packed + (1 + a * KW) * long(C) + c, column);
        }
        ES_UNROLL
        for (int t = 0; t < T; ++t) sums[t] += load<V>(packed + c);  // last, as in gemm.h
    }

    template <class Epilogue>
    static void run_row(int row, const float* x, const float* packed, float* y, const Epilogue& epilogue) {
        visit_strips([&]<int AT>(int column) {
            const long pixel = long(row) * OW + column;
            cover<C, S::MOST_LANES>([&]<int WIDTH>(int c) {
                Vector<WIDTH> sums[T];
                sum<AT>(sums, row, column, c, x, packed);
                ES_UNROLL
                for (int t = 0; t < T; ++t)
                    store(y + (pixel + t) * C + c, epilogue.template operator()<WIDTH>(sums[t], pixel + t, c, C));
            });
        });
    }

    static int run(void* const* arguments) {
        const auto x = static_cast<const float*>(*arguments++);
        const typename S::Epilogue epilogue(arguments);
        const auto packed = static_cast<const float*>(*arguments++);
        const auto y = static_cast<float*>(*arguments++);
        parallel(TASKS, [&](int task) {
            for (int row = part_begin(task, TASKS, ROWS); row < part_begin(task + 1, TASKS, ROWS); ++row)
                run_row(row, x, packed, y, epilogue);
        }, CYCLES);
        return 0;
    }
};

}  // namespace es
