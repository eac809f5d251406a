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

    // GROUP vectors of neurons: a step waits for the one before, and meanwhile those of the others run.
    template <class V, int GROUP>
    static ES_NOINLINE void run_neurons(const float* x, float* y) {
        V potential[GROUP];
        ES_UNROLL
        for (int g = 0; g < GROUP; ++g) potential[g] = splat<V>(S::RESET);
        for (long t = 0; t < T; ++t) {
            ES_UNROLL
            for (int g = 0; g < GROUP; ++g) {
                const long at = t * INNER + g * lanes_of<V>;
                potential[g] = step(potential[g], load<V>(x + at), y + at);
            }
        }
    }

    // The potential after a step; the spikes go to `y`.
    template <class V>
    static ES_INLINE V step(V v, V x, float* y) {
        const V before = v;
        v = charge(v, x);
        if constexpr (S::IS_LATE) v = before >= S::THRESHOLD ? v - S::DROP : v;
        const auto fires = v >= S::THRESHOLD;
        store(y, fires ? splat<V>(1.0f) : V{});
        if constexpr (!S::IS_LATE) v = fires ? (S::IS_SOFT ? v - S::DROP : splat<V>(S::RESET)) : v;
        return v;
    }

    template <int N>
    static void run_chunk(const float* x, float* y) {
        constexpr int GROUPED = N / (4 * LANES) * (4 * LANES);
        for (int i = 0; i < GROUPED; i += 4 * LANES) run_neurons<Vector<LANES>, 4>(x + i, y + i);
        cover<N - GROUPED>([&]<int WIDTH>(int i) {
            run_neurons<Vector<WIDTH>, 1>(x + GROUPED + i, y + GROUPED + i);
        });
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
