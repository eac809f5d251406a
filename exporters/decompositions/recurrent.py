"""Recurrent layers that targets do not have as one operator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgesmith.exporters.decompositions import LEAVE, decomposes

aten = torch.ops.aten


@decomposes(
    aten.lstm.input,
    targets=("onnx", "coreml", "coreai"),
    why="no target's LSTM projects its states; torch's exporter forgets the projection",
)
def lstm(  # noqa: PLR0913 - the operator's own arguments
    x: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return an LSTM with projected states (Sak et al. 2014), step by step: outputs, last states, last cells.

    i, f, g, o = W x + b + U h + d      c = sigmoid(f) c + sigmoid(i) tanh(g)      h = P (sigmoid(o) tanh(c))
    """
    if hx[0].shape[-1] == hx[1].shape[-1]:
        return LEAVE
    each = 5 if has_biases else 3
    y = x.transpose(0, 1) if batch_first else x
    states, cells = [], []
    for layer in range(num_layers):
        outputs = []
        for direction in range(1 + bidirectional):
            at = layer * (1 + bidirectional) + direction
            given = params[at * each : (at + 1) * each]
            made, state, cell = _projected(y, hx[0][at], hx[1][at], given, direction == 1)
            outputs.append(made)
            states.append(state)
            cells.append(cell)
        y = torch.cat(outputs, -1)
    return (y.transpose(0, 1) if batch_first else y), torch.stack(states), torch.stack(cells)


def _projected(
    x: Tensor, h: Tensor, c: Tensor, params: Sequence[Tensor], backwards: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return one direction of one layer: outputs [T, B, P], and the last state and cell."""
    w, u, *biases, p = params
    gates = torch.nn.functional.linear(x, w, biases[0] + biases[1] if biases else None)
    outputs: list[Tensor] = []
    for t in reversed(range(x.shape[0])) if backwards else range(x.shape[0]):
        i, f, g, o = (gates[t] + torch.nn.functional.linear(h, u)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.nn.functional.linear(torch.sigmoid(o) * torch.tanh(c), p)
        outputs.append(h)
    return torch.stack(outputs[::-1] if backwards else outputs), h, c
