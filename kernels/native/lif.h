// Leaky integrate-and-fire neurons over time (kernels/lif.py), with every rounding in its place.
//
//     charge   v <- v + (x - (v - r)) / tau        decaying input, or * (1 - beta) in the place of / tau
//              v <- v - (v - r) / tau + x          otherwise, or v beta + x
//     fire     y = 1 where v >= threshold, else 0
//     reset    v <- r where y = 1, or, soft, v <- v - drop y; late: in the next step, behind its charge
//
// A potential that is one unit in the last place off may be a spike more or less, so products are rounded before they
// are added to anything. v stays in a register from the first step to the last.
// Arguments: x and y [OUTER, T, INNER], v starts at r. Letters: T time.
#pragma once

#include "pool.h"
#include "vector.h"

namespace es {

// S has the constants that kernels/native/lif.py writes.
template <class S>
struct Lif : S {
    using S::INNER, S::T;
    static constexpr int CHUNK = smaller(INNER, S::NEURONS_A_TASK);
    static constexpr int CHUNKS = ceil_div(INNER, CHUNK);

    template <class V>
    static ES_INLINE V charge(V v, V x) {
        if constexpr (S::HAS_BETA && !S::DECAYS_INPUT) return rounded(v * S::BETA) + x;
        V leak = v;
        if constexpr (S::RESET != 0.0f) leak = v - S::RESET;
        if constexpr (!S::DECAYS_INPUT) return v - leak / S::TAU + x;
        if constexpr (S::HAS_BETA) return v + rounded((x - leak) * S::REST);
        return v + (x - leak) / S::TAU;
    }

    template <class V>
    static void run_neurons(const float* x, float* y) {
        V v = splat<V>(S::RESET);
        for (long t = 0; t < T; ++t) {
            const V before = v;
            v = charge(v, load<V>(x + t * INNER));
            if constexpr (S::IS_LATE) v = before >= S::THRESHOLD ? v - S::DROP : v;
            const auto fires = v >= S::THRESHOLD;
            store(y + t * INNER, fires ? splat<V>(1.0f) : V{});
            if constexpr (!S::IS_LATE) v = fires ? (S::IS_SOFT ? v - S::DROP : splat<V>(S::RESET)) : v;
        }
    }

    template <int N>
    static void run_chunk(const float* x, float* y) {
        cover<N>([&]<int WIDTH>(int i) { run_neurons<Vector<WIDTH>>(x + i, y + i); });
    }

    static int run(void* const* arguments) {
        const auto x = static_cast<const float*>(arguments[0]);
        const auto y = static_cast<float*>(arguments[1]);
        parallel(S::OUTER * CHUNKS, [&](int task) {
            const int chunk = task % CHUNKS;
            const long at = long(task / CHUNKS) * T * INNER + long(chunk) * CHUNK;
            if (chunk == CHUNKS - 1)
                run_chunk<INNER - (CHUNKS - 1) * CHUNK>(x + at, y + at);
            else
                run_chunk<CHUNK>(x + at, y + at);
        });
        return 0;
    }
};

}  // namespace es
