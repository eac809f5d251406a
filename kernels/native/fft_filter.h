// Adaptive frequency filter (AFFNet, arXiv 2307.14008), channels last, with its transforms as products by small
// matrices.
//
//     R = L_w x                  along W, for each row: [2F, W] times [W, C]; real parts of F columns, then imaginary
//     X = L_h R                  along H, for each column f: [2H, 2H] times [2H, C]
//     M = shrink(act(X W1 + b1) W2 + b2)           complex products in k blocks, as real ones of twice the width
//     y = L_w' (L_h' (M X))      back; or of M itself where it is the new spectrum
//
// A pixel's channels lie side by side, so that a transform along H or W is a product with the map itself on the right:
// nothing is transposed or reordered. The spectrum is [F, 2, H, C]: for each column the real parts of all rows, then
// the imaginary ones. W1 and W2 work on [re | im] of one block, made by rows of two pointers. Arguments: x [B, H, W,
// C], packed, y [B, H, W, C], scratch. Packed is L_w [2F, W], L_h [2H, 2H], L_h', L_w' [W, 2F], then for each block
// the panels of W1 with its bias, then those of W2. Letters: B batch, H W, C channels, F = floor(W / 2) + 1 columns of
// the spectrum, k blocks, act silu or relu.
#pragma once

#include "product.h"

namespace es {

// S has the constants that kernels/native/fft_filter.py writes.
template <class S>
struct FftFilter : S {
    using S::BLOCKS, S::C, S::F, S::H, S::W;
    static constexpr int ROW = padded(C);     // channels of a pixel in scratch, whole vectors
    static constexpr int WIDTH = C / BLOCKS;  // channels of a block
    using S::HIDDEN;                          // and of the layer between
    static constexpr int PLANE = H * ROW;     // real or imaginary parts of one column
    static constexpr int COLUMN = 2 * PLANE;
    static constexpr long SPECTRUM = long(F) * COLUMN;

    // One row of x into all columns of R, or back. Numbers of one pixel's row are COLUMN apart in the spectrum.
    template <int M_, int K_, int W_PITCH_, int Y_PITCH_>
    struct Transform : S {
        static constexpr int M = M_, K = K_, N = S::C, P = S::TRANSFORM_P, V = S::TRANSFORM_V;
        static constexpr int X_PITCH = K_, X_STEP = 1, W_PITCH = W_PITCH_, Y_PITCH = Y_PITCH_;
    };
    using AlongRow = Product<Transform<2 * F, W, ROW, PLANE>>;
    using AlongColumn = Product<Transform<2 * H, 2 * H, ROW, ROW>>;
    using BackAlongRow = Product<Transform<W, 2 * F, PLANE, S::C>>;

    template <class Transform>
    static void transform(const float* matrix, const float* from, float* to) {
        for (int task = 0; task < Transform::TASKS; ++task) Transform::run_task(task, matrix, from, to);
    }

    // One layer of the complex MLP for PIXELS neighbouring rows of one column and one block: [re | im] IN numbers
    // each from `x`, whose planes are `plane` apart and pixels `row`, to [PIXELS, 2 OUT].
    template <int PIXELS, int IN, int OUT, class Finish>
    static ES_INLINE void layer(const float* x, int row, int plane, const float* packed, const Finish& finish) {
        using Columns = Panels<2 * OUT, S::LAYER_V>;
        for (int panel = 0; panel < Columns::COUNT; ++panel)
            Columns::visit(panel, [&]<int COLUMNS>(int channel) {
                const float* const bias = packed + long(channel) * (2 * IN + 1);
                const float *re[PIXELS], *im[PIXELS];
                ES_UNROLL
                for (int p = 0; p < PIXELS; ++p) re[p] = x + p * row, im[p] = re[p] + plane;
                Sums<PIXELS, COLUMNS> sums;
                const float* const w = bias + Panel<COLUMNS>::PITCH;
                sums.start(bias);
                sums.add(re, w, IN);
                sums.add(im, w + long(IN) * Panel<COLUMNS>::PITCH, IN);
                finish(sums, channel);
            });
    }

