"""Integers that float32 has not: every operator keeps their last digit on every target, or the export is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import edgesmith
from edgesmith.exporters import targets

ODD = 2**24 + 1
"""Float32 has the number before it and the number behind it."""

IDS = torch.randint(0, 100, (2, 7), generator=torch.Generator().manual_seed(0))
LARGE = IDS * 1000003 + 1

KEPT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda i, n: n + ODD,
    "add alpha": lambda i, n: torch.add(n, i, alpha=3333333),
    "rsub": lambda i, n: ODD - n,
    "mul": lambda i, n: i * ODD,
    "floor divide": lambda i, n: (n - 50000000) // 16777259,
    "truncate": lambda i, n: torch.div(n - 50000000, 7, rounding_mode="trunc"),
    "remainder": lambda i, n: (n - 50000000) % 16777259,
    "fmod": lambda i, n: torch.fmod(n - 50000000, 16777259),
    "power": lambda i, n: (i * 400) ** 2,
    "negative": lambda i, n: (-n).abs(),
    "not": lambda i, n: ~n,
    "or": lambda i, n: n | ODD,
    "xor": lambda i, n: n ^ ODD,
    "shift": lambda i, n: (n << 4) + (n >> 3),
    "compare": lambda i, n: (n == 50000151).long() + (n >= ODD).long() + (i % 3 + ODD - 1 > ODD - 1).long(),
    "clamp": lambda i, n: n.clamp(ODD, 50000151),
    "clamp below": lambda i, n: n.clamp(max=ODD),
    "clamp above": lambda i, n: n.clamp(min=ODD),
    "minimum": lambda i, n: torch.minimum(n, torch.tensor(ODD)) + torch.maximum(n, n.flip(1)),
    "where": lambda i, n: torch.where(n > 50000000, ODD, n),
    "masked fill": lambda i, n: n.masked_fill(i > 40, ODD),
    "sum": lambda i, n: n.sum(1),
    "sum of squares": lambda i, n: (i * i * 1601).sum(1),
    "product": lambda i, n: (i % 5 + 5).prod(1),
    "largest": lambda i, n: n.amax(1) - n.amin(1),
    "cumulative sum": lambda i, n: n.cumsum(1),
    "cumulative product": lambda i, n: (i % 4 + 8).cumprod(1),
    "difference": lambda i, n: n.diff(dim=1),
    "matmul": lambda i, n: (i * 40) @ (i * 40).t(),
    "matrix and vector": lambda i, n: (i * 40) @ (i[0] * 41),
    "bmm": lambda i, n: torch.bmm(i[None] * 40, (i * 41).t()[None]),
    "addmm": lambda i, n: torch.addmm(n[:, :2], i * 20, i.t() * 20, beta=2, alpha=3),
    "baddbmm": lambda i, n: torch.baddbmm(n[None, :, :2], i[None] * 20, i.t()[None] * 20, beta=2, alpha=3),
    "linear": lambda i, n: F.linear(i * 40, i * 40, n[:, 0]),
    "pad": lambda i, n: F.pad(n, (1, 2), value=ODD),
    "pad and cut": lambda i, n: F.pad(n[None, None], (1, -1, 2, 0), value=-ODD),
    "pad by reflection": lambda i, n: F.pad(n[None], (2, 1), mode="reflect"),
    "pad by replication": lambda i, n: F.pad(n[None], (2, 1), mode="replicate"),
    "pad around": lambda i, n: F.pad(n[None], (2, 1), mode="circular"),
    "sort": lambda i, n: n.sort(1)[0],
    "top k": lambda i, n: n.topk(3, 1)[0],
    "gather": lambda i, n: torch.gather(n, 1, i % 7),
    "look-up": lambda i, n: torch.arange(ODD, ODD + 100)[i],
    "embedding": lambda i, n: F.embedding(i % 5, torch.arange(10).reshape(5, 2) * ODD),
    "index put": lambda i, n: n.index_put((torch.tensor([0]),), torch.tensor(ODD)),
    "bucketize": lambda i, n: torch.bucketize(i % 4 + ODD - 1, torch.tensor([ODD - 1, ODD, ODD + 1, ODD + 2])),
    "one-hot": lambda i, n: F.one_hot(i % 5, 5) * ODD,
    "triangle": lambda i, n: n.tril() + n.triu(1),
    "repeat": lambda i, n: n.repeat_interleave(2, 1),
    "concatenate": lambda i, n: torch.cat([n, n.flip(0)], 1).roll(3, 1),
}
COLUMNS = [
    ("onnx", "fp32"),
    ("onnx", "fp16"),
    ("coreml", "fp32"),
    ("coreml", "fp16"),
    ("coreai", "fp32"),
    ("tvm", "fp32"),
]


class All(nn.Module):
    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    def forward(self, ids: Tensor, large: Tensor) -> dict[str, Tensor]:
        return {name.replace(" ", "_").replace("-", "_") + "_of": KEPT[name](ids, large) for name in self.names}


@pytest.mark.parametrize(("target", "precision"), COLUMNS)
def test_integers_keep_their_last_digit(target: str, precision: str, tmp_path: Path) -> None:
    if missing := targets.get(target).missing_packages():
        pytest.skip(f"{target}: {', '.join(missing)} not installed")
    module = All([*KEPT])
    made = edgesmith.export(module, target, precision=precision, inputs=(IDS, LARGE), out=tmp_path)
    outputs: Any = targets.get(target).open(made.file).run([[IDS.numpy(), LARGE.numpy()]])
    wrong = [
        f"{name}: {found.tolist()} instead of {wanted.tolist()}"
        for (name, wanted), found in zip(module(IDS, LARGE).items(), outputs[0], strict=True)
        if found.dtype.kind != "i" or not np.array_equal(found, wanted.numpy())
    ]
    assert wrong == []
