"""Modules as people bring them: odd in what they take, in what they return, or in what they do on the way."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import distributions as D


class Lines(nn.Module):
    """A layer of four numbers, and a function of it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.layer, *args, **kwargs)


class BranchOnValues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x * 2
        return x


class LoopOverValues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        while x.abs().max() > 1:
            x = x / 2
        return x


class ReadsANumber(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.max().item()


class LengthFromValues(nn.Module):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return x[:, : int(lengths.max())]


class MaskSelects(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0]


class Nonzero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten()[torch.nonzero(x.flatten()).squeeze(1)]


class Unique(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.unique(x)


class ThroughNumpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.from_numpy(np.cumsum(x.numpy(), axis=1))


class ToAList(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor(sorted(x.flatten().tolist()))


class RootOfShape(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        side = int(math.sqrt(x.shape[1]))
        return x.reshape(x.shape[0], side, side).transpose(1, 2)


class RootOfShapeAsTensor(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        side = int(torch.tensor(x.shape[1]).sqrt())
        return x.reshape(x.shape[0], side, side).transpose(1, 2)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        x += 1
        x[:, 0] = 0
        return self.act(x)


class DropPath(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop = nn.Linear(4, 4), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(self.layer(x))
        if self.training:
            y = y * torch.bernoulli(torch.full((x.shape[0], 1), 0.9))
        return x + y


class AlwaysDrops(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)


class DotData(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x: Tensor) -> Tensor:
        return x.data * self.scale.data


class TrainingBranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.aux = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.training:
            return self.head(x), self.aux(x)
        return self.head(x)


class MovesConstants(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.tensor([1.0, 2.0, 3.0, 4.0])

    def forward(self, x: Tensor) -> Tensor:
        return x - self.mean.to(x.device, x.dtype)


class KeepsState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = None

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.last is None else x + self.last
        self.last = y
        return y


class ComplexBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("turn", torch.polar(torch.ones(2), torch.arange(2.0)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.view_as_real(torch.view_as_complex(x.reshape(-1, 2, 2)) * self.turn).flatten(1)


class NeedsCuda(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.cuda() * 2


class ConstantOnCuda(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.arange(4, device="cuda")


class Bf16Autocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.layer(x)
        return y.float()


class WrongRank(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        return self.conv(x)


class Unpacks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.reshape(b, c, h * w)


class Asserts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] % 16 == 0, "width must be a multiple of 16"
        return x


class AssertsValues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert (x > -100).all(), "values must be above -100"
        return x * 2


class ReturnsText(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return {"y": x, "label": "cat"}


class ReturnsNothing(nn.Module):
    def forward(self, x: Tensor) -> None:
        x * 2


class TakesSparse(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sparse.mm(x, torch.ones(4, 2))


class MakesSparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.adjacency = torch.eye(4).to_sparse()

    def forward(self, x: Tensor) -> Tensor:
        return torch.sparse.mm(self.adjacency, x)


class TakesGradients(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (g,) = torch.autograd.grad((x**2).sum(), x)
        return g


class _Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


class OwnFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _Square.apply(x)


class Checkpoints(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(self.layer, x, use_reentrant=False)


class TriesAgain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        try:
            return x.reshape(-1, 3)
        except RuntimeError:
            return x.reshape(-1, 2)


class Prints(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        print("shape", x.shape, float(x.shape[0]))
        return x * 2


class PrintsValues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        if float(y.abs().max()) > 1e9:
            print("large")
        return y


class Quantised(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.quantize_per_tensor(x, 0.1, 0, torch.qint8).dequantize()


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


@dataclass
class Result:
    """A result with names."""

    logits: Tensor
    hidden: list[Tensor]
    loss: Tensor | None = None


class Pair(NamedTuple):
    """Two results."""

    boxes: Tensor
    scores: Tensor


class ReturnsResult(nn.Module):
    def forward(self, x: Tensor, *, return_dict: bool = True) -> Any:
        return Result(x * 2, [x, x + 1]) if return_dict else (x * 2,)


class ReturnsPairs(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"first": Pair(x, x * 2), "count": 2}


class KeywordOnly(nn.Module):
    def forward(self, x: Tensor, *, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
        return x * scale if mask is None else x * mask * scale


class TakesResult(nn.Module):
    def forward(self, result: Result) -> Tensor:
        return result.logits + result.hidden[0]


class AsksItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.gate: Callable[[Tensor], Tensor] = lambda x: x * torch.sigmoid(self.layer(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x)


class Hooked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(4, 4), {}
        self.layer.register_forward_hook(self._see)

    def _see(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        self.seen["output"] = output
        return output * 2

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).relu()


class RaisesItself(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            raise ValueError(f"wants images [B, C, H, W], got {list(x.shape)}")
        return x


class OnMeta(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Vmapped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.func.vmap(lambda row: row.cumsum(0))(x)


class GathersOutOfRange(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(tokens)


class PythonsRandom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * random.random()


class NotInitialised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LazyLinear(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class AnyNumber(nn.Module):
    def forward(self, *parts: Tensor) -> Tensor:
        return torch.cat(parts, dim=-1)


class NeedsTwo(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x * mask


class OtherType(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WordsOfFloats(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(tokens)


class PacksSequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 4, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        return nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0]


class ReadsAFile(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.load("missing.pt")


class CountsCalls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x / self.calls


class Yields(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return (x * k for k in (1, 2))


@torch.jit.script
def _scripted(x: Tensor) -> Tensor:
    return x * 2 + 1


class CallsAScript(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _scripted(x)


class WrongSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class DividesByZero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (1 / (x.shape[1] - 4))


class Recurses(nn.Module):
    def forward(self, x: Tensor, depth: int = 3) -> Tensor:
        return x if depth == 0 else self.forward(x * 2, depth - 1)


class LambdaOfValues(Lines):
    def __init__(self) -> None:
        super().__init__(lambda layer, x: layer(x) if layer(x).sum() > 0 else x)


class LambdaOfSizes(Lines):
    def __init__(self) -> None:
        super().__init__(lambda layer, x: layer(x) * math.prod(x.shape))


class _Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((4,), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.scale * x)


class HoldsAScript(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = torch.jit.script(_Gate())

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x)


class NestsTensors(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.nested.nested_tensor([x[0], x[0]]).to_padded_tensor(0.0)


class TakesJacobian(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.jacrev(lambda row: self.layer(row).tanh())(x[0])


class CallsItselfOtherwise(nn.Module):
    def __init__(me) -> None:  # noqa: N805  # the point of it
        super().__init__()
        me.register_buffer("mean", torch.zeros(4))

    def forward(me, x: Tensor) -> Tensor:  # noqa: N805  # the point of it
        me.mean.mul_(0.9).add_(x.mean(0))
        return x - me.mean


class PassesThroughSparse(nn.Module):
    """A graph's edges as a sparse matrix, and a pruned weight that was sparse once."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4))
        self.register_buffer("edges", torch.tensor([[0, 1, 1, 3], [1, 0, 2, 2]]))

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight.to_sparse().to_dense()
        return torch.sparse_coo_tensor(self.edges, torch.ones(4), (4, 4)) @ y


class SoftmaxOfSparse(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sparse.softmax(x.to_sparse(), 1).to_dense()


class DecodesCausally(nn.Module):
    """PyTorch looks at a mask's values for whether it is causal."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(4, 2, 4, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, 1)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[0])
        return self.decoder(x[None], x[None], tgt_mask=mask)


class TakesAnyMask(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 4, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.encoder(x[None], mask=mask)


class Distributes(nn.Module):
    """Distributions look at their arguments' values, and at what their likelihood is asked of."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        normal, classes = D.Normal(x, x.exp()), D.Categorical(logits=x)
        squashed = D.TransformedDistribution(D.Normal(x, 1.0), [D.SigmoidTransform()])
        return (
            normal.log_prob(x * 2),
            D.kl_divergence(normal, D.Normal(x, 1.0)),
            classes.entropy(),
            squashed.log_prob(x.sigmoid()),
        )


class WritesANumber(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        print(f"mean {x.mean().item():.2f}")
        return x * 2


class NamesNoClasses(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return F.one_hot(tokens).float()


class CopiesDeeply(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return copy.deepcopy(x) * 2


class AsksForMemory(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.data_ptr() else x


class RenormsRows(nn.Module):
    """Embeddings whose rows are shortened, in place, as they are read."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 4, max_norm=0.5)
        self.bag = nn.EmbeddingBag(3, 4, max_norm=1.5, norm_type=1.0, mode="sum")

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(tokens).sum(1) + self.bag(tokens)


class SharesShortRows(nn.Module):
    """A head that reads what a look-up has written."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(3, 4, max_norm=0.5), nn.Linear(4, 3)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.table(tokens))
