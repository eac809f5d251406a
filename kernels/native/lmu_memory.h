// The Legendre memory over a whole sequence, by its impulse response (kernels/lmu_memory.py).
//
//     m[t, :] = sum_{j <= t} u[t - j] h[j, :]
//
// A matrix product whose left matrix, u[t - j], is the signal itself read backwards from t: zeros lie before its first
// number. A tile of neighbouring t needs h[j, :] up to its last t, so half of the square is not computed.
// Arguments: u [B, T], packed panels of h [T, M] (no bias), m [B, T, M], scratch. Letters: B batch, T time, M memory.
#pragma once

#include "gemm.h"
#include "pool.h"

namespace es {

// S has the constants that kernels/native/lmu_memory.py writes.
template <class S>
struct LmuMemory : S {
    using S::M, S::T;
    using Rows = Tiles<T, S::P>;
    using Columns = Panels<M, S::V>;

    static void multiply(int panel, int tile, const float* signal, const float* packed, float* y) {
        Columns::visit(panel, [&]<int COLUMNS>(int channel) {
            const float* const h = packed + long(channel) * (T + 1) + Panel<COLUMNS>::PITCH;
            Rows::visit(tile, tile + 1, [&]<int STEPS>(int t) {
                const float* rows[STEPS];
                ES_UNROLL
                for (int p = 0; p < STEPS; ++p) rows[p] = signal + t + p;
                Sums<STEPS, COLUMNS> sums;
                sums.clear();
                sums.template add<-1>(rows, h, t + STEPS);
                sums.finish(y, t, channel, M, M, Epilogue<>());
            });
        });
    }

    static int run(void* const* arguments) {
        const auto u = static_cast<const float*>(arguments[0]);
        const auto packed = static_cast<const float*>(arguments[1]);
        const auto y = static_cast<float*>(arguments[2]);
        const auto signals = static_cast<float*>(arguments[3]);
        for (int map = 0; map < S::BATCH; ++map) {
            float* const padded = signals + long(map) * (S::P + T);  // a tile's first step reaches P - 1 before u
            for (int i = 0; i < S::P; ++i) padded[i] = 0;
            for (int i = 0; i < T; ++i) padded[S::P + i] = u[long(map) * T + i];
        }
        parallel(S::BATCH * Columns::COUNT * Rows::COUNT, [&](int task) {
            const int map = task / (Columns::COUNT * Rows::COUNT), rest = task % (Columns::COUNT * Rows::COUNT);
            const int tile = Rows::COUNT - 1 - rest % Rows::COUNT;  // long ones first: the last tasks end together
            multiply(rest / Rows::COUNT, tile, signals + long(map) * (S::P + T) + S::P, packed, y + long(map) * T * M);
        });
        return 0;
    }
};

}  // namespace es
