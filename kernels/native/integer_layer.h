// Dense convolution and linear layers with 8-bit integers between floats.
//
//     q[i, j, c] = clamp(round(x[i, j, c] / s), -128, 127)
//     y[i, j, n] = epilogue(s s_n sum_{a, b, c} q[i t - top + a d, j t - left + b d, c] w[a, b, c, n] + bias[n])
//
// In two phases. First x is rounded into a map of narrow numbers with its border, so that no edge is left. Then every
// kernel row is a product: with no dilation the KW C numbers under it lie side by side, and are read PER at a time, as one
// word that all lanes are multiplied by (dot.h). Where a row of the kernel ends within a word, weights are zero behind it.
// Sums are exact integers; they become floats once, in registers, and the epilogue is that of the other layers.
//
// x may come as narrow numbers already, and y go as such, rounded with the scale of the layer that reads it: then nothing
// is rounded twice, and the map between two layers takes a quarter of the memory.
//
// Packed parameters, in words of 32 bits: 1/s of x and of y, filled up to LANES; then of each panel the factors s s_n, the
// biases, where sums begin, and the rows of weights, each as wide as the panel. Arguments: x [B, H, W, C], gate and
// residual where the epilogue has them, packed, y [B, OH, OW, N], scratch where x is rounded here. Letters: B batch, H W
// map, C inputs, N outputs, t stride, d dilation, P pixels of a tile.
#pragma once

#include "dot.h"
#include "gemm.h"
#include "pool.h"

namespace es {

// Eight bits of numbers that are rounded: what a map of narrow numbers holds.
template <int W>
struct NumbersOf {
    typedef Number Vector __attribute__((vector_size(W * sizeof(Number))));
};

template <class V>
ES_INLINE IntOf<V> round_to_bits(V x) {
    constexpr float SHIFT = 12582912.0f;  // 1.5 * 2^23: the sum has no fraction bits, and its low bits are the number
    const V shifted = clamp(x, -128.0f, 127.0f) + (SHIFT + OFFSET);
    return __builtin_bit_cast(IntOf<V>, shifted) - __builtin_bit_cast(int, SHIFT);
}

template <int COUNT, class V>
ES_INLINE void store_numbers(Number* to, V x) {
    constexpr int W = lanes_of<V>;
    if constexpr (W == 1) {
        *to = Number(round_to_bits(x)[0]);
    } else {
        const auto numbers = __builtin_convertvector(round_to_bits(x), typename NumbersOf<W>::Vector);
        __builtin_memcpy(to, &numbers, COUNT * sizeof(Number));
    }
}

// The sums of a tile, in registers, as integers.
template <int P, int COLUMNS>
struct IntegerSums {
    using Shape = Panel<COLUMNS>;
    static constexpr int WHOLE = Shape::WHOLE;
    Words<LANES> whole[P][larger(WHOLE, 1)];
    Words<HALF> half[P];

    template <int W>
    static ES_INLINE Words<W> words(const float* from) {
        return __builtin_bit_cast(Words<W>, load<Vector<W>>(from));
    }

    ES_INLINE void start(const float* from) {
        ES_UNROLL
        for (int p = 0; p < P; ++p) {
            ES_UNROLL
            for (int v = 0; v < WHOLE; ++v) whole[p][v] = words<LANES>(from + v * LANES);
            if constexpr (Shape::HAS_HALF) half[p] = words<HALF>(from + WHOLE * LANES);
        }
    }

    // Adds `count` words of every pixel; pixels of x are STEP numbers apart.
    template <int STEP>
    ES_INLINE void add(const Number* x, const float* w, int count, Ahead& ahead) {
        const int asked = smaller(count, ahead.lines);
        int k = 0;
        for (; k < asked; ++k, w += Shape::PITCH, x += PER) {
            ahead.ask();
            add_one<STEP>(x, w);
        }
        ahead.lines -= asked;
        for (; k < count; ++k, w += Shape::PITCH, x += PER) add_one<STEP>(x, w);
    }

    template <int STEP>
    ES_INLINE void add_one(const Number* x, const float* w) {
        Words<LANES> column[larger(WHOLE, 1)];
        Words<HALF> rest;
        ES_UNROLL
        for (int v = 0; v < WHOLE; ++v) column[v] = words<LANES>(w + v * LANES);
        if constexpr (Shape::HAS_HALF) rest = words<HALF>(w + WHOLE * LANES);
        ES_UNROLL
        for (int p = 0; p < P; ++p) {
            const int word = load_word(x + p * long(STEP));
            ES_UNROLL
            for (int v = 0; v < WHOLE; ++v) whole[p][v] = dot<LANES>(whole[p][v], word, column[v]);
            if constexpr (Shape::HAS_HALF) half[p] = dot<HALF>(half[p], word, rest);
        }
    }

