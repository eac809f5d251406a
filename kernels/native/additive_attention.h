// Convolutional additive attention (CAS-ViT, eq. 5-7) from queries, keys and values side by side in each pixel.
//
//     m_q = sigmoid(w_q . relu(dw3x3(q)))          spatial mask, one number a pixel            same for k
//     s_q = sigmoid(W_q mean_HW(q m_q))            channel scale, one number a channel         same for k
//     t   = q m_q s_q + k m_k s_k
//     y   = epilogue(proj3x3(dwc3x3(t) v))
//
// Gates are kept as what they are, a number a pixel and a number a channel, and applied where q and k are read; no
// gated map is written. Phases, each over rows: masks with their sums of q m, scales, t, dwc(t) v, y. Arguments: qkv
// [B, H, W, 3C], residual where the epilogue has one, packed, y [B, H, W, C], scratch. Packed is, for q and then k,
// the gate's depthwise weights (bias [C], [3, 3, C]) and w [C]; then dwc's and proj's depthwise weights; then the
// panels of W_q and W_k, with a bias of zeros. Letters: B batch, H W, C channels, T pixels of a strip.
#pragma once

#include "depthwise.h"
#include "norms.h"
#include "pointwise.h"

namespace es {

// S has the constants that kernels/native/additive_attention.py writes.
template <class S>
struct AdditiveAttention : S {
    using S::C, S::H, S::T, S::W;

    // 3x3 with a border of one, over pixels that are Pitch numbers apart.
    template <int Pitch>
    struct Window : S {
        static constexpr int KH = 3, KW = 3, STRIDE = 1, DILATION = 1, TOP = 1, LEFT = 1, OH = S::H, OW = S::W, PITCH = Pitch;
        static constexpr int TASKS = 1;
    };
    struct ScaleShape {
        static constexpr int M = 1, K = S::C, N = S::C, P = 1, V = S::V;
        static constexpr int STAGE = K, ALONE = 1, SHARED = 1, PANEL_GROUPS = 1;
    };
    using Gate3x3 = Depthwise<Window<3 * S::C>>;
    using Map3x3 = Depthwise<Window<S::C>>;
    using Scale = Pointwise<ScaleShape>;

    static constexpr int ROWS = S::BATCH * S::H;
    static constexpr long PIXELS = long(ROWS) * S::W;
    static constexpr int WEIGHTS3X3 = 10 * S::C;
    static constexpr int GATE_WEIGHTS = WEIGHTS3X3 + S::C;
    static constexpr int SCALE_WEIGHTS = Scale::Columns::VECTORS * LANES * (S::C + 1);

    const float* qkv;
    const float* packed;
    float *masks, *sums, *means, *scales, *mixed, *context;

    AdditiveAttention(const float* qkv, const float* packed, float* scratch) : qkv(qkv), packed(packed) {
        mixed = scratch;                      // t [B, H, W, C]
        context = mixed + PIXELS * C;         // dwc(t) v
        masks = context + PIXELS * C;         // [2, B, H, W]
        sums = masks + 2 * PIXELS;            // [B, H, 2, C]
        means = sums + long(ROWS) * 2 * C;    // [B, 2, C]
        scales = means + S::BATCH * 2 * C;    // [B, 2, C]
    }

    // The masks of one row, of q (part 0) or k (part 1).
    void find_masks(int row, int part) const {
        const float* const weights = packed + part * GATE_WEIGHTS;
        const float* const mix = weights + WEIGHTS3X3;
        float* const mask = masks + part * PIXELS + long(row) * W;
        Gate3x3::visit_strips([&]<int AT>(int column) {
            Vector<S::MOST_LANES> whole[T] = {};
            float rest[T] = {};
            partition<C, S::MOST_LANES>([&]<int WIDTH>(int c) {
                using V = Vector<WIDTH>;
                V gate[T];
                Gate3x3::template sum<AT>(gate, row, column, c, qkv + part * C, weights);
                const V w = load<V>(mix + c);
                ES_UNROLL
                for (int t = 0; t < T; ++t) {
                    const V term = apply<Function::relu>(gate[t]) * w;
                    if constexpr (WIDTH == S::MOST_LANES)
                        whole[t] += term;
                    else
                        rest[t] += sum_lanes(term);
                }
            });
            for (int t = 0; t < T; ++t) mask[column + t] = sum_lanes(whole[t]) + rest[t];
        });
        partition<W>([&]<int WIDTH>(int j) { store(mask + j, sigmoid(load<Vector<WIDTH>>(mask + j))); });
    }

