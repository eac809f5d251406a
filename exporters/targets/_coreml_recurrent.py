"""PyTorch's recurrent layers as Core ML's own `lstm`, `gru` and `rnn`, which are time first and of one layer.

    gates       PyTorch lstm i f g o, gru r z n          Core ML lstm i f o g, gru r n z
    biases      PyTorch has two of each gate             Core ML's lstm and rnn have their sum
    backwards   PyTorch's at their frames                so are those of Core ML's bidirectional lstm; the others read
                                                         reversed frames, and what they make is reversed again

PyTorch's gru multiplies the reset gate and W_hn h + b_hn; Core ML's does so from iOS 18 on (`reset_after`). For older
systems its products with the frames are one matmul, and what depends on the state is a loop over time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgesmith.errors import Unsupported
from edgesmith.kernels.loops import coreml_loop

_LSTM, _GRU, _RNN = (0, 1, 3, 2), (0, 2, 1), (0,)
"""Core ML's order of PyTorch's gates."""


class _Direction:
    """The weights of one direction of one layer, as arrays in Core ML's order of gates."""

    def __init__(self, parameters: Sequence[Any], gates: Sequence[int]) -> None:
        arrays = [parameter.val for parameter in parameters]
        if any(array is None for array in arrays):
            raise Unsupported(
                "Core ML's recurrent layers take constant weights, and these are computed; export with"
                " weights that are parameters"
            )
        ordered = [np.concatenate([np.split(array, len(gates))[gate] for gate in gates]) for array in arrays]
        self.weight_ih, self.weight_hh, *biases = ordered
        self.bias_ih, self.bias_hh = biases or [np.zeros(len(self.weight_ih), self.weight_ih.dtype)] * 2
        self.bias = self.bias_ih + self.bias_hh


def translations() -> dict[str, Callable[[Any, Any], None]]:
    """Return the translation of each recurrent layer by PyTorch's name."""
    return {
        "lstm.input": _lstm,
        "gru.input": _gru,
        "rnn_tanh.input": lambda context, node: _stacked(context, node, _RNN, _rnn("tanh")),
        "rnn_relu.input": lambda context, node: _stacked(context, node, _RNN, _rnn("relu")),
    }


def _arguments(context: Any, node: Any) -> tuple[Any, Any, list[Any], int, int, int, bool]:
    """Return input, states, parameters, their number in a direction, layers, directions, whether batches are first."""
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs

    x, states, parameters, has_biases, layers, _, _, bidirectional, batch_first = _get_inputs(context, node)
    count, directions = int(layers.val), 2 if bidirectional.val else 1
    size = 4 if has_biases.val else 2
    assert len(parameters) == size * count * directions  # projections are spelled out, see decompositions/recurrent.py
    return x, states, list(parameters), size, count, directions, bool(batch_first.val)


def _time_first(x: Any, is_needed: bool) -> Any:
    """Return the same with time and batch exchanged, where that is needed."""
    from coremltools.converters.mil import Builder as mb

    return mb.transpose(x=x, perm=[1, 0, 2]) if is_needed else x


def _state(states: Any, index: int) -> Any:
    """Return the state [B, H] of one direction of one layer."""
    from coremltools.converters.mil import Builder as mb

    return mb.squeeze(x=mb.slice_by_size(x=states, begin=[index, 0, 0], size=[1, -1, -1]), axes=[0])


def _lstm(context: Any, node: Any) -> None:
    """Translate to one `lstm` a layer, a bidirectional one for both directions."""
    from coremltools.converters.mil import Builder as mb

    x, (h, c), parameters, size, layers, directions, batch_first = _arguments(context, node)
    x = _time_first(x, batch_first)
    last_h, last_c = [], []
    for layer in range(layers):
        first = layer * directions
        both = [_Direction(parameters[i * size : (i + 1) * size], _LSTM) for i in range(first, first + directions)]
        given = {"weight_ih": both[0].weight_ih, "weight_hh": both[0].weight_hh, "bias": both[0].bias}
        if directions == 2:
            given |= {f"{name}_back": getattr(both[1], name) for name in given} | {"direction": "bidirectional"}
        starts = [
            mb.concat(values=[_state(one, first + i) for i in range(directions)], axis=1)
            if directions == 2
            else _state(one, first)
            for one in (h, c)
        ]
        x, next_h, next_c = mb.lstm(x=x, initial_h=starts[0], initial_c=starts[1], output_sequence=True, **given)
        last_h += _halves(next_h, directions)
        last_c += _halves(next_c, directions)
    results = _time_first(x, batch_first), mb.stack(values=last_h, axis=0), mb.stack(values=last_c, axis=0)
    context.add(results, torch_name=node.name)


