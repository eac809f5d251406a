"""Recurrent layers. Sequences are time first: x [T, B, I]; states [B, H].

The states are kept in fp32 from step to step, and the outputs are rounded; `accumulate` rounds the sums of products.
With direction `reverse` the frames are taken from the last on, and the outputs come in the order in which they are
computed; a bidirectional layer's outputs stand at their frames. (So do coremltools' tests, which Apple runs on its own
runtime; the documentation does not say.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgesmith.exporters.mil.ops import Context, number, op, wide
from edgesmith.exporters.mil.ops.linear import multiply_matrices

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "scaled_tanh": torch.tanh,  # with its defaults, which no parameter can change
    "hard_sigmoid": lambda x: (0.2 * x + 0.5).clamp(0, 1),
    "sigmoid_hard": lambda x: (0.2 * x + 0.5).clamp(0, 1),
}


@dataclass(frozen=True, kw_only=True)
class Rnn:
    """The inputs of `rnn`, by MIL's names; the other operators have them too."""

    x: Tensor
    initial_h: Tensor
    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor | None = None
    direction: str = "forward"
    output_sequence: Tensor | bool = False
    activation: str = "tanh"

    def select(self, outputs: Sequence[Tensor]) -> Tensor:
        """Return all outputs [T, B, H], or the last one [1, B, H], as `output_sequence` says."""
        return torch.stack(list(outputs) if number(self.output_sequence) else [outputs[-1]])


@dataclass(frozen=True, kw_only=True)
class Gru(Rnn):
    """The inputs of `gru`, by MIL's names."""

    recurrent_activation: str = "sigmoid"
    reset_after: Tensor | bool = False
    input_bias: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Lstm(Rnn):
    """The inputs of `lstm`, by MIL's names."""

    initial_c: Tensor
    peephole: Tensor | None = None
    weight_ih_back: Tensor | None = None
    weight_hh_back: Tensor | None = None
    bias_back: Tensor | None = None
    peephole_back: Tensor | None = None
    recurrent_activation: str = "sigmoid"
    cell_activation: str = "tanh"
    clip: Tensor | float | None = None


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    if name not in _ACTIVATIONS:
        raise ValueError(f"the activation {name} is none of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _linear(context: Context, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    result = multiply_matrices(context, x, wide(weight).transpose(0, 1))
    return result if bias is None else result + wide(bias)


def _driven(context: Context, x: Tensor, weight: Tensor, bias: Tensor | None, direction: str) -> tuple[Tensor, ...]:
    """Return what the frames contribute, W_ih x + bias, frame by frame in the order in which they are taken."""
    frames = _linear(context, wide(x), weight, bias)
    return (frames.flip(0) if direction == "reverse" else frames).unbind(0)


@op("rnn", context=True, inputs=Rnn)
def rnn(context: Context, given: Rnn) -> tuple[Tensor, Tensor]:
    """Elman's layer: h = activation(W_ih x + W_hh h + bias)."""
    act, h = _activation(given.activation), wide(given.initial_h)
    outputs = []
    for driven in _driven(context, given.x, given.weight_ih, given.bias, given.direction):
        h = act(driven + _linear(context, h, given.weight_hh))
        outputs.append(h)
    return given.select(outputs), h


@op("gru", context=True, inputs=Gru)
def gru(context: Context, given: Gru) -> tuple[Tensor, Tensor]:
    """Gated recurrent unit; the rows of the weights are those of the reset, output and update gates.

    h = (1 - z) o + z h with o = act(W_io x + b_i + W_ho (r h) + b), which is what Core ML computes, although the
    documentation has r W_ho h. `reset_after` (iOS 18) is torch's order: o = act(W_io x + b_i + r (W_ho h + b)). There
    `bias` is the hidden one and `input_bias` that of x.
    """
    act, gate, h = _activation(given.activation), _activation(given.recurrent_activation), wide(given.initial_h)
    own = wide(given.bias) if given.bias is not None else torch.zeros(3 * h.shape[-1], dtype=h.dtype)
    outputs = []
    for frame in _driven(context, given.x, given.weight_ih, given.input_bias, given.direction):
        x_r, x_o, x_z = frame.chunk(3, -1)
        b_r, b_o, b_z = own.chunk(3)
        w_r, w_o, w_z = given.weight_hh.chunk(3)
        r = gate(x_r + _linear(context, h, w_r) + b_r)
        z = gate(x_z + _linear(context, h, w_z) + b_z)
        if number(given.reset_after):
            o = act(x_o + r * (_linear(context, h, w_o) + b_o))
        else:
            o = act(x_o + _linear(context, r * h, w_o) + b_o)
        h = (1 - z) * o + z * h
        outputs.append(h)
    return given.select(outputs), h


@dataclass(frozen=True)
class _Cell:
    """The part of an LSTM that its two directions share."""

    gate: Callable[[Tensor], Tensor]
    cell: Callable[[Tensor], Tensor]
    out: Callable[[Tensor], Tensor]
    clip: float | None

    def run(
        self,
        context: Context,
        frames: tuple[Tensor, ...],
        state: tuple[Tensor, Tensor],
        weight_hh: Tensor,
        peephole: Tensor | None,
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return outputs in the order of `frames` (W_ih x + bias, [B, 4 H] each), and the last h and c."""
        h, c = state
        p_i, p_f, p_o = wide(peephole).chunk(3) if peephole is not None else (0.0, 0.0, 0.0)
        outputs = []
        for frame in frames:
            i, f, o, z = (frame + _linear(context, h, weight_hh)).chunk(4, -1)
            c = self.gate(f + p_f * c) * c + self.gate(i + p_i * c) * self.cell(z)
            if self.clip is not None:
                c = c.clamp(-self.clip, self.clip)
            h = self.gate(o + p_o * c) * self.out(c)
            outputs.append(h)
        return outputs, h, c


@op("lstm", context=True, inputs=Lstm)
def lstm(context: Context, given: Lstm) -> tuple[Tensor, Tensor, Tensor]:
    """Long short-term memory; the rows of the weights are those of the input, forget, output and cell gates.

    `clip` bounds the memory c. Peepholes add c's share to the gates, to the output gate that of the new c.
    Bidirectional: states and outputs are [..., 2 H], the forward direction first.
    """
    cell = _Cell(
        _activation(given.recurrent_activation),
        _activation(given.cell_activation),
        _activation(given.activation),
        None if given.clip is None else float(number(given.clip)),
    )
    directions = 2 if given.direction == "bidirectional" else 1
    h, c = wide(given.initial_h).chunk(directions, -1), wide(given.initial_c).chunk(directions, -1)
    frames = _driven(context, given.x, given.weight_ih, given.bias, given.direction)
    outputs, last_h, last_c = cell.run(context, frames, (h[0], c[0]), given.weight_hh, given.peephole)
    sequence = given.select(outputs)
    if directions == 1:
        return sequence, last_h, last_c
    if given.weight_ih_back is None or given.weight_hh_back is None:
        raise ValueError("a bidirectional LSTM takes weight_ih_back and weight_hh_back")
    frames = _driven(context, given.x, given.weight_ih_back, given.bias_back, "reverse")
    outputs, back_h, back_c = cell.run(context, frames, (h[1], c[1]), given.weight_hh_back, given.peephole_back)
    back = given.select(outputs).flip(0)
    return torch.cat([sequence, back], -1), torch.cat([last_h, back_h], -1), torch.cat([last_c, back_c], -1)
