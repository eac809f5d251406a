// The register tile that every matrix product here is made of: P pixels times a panel of output channels.
//
//     y[p, n] = bias[n] + sum_k x[p, k] w[k, n]        p < P,  n < COLUMNS
//
// One pixel's way through it: its sums stay in registers, a vector for each LANES channels. For each k one number x[p,
// k] is spread over a vector and multiplied by the panel's row w[k, :], whose vectors the P pixels share: P + V loads
// for P V multiply-adds. After the last k the bias is added, the epilogue gets the sums, and they are written once. The
// bias is last since each addition rounds as the sum is large: products that are small beside it would each lose their
// last bits.
//
// A packed panel is its bias and then its rows w[k, :], each filled up to whole vectors; panels follow each other.
// Where at most half of the last vector is used it is computed as a half one. N output channels are cut into panels of
// nearly equal widths, at most V vectors; M pixels into tiles of nearly equal heights, at most P. Letters: M pixels, K
// inputs, N output channels, P pixels and V vectors of a tile.
#pragma once

#include "epilogue.h"
#include "pool.h"

namespace es {

constexpr int HALF = LANES >= 8 ? LANES / 2 : LANES;

// The vectors of a panel that has COLUMNS output channels.
template <int COLUMNS>
struct Panel {
    static constexpr int REST = COLUMNS % LANES;
    static constexpr bool HAS_HALF = REST > 0 && REST <= HALF && HALF < LANES;
    static constexpr int WHOLE = COLUMNS / LANES + (REST > 0 && !HAS_HALF);
    static constexpr int PITCH = ceil_div(COLUMNS, LANES) * LANES;
    // Channels of whole vector v that exist.
    static constexpr int used(int v) { return smaller(LANES, COLUMNS - v * LANES); }
};

// N output channels in panels: the first WIDE ones have NARROW + 1 vectors, all others NARROW.
template <int N, int V>
struct Panels {
    static constexpr int VECTORS = ceil_div(N, LANES);
    static constexpr int COUNT = ceil_div(VECTORS, V);
    static constexpr int NARROW = VECTORS / COUNT;
    static constexpr int WIDE = VECTORS % COUNT;
    static constexpr int LAST = N - ((COUNT - 1) * NARROW + WIDE) * LANES;  // channels of the last panel

    static constexpr int first(int panel) { return (panel * NARROW + smaller(panel, WIDE)) * LANES; }

    // Calls body<COLUMNS>(first channel) for one panel.
    template <class Body>
    static ES_INLINE void visit(int panel, const Body& body) {
        if (panel == COUNT - 1) return body.template operator()<LAST>(first(panel));
        if constexpr (WIDE > 0)
            if (panel < WIDE) return body.template operator()<(NARROW + 1) * LANES>(first(panel));
        if constexpr (COUNT > 1) body.template operator()<NARROW * LANES>(first(panel));
    }

    // The same for the panels of one of GROUPS groups.
    template <int GROUPS, class Body>
    static ES_INLINE void visit_group(int group, const Body& body) {
        for (int panel = part_begin(group, GROUPS, COUNT); panel < part_begin(group + 1, GROUPS, COUNT); ++panel)
            visit(panel, body);
    }
};

// M pixels in tiles: the first TALL ones have SHORT + 1 pixels, all others SHORT.
template <int M, int P>
struct Tiles {
    static constexpr int COUNT = ceil_div(M, P);
    static constexpr int SHORT = M / COUNT;
    static constexpr int TALL = M % COUNT;

    static constexpr int first(int tile) { return tile * SHORT + smaller(tile, TALL); }

    // Calls body<PIXELS>(first pixel) for tiles from `begin` on, before `end`.
    template <class Body>
    static ES_INLINE void visit(int begin, int end, const Body& body) {
        int tile = begin;
        if constexpr (TALL > 0)
            for (; tile < smaller(end, TALL); ++tile) body.template operator()<SHORT + 1>(first(tile));
        for (; tile < end; ++tile) body.template operator()<SHORT>(first(tile));
    }
};

// A product in tasks: a group of UNITS, which are tiles or rows of pixels, times a group of panels. One thread has as few
// groups of pixels as its second cache allows, so that it reads weights once. Several have more, each all panels for its
// own pixels: what they read again of the weights comes from a cache that all share, and slowest comes what another core
// has made, which inputs of other pixels are.
template <int UNITS, int ALONE, int SHARED, int PANEL_GROUPS>
struct Grid {
    // Calls body(first unit, behind the last one, group of panels) for all tasks, on the threads of the pool.
    template <class Body>
    static ES_INLINE void share(const Body& body, long cycles = LEAST_CYCLES) {
        const int groups = es_count_threads() == 1 ? ALONE : SHARED;
        parallel(groups * PANEL_GROUPS, [&](int task) {
            const int group = task / PANEL_GROUPS;
            body(part_begin(group, groups, UNITS), part_begin(group + 1, groups, UNITS), task % PANEL_GROUPS);
        }, cycles);
    }
};

// Weights that are wanted next, asked for while there are products to do: a line of the cache with each k. A layer reads
// its weights once, from memory or the last cache, and the pass that meets them first would wait for each line. Asking
// reads nothing, so that it may go on behind the last panel, where the next layer's weights lie.
struct Ahead {
    static constexpr int LINE = 16;  // floats
    const float* next;
    int lines;  // that are left for this tile

    // `length` rows of PITCH numbers from `next` on, asked for in `tiles` parts of one size.
    static constexpr int share(int length, int pitch, int tiles) { return ceil_div(ceil_div(length * pitch, LINE), tiles); }