    // x M for one pixel's block, or M: complex numbers, M shrunk.
    static ES_INLINE void filter(float* x, const float* mask) {
        partition<WIDTH>([&]<int LANES_HERE>(int c) {
            using V = Vector<LANES_HERE>;
            const V re = shrink(load<V>(mask + c)), im = shrink(load<V>(mask + WIDTH + c));
            if constexpr (S::IS_MASK) {
                const V x_re = load<V>(x + c), x_im = load<V>(x + PLANE + c);
                store(x + c, x_re * re - x_im * im);
                store(x + PLANE + c, x_re * im + x_im * re);
            } else {
                store(x + c, re);
                store(x + PLANE + c, im);
            }
        });
    }

    template <class V>
    static ES_INLINE V shrink(V m) {
        return m > S::THRESHOLD ? m - S::THRESHOLD : (m < -S::THRESHOLD ? m + S::THRESHOLD : m - m);  // a NaN stays
    }

    // Makes the mask of one column and one block, and applies it.
    static void mix(float* column, int block, const float* packed) {
        constexpr long FIRST = long(padded(2 * HIDDEN)) * (2 * WIDTH + 1);
        constexpr long SECOND = long(padded(2 * WIDTH)) * (2 * HIDDEN + 1);
        constexpr Function ACTIVATION = S::IS_RELU ? Function::relu : Function::silu;
        const float* const first = packed + block * (FIRST + SECOND);
        float* const x = column + block * WIDTH;
        Tiles<H, S::LAYER_P>::visit(0, Tiles<H, S::LAYER_P>::COUNT, [&]<int PIXELS>(int i) {
            float hidden[PIXELS * 2 * HIDDEN], mask[PIXELS * 2 * WIDTH];
            layer<PIXELS, WIDTH, HIDDEN>(x + i * ROW, ROW, PLANE, first, [&](auto& sums, int channel) {
                sums.finish(hidden + channel, 0, 0, 2 * HIDDEN, 2 * HIDDEN, Epilogue<ACTIVATION>());
            });
            layer<PIXELS, HIDDEN, WIDTH>(hidden, 2 * HIDDEN, HIDDEN, first + FIRST, [&](auto& sums, int channel) {
                sums.finish(mask + channel, 0, 0, 2 * WIDTH, 2 * WIDTH, Epilogue<>());
            });
            for (int p = 0; p < PIXELS; ++p) filter(x + (i + p) * ROW, mask + p * 2 * WIDTH);
        });
    }

    // A row of x with whole vectors: itself, or a copy on the stack.
    template <class Body>
    static ES_INLINE void with_wide_row(const float* x, const Body& body) {
        if constexpr (ROW == C) {
            body(x);
        } else {
            float copy[W * ROW];
            for (int j = 0; j < W; ++j)
                for (int c = 0; c < ROW; ++c) copy[j * ROW + c] = c < C ? x[j * C + c] : 0;
            body(copy);
        }
    }

    static int run(void* const* arguments) {
        const auto x = static_cast<const float*>(arguments[0]);
        const auto packed = static_cast<const float*>(arguments[1]);
        const auto y = static_cast<float*>(arguments[2]);
        const auto spectrum = static_cast<float*>(arguments[3]), rows = spectrum + S::BATCH * SPECTRUM;
        const float* const down = packed + 2 * F * W;
        const float* const back_down = down + 4 * H * H;
        const float* const back = back_down + 4 * H * H;
        const float* const layers = back + 2 * F * W;
        parallel(S::BATCH * H, [&](int task) {
            const long map = task / H, i = task % H;
            with_wide_row(x + long(task) * W * C, [&](const float* row) {
                transform<AlongRow>(packed, row, rows + map * SPECTRUM + i * ROW);
            });
        });
        parallel(S::BATCH * F, [&](int task) {
            float *const from = rows + long(task) * COLUMN, *const to = spectrum + long(task) * COLUMN;
            transform<AlongColumn>(down, from, to);
            for (int block = 0; block < BLOCKS; ++block) mix(to, block, layers);
            transform<AlongColumn>(back_down, to, from);
        });
        parallel(S::BATCH * H, [&](int task) {
            const long map = task / H, i = task % H;
            transform<BackAlongRow>(back, rows + map * SPECTRUM + i * ROW, y + long(task) * W * C);
        });
        return 0;
    }
};

}  // namespace es