    // sums[row, part, c] = the sum of q m, or k m, over a row.
    void sum_masked(int row, int part) const {
        const float* const x = qkv + long(row) * W * 3 * C + part * C;
        const float* const mask = masks + part * PIXELS + long(row) * W;
        cover<C>([&]<int WIDTH>(int c) {
            Vector<WIDTH> sum = {};
            for (int j = 0; j < W; ++j) sum += load<Vector<WIDTH>>(x + j * 3 * C + c) * mask[j];
            store(sums + (row * 2 + part) * long(C) + c, sum);
        });
    }

    // scales[map, part, c]
    void find_scale(int map, int part) const {
        const int at = (map * 2 + part) * C;
        cover<C>([&]<int WIDTH>(int c) {
            Vector<WIDTH> sum = {};
            for (int i = 0; i < H; ++i) sum += load<Vector<WIDTH>>(sums + ((map * H + i) * 2 + part) * long(C) + c);
            store(means + at + c, sum * (1.0f / (H * W)));
        });
        const float* const panels = packed + 2 * GATE_WEIGHTS + 2 * WEIGHTS3X3 + part * long(SCALE_WEIGHTS);
        Scale::run_task(0, 1, 0, means + at, panels, scales + at, Epilogue<Function::sigmoid>());
    }

    // t of one row
    void mix(int row) const {
        const float* const scale = scales + row / H * 2 * C;
        for (int j = 0; j < W; ++j) {
            const long pixel = long(row) * W + j;
            const float *const q = qkv + pixel * 3 * C, *const k = q + C;
            const float q_mask = masks[pixel], k_mask = masks[PIXELS + pixel];
            cover<C>([&]<int WIDTH>(int c) {
                using V = Vector<WIDTH>;
                const V gated = load<V>(q + c) * q_mask * load<V>(scale + c);
                store(mixed + pixel * C + c, gated + load<V>(k + c) * k_mask * load<V>(scale + C + c));
            });
        }
    }

    // dwc(t) v of one row: v is a gate whose pixels are 3C apart.
    void attend(int row) const {
        const float* const weights = packed + 2 * GATE_WEIGHTS;
        Map3x3::visit_strips([&]<int AT>(int column) {
            const long pixel = long(row) * W + column;
            cover<C, S::MOST_LANES>([&]<int WIDTH>(int c) {
                using V = Vector<WIDTH>;
                V sum[T];
                Map3x3::template sum<AT>(sum, row, column, c, mixed, weights);
                ES_UNROLL
                for (int t = 0; t < T; ++t)
                    store(context + (pixel + t) * C + c, sum[t] * load<V>(qkv + (pixel + t) * 3 * C + 2 * C + c));
            });
        });
    }

    template <class Epilogue>
    void run_phases(float* y, const Epilogue& epilogue) const {
        parallel(ROWS, [&](int row) {
            for (int part = 0; part < 2; ++part) {
                find_masks(row, part);
                sum_masked(row, part);
            }
        });
        parallel(S::BATCH * 2, [&](int task) { find_scale(task / 2, task % 2); });
        parallel(ROWS, [&](int row) { mix(row); });
        parallel(ROWS, [&](int row) { attend(row); });
        parallel(ROWS, [&](int row) {
            Map3x3::run_row(row, context, packed + 2 * GATE_WEIGHTS + WEIGHTS3X3, y, epilogue);
        });
    }

    static int run(void* const* arguments) {
        const auto qkv = static_cast<const float*>(*arguments++);
        const typename S::Epilogue epilogue(arguments);
        const auto packed = static_cast<const float*>(*arguments++);
        const auto y = static_cast<float*>(*arguments++);
        AdditiveAttention(qkv, packed, static_cast<float*>(*arguments)).run_phases(y, epilogue);
        return 0;
    }
};

}  // namespace es
