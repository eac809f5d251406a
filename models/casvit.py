"""CAS-ViT: convolutional additive self-attention networks, in plain export-friendly PyTorch.

    stem       conv3x3 s2, BN, ReLU, twice                                          H, W  ->  H/4, W/4
    stage i    L_i additive blocks at C_i channels; conv3x3 s2 + BN between stages  H/4, H/8, H/16, H/32
    block      x + local(x);  x + mixer(BN(x));  x + mlp(BN(x))
    mixer      q, k, v = split(W x);  y = proj3x3(dwc3x3(c(s(q)) + c(s(k))) * v)      (eq. 5-7)
    head       mean over H, W of BN(x), then one linear layer, or the mean of two (distillation)

Source: Zhang et al., "CAS-ViT: Convolutional Additive Self-attention Vision Transformers", arXiv 2408.03703.
Module names follow the authors' state dicts, so released checkpoints load as they are. There is no positional
parameter: every H and W divisible by 32 works. Letters: B batch, C channels, H W, as everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class SpatialGate(nn.Module):
    """s(x) = x * sigmoid(w . relu(bn(dw3x3(x)))), one mask for all channels. [B, C, H, W] -> [B, C, H, W]"""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim),
            nn.BatchNorm2d(dim),
            nn.ReLU(),
            nn.Conv2d(dim, 1, 1, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.block(x)  # mask [B, 1, H, W]


class ChannelGate(nn.Module):
    """c(x) = x * sigmoid(W mean_HW(x)), one mask for all positions. [B, C, H, W] -> [B, C, H, W]"""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(dim, dim, 1, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.block(x)  # mask [B, C, 1, 1]


class AdditiveTokenMixer(nn.Module):
    """Similarity as the sum of two gated contexts, O(H W). [B, C, H, W] -> [B, C, H, W]"""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=False)
        self.oper_q = nn.Sequential(SpatialGate(dim), ChannelGate(dim))
        self.oper_k = nn.Sequential(SpatialGate(dim), ChannelGate(dim))
        self.dwc = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.proj = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=1)  # each [B, C, H, W]
        return self.proj(self.dwc(self.oper_q(q) + self.oper_k(k)) * v)


class LocalIntegration(nn.Module):
    """conv1x1, BN, dw3x3, GELU, conv1x1. [B, C, H, W] -> [B, C, H, W]"""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(dim, dim, 1),
            nn.BatchNorm2d(dim),
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim),
            nn.GELU(),
            nn.Conv2d(dim, dim, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


class Mlp(nn.Module):
    """conv1x1 C -> rC, GELU, conv1x1 rC -> C. [B, C, H, W] -> [B, C, H, W]"""

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, ratio * dim, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(ratio * dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class AdditiveBlock(nn.Module):
    """Three residual branches: local perception, additive token mixer, MLP. [B, C, H, W] -> [B, C, H, W]"""

    def __init__(self, dim: int, mlp_ratio: int) -> None:
        super().__init__()
        self.local_perception = LocalIntegration(dim)
        self.norm1 = nn.BatchNorm2d(dim)
        self.attn = AdditiveTokenMixer(dim)
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = Mlp(dim, mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.local_perception(x)
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Embedding(nn.Module):
    """Downsampling between stages: conv3x3 s2, BN. [B, C_i, H, W] -> [B, C_i+1, H/2, W/2]"""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, out_dim, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


class CasViT(nn.Module):
    """CAS-ViT for classification, or, with `features`, for dense prediction.

    Args:
        depths: additive blocks of each of the four stages.
        dims: channels C0..C3 of the stages.
        mlp_ratio: hidden width of the MLP over its input width.
        num_classes: width of the heads.
        distillation: a second head, `dist_head`; in inference the two are averaged.
        features: return the four stage outputs, each through its own batch norm, instead of logits.

    Shapes: [B, 3, H, W], H and W divisible by 32, to logits [B, num_classes], or to four maps
    [B, C_i, H / 2^(i+2), W / 2^(i+2)].
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        mlp_ratio: int = 4,
        num_classes: int = 1000,
        distillation: bool = True,
        features: bool = False,
    ) -> None:
        super().__init__()
        self.features = features
        self.patch_embed = nn.Sequential(
            nn.Conv2d(3, dims[0] // 2, 3, stride=2, padding=1),
            nn.BatchNorm2d(dims[0] // 2),
            nn.ReLU(),
            nn.Conv2d(dims[0] // 2, dims[0], 3, stride=2, padding=1),
            nn.BatchNorm2d(dims[0]),
            nn.ReLU(),
        )
        self.network = nn.ModuleList()  # stage, embedding, stage, embedding, stage, embedding, stage
        for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            if i:
                self.network.append(Embedding(dims[i - 1], dim))
            self.network.append(nn.Sequential(*(AdditiveBlock(dim, mlp_ratio) for _ in range(depth))))
        if features:
            for i, dim in enumerate(dims):
                self.add_module(f"norm{2 * i}", nn.BatchNorm2d(dim))
            return
        self.norm = nn.BatchNorm2d(dims[-1])
        self.head = nn.Linear(dims[-1], num_classes)
        self.dist_head = nn.Linear(dims[-1], num_classes) if distillation else None
        for head in (self.head, self.dist_head):
            if head is not None:
                nn.init.trunc_normal_(head.weight, std=0.02)
                nn.init.zeros_(head.bias)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = self.patch_embed(x)  # [B, C0, H/4, W/4]
        maps = []
        for i, layer in enumerate(self.network):
            x = layer(x)
            if self.features and i % 2 == 0:
                maps.append(getattr(self, f"norm{i}")(x))
        if self.features:
            return tuple(maps)
        pooled = self.norm(x).mean((2, 3))  # [B, C3]
        if self.dist_head is None:
            return self.head(pooled)
        return (self.head(pooled) + self.dist_head(pooled)) / 2


def casvit_xs(**options: Any) -> CasViT:
    """CAS-ViT XS, 3.2 M parameters. Options: `num_classes`, `distillation`, `features` of `CasViT`."""
    return CasViT(depths=(2, 2, 4, 2), dims=(48, 56, 112, 220), **options)


def casvit_s(**options: Any) -> CasViT:
    """CAS-ViT S, 5.8 M parameters. Options as for `casvit_xs`."""
    return CasViT(depths=(3, 3, 6, 3), dims=(48, 64, 128, 256), **options)


def casvit_m(**options: Any) -> CasViT:
    """CAS-ViT M, 12.4 M parameters. Options as for `casvit_xs`."""
    return CasViT(depths=(3, 3, 6, 3), dims=(64, 96, 192, 384), **options)


def casvit_t(**options: Any) -> CasViT:
    """CAS-ViT T, 21.8 M parameters. Options as for `casvit_xs`."""
    return CasViT(depths=(3, 3, 6, 3), dims=(96, 128, 256, 512), **options)


def from_checkpoint(
    state: dict[str, Tensor], features: bool = False
) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Return what a checkpoint says about the variant: builder options, the tensors to load, and notes for the user.

    Checkpoints come with or without the distillation head and with any number of classes. The authors' dense models
    normalise each stage's output (`norm0`, `norm2`, `norm4`, `norm6`), which classification checkpoints do not have:
    then those norms stay at identity, as they do when the authors start dense training from such a checkpoint.
    """
    if features:
        dropped = [key for key in state if key.split(".")[0] in ("norm", "head", "dist_head")]
        state = {key: value for key, value in state.items() if key not in dropped}
        if any(key.startswith("norm0.") for key in state):
            return {}, state, []
        dims = [state[key].shape[0] for i in (0, 2, 4, 6) if (key := f"network.{i}.0.norm1.weight") in state]
        for i, dim in enumerate(dims):
            identity = nn.BatchNorm2d(dim).state_dict()
            state |= {f"norm{2 * i}.{key}": value for key, value in identity.items()}
        return (
            {},
            state,
            ["the checkpoint has no norms for dense features (norm0, norm2, norm4, norm6): identity is used"],
        )
    options: dict[str, Any] = {"distillation": "dist_head.weight" in state}
    if "head.weight" in state and state["head.weight"].dim() == 2:
        options["num_classes"] = state["head.weight"].shape[0]
    return options, state, []
