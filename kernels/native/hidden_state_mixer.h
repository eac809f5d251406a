// Mixing in the hidden state of a state-space dual model (EfficientViM, eq. 8-10), channels last.
//
//     b, c, dt = split(dw3x3(x W_p))                          each [N, S], N = H W
//     g[n, s]  = exp(dt[n, s] - max_n dt[n, s]) b[n, s]       softmax_n(dt) b, but for the sums of the powers, by
//     h        = (g^T x) / sums                               which the few rows of h are divided     [S, D]
//     h, z     = split(h W_hz);  h = (h (silu(z) + d)) W_o    [S, D], returned too
//     y        = c h                                          [N, D]
//
// A row's largest dt, its powers and their sums are found by one task, so that of numbers a pixel none goes to another
// core. Nothing is transposed in memory: g^T is g read down its columns, and x and h are right matrices as they lie.
// Those have rows of whole vectors, copies of x and h where D is not a multiple of LANES. Arguments: x [B, H, W, D],
// packed, y [B, H, W, D], h [B, S, D], scratch. Packed is the panels of W_p, the depthwise weights (bias of zeros, [3,
// 3, 3S]), the panels of W_hz and W_o, and d. Letters: B batch, N pixels, D width, S states.
#pragma once

#include "depthwise.h"
#include "pointwise.h"
#include "product.h"

namespace es {

// S has the constants that kernels/native/hidden_state_mixer.py writes.
template <class S>
struct HiddenStateMixer : S {
    using S::D, S::STATES;
    static constexpr int N = S::H * S::W;
    static constexpr int ROW = padded(D);
    static constexpr bool IS_WHOLE = ROW == D;
    static constexpr long STATES_CYCLES = 16L * STATES / LANES;  // an exponential of every state

    template <int Rows, int Inputs, int Outputs, int Pixels, int Vectors, int Alone, int Shared, int Groups>
    struct Layer {
        static constexpr int M = Rows, K = Inputs, N = Outputs, P = Pixels, V = Vectors, STAGE = K;
        static constexpr int ALONE = Alone, SHARED = Shared, PANEL_GROUPS = Groups;
    };
    struct Local : S {
        static constexpr int C = 3 * STATES, PITCH = C, KH = 3, KW = 3, STRIDE = 1, DILATION = 1, TOP = 1, LEFT = 1;
        static constexpr int BATCH = 1, OH = S::H, OW = S::W, TASKS = 1;
    };
    struct Collect : S {
        static constexpr int M = STATES, K = S::H * S::W, N = D, P = S::COLLECT_P, V = S::COLLECT_V;
        static constexpr int X_PITCH = 1, X_STEP = STATES, W_PITCH = padded(D), Y_PITCH = D;
    };
    struct Spread : S {
        static constexpr int M = S::H * S::W, K = STATES, N = D, P = S::SPREAD_P, V = S::SPREAD_V;
        static constexpr int X_PITCH = 3 * STATES, X_STEP = 1, W_PITCH = padded(D), Y_PITCH = D;
    };
    using Project = Pointwise<Layer<N, D, 3 * STATES, S::PROJECT_P, S::PROJECT_V, S::PROJECT_ALONE, S::PROJECT_SHARED, S::PROJECT_PANEL_GROUPS>>;
    using GateLayer = Pointwise<Layer<STATES, D, 2 * D, S::GATE_P, S::GATE_V, S::GATE_ALONE, S::GATE_SHARED, S::GATE_PANEL_GROUPS>>;
    using Out = Pointwise<Layer<STATES, D, D, S::OUT_P, S::OUT_V, S::OUT_ALONE, S::OUT_SHARED, S::OUT_PANEL_GROUPS>>;

    template <class Product>
    static constexpr long weights_of = long(Product::Columns::VECTORS) * LANES * (Product::K + 1);

    // The largest dt of every state in a row of pixels.
    static void find_most(int row, const float* mixed, float* most) {
        const float* const dt = mixed + long(row) * S::W * 3 * STATES + 2 * STATES;
        cover<STATES>([&]<int WIDTH>(int s) {
            using V = Vector<WIDTH>;
            V found = load<V>(dt + s);
            for (int j = 1; j < S::W; ++j) found = larger_of(found, load<V>(dt + j * 3 * STATES + s));
            store(most + row * STATES + s, found);
        });
    }

