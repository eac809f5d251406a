"""Small modules of many kinds, whose lowered files `mutants.py` damages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgesmith.kernels.op import all_ops


class Lines(nn.Module):
    """A function as a module, with layers and tensors that it takes first."""

    def __init__(self, function: Callable[..., Any], *layers: nn.Module, **buffers: Tensor) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)
        self.names = list(buffers)
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, *inputs: Tensor) -> Any:
        """Return what the function makes of its layers, its tensors and the inputs."""
        return self.function(*self.layers, *(getattr(self, name) for name in self.names), *inputs)


@dataclass(frozen=True)
class Subject:
    """A module with its example.

    Attributes:
        whole: for each input of whole numbers, what a user's data may hold: the smallest and the largest.
        missing: whether a user's data may have NaN and infinities.
    """

    module: nn.Module
    example: tuple[Tensor, ...]
    whole: Sequence[tuple[int, int]] = field(default_factory=tuple)
    missing: bool = False


def _normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _whole(low: int, high: int, *shape: int) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(2))


def _settled(layer: nn.Module) -> nn.Module:
    """Give norms statistics and factors that differ from each other."""
    for name, value in (*layer.named_parameters(), *layer.named_buffers()):
        if value.is_floating_point() and value.dim() == 1:
            value.data.copy_(
                _normal(*value.shape, seed=len(name)) * 0.2 + (0 if "bias" in name or "mean" in name else 1)
            )
    return layer


def _rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


def _attention(q: nn.Module, k: nn.Module, v: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    scores = q(x) @ k(x).transpose(1, 2) / 8**0.5
    scores = scores.masked_fill(mask[:, None] == 0, float("-inf"))
    out: Tensor = scores.softmax(-1) @ v(x)
    return out


def _causal(q: nn.Module, x: Tensor) -> Tensor:
    heads = q(x).reshape(x.shape[0], x.shape[1], 3, 2, 4).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)


def _box(boxes: Tensor) -> Tensor:
    centre, size = boxes[..., :2], boxes[..., 2:]
    corners = torch.cat([centre - size / 2, centre + size / 2], -1)
    return corners.clamp(0, 1) * torch.tensor([640.0, 480.0, 640.0, 480.0])


def _recurrence(w: Tensor, x: Tensor) -> Tensor:
    h = torch.zeros(x.shape[0], 4)
    rows = []
    for t in range(x.shape[1]):
        h = torch.tanh(h @ w + x[:, t])
        rows.append(h)
    return torch.stack(rows, 1)


def _op(name: str) -> Subject:
    op = all_ops()[name]
    x, *others = op.example()
    tensors = {f"tensor{k}": value for k, value in enumerate(others) if isinstance(value, Tensor)}

    def call(*given: Tensor) -> Any:
        *weights, first = given
        return op.reference(first, *weights)

    return Subject(Lines(call, **tensors), (x,))


def _embedded(table: nn.Module, head: nn.Module, tokens: Tensor) -> Tensor:
    out: Tensor = head(table(tokens).mean(1))
    return out


def _encoded(layer: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = layer(x)
    return out


def _recurrent(layer: nn.Module, x: Tensor) -> Any:
    return layer(x)[0]


def _nearest(centres: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    codes = torch.cdist(x, centres).argmin(-1)
    return codes, F.embedding(codes, centres)


def _bucket(x: Tensor) -> Tensor:
    return torch.bucketize(x, torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]))


def _relative(table: nn.Module, distance: Tensor) -> Tensor:
    """Return biases by distance, as T5 does."""
    exact = 8
    far = exact + (torch.log(distance.float().clamp(min=1) / exact) / 2.0794415 * 8).to(torch.long)
    out: Tensor = table(torch.where(distance < exact, distance, far.clamp(max=15)))
    return out


IMAGE, ROW, ROWS = _normal(1, 3, 12, 12), _normal(2, 16), _normal(2, 6, 8)
POSITIVE = ROWS.abs() + 0.1
MASK = (torch.arange(6)[None] < torch.tensor([[6], [4]])).float()

Makers = dict[str, Callable[[], Subject]]


def _of(module: nn.Module, *example: Tensor, whole: Sequence[tuple[int, int]] = ()) -> Callable[[], Subject]:
    return lambda: Subject(module.eval(), example, whole)


def _lines(
    function: Callable[..., Any], *example: Tensor, whole: Sequence[tuple[int, int]] = ()
) -> Callable[[], Subject]:
    return _of(Lines(function), *example, whole=whole)


def _first() -> Makers:
    linear = [nn.Linear(8, 8) for _ in range(6)]
    return {
        "conv bn relu": _of(
            nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), _settled(nn.BatchNorm2d(4)), nn.ReLU()), IMAGE
        ),
        "conv silu pool linear": _of(
            nn.Sequential(
                nn.Conv2d(3, 6, 3, stride=2), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)
            ),
            IMAGE,
        ),
        "depthwise hardswish": _of(nn.Sequential(nn.Conv2d(3, 3, 3, groups=3, padding=1), nn.Hardswish()), IMAGE),
        "transposed conv": _of(nn.ConvTranspose2d(3, 2, 3, stride=2, output_padding=1), IMAGE),
        "reflected conv": _of(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), IMAGE),
        "layer norm": _of(_settled(nn.LayerNorm(8)), ROWS),
        "group norm": _of(_settled(nn.GroupNorm(2, 4)), _normal(2, 4, 5, 5)),
        "instance norm": _of(_settled(nn.InstanceNorm2d(3, affine=True)), IMAGE),
        "rms norm": _lines(_rms, ROWS),
        "l2 normalise": _lines(lambda x: F.normalize(x, dim=-1), ROWS),
        "gelu mlp": _of(nn.Sequential(linear[3], nn.GELU(), linear[4]), ROWS),
        "gelu tanh": _lines(lambda x: F.gelu(x, approximate="tanh"), ROWS),
        "relu6": _lines(lambda x: F.relu6(x * 3), ROWS),
        "leaky elu": _lines(lambda x: F.leaky_relu(x, 0.1) + F.elu(x, 0.7), ROWS),
        "softplus mish": _lines(lambda x: F.softplus(x) + F.mish(x), ROWS),
        "attention with a mask": _of(Lines(_attention, *linear[:3]), ROWS, MASK),
        "causal attention": _of(Lines(_causal, nn.Linear(8, 24)), ROWS),
        "softmax": _lines(lambda x: x.softmax(-1), ROWS),
    }


def _second() -> Makers:
    return {
        "log softmax": _lines(lambda x: x.log_softmax(1), ROWS),
        "where": _lines(lambda x, y: torch.where(x > y, x, y * 2), ROWS, _normal(2, 6, 8, seed=3)),
        "threshold": _lines(lambda x: torch.where(x >= 0.5, x - 1, x), ROWS),
        "at most a half": _lines(lambda x: (x <= 0.5).float() * x.cos(), ROWS),
        "spike": _lines(lambda x: (x - 1 >= 0).float().cumsum(1), ROWS * 1.5),
        "counts": _lines(lambda x: (x > 0).sum(-1), ROWS),
        "clamp": _lines(lambda x: x.clamp(-2.5, 2.0) + x.clamp(min=0.25), ROWS),
        "boxes": _lines(_box, torch.rand(1, 7, 4, generator=torch.Generator().manual_seed(4)) * 0.5 + 0.25),
        "sign round": _lines(lambda x: x.sign() + x.round() / 4, ROWS * 2),
        "floor ceil": _lines(lambda x: x.floor() + 2 * x.ceil() + x.trunc(), ROWS * 2),
        "floor of division": _lines(lambda x: torch.div(x, 0.75, rounding_mode="floor"), ROWS * 3),
        "remainder": _lines(lambda x, y: torch.remainder(x, y) + torch.fmod(x, 1.5), ROWS * 3, POSITIVE),
        "logarithm": _lines(lambda x: (x.clamp(min=1e-5)).log10() * 20, POSITIVE),
        "decibels": _lines(lambda x: torch.log(x.square().sum(1) + 1e-8), ROWS),
        "powers": _lines(lambda x: x.pow(1.5) + 1 / (x + 0.5) + x.sqrt(), POSITIVE),
        "missing values": _lines(lambda x: x.nan_to_num(0.0, 1e4, -1e4) * 2, ROWS),
        "mean of known": _lines(lambda x: torch.where(x.isnan(), torch.zeros_like(x), x).sum(-1), ROWS),
        "gather": _of(Lines(lambda w, i: w[i] * 2, w=_normal(9, 4)), _whole(0, 9, 5), whole=[(0, 8)]),
        "embedding": _of(Lines(_embedded, nn.Embedding(50, 8), nn.Linear(8, 4)), _whole(0, 50, 1, 6), whole=[(0, 49)]),
        "relative positions": _of(Lines(_relative, nn.Embedding(16, 2)), _whole(0, 200, 12), whole=[(0, 200)]),
        "gather by input": _lines(lambda x, i: x.gather(1, i), ROWS, _whole(0, 6, 2, 3, 8), whole=[(0, 5)]),
        "max pooling": _of(nn.MaxPool2d(3, 2, padding=1), IMAGE),
        "average pooling": _of(nn.AvgPool2d(3, 2, padding=1), IMAGE),
    }


def _third() -> Makers:
    return {
        "ceil pooling": _of(nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False), _normal(1, 3, 11, 11)),
        "lstm": _of(Lines(_recurrent, nn.LSTM(8, 5, batch_first=True)), ROWS),
        "gru": _of(Lines(_recurrent, nn.GRU(8, 5, batch_first=True, bidirectional=True)), ROWS),
        "cumulative sum": _lines(lambda x: x.cumsum(1) / torch.arange(1.0, 7.0)[:, None], ROWS),
        "fft magnitude": _lines(lambda x: torch.fft.rfft(x).abs(), ROW),
        "upsampling": _lines(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), _normal(1, 2, 5, 5)),
        "nearest": _lines(lambda x: F.interpolate(x, size=(7, 8), mode="nearest"), _normal(1, 2, 5, 5)),
        "bicubic": _lines(
            lambda x: F.interpolate(x, size=(8, 8), mode="bicubic", align_corners=True), _normal(1, 2, 5, 5)
        ),
        "grid sample": _lines(
            lambda x, g: F.grid_sample(x, g, align_corners=False), _normal(1, 2, 5, 5), _normal(1, 4, 4, 2) * 0.4
        ),
        "argmax": _lines(lambda x: x.argmax(-1), ROWS),
        "classes": _of(Lines(lambda w, x: w(x).argmax(-1), nn.Linear(8, 300)), ROWS),
        "offsets": _lines(lambda x: x.argmax(-1) + 20000 * torch.arange(6), ROWS),
        "codes": _of(Lines(_nearest, centres=_normal(16, 8)), ROWS),
        "whole division": _lines(
            lambda a, b: a // b + a % b, _whole(-50, 50, 12), _whole(1, 9, 12), whole=[(-50, 49), (1, 8)]
        ),
        "truncated division": _lines(
            lambda a: torch.div(a, 4, rounding_mode="trunc") * 3 - a, _whole(-50, 50, 12), whole=[(-50, 49)]
        ),
    }


def _fourth() -> Makers:
    return {
        "bits": _lines(lambda a: (a >> 2) & 5 | 16, _whole(0, 200, 12), whole=[(0, 255)]),
        "hash": _lines(lambda a: (a * 7919 + 13) % 1000003, _whole(0, 5000, 12), whole=[(0, 5000)]),
        "buckets": _lines(_bucket, ROW),
        "top-k": _lines(lambda x: x.topk(3, -1), ROWS),
        "sorted": _lines(lambda x: x.sort(-1).values[..., 1:4], ROWS),
        "padding": _lines(lambda x: F.pad(x, (2, 1), value=0.5), ROWS),
        "reflected padding": _lines(lambda x: F.pad(x, (2, 1), mode="reflect"), ROWS),
        "circular padding": _lines(lambda x: F.pad(x, (2, 1), mode="circular"), ROWS),
        "einsum": _lines(lambda x, y: torch.einsum("bic,bjc->bij", x, y), ROWS, _normal(2, 5, 8, seed=5)),
        "slices": _lines(lambda x: x[:, 1:-1, ::2] - x[:, 2:, 1::2], ROWS),
        "roll flip": _lines(lambda x: x.roll(2, 1) + 2 * x.flip(-1), ROWS),
        "triangle": _lines(lambda x: torch.tril(x @ x.transpose(1, 2), -1), ROWS),
        "shuffle": _lines(lambda x: F.pixel_shuffle(x, 2), _normal(1, 8, 3, 3)),
        "unfold": _lines(lambda x: F.unfold(x, 2, stride=2), _normal(1, 2, 6, 6)),
        "variance": _lines(lambda x: x.var(-1) + x.std(1).sum(-1, keepdim=True), ROWS),
        "extremes": _lines(lambda x: x.amax(-1) - x.amin(-1) + x.abs().max(), ROWS),
        "masked mean": _lines(lambda x, m: (x * m[..., None]).sum(1) / m.sum(1, keepdim=True).clamp(min=1), ROWS, MASK),
        "two scales": _lines(lambda x: torch.cat([x * 1000, x.tanh() * 0.01], -1), ROWS),
        "logic": _lines(lambda a, b: (a & ~b) | (a ^ b), ROWS > 0, ROWS < 0.5),
        "minimum": _lines(lambda x, y: torch.minimum(x, y) - torch.maximum(x * 2, y), ROWS, _normal(2, 6, 8, seed=6)),
        "encoder": _of(
            Lines(_encoded, nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")), ROWS
        ),
        "recurrence": _of(Lines(_recurrence, w=_normal(4, 4) * 0.4), _normal(2, 7, 4)),
    }


def subjects() -> Makers:
    """Return the modules by name, each made when it is asked for."""
    torch.manual_seed(0)
    found = _first() | _second() | _third() | _fourth()
    for name in ("missing values", "mean of known"):
        found[name] = lambda make=found[name]: replace(make(), missing=True)  # type: ignore[misc]  # bound at once
    for name in ("lif", "selective_scan", "ssd", "leaky_sum", "channel_norm", "additive_attention", "vector_quantise"):
        found[name] = lambda name=name: _op(name)  # type: ignore[misc]  # bound at once
    return found
