"""Cases of pooling."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from support.mil_sites import Draw, Site, Table

CASES = Table()


AVERAGES = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
MAXIMA = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
POWERS = (F.lp_pool1d, F.lp_pool2d, F.lp_pool3d)


@CASES.drawn("avg_pool", "max_pool", "l2_pool")
def pooling(draw: Draw, name: str) -> Site:
    rank = draw.whole(1, 2 if name == "l2_pool" else 3)
    kernel = [draw.whole(1, 4) for _ in range(rank)]
    stride = [draw.whole(1, size) for size in kernel]
    space = [size + draw.whole(0, 4) for size in kernel]
    kinds = ["valid", "custom", "same"] + (["same_lower"] if draw.opset >= 16 else [])
    kind = draw.choose(kinds)
    ceil = rank < 3 and kind in ("valid", "custom") and draw.flag()
    exclude = name == "avg_pool" and draw.flag()
    attributes: dict[str, Any] = {"kernel_sizes": kernel, "pad_type": kind}
    if any(step != 1 for step in stride):
        attributes["strides"] = stride
    if ceil:
        attributes["ceil_mode"] = True
    if exclude:
        attributes["exclude_padding_from_average"] = True
    pairs = [(0, 0)] * rank
    if kind == "custom":
        pairs = [(draw.whole(0, size // 2), draw.whole(0, size // 2)) for size in kernel]
        pairs = [(before, before) for before, _ in pairs] if ceil else pairs
        attributes["pad"] = [amount for pair in pairs for amount in pair]
    elif kind != "valid":
        totals = [max((-(-n // s) - 1) * s + k - n, 0) for n, s, k in zip(space, stride, kernel, strict=True)]
        pairs = [(total // 2, total - total // 2) for total in totals]
        pairs = [pair[::-1] for pair in pairs] if kind == "same_lower" else pairs
    padding = [before for before, _ in pairs]

    def reference(x: Tensor) -> Tensor:
        if ceil and name == "avg_pool":
            return AVERAGES[rank - 1](x, kernel, stride, padding, True, not exclude)
        if ceil and name == "max_pool":
            return MAXIMA[rank - 1](x, kernel, stride, padding, 1, True)
        edges = [amount for pair in reversed(pairs) for amount in pair]
        padded = F.pad(x, edges, value=-math.inf if name == "max_pool" else 0.0)
        if name == "max_pool":
            return MAXIMA[rank - 1](padded, kernel, stride)
        if name == "l2_pool":
            more = AVERAGES[rank - 1](padded**2, kernel, stride, 0, ceil, False) if ceil else None
            if more is None:
                return POWERS[rank - 1](padded, 2, kernel if rank > 1 else kernel[0], stride if rank > 1 else stride[0])
            ones = F.pad(padded, [amount for size in reversed(kernel) for amount in (0, size)])
            window = [slice(0, size) for size in more.shape[2:]]
            size = kernel if rank > 1 else kernel[0]
            return POWERS[rank - 1](ones, 2, size, stride if rank > 1 else stride[0])[
                (slice(None), slice(None), *window)
            ]
        ones = F.pad(torch.ones_like(x), edges)
        counted = AVERAGES[rank - 1](ones, kernel, stride) if exclude else 1
        return AVERAGES[rank - 1](padded, kernel, stride) / counted

    low = -3 if name == "max_pool" else 0.5
    plain = name == "max_pool" or (name == "avg_pool" and not exclude and rank < 3)
    return Site(
        {"x": draw.floats([draw.whole(1, 2), draw.whole(1, 3), *space], low, 3)}, attributes, reference, half=plain
    )
