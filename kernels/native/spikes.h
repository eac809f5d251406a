// A dense convolution of spikes: of inputs that are 0 or 1, and most of them 0.
//
//     y[i, j, n] = epilogue(bias[n] + sum of w[a, b, c, n] over all (a, b, c) with x[i s - p_top + a d, j s - p_left + b d, c] = 1)
//
// There is nothing to multiply: a row of w is added for each spike, in the order in which a product would add it, so
// that every bit is the same as convolution.h's. First the channels that fire are listed for each pixel, then each
// output pixel takes the rows of w that the lists under the kernel name. Its sums stay in registers, as many vectors of
// them as there are registers for, since only they share the reading of a list. Arguments: x [B, H, W, C], gate and
// residual where the epilogue has them, packed panels of w [KH KW C, N], y [B, OH, OW, N], scratch (the lists: for each
// pixel how many, and which). Letters: B batch, H W, C inputs, N outputs, s stride, d dilation.
#pragma once

#include "gemm.h"
#include "pool.h"

namespace es {

// S has the constants that kernels/native/spikes.py writes.
template <class S>
struct Spikes : S {
    using S::C, S::DILATION, S::H, S::KH, S::KW, S::N, S::OH, S::OW, S::STRIDE, S::TASKS, S::W;
    using Columns = Panels<N, S::V>;
    static constexpr int INPUTS = S::BATCH * H * W, OUTPUTS = S::BATCH * OH * OW;
    static constexpr int K = KH * KW * C;

    // Lists the channels of a pixel that fire. The next place is written whether one does or not: no branch to guess.
    static void list(const float* x, int* channels, int& count) {
        int found = 0;
        for (int c = 0; c < C; ++c) {
            channels[found] = c;
            found += x[c] != 0.0f;
        }
        count = found;
    }

    template <int COLUMNS>
    static ES_INLINE void add(Sums<1, COLUMNS>& sums, int pixel, const float* w, const int* counts, const int* lists) {
        const int map = pixel / (OH * OW), i = pixel / OW % OH, j = pixel % OW;
        for (int a = 0; a < KH; ++a) {
            const int row = i * STRIDE - S::TOP + a * DILATION;
            if (row < 0 || row >= H) continue;
            for (int b = 0; b < KW; ++b) {
                const int column = j * STRIDE - S::LEFT + b * DILATION;
                if (column < 0 || column >= W) continue;
                const int at = (map * H + row) * W + column;
                const float* const tap = w + long(a * KW + b) * C * Panel<COLUMNS>::PITCH;
                const int* const channels = lists + long(at) * C;
                for (int s = 0; s < counts[at]; ++s) sums.add_row(tap + long(channels[s]) * Panel<COLUMNS>::PITCH);
            }
        }
    }

    template <int COLUMNS, class Epilogue>
    static ES_NOINLINE void run_pixels(int begin, int end, int channel, const float* panel, const int* counts,
                                       const int* lists, float* y, const Epilogue& epilogue) {
        for (int pixel = begin; pixel < end; ++pixel) {
            Sums<1, COLUMNS> sums;
            sums.clear();
            add(sums, pixel, panel + Panel<COLUMNS>::PITCH, counts, lists);
            sums.add_row(panel);
            sums.finish(y, pixel, channel, N, N, epilogue);
        }
    }

    static int run(void* const* arguments) {
        const auto x = static_cast<const float*>(*arguments++);
        const typename S::Epilogue epilogue(arguments);
        const auto packed = static_cast<const float*>(*arguments++);
        const auto y = static_cast<float*>(*arguments++);
        const auto counts = static_cast<int*>(*arguments), lists = counts + INPUTS;
        parallel(TASKS, [&](int task) {
            for (int p = part_begin(task, TASKS, INPUTS); p < part_begin(task + 1, TASKS, INPUTS); ++p)
                list(x + long(p) * C, lists + long(p) * C, counts[p]);
        });
        parallel(TASKS, [&](int task) {
            const int begin = part_begin(task, TASKS, OUTPUTS), end = part_begin(task + 1, TASKS, OUTPUTS);
            for (int panel = 0; panel < Columns::COUNT; ++panel)
                Columns::visit(panel, [&]<int COLUMNS>(int channel) {
                    run_pixels<COLUMNS>(begin, end, channel, packed + long(channel) * (K + 1), counts, lists, y,
                                        epilogue);
                });
        });
        return 0;
    }
};

}  // namespace es
