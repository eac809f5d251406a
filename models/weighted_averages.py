"""MambaMixer's connections between layers: what a mixer reads is a learned sum of all earlier outputs of both kinds.

    x_token(l)   = sum of alpha_li y_token(i)   + beta_li y_channel(i)            i = 0 .. l - 1
    x_channel(l) = sum of theta_li y_token(i), i = 0 .. l,  + gamma_li y_channel(i), i = 0 .. l - 1

y_token(0) and y_channel(0) are the first layer's input. There is no other residual connection, and no constraint on the
scalars. They begin so that each mixer reads the one before it, which makes a plain chain; what a trained model does not
read costs nothing, since products with constants fold.

Source: Behrouz et al., "MambaMixer: Efficient Selective State Space Models with Dual Token and Channel Selection",
arXiv 2403.19888, section 4.3, of which no code was published.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class WeightedAverage(nn.Module):
    """sum of w_i y_i over the outputs of token mixers and of channel mixers so far.

    Args:
        tokens, channels: how many outputs of each kind there are, the first layer's input among both.
        reads: the position, tokens first, of the one that it begins with; default: the last of the tokens.
    """

    def __init__(self, tokens: int, channels: int, reads: int | None = None) -> None:
        super().__init__()
        weight = torch.zeros(tokens + channels)
        weight[tokens - 1 if reads is None else reads] = 1
        self.weight = nn.Parameter(weight)

    def forward(self, tokens: Sequence[Tensor], channels: Sequence[Tensor]) -> Tensor:
        first, *others = [w * y for w, y in zip(self.weight.unbind(), (*tokens, *channels), strict=True)]
        for one in others:
            first = first + one
        return first
