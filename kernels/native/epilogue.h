// The end of a layer, while its numbers are still in registers.
//
//     y = f(s) g + r       residual after the function
//     y = f(s + r) g       residual before it
//
// s is the sum with its bias, f a function, g a gate: one number a channel [C], a pixel [N], or each [N, C]; r is a
// residual [N, C]. What a layer does not have costs nothing: each is decided when the kernel is compiled.
// Letters: N pixels, C channels.
#pragma once

#include "functions.h"

namespace es {

enum class Gate { none, channel, pixel, full };
enum class Residual { none, before, after };

template <Function F = Function::none, Gate G = Gate::none, Residual R = Residual::none>
struct Epilogue {
    const float* gate = nullptr;
    const float* residual = nullptr;

    Epilogue() = default;

    // Reads gate and residual from a kernel's arguments, in that order, and moves on.
    explicit Epilogue(void* const*& arguments) {
        if (G != Gate::none) gate = static_cast<const float*>(*arguments++);
        if (R != Residual::none) residual = static_cast<const float*>(*arguments++);
    }

    // y of COUNT channels from `channel` on, of `channels`, at a pixel.
    template <int COUNT, class V>
    ES_INLINE V operator()(V s, long pixel, int channel, int channels) const {
        const long at = pixel * channels + channel;
        if constexpr (R == Residual::before) s += load_part<V, COUNT>(residual + at);
        V y = apply<F>(s);
        if constexpr (G == Gate::channel) y *= load_part<V, COUNT>(gate + channel);
        if constexpr (G == Gate::pixel) y *= gate[pixel];
        if constexpr (G == Gate::full) y *= load_part<V, COUNT>(gate + at);
        if constexpr (R == Residual::after) y += load_part<V, COUNT>(residual + at);
        return y;
    }
};

}  // namespace es
