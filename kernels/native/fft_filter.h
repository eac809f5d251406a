// Adaptive frequency filter (AFFNet, arXiv 2307.14008), channels last, with its transforms as products by small
// matrices.
//
//     R = transform of x along W, its first F columns;  X = transform of R along H
//     M = shrink(act(X W1 + b1) W2 + b2)           complex products in k blocks, as real ones of twice the width
//     y = back along W of back along H of M X      or of M itself where it is the new spectrum
//
// A transform of n numbers is made of two products of half the size, as cosines are even and sines are odd:
//
//     a_j = x_j + x_(n-j),  b_j = x_j - x_(n-j)                                                          fold
//     C_k = sum_j a_j cos(2 pi j k / n),  S_k = sum_j b_j sin(2 pi j k / n)                              multiply
//     re_k = C_k of re + S_k of im,  im_k = C_k of im - S_k of re,  with the other signs at n - k, and back  unfold
//
// a_j, C_k and re_k stand in rows j and k, b_j and S_k in rows n - j and n - k, so all of it happens in place but the
// products. A pixel's channels lie side by side, so that a transform along H or W is a product with the map itself on
// the right: nothing is transposed. The spectrum is [F, 2, H, C]: for each column the real parts of all rows, then
// the imaginary ones. W1 and W2 work on [re | im] of one block, made by rows of two pointers. Arguments: x [B, H, W,
// C], packed, y [B, H, W, C], scratch. Packed is the cosines and sines along W, along H, and back along W, filled up
// to whole vectors, then for each block the panels of W1 with its bias, then those of W2. Letters: B batch, H W, C
// channels, F = floor(W / 2) + 1 columns of the spectrum, k blocks, act silu or relu.
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

    // Rows of a folded transform of `n` that are sums, and behind them those that are differences.
    static constexpr int even(int n) { return n / 2 + 1; }
    static constexpr int odd(int n) { return (n - 1) / 2; }
    static_assert(F == even(W), "fft_filter.py counts otherwise");

    // A product by a square matrix; rows of what it reads and what it writes are so far apart.
    template <int SIZE, int READ_PITCH, int WRITE_PITCH>
    struct Square : S {
        static constexpr int M = SIZE, K = SIZE, N = S::C, P = S::TRANSFORM_P, V = S::TRANSFORM_V;
        static constexpr int X_PITCH = SIZE, X_STEP = 1, W_PITCH = READ_PITCH, Y_PITCH = WRITE_PITCH;
    };

    template <int SIZE, int READ_PITCH, int WRITE_PITCH>
    static void multiply(const float* matrix, const float* from, float* to) {
        if constexpr (SIZE > 0) {
            using Made = Product<Square<SIZE, READ_PITCH, WRITE_PITCH>>;
            for (int task = 0; task < Made::TASKS; ++task) Made::run_task(task, matrix, from, to);
        }
    }

    // Folds one row of x, of W pixels, into rows of whole vectors.
    static void fold_row(const float* x, float* to) {
        cover<C>([&]<int WIDTH>(int c) {
            using V = Vector<WIDTH>;
            store(to + c, load<V>(x + c));
            if constexpr (W % 2 == 0) store(to + W / 2 * ROW + c, load<V>(x + W / 2 * C + c));
        });
        for (int j = 1; j <= odd(W); ++j)
            cover<C>([&]<int WIDTH>(int c) {
                const auto one = load<Vector<WIDTH>>(x + j * C + c), other = load<Vector<WIDTH>>(x + (W - j) * C + c);
                store(to + j * ROW + c, one + other);
                store(to + (W - j) * ROW + c, one - other);
            });
    }

    // The way back of it: y of a row's sums and differences.
    static void unfold_row(const float* from, float* y) {
        cover<C>([&]<int WIDTH>(int c) {
            using V = Vector<WIDTH>;
            store(y + c, load<V>(from + c));
            if constexpr (W % 2 == 0) store(y + W / 2 * C + c, load<V>(from + W / 2 * ROW + c));
        });
        for (int j = 1; j <= odd(W); ++j)
            cover<C>([&]<int WIDTH>(int c) {
                using V = Vector<WIDTH>;
                const V sum = load<V>(from + j * ROW + c), difference = load<V>(from + (W - j) * ROW + c);
                store(y + j * C + c, sum - difference);
                store(y + (W - j) * C + c, sum + difference);
            });
    }

    // Transforms one column along H, from `x`, which is folded in place, to `y`; back with IS_BACK.
    template <bool IS_BACK>
    static void transform(const float* matrices, float* x, float* y) {
        using V = Vector<LANES>;
        constexpr int EVEN = even(H), ODD = odd(H);
        for (float* plane = x; plane <= x + PLANE; plane += PLANE)
            for (int j = 1; j <= ODD; ++j)
                for (int c = 0; c < ROW; c += LANES) {
                    float *const low = plane + j * ROW + c, *const high = plane + (H - j) * ROW + c;
                    const V one = load<V>(low), other = load<V>(high);
                    store(low, one + other);
                    store(high, one - other);
                }
        for (int plane = 0; plane <= PLANE; plane += PLANE) {
            multiply<EVEN, ROW, ROW>(matrices, x + plane, y + plane);
            multiply<ODD, ROW, ROW>(matrices + EVEN * EVEN, x + plane + EVEN * ROW, y + plane + EVEN * ROW);
        }
        for (int k = 1; k <= ODD; ++k)
            for (int c = 0; c < ROW; c += LANES) {
                float *const low = y + k * ROW + c, *const high = y + (H - k) * ROW + c;
                const V even_re = load<V>(low), even_im = load<V>(low + PLANE);
                const V odd_re = load<V>(high), odd_im = load<V>(high + PLANE);
                store(IS_BACK ? high : low, even_re + odd_im);
                store(IS_BACK ? low : high, even_re - odd_im);
                store((IS_BACK ? high : low) + PLANE, even_im - odd_re);
                store((IS_BACK ? low : high) + PLANE, even_im + odd_re);
            }
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
                sums.clear();
                sums.add(re, w, IN);
                sums.add(im, w + long(IN) * Panel<COLUMNS>::PITCH, IN);
                sums.add_row(bias);
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

    static int run(void* const* arguments) {
        const auto x = static_cast<const float*>(arguments[0]);
        const auto packed = static_cast<const float*>(arguments[1]);
        const auto y = static_cast<float*>(arguments[2]);
        const auto spectrum = static_cast<float*>(arguments[3]), rows = spectrum + S::BATCH * SPECTRUM;
        constexpr int ODD = odd(W), ALONG_ROW = F * F + ODD * ODD, ALONG_COLUMN = even(H) * even(H) + odd(H) * odd(H);
        const float* const down = packed + ALONG_ROW;
        const float* const back = down + ALONG_COLUMN;
        const float* const layers = packed + padded(2 * ALONG_ROW + ALONG_COLUMN);
        // The spectrum is free while rows are transformed: a row is folded there, and unfolded on the way back.
        parallel(S::BATCH * H, [&](int task) {
            const long map = task / H, i = task % H;
            float *const folded = spectrum + map * SPECTRUM + i * W * ROW, *const to = rows + map * SPECTRUM + i * ROW;
            fold_row(x + long(task) * W * C, folded);
            multiply<F, ROW, COLUMN>(packed, folded, to);
            multiply<ODD, ROW, COLUMN>(packed + F * F, folded + F * ROW, to + COLUMN + PLANE);
            for (int f = 0; f < F; f += W % 2 == 0 ? F - 1 : F)  // columns without an imaginary part
                for (int c = 0; c < ROW; ++c) to[long(f) * COLUMN + PLANE + c] = 0;
        });
        parallel(S::BATCH * F, [&](int task) {
            float *const from = rows + long(task) * COLUMN, *const to = spectrum + long(task) * COLUMN;
            transform<false>(down, from, to);
            for (int block = 0; block < BLOCKS; ++block) mix(to, block, layers);
            transform<true>(down, to, from);
        });
        parallel(S::BATCH * H, [&](int task) {
            const long map = task / H, i = task % H;
            float *const folded = spectrum + map * SPECTRUM + i * W * ROW, *const from = rows + map * SPECTRUM + i * ROW;
            multiply<F, COLUMN, ROW>(back, from, folded);
            multiply<ODD, COLUMN, ROW>(back + F * F, from + COLUMN + PLANE, folded + F * ROW);
            unfold_row(folded, y + long(task) * W * C);
        });
        return 0;
    }
};

}  // namespace es