    ES_INLINE void ask() {
        __builtin_prefetch(next, 0, 2);
        next += LINE;
    }
};

// The sums of a tile, in registers.
template <int P, int COLUMNS>
struct Sums {
    using Shape = Panel<COLUMNS>;
    static constexpr int WHOLE = Shape::WHOLE;
    Vector<LANES> whole[P][larger(WHOLE, 1)];
    Vector<HALF> half[P];

    ES_INLINE void clear() {
        ES_UNROLL
        for (int p = 0; p < P; ++p) {
            ES_UNROLL
            for (int v = 0; v < WHOLE; ++v) whole[p][v] = Vector<LANES>{};
            half[p] = Vector<HALF>{};
        }
    }

    // Adds x[p, k] w[k, :] for `length` k; row p of x begins at rows[p], its numbers are STEP apart, rows of w PITCH.
    template <int STEP = 1, int PITCH = Shape::PITCH>
    ES_INLINE void add(const float* const (&rows)[P], const float* w, int length) {
        for (int k = 0; k < length; ++k, w += PITCH) add_one<STEP>(rows, w, k);
    }

    // x[p, k] w[k, :], whose row of w is given.
    template <int STEP>
    ES_INLINE void add_one(const float* const (&rows)[P], const float* w, int k) {
        Vector<LANES> column[larger(WHOLE, 1)];
        Vector<HALF> rest;
        ES_UNROLL
        for (int v = 0; v < WHOLE; ++v) column[v] = load<Vector<LANES>>(w + v * LANES);
        if constexpr (Shape::HAS_HALF) rest = load<Vector<HALF>>(w + WHOLE * LANES);
        ES_UNROLL
        for (int p = 0; p < P; ++p) {
            const float x = rows[p][long(k) * STEP];
            ES_UNROLL
            for (int v = 0; v < WHOLE; ++v) whole[p][v] += column[v] * x;
            if constexpr (Shape::HAS_HALF) half[p] += rest * x;
        }
    }

    // The same products, and asks for what is wanted next.
    ES_INLINE void add(const float* const (&rows)[P], const float* w, int length, Ahead& ahead) {
        const int asked = smaller(length, ahead.lines);
        Ahead here = ahead;  // in registers
        int k = 0;
        for (; k < asked; ++k, w += Shape::PITCH) {
            here.ask();
            add_one<1>(rows, w, k);
        }
        here.lines -= asked;
        ahead = here;
        for (; k < length; ++k, w += Shape::PITCH) add_one<1>(rows, w, k);
    }

    // The same in stages of STAGE k, each summed apart: K numbers round as much as STAGE and then K / STAGE would.
    template <int STAGE>
    ES_INLINE void add_in_stages(const float* const (&rows)[P], const float* w, int length, Ahead& ahead) {
        add(rows, w, smaller(STAGE, length), ahead);
        for (int k = STAGE; k < length; k += STAGE) {
            const float* from[P];
            ES_UNROLL
            for (int p = 0; p < P; ++p) from[p] = rows[p] + k;
            Sums stage;
            stage.clear();
            stage.add(from, w + long(k) * Shape::PITCH, smaller(STAGE, length - k), ahead);
            ES_UNROLL
            for (int p = 0; p < P; ++p) {
                ES_UNROLL
                for (int v = 0; v < WHOLE; ++v) whole[p][v] += stage.whole[p][v];
                half[p] += stage.half[p];
            }
        }
    }

    // Writes the sums as they are, whole vectors, pixels PITCH apart.
    ES_INLINE void keep(float* to) {
        ES_UNROLL
        for (int p = 0; p < P; ++p) {
            ES_UNROLL
            for (int v = 0; v < WHOLE; ++v) store(to + p * Shape::PITCH + v * LANES, whole[p][v]);
            if constexpr (Shape::HAS_HALF) store(to + p * Shape::PITCH + WHOLE * LANES, half[p]);
        }
    }

    // Adds one row of w, or a bias, to the sums of every pixel.
    ES_INLINE void add_row(const float* w) {
        ES_UNROLL
        for (int p = 0; p < P; ++p) {
            ES_UNROLL
            for (int v = 0; v < WHOLE; ++v) whole[p][v] += load<Vector<LANES>>(w + v * LANES);
            if constexpr (Shape::HAS_HALF) half[p] += load<Vector<HALF>>(w + WHOLE * LANES);
        }
    }

    // Writes y[p, n] = epilogue(sum), for pixels from `pixel` and channels from `channel` on; rows are `pitch` apart.
    template <class Epilogue>
    ES_INLINE void finish(float* y, long pixel, int channel, int channels, int pitch, const Epilogue& epilogue) {
        ES_UNROLL
        for (int p = 0; p < P; ++p)
            finish_row(y + (pixel + p) * pitch + channel, p, pixel + p, channel, channels, epilogue);
    }

    template <class Epilogue>
    ES_INLINE void finish_row(float* y, int p, long pixel, int channel, int channels, const Epilogue& epilogue) {
        constexpr int LAST = Shape::used(WHOLE - 1);  // channels of the last whole vector
        ES_UNROLL
        for (int v = 0; v < WHOLE - (LAST < LANES); ++v) {
            const int at = channel + v * LANES;
            store(y + v * LANES, epilogue.template operator()<LANES>(whole[p][v], pixel, at, channels));
        }
        if constexpr (WHOLE > 0 && LAST < LANES) {
            constexpr int AT = (WHOLE - 1) * LANES;
            store<Vector<LANES>, LAST>(
                y + AT, epilogue.template operator()<LAST>(whole[p][WHOLE - 1], pixel, channel + AT, channels));
        }
        if constexpr (Shape::HAS_HALF) {
            constexpr int AT = WHOLE * LANES;
            store<Vector<HALF>, Shape::REST>(
                y + AT, epilogue.template operator()<Shape::REST>(half[p], pixel, channel + AT, channels));
        }
    }
};

}  // namespace es