    // The sums of one pixel as floats.
    ES_INLINE Sums<1, COLUMNS> floats(int p, const float* factors, const float* bias) const {
        Sums<1, COLUMNS> made;
        ES_UNROLL
        for (int v = 0; v < WHOLE; ++v)
            made.whole[0][v] = __builtin_convertvector(whole[p][v], Vector<LANES>) * load<Vector<LANES>>(factors + v * LANES) +
                               load<Vector<LANES>>(bias + v * LANES);
        if constexpr (Shape::HAS_HALF)
            made.half[0] = __builtin_convertvector(half[p], Vector<HALF>) * load<Vector<HALF>>(factors + WHOLE * LANES) +
                           load<Vector<HALF>>(bias + WHOLE * LANES);
        return made;
    }
};

// Rounds what a layer's epilogue has made.
template <class Epilogue>
struct Rounding {
    const Epilogue& epilogue;
    float inverse;
    Number* y;

    template <int COUNT, class V>
    ES_INLINE void store(V s, long pixel, int channel, int channels) const {
        const V made = epilogue.template operator()<COUNT>(s, pixel, channel, channels);
        store_numbers<COUNT>(y + pixel * channels + channel, made * inverse);
    }
};

// S has the constants that kernels/native/integer_layer.py writes.
template <class S>
struct IntegerLayer : S {
    using S::BATCH, S::C, S::DILATION, S::H, S::KH, S::KW, S::LEFT, S::N, S::OW, S::PANEL_GROUPS, S::STRIDE, S::W;
    static_assert(S::EXPECTED_OFFSET == OFFSET && S::EXPECTED_PER == PER, "weights are packed for other products");
    using Columns = Panels<N, S::V>;
    using Pixels = Tiles<OW, S::P>;
    using Output = typename S::Output;
    static constexpr int TALL = H + S::TOP + S::BOTTOM, LONG = W + LEFT + S::RIGHT;  // the map with its border
    static constexpr int TAPS = DILATION == 1 ? KW : 1;  // pixels side by side under a kernel row
    static constexpr int WORDS = ceil_div(TAPS * C, PER);
    static constexpr int ROWS_OF_WORDS = 3 + KH * (KW / TAPS) * WORDS;  // of a panel
    static constexpr int TILES = BATCH * S::OH * Pixels::COUNT;
    using Tasks = Grid<TILES, S::ALONE, S::SHARED, PANEL_GROUPS>;
    static constexpr bool HAS_BORDER = TALL > H || LONG > W;
    static constexpr int CHUNKS = smaller(S::LEAST_TASKS, HAS_BORDER ? BATCH * H : ceil_div(BATCH * H * W * C, LANES));

    static ES_INLINE void round_run(const float* x, Number* q, int count, float inverse) {
        int i = 0;
        for (; i + LANES <= count; i += LANES) store_numbers<LANES>(q + i, load<Vector<LANES>>(x + i) * inverse);
        for (; i < count; ++i) store_numbers<1>(q + i, load<Vector<1>>(x + i) * inverse);
    }

    static ES_INLINE void fill(Number* q, int count) {
        for (int i = 0; i < count; ++i) q[i] = OFFSET;
    }

    // One of CHUNKS parts of x, into the map with its border.
    static ES_NOINLINE void round_chunk(int chunk, const float* x, Number* map, float inverse) {
        if constexpr (!HAS_BORDER) {
            constexpr int VECTORS = BATCH * H * W * C / LANES;
            const int begin = part_begin(chunk, CHUNKS, VECTORS) * LANES;
            const int end = chunk == CHUNKS - 1 ? BATCH * H * W * C : part_begin(chunk + 1, CHUNKS, VECTORS) * LANES;
            round_run(x + begin, map + begin, end - begin, inverse);
        } else {
            const int end = part_begin(chunk + 1, CHUNKS, BATCH * H);
            for (int line = part_begin(chunk, CHUNKS, BATCH * H); line < end; ++line) {
                const int b = line / H, i = line % H;
                Number* const to = map + (long(b) * TALL + i + S::TOP) * LONG * C;
                fill(to, LEFT * C);
                round_run(x + long(line) * W * C, to + LEFT * C, W * C, inverse);
                fill(to + (LEFT + W) * C, S::RIGHT * C);
                if (i == 0) fill(map + long(b) * TALL * LONG * C, S::TOP * LONG * C);
                if (i == H - 1) fill(to + LONG * C, S::BOTTOM * LONG * C);
            }
        }
    }

