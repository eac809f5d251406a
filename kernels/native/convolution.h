// Dense convolution as a matrix product whose left matrix is never written down.
//
//     y[i, j, n] = epilogue(bias[n] + sum_{a, b, c} x[i s - p_top + a d, j s - p_left + b d, c] w[a, b, c, n])
//
// In NHWC the KW pixels under one row of the kernel lie side by side, KW C numbers, so that a kernel row is a product
// of its own: the rows of x that `Sums::add` reads are pointers into the map. At the left and right edge those numbers
// are put together in a small buffer, zeros outside of the map; kernel rows above or below it are left out. With a
// dilation, or with groups, the numbers of a kernel row lie apart, and every tap is a product of its own. Arguments: x
// [B, H, W, G C], gate and residual where the epilogue has them, packed panels of w [KH KW C, N] of each group, y [B,
// OH, OW, G N]. Letters: B batch, H W, G groups, C inputs and N outputs of one, s stride, d dilation.
#pragma once

#include "gemm.h"
#include "pool.h"

namespace es {

// S has the constants that kernels/native/convolution.py writes.
template <class S>
struct Convolution : S {
    using S::C, S::DILATION, S::GROUPS, S::H, S::KW, S::LEFT, S::N, S::OW, S::PANEL_GROUPS, S::STRIDE, S::W;
    using Columns = Panels<N, S::V>;
    using Pixels = Tiles<OW, S::P>;
    static constexpr int PITCH = GROUPS * C;  // numbers of a pixel of x
    static constexpr int TAPS = DILATION == 1 && GROUPS == 1 ? KW : 1;  // pixels side by side under a kernel row
    static constexpr int LENGTH = TAPS * C;
    static constexpr int K = S::KH * KW * C;
    static constexpr int ROWS = S::BATCH * S::OH;
    using Tasks = Grid<ROWS, S::ALONE, S::SHARED, PANEL_GROUPS * GROUPS>;
    static constexpr long GROUP_WEIGHTS = long(Columns::VECTORS) * LANES * (K + 1);
    static_assert(LENGTH * S::P <= 65536, "the buffers of a tile lie on the stack");

    // Whether no input of `pixels` output pixels from `column` on lies left or right of the map.
    static constexpr bool is_inside(int column, int pixels) {
        return column * STRIDE >= LEFT && (column + pixels - 1) * STRIDE - LEFT + (KW - 1) * DILATION < W;
    }

    // The numbers of one pixel from input column `left` on: in place, or copied to `edge`.
    static const float* gather(const float* line, int left, float* edge) {
        if (left >= 0 && left + TAPS <= W) return line + long(left) * PITCH;
        for (int b = 0; b < TAPS; ++b)
            for (int c = 0; c < C; ++c) {
                const bool exists = left + b >= 0 && left + b < W;
                edge[b * C + c] = exists ? line[long(left + b) * PITCH + c] : 0;
            }
        return edge;
    }

    // Adds the products of all kernel rows for PIXELS output pixels from `column` on, in one output row.
    template <bool INSIDE, int PIXELS, int COLUMNS>
    static ES_INLINE void add(Sums<PIXELS, COLUMNS>& sums, const float* map, int top, int column, const float* w, Ahead& ahead) {
        float edge[INSIDE ? 1 : PIXELS][INSIDE ? 1 : LENGTH];
        for (int a = 0; a < S::KH; ++a) {
            const int y = top + a * DILATION;
            if (y < 0 || y >= H) continue;
            const float* const line = map + long(y) * W * PITCH;
            for (int b = 0; b < KW; b += TAPS) {
                const float* rows[PIXELS];
                ES_UNROLL
                for (int p = 0; p < PIXELS; ++p) {
                    const int left = (column + p) * STRIDE - LEFT + b * DILATION;
                    rows[p] = INSIDE ? line + long(left) * PITCH : gather(line, left, edge[INSIDE ? 0 : p]);
                }
                sums.add(rows, w + long(a * KW + b) * C * Panel<COLUMNS>::PITCH, LENGTH, ahead);
            }
        }
    }

    // `channel` is counted through all groups.
    template <int COLUMNS, class Epilogue>
    static void run_row(int row, int rows, int channel, const float* x, const float* panel, float* y, Ahead& ahead, const Epilogue& epilogue) {
        const float* const map = x + row / S::OH * (long(H) * W * PITCH);
        const int top = row % S::OH * STRIDE - S::TOP;
        const float* const w = panel + Panel<COLUMNS>::PITCH;
        Pixels::visit(0, Pixels::COUNT, [&]<int PIXELS>(int column) {
            ahead.lines = Ahead::share(K + 1, Panel<COLUMNS>::PITCH, rows * Pixels::COUNT);
            Sums<PIXELS, COLUMNS> sums;
            sums.clear();
            if (is_inside(column, PIXELS))
                add<true>(sums, map, top, column, w, ahead);
            else
                add<false>(sums, map, top, column, w, ahead);
            sums.add_row(panel);
            sums.finish(y, long(row) * OW + column, channel, GROUPS * N, GROUPS * N, epilogue);
        });
    }

    // The panels of group `panels`, counted through all groups of channels.
    template <class Epilogue>
    static void run_task(int begin, int end, int panels, const float* x, const float* packed, float* y, const Epilogue& epilogue) {
        const int group = panels / PANEL_GROUPS;
        Columns::template visit_group<PANEL_GROUPS>(panels % PANEL_GROUPS, [&]<int COLUMNS>(int channel) {
            const float* const panel = packed + group * GROUP_WEIGHTS + long(channel) * (K + 1);
            Ahead ahead{panel + long(K + 1) * Panel<COLUMNS>::PITCH, 0};
            for (int row = begin; row < end; ++row)
                run_row<COLUMNS>(row, end - begin, group * N + channel, x + group * C, panel, y, ahead, epilogue);
        });
    }

    static int run(void* const* arguments) {
        const auto x = static_cast<const float*>(*arguments++);
        const typename S::Epilogue epilogue(arguments);
        const auto packed = static_cast<const float*>(*arguments++);
        const auto y = static_cast<float*>(*arguments++);
        Tasks::share([&](int begin, int end, int panels) { run_task(begin, end, panels, x, packed, y, epilogue); });
        return 0;
    }
};

}  // namespace es
