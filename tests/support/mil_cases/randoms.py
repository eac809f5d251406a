"""Cases of random numbers, whose moments are looked at."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from support.mil_sites import Draw, Site, Table

CASES = Table()


@CASES.drawn("random_uniform", "random_normal", "random_bernoulli")
def random_numbers(draw: Draw, name: str) -> Site:
    shape = [draw.whole(30, 60), draw.whole(30, 60)]
    attributes: dict[str, Any] = {"shape": shape}
    if draw.flag():
        attributes["seed"] = draw.whole(0, 99)
    low, high = draw.scalar(-2, 0), draw.scalar(1, 3)
    chance = draw.scalar(0.1, 0.9)
    names = {"random_uniform": ("low", "high"), "random_normal": ("mean", "stddev"), "random_bernoulli": ("prob",)}
    given = dict(zip(names[name], (chance,) if name == "random_bernoulli" else (low, high), strict=True))

    def check(values: Tensor) -> None:
        values = values.double()
        assert list(values.shape) == shape
        least, most = float(low), float(high)
        mean, deviation = {
            "random_uniform": ((least + most) / 2, (most - least) / math.sqrt(12)),
            "random_normal": (least, most),
            "random_bernoulli": (float(chance), math.sqrt(float(chance) * (1 - float(chance)))),
        }[name]
        error = deviation / math.sqrt(values.numel())
        assert abs(values.mean() - mean) < 6 * error
        assert abs(values.std() / deviation - 1) < 0.15
        if name == "random_uniform":
            assert least <= values.min()
            assert values.max() <= most
        if name == "random_bernoulli":
            assert set(values.unique().tolist()) == {0.0, 1.0}

    return Site({}, attributes | given, None, check=check)


@CASES.drawn("random_categorical")
def random_categorical(draw: Draw) -> Site:
    classes, mode = draw.whole(2, 4), draw.choose([None, "logits", "probs"])
    size = draw.whole(800, 1600)
    share = draw.floats([draw.whole(1, 2), classes], 0.2, 1)
    share = (share / share.sum(-1, keepdim=True)).to(share.dtype)
    x = share if mode == "probs" else share.log()
    attributes = {"size": size, "seed": draw.whole(0, 99)} | ({} if mode is None else {"mode": mode})

    def check(values: Tensor) -> None:
        assert values.shape == (len(share), size)
        for row, wanted in zip(values, share.double(), strict=True):
            found = torch.bincount(row.long(), minlength=classes) / size
            assert (found - wanted).abs().max() < 6 * 0.5 / math.sqrt(size)

    return Site({"x": x}, attributes, None, check=check)