    template <int COLUMNS, class Epilogue>
    static ES_NOINLINE void multiply(int channel, int begin, int end, const Number* map, const float* panel, Output* y,
                                     float inverse, const Epilogue& epilogue) {
        constexpr int PITCH = Panel<COLUMNS>::PITCH;
        Ahead ahead{panel + long(ROWS_OF_WORDS) * PITCH, 0};
        for (int tile = begin; tile < end;) {
            const int row = tile / Pixels::COUNT, first = tile % Pixels::COUNT;
            const int last = smaller(Pixels::COUNT, first + end - tile);
            const Number* const line = map + (long(row / S::OH) * TALL + row % S::OH * STRIDE) * LONG * C;
            Pixels::visit(first, last, [&]<int PIXELS>(int column) {
                ahead.lines = Ahead::share(ROWS_OF_WORDS, PITCH, end - begin);
                IntegerSums<PIXELS, COLUMNS> sums;
                sums.start(panel + 2 * PITCH);
                const float* w = panel + 3 * PITCH;
                for (int a = 0; a < KH; ++a)
                    for (int b = 0; b < KW; b += TAPS, w += WORDS * PITCH)
                        sums.template add<STRIDE * C>(
                            line + (long(a) * DILATION * LONG + column * STRIDE + b * DILATION) * C, w, WORDS, ahead);
                ES_UNROLL
                for (int p = 0; p < PIXELS; ++p) {
                    const long pixel = long(row) * OW + column + p;
                    finish<COLUMNS>(sums.floats(p, panel, panel + PITCH), pixel, channel, y, inverse, epilogue);
                }
            });
            tile += last - first;
        }
    }

    template <int COLUMNS, class Epilogue>
    static ES_INLINE void finish(Sums<1, COLUMNS> sums, long pixel, int channel, Output* y, float inverse, const Epilogue& epilogue) {
        if constexpr (sizeof(Output) == sizeof(float)) {
            sums.finish_row(y + pixel * N + channel, 0, pixel, channel, N, epilogue);
        } else {
            using Shape = Panel<COLUMNS>;
            const Rounding<Epilogue> rounding{epilogue, inverse, y};
            constexpr int LAST = Shape::used(Shape::WHOLE - 1);
            ES_UNROLL
            for (int v = 0; v < Shape::WHOLE - (LAST < LANES); ++v)
                rounding.template store<LANES>(sums.whole[0][v], pixel, channel + v * LANES, N);
            if constexpr (Shape::WHOLE > 0 && LAST < LANES)
                rounding.template store<LAST>(sums.whole[0][Shape::WHOLE - 1], pixel, channel + (Shape::WHOLE - 1) * LANES, N);
            if constexpr (Shape::HAS_HALF)
                rounding.template store<Shape::REST>(sums.half[0], pixel, channel + Shape::WHOLE * LANES, N);
        }
    }

    template <class Epilogue>
    static void run_task(int begin, int end, int panels, const Number* map, const float* packed, Output* y, const Epilogue& epilogue) {
        const float inverse = packed[1];
        Columns::template visit_group<PANEL_GROUPS>(panels, [&]<int COLUMNS>(int channel) {
            const float* const panel = packed + LANES + long(channel) * ROWS_OF_WORDS;
            multiply<COLUMNS>(channel, begin, end, map, panel, y, inverse, epilogue);
        });
    }

    static int run(void* const* arguments) {
        const void* const x = *arguments++;
        const typename S::Epilogue epilogue(arguments);
        const auto packed = static_cast<const float*>(*arguments++);
        const auto y = static_cast<Output*>(*arguments++);
        const Number* map = static_cast<const Number*>(x);
        if constexpr (!S::READS_NUMBERS) {
            const auto rounded = static_cast<Number*>(*arguments++);
            parallel(CHUNKS, [&](int chunk) { round_chunk(chunk, static_cast<const float*>(x), rounded, packed[0]); });
            map = rounded;
        }
        Tasks::share([&](int begin, int end, int panels) { run_task(begin, end, panels, map, packed, y, epilogue); });
        return 0;
    }
};

}  // namespace es