    // g of a row, and the row's sums of powers.
    static void weigh(int row, const float* mixed, const float* mosts, float* g, float* sums) {
        const float* const states = mixed + long(row) * S::W * 3 * STATES;
        float* const to = g + long(row) * S::W * STATES;
        cover<STATES>([&]<int WIDTH>(int s) {
            using V = Vector<WIDTH>;
            V most = load<V>(mosts + s), sum = {};
            for (int i = 1; i < S::H; ++i) most = larger_of(most, load<V>(mosts + i * STATES + s));
            for (int j = 0; j < S::W; ++j) {
                const float* const b = states + j * 3 * STATES + s;
                const V power = exp(load<V>(b + 2 * STATES) - most);
                sum += power;
                store(to + j * STATES + s, power * load<V>(b));
            }
            store(sums + row * STATES + s, sum);
        });
    }

    // 1 / sums of all rows.
    static void invert(const float* sums, float* inverse) {
        cover<STATES>([&]<int WIDTH>(int s) {
            using V = Vector<WIDTH>;
            V sum = {};
            for (int i = 0; i < S::H; ++i) sum += load<V>(sums + i * STATES + s);
            store(inverse + s, 1.0f / sum);
        });
    }

    // h (silu(z) + d), for one state.
    static void gate(const float* h, const float* z, float d, float* to) {
        cover<D>([&]<int WIDTH>(int c) {
            using V = Vector<WIDTH>;
            store(to + c, load<V>(h + c) * (silu(load<V>(z + c)) + d));
        });
    }

    // Rows of whole vectors: the rows themselves, or a copy.
    static const float* widen(const float* rows, int count, float* copy) {
        if constexpr (IS_WHOLE) return rows;
        for (long i = 0; i < count; ++i)
            for (int c = 0; c < ROW; ++c) copy[i * ROW + c] = c < D ? rows[i * D + c] : 0;
        return copy;
    }

    // Offsets in scratch, and the numbers in all of it.
    static constexpr long PROJECTED = 0;
    static constexpr long MIXED = PROJECTED + long(N) * 3 * STATES;
    static constexpr long WEIGHTS = MIXED + long(N) * 3 * STATES;
    static constexpr long COLLECTED = WEIGHTS + long(N) * STATES;
    static constexpr long GATES = COLLECTED + long(STATES) * ROW;
    static constexpr long GATED = GATES + long(STATES) * 2 * D;
    static constexpr long MOST = GATED + long(STATES) * ROW;
    static constexpr long SUMS = MOST + long(S::H) * STATES;
    static constexpr long INVERSE = SUMS + long(S::H) * STATES;
    static constexpr long WIDE = INVERSE + STATES;
    static_assert(WIDE + long(N > STATES ? N : STATES) * ROW == S::SCRATCH, "hidden_state_mixer.py counts otherwise");

    static void run_map(const float* x, const float* packed, float* y, float* h, float* scratch) {
        const float* const local = packed + weights_of<Project>;
        const float* const gates = local + 10 * 3 * STATES;
        const float* const out = gates + weights_of<GateLayer>;
        const float d = out[weights_of<Out>];
        float *const mixed = scratch + MIXED, *const g = scratch + WEIGHTS, *const gated = scratch + GATED;
        Project::run_tasks(x, packed, scratch + PROJECTED, Epilogue<>());
        parallel(S::H, [&](int row) {
            Depthwise<Local>::run_row(row, scratch + PROJECTED, local, mixed, Epilogue<>());
            find_most(row, mixed, scratch + MOST);
        }, Depthwise<Local>::CYCLES);
        parallel(S::H, [&](int row) { weigh(row, mixed, scratch + MOST, g, scratch + SUMS); }, N * STATES_CYCLES);
        invert(scratch + SUMS, scratch + INVERSE);
        Epilogue<Function::none, Gate::pixel> of_sums;
        of_sums.gate = scratch + INVERSE;
        Product<Collect>::run(g, widen(x, N, scratch + WIDE), scratch + COLLECTED, of_sums);
        GateLayer::run_tasks(scratch + COLLECTED, gates, scratch + GATES, Epilogue<>());
        parallel(STATES, [&](int s) {
            const float* const both = scratch + GATES + long(s) * 2 * D;
            gate(both, both + D, d, gated + long(s) * D);
        }, D * STATES_CYCLES);
        Out::run_tasks(gated, out, h, Epilogue<>());
        Product<Spread>::run(mixed + STATES, widen(h, STATES, scratch + WIDE), y);
    }

    static int run(void* const* arguments) {
        const auto x = static_cast<const float*>(arguments[0]);
        const auto packed = static_cast<const float*>(arguments[1]);
        const auto y = static_cast<float*>(arguments[2]);
        const auto h = static_cast<float*>(arguments[3]);
        const auto scratch = static_cast<float*>(arguments[4]);
        for (long map = 0; map < S::BATCH; ++map)
            run_map(x + map * N * D, packed, y + map * N * D, h + map * STATES * D, scratch);
        return 0;
    }
};

}  // namespace es
