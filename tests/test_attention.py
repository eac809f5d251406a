"""Attention: every spelling becomes the op, near misses do not, its scale goes into a layer, and its files mean it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.lowering import lower
from support.rewriting import apply
from torch import Tensor, nn

from edgesmith.exporters import targets
from edgesmith.exporters.graph.capture import capture
from edgesmith.kernels import attention

B, N, H, D = 2, 7, 3, 4
Spelled = Callable[[Tensor, Tensor, Tensor], Tensor]


class Attends(nn.Module):
    """Queries, keys and values of one layer, taken apart and put together in some way."""

    def __init__(self, attend: Spelled, apart: str = "reshape") -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(H * D, 3 * H * D), nn.Linear(H * D, H * D)
        self.attend, self.apart = attend, apart
        self.bias = nn.Parameter(torch.randn(1, H, N, N))

    def forward(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        packed = self.qkv(x)
        if self.apart == "reshape":
            q, k, v = packed.reshape(batch, count, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.apart == "interleaved":
            q, k, v = packed.view(batch, count, H, 3 * D).transpose(1, 2).chunk(3, dim=-1)
        else:
            q, k, v = (part.view(batch, count, H, D).transpose(1, 2) for part in packed.split(H * D, dim=-1))
        return self.proj(self.attend(q, k, v).transpose(1, 2).reshape(batch, count, width))


def scores_scaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q @ k.transpose(-2, -1)) * D**-0.5).softmax(-1) @ v


def scores_divided(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.dropout(torch.softmax(torch.matmul(q, k.permute(0, 1, 3, 2)) / 2.0, dim=-1), 0.1, False) @ v


def queries_scaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.softmax((q * D**-0.5) @ k.mT, dim=-1, dtype=torch.float32).to(q.dtype) @ v


def by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * D**-0.5
    return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)


def batched(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.reshape(B * H, N, D) for x in (q, k, v))
    return torch.bmm(torch.bmm(q * 0.5, k.transpose(1, 2)).softmax(-1), v).view(B, H, N, D)


def own(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize("apart", ["reshape", "interleaved", "split"])
@pytest.mark.parametrize("attend", [own, scores_scaled])
def test_the_scale_goes_into_the_rows_of_the_queries_however_they_are_packed(attend: Spelled, apart: str) -> None:
    found = apply(Attends(attend, apart), torch.randn(B, N, H * D))
    assert found.counts["edgesmith.attention"] == 1
    assert not found.counts.keys() & {"aten.softmax", "aten.mul", "aten.div", "aten.scaled_dot_product_attention"}
    assert found.reports["fuse_attention"].applied[0][1] == "-> edgesmith.attention, its scale in the layer before it"


@pytest.mark.parametrize("attend", [scores_divided, queries_scaled, by_einsum, batched])
def test_other_spellings_are_the_same_op(attend: Spelled) -> None:
    found = apply(Attends(attend), torch.randn(B, N, H * D))
    assert found.counts["edgesmith.attention"] == 1
    assert not found.counts.keys() & {"aten.softmax", "aten.mul", "aten.div", "aten.matmul", "aten.bmm", "aten.einsum"}


class Biased(Attends):
    """With a bias of the scores that is a parameter, finite or a mask."""

    def __init__(self, own: bool, mask: float | None = None) -> None:
        super().__init__(self._attend)
        self.own = own
        if mask is not None:
            self.bias.data[0, 0, 0, 1] = mask

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.own:
            return F.scaled_dot_product_attention(q, k, v, self.bias)
        return (q @ k.transpose(-2, -1) * D**-0.5 + self.bias).softmax(-1) @ v


@pytest.mark.parametrize("own", [True, False])
def test_a_constant_bias_is_the_ops_own(own: bool) -> None:
    found = apply(Biased(own), torch.randn(B, N, H * D))
    assert found.counts["edgesmith.attention"] == 1
    assert "aten.add" not in found.counts


@pytest.mark.parametrize("own", [True, False])
def test_a_mask_is_left_to_those_who_know_masks(own: bool) -> None:
    found = apply(Biased(own, float("-inf")), torch.randn(B, N, H * D))
    assert "edgesmith.attention" not in found.counts
    if not own:
        (rejected,) = found.reports["fuse_attention"].rejected
        assert rejected.reason == "what is added to the scores is computed, or a mask"


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def weights_read_twice(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.transpose(-2, -1)).softmax(-1)
    return weights @ v + weights.sum(-1, keepdim=True)


def over_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1)).softmax(-2) @ v


@pytest.mark.parametrize("attend", [causal, weights_read_twice, over_queries])
def test_the_nearest_others_are_no_attention(attend: Spelled) -> None:
    assert "edgesmith.attention" not in apply(Attends(attend), torch.randn(B, N, H * D)).counts


def test_a_scale_stays_where_the_queries_rows_are_read_elsewhere() -> None:
    class Shared(Attends):
        def forward(self, x: Tensor) -> Tensor:
            packed = self.qkv(x)
            q, k, v = (one.view(B, N, H, D).transpose(1, 2) for one in packed.split(H * D, dim=-1))
            return scores_scaled(q, k, v).transpose(1, 2).reshape(B, N, H * D) + packed[..., : H * D]

    found = apply(Shared(own), torch.randn(B, N, H * D))
    assert found.reports["fuse_attention"].applied[0][1] == "-> edgesmith.attention, scaled"


class OnMaps(nn.Module):
    """Heads of maps, whose positions come last."""

    def __init__(self, written_out: bool, reduce: int = 1) -> None:
        super().__init__()
        self.q, self.kv = nn.Conv2d(H * D, H * D, 1), nn.Conv2d(H * D, 2 * H * D, reduce, reduce)
        self.written_out = written_out

    def forward(self, x: Tensor) -> Tensor:
        k, v = self.kv(x).chunk(2, dim=1)
        q, k, v = (y.reshape(y.shape[0], H, D, -1) for y in (self.q(x), k, v))
        if self.written_out:
            return (v @ ((k.transpose(2, 3) @ q) * D**-0.5).softmax(2)).reshape(x.shape)
        q, k, v = (y.transpose(2, 3) for y in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape)


@pytest.mark.parametrize("written_out", [True, False])
def test_heads_of_maps_are_not_moved(written_out: bool) -> None:
    found = apply(OnMaps(written_out, reduce=2), torch.randn(B, H * D, 4, 6))
    assert found.counts == {
        "aten.reshape": 4,
        "aten.conv2d": 2,
        "aten.split_with_sizes": 1,
        "edgesmith.attention": 1,
    }


@pytest.mark.parametrize(
    ("target", "system"), [("onnx", None), ("coreml", "iOS17"), ("coreml", "iOS18"), ("coreai", None)]
)
@pytest.mark.parametrize("channels_first", [True, False])
def test_each_form_of_each_file_means_the_op(
    target: str, system: str | None, channels_first: bool, tmp_path: Path
) -> None:
    """Both layouts, with a scale and a bias. Core ML has its own operator from iOS18 on, and goes head by head before.

    Rank 4 all the way.
    """
    if targets.get(target).missing_packages():
        pytest.skip(f"{target}: not installed")

    class Call(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return torch.ops.edgesmith.attention(q, k, v, bias, 0.7, channels_first)

    q, k, v, bias = attention.example()
    v = v[..., :4].contiguous()
    if channels_first:
        q, k, v = (x.transpose(2, 3).contiguous() for x in (q, k, v))
    path = tmp_path / f"attention{targets.get(target).suffix}"
    file = lower(target, capture(Call(), (q, k, v)), path, **({"deployment_target": system} if system else {}))
    counts = file.count_operators()
    if target == "coreml":
        assert ("scaled_dot_product_attention" in counts) == (system == "iOS18")
        assert counts.get("einsum", 0) == (0 if system == "iOS18" else 2 * 3)
    outputs = file.run([[x.numpy() for x in (q, k, v)]])
    if not isinstance(outputs, list):
        pytest.skip(outputs.reason)
    wanted = attention.reference(q, k, v, bias, 0.7, channels_first)
    assert (torch.from_numpy(outputs[0][0]) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_a_heads_bias_that_does_not_fit_is_named() -> None:
    q, k, v, bias = attention.example()
    with pytest.raises(ValueError, match=r"attention: bias must be like \[2, 3, 5, 6\], got \[1, 3, 6, 5\]"):
        attention.shape(q, k, v, bias.transpose(2, 3))
    with pytest.raises(ValueError, match="attention: k must be as wide as q, 4, got"):
        attention.shape(q, v, v, None)
    with pytest.raises(ValueError, match="attention: q must have heads, positions and a width"):
        attention.shape(q[0, 0], k, v)