def _halves(state: Any, directions: int) -> list[Any]:
    """Return the states [B, H] of both directions of [B, 2 H]."""
    from coremltools.converters.mil import Builder as mb

    return list(mb.split(x=state, num_splits=2, axis=1)) if directions == 2 else [state]


Layer = Callable[[Any, Any, _Direction], tuple[Any, Any]]
"""One direction of one layer: from frames [T, B, I] and a state [B, H] to the outputs [T, B, H] and the last state."""


def _stacked(context: Any, node: Any, gates: Sequence[int], run: Layer) -> None:
    """Translate layers with one state, each direction by itself."""
    from coremltools.converters.mil import Builder as mb

    x, states, parameters, size, layers, directions, batch_first = _arguments(context, node)
    x = _time_first(x, batch_first)
    last = []
    for layer in range(layers):
        outputs = []
        for backwards in range(directions):
            i = layer * directions + backwards
            weights = _Direction(parameters[i * size : (i + 1) * size], gates)
            frames = mb.reverse(x=x, axes=[0]) if backwards else x
            made, state = run(frames, _state(states, i), weights)
            outputs.append(mb.reverse(x=made, axes=[0]) if backwards else made)
            last.append(state)
        x = mb.concat(values=outputs, axis=2) if directions == 2 else outputs[0]
    context.add((_time_first(x, batch_first), mb.stack(values=last, axis=0)), torch_name=node.name)


def _rnn(activation: str) -> Layer:
    """Return Elman's layer by `rnn`."""

    def run(x: Any, h: Any, weights: _Direction) -> tuple[Any, Any]:
        from coremltools.converters.mil import Builder as mb

        given = {"weight_ih": weights.weight_ih, "weight_hh": weights.weight_hh, "bias": weights.bias}
        outputs, last = mb.rnn(x=x, initial_h=h, output_sequence=True, activation=activation, **given)
        return outputs, last

    return run


def _gru(context: Any, node: Any) -> None:
    """Translate to `gru` where it resets after the product, or else to a loop."""
    from coremltools.converters.mil._deployment_compatibility import AvailableTarget
    from coremltools.converters.mil.frontend.torch.ops import is_current_opset_version_compatible_with

    resets_after = is_current_opset_version_compatible_with(AvailableTarget.iOS18)
    _stacked(context, node, _GRU, _gru_layer if resets_after else _gru_loop)


def _gru_layer(x: Any, h: Any, weights: _Direction) -> tuple[Any, Any]:
    """Return a gru by Core ML's own."""
    from coremltools.converters.mil import Builder as mb

    outputs, last = mb.gru(
        x=x,
        initial_h=h,
        weight_ih=weights.weight_ih,
        weight_hh=weights.weight_hh,
        bias=weights.bias_hh,
        input_bias=weights.bias_ih,
        reset_after=True,
        output_sequence=True,
    )
    return outputs, last


def _gru_loop(x: Any, h: Any, weights: _Direction) -> tuple[Any, Any]:
    """Return a gru by a loop: h = (1 - z) n + z h, n = tanh(x_n + r (W_hn h + b_hn))."""
    from coremltools.converters.mil import Builder as mb

    driven = mb.linear(x=x, weight=weights.weight_ih, bias=weights.bias_ih)  # [T, B, 3 H]

    def step(h: Any, frame: Any) -> tuple[Any, Any]:
        x_r, x_n, x_z = mb.split(x=mb.squeeze(x=frame, axes=[0]), num_splits=3, axis=-1)
        h_r, h_n, h_z = mb.split(
            x=mb.linear(x=h, weight=weights.weight_hh, bias=weights.bias_hh), num_splits=3, axis=-1
        )
        r, z = mb.sigmoid(x=mb.add(x=x_r, y=h_r)), mb.sigmoid(x=mb.add(x=x_z, y=h_z))
        n = mb.tanh(x=mb.add(x=x_n, y=mb.mul(x=r, y=h_n)))
        h = mb.add(x=n, y=mb.mul(x=z, y=mb.sub(x=h, y=n)))
        return h, mb.expand_dims(x=h, axes=[0])

    outputs = coreml_loop(h, driven, step, [*x.shape[:2], weights.weight_hh.shape[1]])
    return outputs, mb.squeeze(x=mb.slice_by_size(x=outputs, begin=[x.shape[0] - 1, 0, 0], size=[1, -1, -1]), axes=[0])
